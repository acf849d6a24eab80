"""The grids of samples of a training: what is on them, and that making them leaves no trace."""

from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from tiny import network

from cascade.cli.main import main
from cascade.cli.progress import Progress
from cascade.cli.train import Watch
from cascade.stages.conditioning import resize
from cascade.stages.training import Phase, PictureSet, Recipe
from cascade.stages.training import meter as report
from cascade.stages.training.examples import Picture
from cascade.stages.training.odd_pictures import DamagedPicture, Oddity
from cascade.stages.training.recipe import Data, Samples
from cascade.training import sample_grids as train_samples
from cascade.training.export import pipeline_of
from cascade.training.sample_grids import MOST_BEFORE, contact_sheet, grid_maker, with_contact_sheet

CLASSES = ("ant", "bee", "cow", "dog")


def recipe(**changes) -> Recipe:
    settings = {
        "name": "toy",
        "data": Data(source="toy"),
        "network": {"sample_size": 8},
        "phases": (Phase(size=8, images=100, batch_size=4),),
        "sampling": {"num_inference_steps": 3},
        "samples": Samples(count=4, steps=2),
    }
    return Recipe(**(settings | changes))


def pictures(size: int = 8, count: int = 12) -> PictureSet:
    rng = np.random.default_rng(1)
    pixels = rng.integers(0, 256, (count, size, size, 3), dtype=np.uint8)
    return PictureSet(pixels, np.arange(count) % len(CLASSES), CLASSES, (True,) * len(CLASSES))


def tiles(sheet: Image.Image, size: int) -> np.ndarray:
    """The pictures on a sheet by row and column, [R, C, size, size, 3]."""
    step = size + max(1, size // 32)
    rows, columns = (sheet.height + step - size) // step, (sheet.width + step - size) // step
    whole = np.asarray(sheet)
    return np.stack(
        [[whole[y * step : y * step + size, x * step : x * step + size] for x in range(columns)] for y in range(rows)]
    )


def test_a_base_stage_shows_classes_spread_over_all_as_its_own_pipeline_makes_them():
    unet = network(num_classes=4)
    sheet = grid_maker(recipe(), pictures(), pytest.fail)(unet, 100)
    assert sheet is not None
    pipeline = pipeline_of(unet, recipe())
    pipeline.set_progress_bar_config(disable=True)
    shown = tiles(sheet, 8)
    assert shown.shape[:2] == (2, 2)
    for i, tile in enumerate(shown.reshape(4, 8, 8, 3)):
        alone = pipeline(i, num_images=1, num_inference_steps=2, generator=[torch.Generator().manual_seed(i)]).images[0]
        assert np.array_equal(tile, np.asarray(alone)), i


@pytest.mark.parametrize(("count", "labels"), [(2, [0, 2]), (4, [0, 1, 2, 3]), (6, [0, 1, 2, 3, 0, 1])])
def test_labels_are_spread_evenly(count, labels, monkeypatch):
    asked = []
    monkeypatch.setattr(train_samples, "_made", lambda pipeline, labels, recipe: asked.extend(labels))
    grid_maker(recipe(samples=Samples(count=count)), pictures(), pytest.fail)(network(num_classes=4), 100)
    assert asked == labels


def test_a_grid_is_the_same_every_time_and_leaves_no_trace():
    unet = network(num_classes=4)
    make = grid_maker(recipe(), pictures(), pytest.fail)
    torch.manual_seed(5)
    np.random.seed(5)
    states = torch.get_rng_state(), np.random.get_state()[1].copy()
    before = {name: value.clone() for name, value in unet.state_dict().items()}
    one, other = make(unet, 100), make(unet, 200)
    assert one.tobytes() == other.tobytes()
    assert torch.equal(torch.get_rng_state(), states[0]) and np.array_equal(np.random.get_state()[1], states[1])
    assert all(torch.equal(value, before[name]) for name, value in unet.state_dict().items())
    assert all(parameter.requires_grad for parameter in unet.parameters())


def test_a_refining_stage_shows_what_it_was_given_what_it_made_and_the_original():
    settings = {"sample_size": 16, "low_res_size": 8, "aug_level": True}
    data, unet = pictures(16), network(num_classes=4, **settings)
    toy = recipe(network=settings)
    shown = tiles(grid_maker(toy, data, pytest.fail)(unet, 100), 16)
    assert shown.shape[:2] == (4, 3)
    originals = [np.flatnonzero((data.pictures == row[2]).all(axis=(1, 2, 3))).tolist() for row in shown]
    assert [data.labels[i].tolist() for i in originals] == [[0], [1], [2], [3]], "a picture of each class, in order"
    for row, (place,) in zip(shown, originals, strict=True):
        small = resize(torch.from_numpy(data.pictures[place].astype(np.float32)).permute(2, 0, 1)[None] / 127.5 - 1, 8)[0]
        given = ((small + 1) * 127.5).permute(1, 2, 0).numpy().repeat(2, axis=0).repeat(2, axis=1)
        assert np.abs(row[0] - given).max() < 1
        assert not np.array_equal(row[1], row[2])


def test_a_regression_has_no_sampler_and_is_shown_all_the_same():
    from cascade.stages.training.recipe import Objective

    settings = {"sample_size": 16, "low_res_size": 8, "prediction_type": "sample"}
    toy = recipe(network=settings, objective=Objective(kind="regression"), sampling={})
    sheet = grid_maker(toy, pictures(16), pytest.fail)(network(num_classes=4, **settings), 100)
    assert tiles(sheet, 16).shape[:2] == (4, 3)


def test_damaged_pictures_are_passed_over_and_few_are_enough():
    class Odd(PictureSet):
        def read(self, index: int) -> Picture:
            if index % 2:
                raise DamagedPicture(next(oddity for oddity in Oddity if not oddity.usable))
            return super().read(index)

    data = pictures(16, count=6)
    odd = Odd(data.pictures, data.labels, data.class_names, data.may_flip)
    settings = {"sample_size": 16, "low_res_size": 8}
    sheet = grid_maker(recipe(network=settings), odd, pytest.fail)(network(num_classes=4, **settings), 100)
    shown = tiles(sheet, 16)[:, 2]
    assert len(shown) == 3 and all(any(np.array_equal(row, data.pictures[i]) for i in (0, 2, 4)) for row in shown)


def test_of_large_pictures_the_middle_is_shown(monkeypatch):
    monkeypatch.setattr(train_samples, "LARGEST_SHOWN", 8)
    settings = {"sample_size": 16, "low_res_size": 8}
    data = pictures(16)
    sheet = grid_maker(recipe(network=settings), data, pytest.fail)(network(num_classes=4, **settings), 100)
    original = tiles(sheet, 8)[0, 2]
    assert any(np.array_equal(original, picture[4:12, 4:12]) for picture in data.pictures)


def test_a_network_that_has_diverged_makes_no_grid_and_says_so():
    unet = network(num_classes=4)
    with torch.no_grad():
        unet.conv_in.weight.fill_(torch.nan)
    said: list[str] = []
    assert grid_maker(recipe(), pictures(), said.append)(unet, 700) is None
    assert said[0].startswith("no samples after 700 images: ") and "not numbers" in said[0]


def test_a_contact_sheet_has_the_newest_grid_whole_below_first_rows_of_earlier_ones():
    rng = np.random.default_rng(0)
    grids = [(seen, Image.fromarray(rng.integers(0, 255, (17, 300, 3), dtype=np.uint8))) for seen in (1000, 2000, 3000)]
    sheet = np.asarray(contact_sheet(grids, cell=8))
    places = [20, 20 + 8 + 8 + 20, 2 * (20 + 8 + 8) + 20]  # a line of text, a row, a gap
    for (_, grid), top in zip(grids[:2], places, strict=False):
        assert np.array_equal(sheet[top : top + 8], np.asarray(grid)[:8])
    assert np.array_equal(sheet[places[2] :], np.asarray(grids[2][1]))
    lines = [sheet[top - 20 : top] for top in places]
    assert all((line < 100).any() for line in lines) and not np.array_equal(lines[0], lines[1])


def test_a_run_keeps_a_contact_sheet_of_grids_of_fewer_images(tmp_path):
    (tmp_path / "samples").mkdir()
    seen = [*range(10, 200, 10), 300]
    for number in seen:
        Image.new("RGB", (17, 17), (number % 256, 0, 0)).save(tmp_path / "samples" / f"{number:012d}.png")
    (tmp_path / "samples" / f"{190:012d}.png").write_text("damaged")
    (tmp_path / "samples" / "mine.png").write_text("another's")
    newest = Image.new("RGB", (17, 17), "blue")
    made = with_contact_sheet(lambda network, images_seen: newest, recipe(), tmp_path)(None, 250)
    assert made is newest
    with Image.open(tmp_path / "samples.png") as sheet:
        pixels = np.asarray(sheet)
    tops = range(20, len(pixels) - 17, 20 + 8 + 8)
    shown = [int(pixels[top, 0, 0]) for top in tops]
    assert len(shown) == MOST_BEFORE - 1 and shown[0] == 10 and shown == sorted(shown)  # the last one is damaged
    assert (pixels[-17:, :17] == (0, 0, 255)).all()


def test_a_network_that_makes_no_grid_leaves_the_contact_sheet(tmp_path):
    assert with_contact_sheet(lambda network, images_seen: None, recipe(), tmp_path)(None, 250) is None
    assert not (tmp_path / "samples.png").exists()


@pytest.fixture
def here(tmp_path, monkeypatch):
    """The current folder, with pictures of two classes, held-out ones, and a recipe for them."""
    rng = np.random.default_rng(0)
    for folder in ("data", "held"):
        for name in ("ant", "bee"):
            (tmp_path / folder / name).mkdir(parents=True)
            for i in range(2):
                Image.fromarray(rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)).save(tmp_path / folder / name / f"{i}.png")
    settings = {
        "name": "tiny",
        "data": {"source": "data"},
        "network": {"sample_size": 8, "channels": [8], "blocks": [1], "attention_sizes": [], "head_channels": 8},
        "phases": [{"size": 8, "images": 16, "batch_size": 4}],
        "optimization": {"precision": "float32", "warmup": 0},
        "samples": {"every": 8, "count": 4, "steps": 2},
        "validation": {"source": "held", "images": 4, "levels": 2},
        "checkpoint_every": 8,
    }
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(settings))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(report, "LOG_EVERY", 2)
    return tmp_path


def test_a_training_leaves_samples_curves_and_a_tensorboard(here, capsys):
    assert main(["train", "tiny.yaml", "--workers", "0"]) == 0
    run = Path("runs/tiny")
    assert sorted(path.name for path in (run / "samples").iterdir()) == ["000000000008.png", "000000000016.png"]
    assert len(list((run / "tensorboard").iterdir())) == 1
    out, err = capsys.readouterr()
    last, link = err.splitlines()[-2:]
    assert last.startswith("training: 16 of 16 images") and "8 px, loss " in last and "held-out" in last
    assert link == f"look at: {(here / run / 'samples.png').as_uri()}" and out == "runs/tiny/stage\n"
    assert (run / "samples.png").is_file()
    assert main(["train", "plot", "runs/tiny"]) == 0
    assert main(["train", "tiny.yaml"]) == 0 and "continued from 16" in capsys.readouterr().err
    assert len(list((run / "tensorboard").iterdir())) == 1


def test_without_tensorboard_one_sentence_says_where_the_curves_are(here, capsys, monkeypatch):
    monkeypatch.setattr("cascade.training.stage.find_spec", lambda name: None)
    assert main(["train", "tiny.yaml", "--workers", "0", "phases.0.images=4"]) == 0
    assert "tensorboard is not installed, so the curves are kept in log.jsonl only" in capsys.readouterr().err
    assert not Path("runs/tiny/tensorboard").exists() and Path("runs/tiny/log.jsonl").read_text()


def test_an_unknown_tracker_is_a_wrong_request(here, capsys):
    assert main(["train", "tiny.yaml", "--track", "tensorbord"]) == 2
    assert "'tensorbord' is not a tracker" in capsys.readouterr().err and not Path("runs").exists()


def test_a_stage_is_not_shown_with_the_figures_of_the_one_before(capsys):
    def measured(images_seen: int) -> report.Report:
        values = {"images_seen": images_seen, "total_images": 100, "size": 8, "loss": 0.5, "images_per_second": 7.0}
        others = {field.name: None for field in fields(report.Report) if field.name not in values}
        return report.Report(**values | others)

    with Watch() as watch:
        watch("training base", 50, 100)
        watch.report(measured(100))
        watch("training sr16", 4, 80)
        watch.report(measured(80))
    lines = capsys.readouterr().err.splitlines()
    assert lines[0].startswith("training base: 100 of 100 images, 7 a second, 8 px, loss 0.5")
    assert watch.shown.title == "training sr16" and watch.shown._begun[1] == 4


def test_progress_tells_the_rate_that_it_is_given_and_what_is_left_by_the_clock(capsys, monkeypatch):
    now = [0.0]
    monkeypatch.setattr("cascade.cli.progress.time.monotonic", lambda: now[0])
    with Progress("training", "images") as progress:
        progress.update(0, 1000)
        now[0] = 40.0  # 100 images in 40 seconds, most of which went to a checkpoint
        progress.update(100, 1000, "loss 0.5", rate=12.5)
        progress.say("a remark")
    line, remark = capsys.readouterr().err.splitlines()
    assert line == "training: 100 of 1,000 images, 12.5 a second, 6 min left, loss 0.5" and remark == "a remark"


def test_a_bar_shows_the_given_rate_only_and_remarks_leave_it_whole(capsys, monkeypatch):
    monkeypatch.setattr("cascade.cli.progress.on_terminal", lambda: True)
    with Progress("training", "images") as progress:
        progress.update(10, 100, "loss 0.5", rate=12.5)
        progress.say("a remark")
        progress.update(100, 100, "loss 0.25", rate=13.5)
    *frames, last = [frame for frame in capsys.readouterr().err.replace("\n", "\r").split("\r") if frame.strip()]
    assert "100/100 images" in last and "13.5 images/s, loss 0.25" in last and last.count("images/s") == 1
    assert "a remark" in frames
