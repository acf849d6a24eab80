"""What the commands that sample write, what it says of itself, and that it can be made again."""

import json
import shlex
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from cascade import CascadePipeline
from cascade import png as pictures
from cascade.cli.generate import main as generate
from cascade.cli.main import main
from cascade.schedulers import SCHEDULERS


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def pixels(path: Path | str) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image)


def run_again(picture: Path | str, folder: Path, monkeypatch) -> list[str]:
    """Run the command that a picture carries, in a new folder; the names of the files that it makes."""
    program, *words = shlex.split(pictures.read_chunks(Path(picture))["Command"])
    folder.mkdir()
    monkeypatch.chdir(folder)
    assert (generate if program == "generate" else main)(words) == 0
    return names(folder)


def test_generate_writes_what_the_pipeline_makes(model, here, capsys):
    assert generate(["--class", "cat", "--class", "1", "--model", str(model), "-n", "2", "--seed", "3"]) == 0
    expected = CascadePipeline.from_pretrained(model)(
        class_labels=["cat", "hot dog"], num_images_per_class=2, seeds=[3, 4, 3, 4]
    ).images
    files = ["cat-seed3.png", "cat-seed4.png", "hot-dog-seed3.png", "hot-dog-seed4.png"]
    assert names(here) == files and capsys.readouterr().out.split() == files
    for file, image in zip(files, expected, strict=True):
        assert np.array_equal(pixels(file), np.asarray(image))
    assert not np.array_equal(pixels(files[0]), pixels(files[1])), "seeds differ"
    assert not np.array_equal(pixels(files[0]), pixels(files[2])), "classes differ"


def test_a_picture_carries_the_command_that_makes_the_same_bytes_alone(model, here, tmp_path, monkeypatch):
    options = [
        "--steps",
        "base=3",
        "--scheduler",
        "euler",
        "--aug-level",
        "0.3",
        "--guidance-scale",
        "1.5,2",
        "--consistency",
        "sr16=on",
    ]
    assert generate(["--class", "cat", "--class", "hot dog", "-n", "2", "--model", str(model), "--stages", *options]) == 0
    for number, (picture, again) in enumerate(
        [("hot-dog-seed1.png", "hot-dog-seed1.png"), ("cat-seed1-base.png", "cat-seed1.png")]
    ):
        assert run_again(here / picture, tmp_path / str(number), monkeypatch) == [again]
        assert Path(again).read_bytes() == (here / picture).read_bytes()


def test_a_picture_says_what_it_was_made_from(model, here):
    options = ["--steps", "base=3", "--scheduler", "sr16=euler", "--aug-level", "0.3"]
    assert generate(["--class", "hot_dog", "--seed", "5", "--model", str(model), *options]) == 0
    chunks = pictures.read_chunks(here / "hot-dog-seed5.png")
    assert chunks["Software"].startswith("cascade-diffusion ")
    assert (chunks["Model"], chunks["Class"], chunks["Class index"], chunks["Seed"]) == ("tiny", "hot dog", "1", "5")
    settings = json.loads(chunks["Settings"])
    assert settings["stages"] == {
        "base": {"num_inference_steps": 3, "guidance_scale": 1.0, "scheduler": "DDIMScheduler"},
        "sr16": {
            "num_inference_steps": 2,
            "guidance_scale": 1.0,
            "aug_level": 0.3,
            "consistency": False,
            "scheduler": "EulerDiscreteScheduler",
        },
    }
    assert settings["dtype"] == "float32"


def test_size_stops_at_the_stage_that_makes_it(model, here):
    assert generate(["--class", "cat", "--model", str(model), "--stages"]) == 0
    assert names(here) == ["cat-seed0-base.png", "cat-seed0.png"]
    base = pixels("cat-seed0-base.png")
    assert generate(["--class", "cat", "--model", str(model), "--size", "8", "--out", "small"]) == 0
    assert base.shape == (8, 8, 3) and np.array_equal(pixels("small/cat-seed0.png"), base)
    assert pixels("cat-seed0.png").shape == (16, 16, 3)


def test_a_grid_has_a_row_for_each_class(model, here, tmp_path, monkeypatch):
    common = ["--class", "cat", "--class", "crêpe", "-n", "3", "--model", str(model)]
    assert generate([*common, "--out", "single"]) == 0
    assert generate([*common, "--grid", "--out", "sheets/grid.png"]) == 0
    sheet = pixels("sheets/grid.png")
    assert sheet.shape == (33, 50, 3), "2 rows and 3 columns of 16 px, with gaps of 1 px"
    for row, stem in enumerate(["cat", "crêpe"]):
        for column in range(3):
            top, left = 17 * row, 17 * column
            assert np.array_equal(sheet[top : top + 16, left : left + 16], pixels(f"single/{stem}-seed{column}.png"))
    assert (sheet[16] == 255).all() and (sheet[:, [16, 33]] == 255).all()
    grid = here / "sheets" / "grid.png"
    assert run_again(grid, tmp_path / "again", monkeypatch) == ["cat-crêpe-seed0-grid.png"]
    assert Path("cat-crêpe-seed0-grid.png").read_bytes() == grid.read_bytes()


def test_many_pictures_of_one_class_make_a_square_grid(model, here):
    assert generate(["--class", "cat", "-n", "5", "--grid", "--size", "8", "--model", str(model)]) == 0
    assert pixels("cat-seed0-grid.png").shape[:2] == (2 * 8 + 1, 3 * 8 + 2)


def test_json_tells_files_and_settings(model, here, capsys):
    assert generate(["--class", "cat", "--model", str(model), "-n", "2", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert [file["path"] for file in told["files"]] == names(here)
    assert told["files"][1]["seeds"] == [1] and told["files"][1]["class_indices"] == [0] and told["files"][1]["size"] == 16
    assert told["settings"]["stages"]["sr16"]["num_inference_steps"] == 2
    assert told["model"] == "tiny"


@pytest.mark.parametrize("name", SCHEDULERS)
def test_every_scheduler_runs_and_is_named(model, here, name):
    steps = "12" if name == "heun" else "3"  # it is refused where it would make noise of steps as wide as three
    assert generate(["--class", "cat", "--size", "8", "--steps", steps, "--scheduler", name, "--model", str(model)]) == 0
    told = json.loads(pictures.read_chunks(here / "cat-seed0.png")["Settings"])
    assert told["stages"]["base"]["scheduler"] == SCHEDULERS[name]
    assert np.isfinite(pixels("cat-seed0.png")).all()


def test_cascade_generate_is_generate(model, here):
    words = ["--class", "cat", "--size", "8", "--model", str(model)]
    assert main(["generate", *words, "--out", "a"]) == generate([*words, "--out", "b"]) == 0
    assert (here / "a/cat-seed0.png").read_bytes() == (here / "b/cat-seed0.png").read_bytes()


def test_upscale_makes_of_a_base_picture_what_the_last_stage_makes(model, here, tmp_path, monkeypatch):
    source = Image.fromarray(np.random.default_rng(0).integers(0, 256, (8, 8, 3), dtype=np.uint8))
    source.save("photo.png")
    assert main(["upscale", str(here / "photo.png"), "--class", "cat", "--seed", "4", "--model", str(model)]) == 0
    cascade = CascadePipeline.from_pretrained(model)
    expected = cascade.upscale(source, class_labels="cat", seeds=[4]).images[0]
    assert names(here) == ["photo-16.png", "photo.png"]
    assert np.array_equal(pixels("photo-16.png"), np.asarray(expected))
    assert run_again(here / "photo-16.png", tmp_path / "again", monkeypatch) == ["photo-16.png"]
    assert Path("photo-16.png").read_bytes() == (here / "photo-16.png").read_bytes()


def test_upscale_gives_each_picture_its_class_whatever_the_others_are(model, here):
    for place, name in enumerate("ab"):
        Image.fromarray(np.random.default_rng(place).integers(0, 256, (8, 8, 3), dtype=np.uint8)).save(f"{name}.png")
    common = ["--model", str(model), "--json", "--out"]
    assert main(["upscale", "a.png", "b.png", "--class", "cat", "--class", "crêpe", *common, "both"]) == 0
    assert main(["upscale", "b.png", "--class", "crêpe", *common, "alone.png"]) == 0
    assert np.array_equal(pixels("both/b-16.png"), pixels("alone.png"))


def test_a_transparent_picture_is_laid_on_white(model, here):
    Image.new("RGBA", (8, 8), (0, 0, 0, 0)).save("clear.png")
    Image.new("RGB", (8, 8), "white").save("white.png")
    assert main(["upscale", "clear.png", "white.png", "--class", "cat", "--model", str(model)]) == 0
    assert np.array_equal(pixels("clear-16.png"), pixels("white-16.png"))


def test_inspect_tells_what_lies_there(model, here, capsys):
    assert main(["inspect", str(model)]) == 0
    told = capsys.readouterr().out
    cascade = CascadePipeline.from_pretrained(model)
    for stage in cascade.stages.values():
        assert f"{stage.unet.num_parameters():,} parameters in F32" in told
    files = [path for path in model.rglob("*") if path.is_file()]
    assert f"{len(files)} files, {sum(path.stat().st_size for path in files):,} bytes" in told
    assert "3 classes" in told and "8 -> 16 px" in told and "num_inference_steps 2" in told
    assert main(["inspect", str(model / "sr16")]) == 0
    assert "sees 8 px, makes 16 px" in capsys.readouterr().out
    assert generate(["--class", "cat", "--size", "8", "--model", str(model)]) == 0
    capsys.readouterr()
    assert main(["inspect", "cat-seed0.png"]) == 0
    told = capsys.readouterr().out.splitlines()
    assert told[0].split() == ["File", (here / "cat-seed0.png").as_uri()]
    assert any(line.startswith("Command") and "generate --class cat --seed 0 --size 8" in line for line in told)
    assert not any("last bits" in line for line in told)


@pytest.mark.parametrize("ending", [".jpg", ".JPEG"])
def test_a_jpeg_is_nearly_the_picture_and_says_the_same_of_itself(model, here, capsys, tmp_path, monkeypatch, ending):
    words = ["--class", "hot dog", "-n", "2", "--grid", "--model", str(model)]
    assert generate([*words, "--out", f"sheet{ending}"]) == generate([*words, "--out", "sheet.png"]) == 0
    file = here / f"sheet{ending}"
    with Image.open(file) as image:
        assert image.format == "JPEG"
    assert np.abs(pixels(file).astype(int) - pixels("sheet.png")).mean() < 8  # of noise, which is worst for a JPEG
    assert pictures.read_chunks(file) == pictures.read_chunks(here / "sheet.png")
    assert main(["inspect", str(file)]) == 0 and "hot dog" in capsys.readouterr().out
    before = file.read_bytes()
    assert generate([*words, "--out", f"sheet{ending}", "--seed", "7"]) == 0 and file.read_bytes() != before  # replaced, as ours
    assert run_again(file, tmp_path / "again", monkeypatch) == ["hot-dog-seed7-grid.png"]


def test_a_jpeg_of_someone_else_is_not_replaced(model, here, capsys):
    for number, comment in enumerate((b"", b"{}", b'{"Software": 3}', b"[1]", b'{"Software": "GIMP"}', b"\xff" * 99)):
        Image.new("RGB", (8, 8), "red").save(f"{number}.jpg", comment=comment)
        before = Path(f"{number}.jpg").read_bytes()
        assert generate(["--class", "cat", "--model", str(model), "--out", f"{number}.jpg"]) == 2
        assert "was not made by this program" in capsys.readouterr().err and Path(f"{number}.jpg").read_bytes() == before
    Path("cut.jpg").write_bytes(before[:30])
    assert pictures.read_chunks(Path("cut.jpg")) == {}


def test_what_is_too_long_for_a_jpeg_is_said(tmp_path):
    origin = pictures.Origin("generate", "tiny", ("x" * 70_000,), (0,), (0,), {})
    with pytest.raises(ValueError, match="a JPEG has room for 65,533 bytes; write a PNG"):
        pictures.write(tmp_path / "a.jpg", Image.new("RGB", (8, 8)), origin)
    assert names(tmp_path) == []


def test_inspect_says_what_of_this_machine_may_change_a_picture(model, here, capsys, monkeypatch):
    assert generate(["--class", "cat", "--size", "8", "--model", str(model)]) == 0
    threads = torch.get_num_threads()
    assert json.loads(pictures.read_chunks(here / "cat-seed0.png")["Settings"])["threads"] == threads
    monkeypatch.setattr("torch.get_num_threads", lambda: threads + 3)
    capsys.readouterr()
    assert main(["inspect", "cat-seed0.png"]) == 0
    said = f"here the same command may make other last bits: made by {threads} threads, and here are {threads + 3}"
    assert said in capsys.readouterr().out
    monkeypatch.setattr("cascade.stages.cpu_convolutions.multiplies_bfloat16", lambda: False)
    origin = pictures.Origin("generate", "m", (), (), (0,), {"stages": {"base": {"mixed_precision": True}}})
    pictures.write(here / "mixed.png", Image.new("RGB", (8, 8)), origin)
    pictures.write(here / "odd.png", Image.new("RGB", (8, 8)), replace(origin, settings={"stages": [3], "threads": "\x1b[2J"}))
    for name, problem in (("mixed.png", "made in mixed precision, for which this CPU has no instructions"), ("odd.png", "")):
        capsys.readouterr()
        assert main(["inspect", name]) == 0
        told = capsys.readouterr().out
        assert problem in told and ("last bits" in told) == bool(problem)


def test_classes_are_listed_and_searched(model, capsys):
    assert main(["classes", "--model", str(model)]) == 0
    assert [line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines()] == [
        ["0", "cat"],
        ["1", "hot dog"],
        ["2", "Crêpe"],
    ]
    assert main(["classes", "--imagenet", "--search", "n02123045"]) == 0
    assert capsys.readouterr().out.startswith("281  n02123045  tabby cat")
    assert main(["classes", "--imagenet", "--search", "CRANE"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 2, "the bird and the machine"
