"""A whole training at toy size: it learns, resumes to the bit, and survives damage."""

import json
import os
import signal

import pytest
import torch
from accelerate.state import AcceleratorState
from toy import NETWORK, optimization, pictures, recipe, weights

from cascade.stages.training import Objective, Optimization, Phase, checkpoint, train
from cascade.stages.training import meter as report_module


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
    monkeypatch.setattr(report_module, "LOG_EVERY", 1)
    whole = train(recipe(), pictures(), tmp_path / "whole")
    for stop in (9, 13, 2):
        with pytest.raises(Killed):
            train(recipe(), pictures(), tmp_path / "stopped", on_report=kill_after(stop), workers=workers)
    messages: list[str] = []
    resumed = train(recipe(), pictures(), tmp_path / "stopped", on_message=messages.append)
    assert messages == ["continued from 112 images"]
    assert torch.equal(weights(resumed), weights(whole))


def test_a_run_that_goes_on_says_what_may_change_its_last_bits(tmp_path, monkeypatch):
    monkeypatch.setattr(report_module, "LOG_EVERY", 1)
    with pytest.raises(Killed):
        train(recipe(), pictures(), tmp_path, on_report=kill_after(9))
    before, messages = torch.get_num_threads(), []
    monkeypatch.setattr("torch.get_num_threads", lambda: before + 1)
    faster = recipe(optimization=optimization(precision="bfloat16"))
    with pytest.raises(Killed):
        train(faster, pictures(), tmp_path, on_message=messages.append, on_report=kill_after(1))
    changed = f"now precision bfloat16, before float32; now {before + 1} threads, before {before}"
    assert f"continued from 56 images; {changed}" in messages


def test_a_damaged_checkpoint_is_passed_over(tmp_path, monkeypatch):
    monkeypatch.setattr(report_module, "LOG_EVERY", 1)
    whole = train(recipe(), pictures(), tmp_path / "whole")
    with pytest.raises(Killed):
        train(recipe(), pictures(), tmp_path / "run", on_report=kill_after(20))
    newest, older = checkpoint.folders(tmp_path / "run")
    data = (newest / "network.safetensors").read_bytes()
    (newest / "network.safetensors").write_bytes(data[: len(data) // 2])
    (tmp_path / "run" / ".checkpoint-000000000999.partial").mkdir()
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


def test_another_network_in_the_run_folder_is_refused(tmp_path):
    train(recipe(), pictures(), tmp_path)
    with pytest.raises(ValueError, match="holds a run of another network"):
        train(recipe(network={**NETWORK, "channels": [32]}), pictures(), tmp_path)


def test_the_log_holds_every_report(tmp_path, monkeypatch):
    monkeypatch.setattr(report_module, "LOG_EVERY", 10)
    reports = []
    train(recipe(checkpoint_every=1000), pictures(), tmp_path, on_report=reports.append)
    lines = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert [line["images_seen"] for line in lines] == [80, 160, 240] == [r.images_seen for r in reports]
    assert [line["size"] for line in lines] == [4, 8, 8]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_the_run_after_its_step_with_a_checkpoint(tmp_path, number):
    handlers = [signal.getsignal(kind) for kind in (signal.SIGINT, signal.SIGTERM)]

    def signal_once(images_seen):
        if images_seen == 72:
            os.kill(os.getpid(), number)

    with pytest.raises(KeyboardInterrupt, match="stopped after 72 images"):
        train(recipe(), pictures(), tmp_path / "stopped", on_step=signal_once)
    assert [signal.getsignal(kind) for kind in (signal.SIGINT, signal.SIGTERM)] == handlers
    assert checkpoint.load_newest(tmp_path / "stopped")[1]["images_seen"] == 72
    whole = train(recipe(), pictures(), tmp_path / "whole")
    resumed = train(recipe(), pictures(), tmp_path / "stopped")
    assert torch.equal(weights(resumed), weights(whole))


@pytest.fixture
def ctrl_c():
    """Ctrl-C does what it does in a terminal; a shell has processes in its background ignore it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def test_a_second_ctrl_c_does_not_wait(tmp_path, ctrl_c):
    with pytest.raises(KeyboardInterrupt) as stopped:
        train(recipe(), pictures(), tmp_path, on_step=lambda images: [signal.raise_signal(signal.SIGINT) for _ in range(2)])
    assert "stopped after" not in str(stopped.value) and not checkpoint.folders(tmp_path)


@pytest.fixture
def precision():
    """Trains shortly at a precision; what was said."""

    def short(folder, kind):
        messages = []
        train(recipe(16, optimization=optimization(precision=kind)), pictures(), folder, on_message=messages.append)
        return messages

    yield short
    AcceleratorState._reset_state()


def test_float16_is_refused_on_a_cpu(tmp_path, precision, monkeypatch):
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    with pytest.raises(ValueError, match="precision is float16, in which CPUs can't train; use float32 or bfloat16"):
        precision(tmp_path, "float16")


def test_one_program_may_train_at_several_precisions_and_is_told_which_is_slow(tmp_path, precision, monkeypatch):
    slow = "this CPU has no instructions for bfloat16; optimization.precision=float32 is faster here"
    for number, (kind, has, said) in enumerate([("float32", False, []), ("bfloat16", False, [slow]), ("bfloat16", True, [])]):
        monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda has=has: has)
        assert precision(tmp_path / str(number), kind) == said
    one, other = (checkpoint.load_newest(tmp_path / name)[0]["network"]["conv_out.weight"] for name in ("0", "1"))
    assert not torch.equal(one, other), "the second training computed in bfloat16"


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


def test_a_run_killed_before_it_removed_an_older_checkpoint_removes_it_when_it_goes_on(tmp_path, monkeypatch):
    with monkeypatch.context() as before:
        before.setattr(checkpoint, "prune", lambda run, keep: None)
        train(recipe(), pictures(), tmp_path)
    keep = recipe().keep_checkpoints
    assert len(checkpoint.folders(tmp_path)) > keep
    newest = checkpoint.folders(tmp_path)[:keep]
    train(recipe(), pictures(), tmp_path)
    assert checkpoint.folders(tmp_path) == newest
