"""The demo as a person uses it: a picture is made, chosen and refined by clicks, at both widths."""

import re
import sys
from pathlib import Path

import pytest
from pages import WIDTHS, fits, readable
from PIL import Image

from cascade import CascadePipeline, png

sys.path.insert(0, str(Path(__file__).parents[1] / "cascade"))
import tiny  # noqa: E402  # beside other tests

pytestmark = pytest.mark.browser


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("demo") / "tiny"
    tiny.cascade().save_pretrained(folder)
    return folder


def test_pictures_are_made_refined_and_enlarged_by_clicks(model, opened, served, tmp_path):
    pytest.importorskip("gradio", reason="gradio is not installed")
    server = served("demo", model, "--port", 0)
    assert "tiny is served on" in "".join(server.said) and "to this machine alone" in "".join(server.said)
    for width in WIDTHS:
        page = opened(server.url, width)
        page.get_by_role("button", name="Make", exact=True).wait_for()
        fits(page)
        readable(page, "h1", "h1 + p", "button.primary")
        field = page.get_by_label("Class (type to search)").first
        field.fill("dgo")
        field.press("Enter")
        page.get_by_label("Pictures").first.fill("2")
        page.get_by_role("button", name="Make", exact=True).press("Enter")  # by the keyboard
        page.get_by_role("alert").filter(has_text="unknown class 'dgo' among 3 classes: the closest are 'dog' (1)").wait_for()
        readable(page, ".failed")
        field.fill("dog")
        field.press("Enter")
        page.get_by_role("button", name="Make", exact=True).click()
        page.get_by_text("Done. Click a picture").wait_for()
        page.locator("#stage-1 .thumbnail-item").nth(1).click()
        command = page.locator("#command").locator("textarea, input")
        command.wait_for()
        assert command.input_value() == f"generate --class dog --seed 1 --size 16 --model {model}"
        page.locator("#stage-2 .thumbnail-item").nth(1).click()
        page.wait_for_timeout(300)
        page.locator("#stage-0 .thumbnail-item").nth(1).click()
        page.get_by_role("button", name="Refine to 16").click()
        page.get_by_text("Done. Click a picture").wait_for()
        page.locator("#stage-1 .thumbnail-item").nth(0).click()
        page.get_by_role("button", name="Refine to 32").click()
        page.locator("#stage-2 .thumbnail-item").nth(1).wait_for(state="detached")
        page.get_by_text("Done. Click a picture").wait_for()
        page.locator("#stage-2 .thumbnail-item").nth(0).click()
        fits(page)
        source = page.locator("#large img").get_attribute("src")
        while "-32.png" not in source:
            page.wait_for_timeout(100)
            source = page.locator("#large img").get_attribute("src")
        file = tmp_path / f"{width}.png"
        file.write_bytes(page.request.get(source).body())
        with Image.open(file) as image:
            asked = CascadePipeline.from_pretrained(model)("dog", seeds=1, size=32, batch_size=None).images[0]
            assert image.tobytes() == asked.tobytes()  # refined step by step by clicks: what the whole cascade makes
        assert png.read_chunks(file)["Command"] == command.input_value()
    page.get_by_role("tab", name="Enlarge a picture").click()
    Image.new("RGB", (9, 7), "red").save(tmp_path / "flat.png")
    page.locator("#own input[type=file]").set_input_files(tmp_path / "flat.png")
    page.locator("#own img").wait_for()
    page.get_by_role("button", name="Enlarge", exact=True).click()
    page.get_by_role("alert").filter(has_text="flat.png is 9x7, expected a square picture; crop it first").wait_for()
    assert server.interrupt()[0] == 0


def test_a_port_in_use_is_answered_in_a_sentence(model, served, capsys):
    from cascade.cli.main import main

    server = served("demo", model, "--port", 0)
    assert main(["demo", str(model), "--port", str(server.port)]) == 2
    error = capsys.readouterr().err
    assert re.fullmatch(
        r"cascade demo: port \d+ of 127\.0\.0\.1 can't be used \(.*\); choose another by --port or --host\n", error
    )
