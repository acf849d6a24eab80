"""A whole training at toy size: it learns, resumes to the bit, and survives damage."""

import json

import numpy as np
import pytest
import torch

from stages.training import Objective, Optimization, Phase, PictureSet, Recipe, checkpoint, train
from stages.training import loop as loop_module

NETWORK = {
    "sample_size": 8,
    "channels": [16],
    "blocks": [1],
    "attention_sizes": [],
    "head_channels": 16,
    "layout": "efficient",
    "dropout": 0.1,
}


def pictures() -> PictureSet:
    """Two classes: black and white."""
    values = np.array([0, 255] * 8, dtype=np.uint8)
    return PictureSet(
        np.broadcast_to(values[:, None, None, None], (16, 8, 8, 3)).copy(), np.array([0, 1] * 8), ("black", "white"), (True, True)
    )


def recipe(images: int = 240, **changes) -> Recipe:
    settings = {
        "name": "toy",
        "data": "toy",
        "network": NETWORK,
        "phases": (Phase(size=4, images=images // 2, batch_size=8), Phase(size=8, images=images, batch_size=8)),
        "optimization": Optimization(learning_rate=3e-3, warmup=40, cooldown=0.2, precision="float32"),
        "objective": Objective(label_dropout=0.1),
        "checkpoint_every": 56,
    }
    return Recipe(**{**settings, **changes})


def weights(network: torch.nn.Module) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in network.parameters()])


class Killed(Exception):
    pass


def kill_after(reports: int):
    def on_report(report):
        nonlocal reports
        reports -= 1
        if reports == 0:
            raise Killed

    return on_report


def test_it_learns_what_the_classes_mean(tmp_path):
    network = train(recipe(1600, checkpoint_every=10_000), pictures(), tmp_path)
    x_t = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    v = network(x_t, torch.full((2,), -6.0), torch.tensor([0, 1]))
    x0 = -v  # nearly pure noise: x0 = alpha x_t - sigma v with alpha near 0
    assert x0[0].mean() < -0.5 and x0[1].mean() > 0.5


@pytest.mark.parametrize("workers", [0, 1])
def test_a_stopped_run_ends_with_the_same_weights(tmp_path, monkeypatch, workers):
    monkeypatch.setattr(loop_module, "LOG_EVERY", 1)
    whole = train(recipe(), pictures(), tmp_path / "whole")
    for stop in (9, 13, 2):
        with pytest.raises(Killed):
            train(recipe(), pictures(), tmp_path / "stopped", on_report=kill_after(stop), workers=workers)
    messages: list[str] = []
    resumed = train(recipe(), pictures(), tmp_path / "stopped", on_message=messages.append)
    assert messages == ["continued from 112 images"]
    assert torch.equal(weights(resumed), weights(whole))


def test_a_damaged_checkpoint_is_passed_over(tmp_path, monkeypatch):
    monkeypatch.setattr(loop_module, "LOG_EVERY", 1)
    whole = train(recipe(), pictures(), tmp_path / "whole")
    with pytest.raises(Killed):
        train(recipe(), pictures(), tmp_path / "run", on_report=kill_after(20))
    newest, older = checkpoint.folders(tmp_path / "run")
    data = (newest / "network.safetensors").read_bytes()
    (newest / "network.safetensors").write_bytes(data[: len(data) // 2])
    (tmp_path / "run" / "checkpoint-999.partial").mkdir()
    messages: list[str] = []
    resumed = train(recipe(), pictures(), tmp_path / "run", on_message=messages.append)
    assert messages[0].startswith(f"{newest.name} is damaged and was passed over") and "56" in older.name
    assert torch.equal(weights(resumed), weights(whole))


def test_a_run_of_damaged_checkpoints_does_not_start_anew(tmp_path):
    train(recipe(), pictures(), tmp_path)
    for folder in checkpoint.folders(tmp_path):
        (folder / "state.json").write_text("{")
    with pytest.raises(ValueError, match="no checkpoint in .* can be read"):
        train(recipe(), pictures(), tmp_path)


def test_a_full_disk_leaves_the_older_checkpoint_whole(tmp_path, monkeypatch):
    checkpoint.save(tmp_path, 10, {"network": {"a": torch.ones(3)}}, {})

    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoint, "save_file", full)
    with pytest.raises(OSError, match="No space left"):
        checkpoint.save(tmp_path, 20, {"network": {"a": torch.ones(3)}}, {})
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint-000000000010"]
    tensors, state, problems = checkpoint.load_newest(tmp_path)
    assert state["images_seen"] == 10 and not problems and torch.equal(tensors["network"]["a"], torch.ones(3))


def test_only_the_newest_checkpoints_stay(tmp_path):
    for images in (10, 20, 30):
        checkpoint.save(tmp_path, images, {"network": {"a": torch.ones(1)}}, {}, keep=2)
    assert [path.name[-2:] for path in checkpoint.folders(tmp_path)] == ["30", "20"]


def test_another_network_in_the_run_folder_is_refused(tmp_path):
    train(recipe(), pictures(), tmp_path)
    with pytest.raises(ValueError, match="holds a run of another network"):
        train(recipe(network={**NETWORK, "channels": [32]}), pictures(), tmp_path)


def test_steps_without_a_finite_gradient_are_skipped_then_end_the_run(tmp_path, monkeypatch):
    calls = []
    real = loop_module.denoising_loss

    def broken(*args):
        calls.append(1)
        return real(*args) * (float("nan") if len(calls) in (2, 4, 5, 6, 7, 8) else 1)

    monkeypatch.setattr(loop_module, "denoising_loss", broken)
    messages: list[str] = []
    with pytest.raises(FloatingPointError, match="5 steps in a row"):
        train(recipe(), pictures(), tmp_path, on_message=messages.append)
    assert len(messages) == 6 and messages[0].startswith("skipped a step at 8 images")


def test_the_log_holds_every_report(tmp_path, monkeypatch):
    monkeypatch.setattr(loop_module, "LOG_EVERY", 10)
    reports = []
    train(recipe(), pictures(), tmp_path, on_report=reports.append)
    lines = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert [line["images_seen"] for line in lines] == [80, 160, 240] == [r.images_seen for r in reports]
    assert [line["size"] for line in lines] == [4, 8, 8]


def test_rate_rises_stays_and_falls():
    r = recipe(1000, optimization=Optimization(learning_rate=1.0, warmup=100, cooldown=0.5))
    rates = [r.learning_rate_at(n) for n in (0, 49, 99, 400, 500, 750, 1000)]
    assert rates == pytest.approx([0.01, 0.5, 1, 1, 1, 0.5, 0])


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"phases": ()}, "phases must end at rising images"),
        ({"phases": (Phase(size=8, images=10), Phase(size=8, images=5))}, "rising images, got \\[10, 5\\]"),
        ({"objective": Objective(loss="huber")}, "loss is 'huber'"),
        ({"objective": Objective(label_dropout=1.5)}, "label_dropout must lie"),
        ({"optimization": Optimization(precision="int8")}, "precision is 'int8'"),
    ],
)
def test_recipes_that_make_no_sense_are_refused(change, words):
    with pytest.raises(ValueError, match=words):
        recipe(**change)
