"""A study as a person answers it: by keys and clicks, over a killed server, and from a file without a network."""

import json
import time

import numpy as np
import pytest
from pages import WIDTHS, fits, readable

from cascade.cli.main import main
from cascade.eval.images import image_array
from cascade.eval.study.answers import read_answers
from cascade.eval.study.design import PAGE, write_study
from cascade.eval.study.fool_rates import study_report
from cascade.eval.study.page import study_page

pytestmark = pytest.mark.browser


def make(folder, seconds=None, small=None):
    """Ten pictures that count, one for practice and two checks."""
    rng = np.random.default_rng(0)
    real, made = (image_array(rng.integers(0, 256, (13, 32, 32, 3), np.uint8)) for _ in range(2))
    options = {"small": small, "seconds": seconds, "per_rater": 10, "practice": 1, "checks": 2}
    study = write_study(folder, "Ten pairs", real, [f"{i}.png" for i in range(13)], {"noise": made}, **options)
    (folder / PAGE).write_text(study_page(study, folder, served=False), "utf-8")
    return study


def truth(study, page):
    """Which side is real, and the pair that is shown."""
    left, right = (page.locator(f"#{side} img").get_attribute("src").split("/")[-1] for side in ("left", "right"))
    pair = next(pair for pair in study.pairs if {pair.real, pair.made} == {left, right})
    return pair, "left" if pair.real == left else "right"


def practise(page, width=1280):
    """The practice pair, by keys alone: Enter begins, an arrow answers, Enter goes on."""
    page.locator("#start:focus").wait_for()
    page.keyboard.press("Enter")
    page.locator("#left:enabled").wait_for()
    page.keyboard.press("ArrowLeft")
    page.locator("#next:focus").wait_for()
    assert "the real picture is on the" in page.locator("#told").inner_text()
    page.keyboard.press("Enter")


@pytest.mark.parametrize("width", WIDTHS)
def test_ten_pairs_are_answered_and_none_is_lost_when_the_server_is_killed(width, tmp_path, opened, served):
    study = make(tmp_path)
    server = served("study", "serve", tmp_path, "--port", 0)
    assert "to this machine alone" in "".join(server.said)
    page = opened(server.url, width)
    fits(page)
    readable(page, "h1", "#start", "#intro p")
    practise(page)
    fooled = set()
    for number in range(12):
        page.locator("#left:enabled").wait_for()
        if number == 0:
            fits(page)
            readable(page, "#question", "#left b", "#count")
        pair, real = truth(study, page)
        wrong = pair.kind == "rated" and number % 3 == 0
        if wrong:
            fooled.add(pair.picture)
        side = real if not wrong else "left" if real == "right" else "right"
        if number == 5:  # the server is gone: the page says so, keeps answers, and goes on with the pictures once it is back
            while page.evaluate("kept.sent < kept.answers.length"):
                time.sleep(0.05)
            server.kill()
        if number % 2:
            page.keyboard.press(f"Arrow{side.capitalize()}")
        else:
            page.locator(f"#{side}").click()
        if number == 5:
            page.get_by_role("alert").filter(has_text="doesn't").wait_for()
            readable(page, "#trouble")
            assert len(read_answers(study, tmp_path)) == 5
            server = served("study", "serve", tmp_path, "--port", server.port)
    page.get_by_text("All 12 answers are stored").wait_for()
    page.reload()
    page.get_by_text("12 pairs were answered already").wait_for()
    code, printed = server.interrupt()
    assert code == 0 and "12 answers of 1 people" in printed
    (row, *_) = study_report(study, read_answers(study, tmp_path)).rows
    assert row.values["fool rate, %"] == pytest.approx(100 * len(fooled) / 10) and row.values["pictures"] == 10
    assert main(["study", "report", str(tmp_path)]) == 0


def test_a_pair_is_seen_for_its_time_and_a_file_without_network_saves_the_answers(tmp_path, opened):
    study = make(tmp_path, seconds=0.6, small=8)
    page = opened((tmp_path / PAGE).as_uri(), 375)
    page.locator("#start").click()
    page.locator("#left:not(.unseen)").wait_for()
    begun = page.evaluate("performance.now()")
    assert page.locator("#left").is_disabled() and page.locator("#small").is_visible()
    page.locator("#left.unseen:enabled").wait_for()
    assert page.evaluate("performance.now()") - begun > 300  # some of the 600 ms had gone when they were looked for
    assert not page.locator("#left img").is_visible() and not page.locator("#small").is_visible()
    page.keyboard.press("2")
    page.locator("#next").click()
    for _ in range(3):
        page.locator("#left:enabled").wait_for()
        page.keyboard.press("1")
    page.locator("#left:disabled").wait_for()
    page.reload()  # goes on where it was
    page.get_by_text("3 pairs were answered already").wait_for()
    page.get_by_role("button", name="Go on").click()
    for _ in range(9):
        page.locator("#left:enabled").wait_for()
        page.keyboard.press("1")
    with page.expect_download() as saved:
        page.get_by_role("button", name="Save the answers").click()
    file = tmp_path / "saved.json"
    saved.value.save_as(file)
    answers = read_answers(study, tmp_path, [file])
    assert len({answer.pair for answer in answers}) == 12 and all(answer.chosen == answer.left for answer in answers)
    assert len({study.pairs[answer.pair].picture for answer in answers}) == 12
    assert 1 < sum(answer.left == study.pairs[answer.pair].real for answer in answers) < 11  # sides are mixed
    assert json.loads(file.read_text())["rater"] == answers[0].rater
