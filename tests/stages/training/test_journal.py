"""The journal of a run: one log, the same numbers in every tracker, nothing twice after a resume, samples that disturb no bit."""

import json
import math
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from accelerate.tracking import LOGGER_TYPE_TO_CLASS, GeneralTracker
from PIL import Image
from tensorboard.backend.event_processing import event_accumulator

from cascade.stages.training import Optimization, Phase, PictureSet, Recipe, train
from cascade.stages.training import meter as report
from cascade.stages.training.journal import Journal, check_trackers, cut, read_log, scalars
from cascade.stages.training.meter import Report
from cascade.stages.training.recipe import Data, Samples

REPORT = Report(
    images_seen=100,
    total_images=1000,
    size=8,
    loss=0.5,
    loss_by_log_snr={"-2 to 0": 0.75, "0 to 2": 0.25},
    gradient_norm=1.5,
    learning_rate=1e-4,
    images_per_second=20.0,
    memory_gib=1.25,
    skipped_steps=0,
    damaged_pictures=0,
)
NETWORK = {"sample_size": 8, "channels": [8], "blocks": [1], "attention_sizes": [], "head_channels": 8, "layout": "efficient"}
RECIPE = Recipe(
    name="toy",
    data=Data(source="toy"),
    network={**NETWORK, "dropout": 0.2},
    phases=(Phase(size=8, images=48, batch_size=4),),
    optimization=Optimization(learning_rate=3e-3, warmup=0, precision="float32"),
    samples=Samples(every=12),
    checkpoint_every=16,
)


def pictures() -> PictureSet:
    rng = np.random.default_rng(0)
    return PictureSet(rng.integers(0, 256, (6, 8, 8, 3), dtype=np.uint8), np.arange(6) % 2, ("a", "b"), (True, True))


def shown(run: Path) -> dict[str, dict[int, float]]:
    """The points that TensorBoard shows of a run: its curves by name, values by step."""
    events = event_accumulator.EventAccumulator(str(run / "tensorboard"), size_guidance={"images": 0, "scalars": 0})
    events.Reload()
    curves: dict[str, dict[int, float]] = {}
    for name in events.Tags()["scalars"]:
        steps = [event.step for event in events.Scalars(name)]
        assert len(set(steps)) == len(steps), f"{name} has points twice"
        curves[name] = {event.step: event.value for event in events.Scalars(name)}
    curves["images"] = {event.step: math.nan for name in events.Tags()["images"] for event in events.Images(name)}
    return curves


def logged(run: Path) -> dict[str, dict[int, float]]:
    """The same of the log."""
    curves: dict[str, dict[int, float]] = {}
    for record in read_log(run / "log.jsonl"):
        for name, value in scalars(record).items():
            curves.setdefault(name, {})[record["images_seen"]] = value
    return curves


def test_a_record_is_shown_by_the_names_of_its_groups():
    record = {"images_seen": 8, "total_images": 9, "loss": 0.5, "gone": None, "by": {"-2 to 0": 1.0, "above 8": None}}
    assert scalars(record) == {"loss": 0.5, "by/-2 to 0": 1.0}


def test_trackers_get_the_numbers_of_the_log(tmp_path):
    with Journal(tmp_path, 0, Accelerator(cpu=True), ["tensorboard"]) as journal:
        journal.write(100, asdict(REPORT))
        journal.write(200, asdict(replace(REPORT, images_seen=200, loss=math.nan, gradient_norm=math.inf)))
        journal.write(200, {"validation_loss": 0.4, "validation_loss_by_log_snr": {"-3.00": 0.5, "3.00": 0.3}})
    first, second, third = (json.loads(line, parse_constant=pytest.fail) for line in (tmp_path / "log.jsonl").open())
    assert first["loss_by_log_snr"] == {"-2 to 0": 0.75, "0 to 2": 0.25} and first["images_seen"] == 100
    assert second["loss"] is None and second["gradient_norm"] is None, "JSON knows no NaN"
    assert third["validation_loss_by_log_snr"] == {"-3.00": 0.5, "3.00": 0.3}

    got, expected = shown(tmp_path), logged(tmp_path)
    assert got.pop("images") == {} and got.keys() == expected.keys()
    assert {"loss", "loss_by_log_snr/0 to 2", "memory_gib", "validation_loss"} <= got.keys()
    for name, points in expected.items():
        assert got[name] == {step: pytest.approx(value) for step, value in points.items()}
    assert list(got["loss"]) == [100] and list(got["learning_rate"]) == [100, 200]


def test_any_tracker_of_accelerate_gets_them(tmp_path, monkeypatch):
    got: list[tuple[dict, int]] = []

    class Other(GeneralTracker):
        name, requires_logging_directory = "other", False

        def __init__(self, run_name: str) -> None:
            super().__init__()
            assert run_name == "cascade"

        tracker = None

        def store_init_configuration(self, values: dict) -> None: ...

        def log(self, values: dict, step: int | None = None, **kwargs) -> None:
            got.append((values, step))

    monkeypatch.setitem(LOGGER_TYPE_TO_CLASS, "other", Other)
    with Journal(tmp_path, 0, Accelerator(cpu=True), ["other"]) as journal:
        journal.write(100, asdict(REPORT))
        journal.samples(100, Image.new("RGB", (8, 8)))
    assert got == [(scalars(read_log(tmp_path / "log.jsonl")[0]), 100)]


def test_unknown_and_missing_trackers_are_named():
    check_trackers(["tensorboard"])
    with pytest.raises(ValueError, match="'wandbb' is not a tracker; known are .*tensorboard.*wandb"):
        check_trackers(["wandbb"])
    missing = next(name for name in ("wandb", "aim", "swanlab") if __import__("importlib.util").util.find_spec(name) is None)
    with pytest.raises(ValueError, match=f"the tracker {missing} is not installed"):
        check_trackers([missing])


def test_a_log_is_cut_where_the_run_goes_on_and_a_broken_last_line_is_forgotten(tmp_path):
    path = tmp_path / "log.jsonl"
    cut(path, 10)
    assert not path.exists() and read_log(path) == []
    path.write_text('{"images_seen": 8, "loss": 1.0}\n{"images_seen": 16, "loss": 0.5}\n{"images_seen": 24, "lo')
    assert [record["images_seen"] for record in read_log(path)] == [8, 16]
    cut(path, 16)
    assert path.read_text() == '{"images_seen": 8, "loss": 1.0}\n{"images_seen": 16, "loss": 0.5}\n'
    cut(path, 15)
    assert [record["images_seen"] for record in read_log(path)] == [8]
    assert [file.name for file in tmp_path.iterdir()] == ["log.jsonl"]


@pytest.mark.parametrize("line", ["no json", "[1]", "7", '{"loss": 1.0}', '{"images_seen": "8"}'])
def test_a_file_that_is_no_log_is_left_alone(tmp_path, line):
    path = tmp_path / "log.jsonl"
    path.write_text(f'{{"images_seen": 8}}\n{line}\n')
    with pytest.raises(ValueError, match="line 2 of .* is not a line of a training run's log"):
        cut(path, 4)
    assert line in path.read_text()


class Killed(Exception):
    pass


def test_a_killed_run_ends_with_the_curves_and_samples_of_an_unbroken_one(tmp_path, monkeypatch):
    """Whatever was written after the checkpoint that a run goes on from is written again, and shown once."""
    monkeypatch.setattr(report, "LOG_EVERY", 3)
    data, made = pictures(), []

    def sample_grid(network, images_seen):
        assert not network.training
        made.append(images_seen)
        return Image.fromarray(np.full((8, 8, 3), images_seen, np.uint8))

    def killed_at(images: int):
        def on_step(images_seen: int) -> None:
            if images_seen == images:
                raise Killed

        return on_step

    options = {"sample_grid": sample_grid, "trackers": ["tensorboard"]}
    train(RECIPE, data, tmp_path / "whole", **options)
    assert made == [12, 24, 36, 48]
    for images in (8, 32, 44):
        with pytest.raises(Killed):
            train(RECIPE, data, tmp_path / "killed", on_step=killed_at(images), **options)
    train(RECIPE, data, tmp_path / "killed", **options)

    whole, resumed = logged(tmp_path / "whole"), logged(tmp_path / "killed")
    assert list(whole["loss"]) == [12, 16, 28, 32, 44, 48] == list(resumed["loss"]), "a checkpoint closes a report"
    for name in whole.keys() - {"images_per_second", "memory_gib"}:
        assert resumed[name] == whole[name], name
    for run in ("whole", "killed"):
        got, expected = shown(tmp_path / run), logged(tmp_path / run)
        assert sorted(got.pop("images")) == [12, 24, 36, 48]
        assert got == {name: {step: pytest.approx(v) for step, v in points.items()} for name, points in expected.items()}
        files = sorted((tmp_path / run / "samples").iterdir())
        assert [file.name for file in files] == [f"{images:012d}.png" for images in (12, 24, 36, 48)]
        with Image.open(files[1]) as image:
            assert np.unique(np.asarray(image)).tolist() == [24]

    before = sorted(path for path in (tmp_path / "killed").rglob("*") if path.is_file())
    train(RECIPE, data, tmp_path / "killed", **options)
    assert sorted(path for path in (tmp_path / "killed").rglob("*") if path.is_file()) == before, (
        "a run that is over adds nothing"
    )


def test_samples_change_no_bit_of_the_weights(tmp_path):
    """Though they draw random numbers of their own and meet the averaged weights. Dropout would tell."""
    data, seen = pictures(), []

    def sample_grid(network, images_seen):
        torch.manual_seed(images_seen)
        torch.rand(100)
        np.random.seed(0)
        seen.append(torch.cat([p.flatten() for p in network.parameters()]).clone())
        with torch.no_grad():
            network(torch.zeros(1, 3, 8, 8), torch.zeros(1), torch.zeros(1, dtype=torch.long))
        return None

    without = train(RECIPE, data, tmp_path / "without")
    with_samples = train(replace(RECIPE, samples=Samples(every=4)), data, tmp_path / "with", sample_grid=sample_grid)
    assert len(seen) == 12 and not (tmp_path / "with" / "samples").exists(), "no grid, no file"
    ours, theirs = with_samples.state_dict(), without.state_dict()
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    assert torch.equal(seen[-1], torch.cat([p.flatten() for p in without.parameters()])), "the weights that a stage gets"
