"""Training on one CUDA device: recorded steps are the ordinary ones, wait for nothing, and resume to the bit."""

import time
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from cascade.stages.noise import SR3Law
from cascade.stages.training import (
    Augmentation,
    Data,
    Objective,
    Optimization,
    Phase,
    PictureSet,
    Recipe,
    TrainingExamples,
    train,
)
from cascade.stages.training.examples import ResidentPictures
from cascade.stages.training.loop import _accelerator
from cascade.stages.training.state import TrainingState
from cascade.stages.training.step import Stepper
from cascade.training.stage import train_stage

pytestmark = pytest.mark.gpu

DEVICE = torch.device("cuda")
BASE = {
    "sample_size": 16, "prediction_type": "sample", "layout": "efficient", "patch_size": 2, "channels": [32, 64],
    "blocks": [1, 1], "attention_sizes": [4], "head_channels": 32, "norm": "pixel", "dropout": 0.1, "coarse_below": 1.0,
}  # fmt: skip
SR = {**BASE, "low_res_size": 8, "aug_level": True, "coarse_below": None, "low_res_skip": True}
STAGES = {"base": BASE, "sr": SR}


def pictures(count=64):
    rng = np.random.default_rng(0)
    smooth = rng.integers(0, 256, (count, 4, 4, 3), dtype=np.uint8).repeat(4, axis=1).repeat(4, axis=2)
    return PictureSet(smooth, np.arange(count) % 2, ("one", "other"), (True, False))


def recipe(stage="base", images=640, **optimization):
    settings = {
        "learning_rate": 1e-3,
        "warmup": 64,
        "cooldown": 0.3,
        "optimizer": "muon",
        "precision": "bfloat16",
        **optimization,
    }
    crop = 16 if stage == "base" else 8
    return Recipe(
        name="t",
        data=Data(source="none"),
        network=STAGES[stage],
        phases=(Phase(size=8, images=images // 2, batch_size=16), Phase(size=crop, images=images, batch_size=32))[
            stage == "sr" :
        ],
        objective=Objective(law=SR3Law() if stage == "sr" else Objective().law, weighting="min_snr", l1_above=1.0),
        augmentation=Augmentation(noise=0.3, clean=0.2, blur=0.6) if stage == "sr" else Augmentation(),
        optimization=Optimization(**settings),
        checkpoint_every=96,
    )


def weights(network):
    return torch.cat([weight.detach().flatten().cpu() for weight in network.parameters()])


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("precision", ["bfloat16", "float32"])
def test_a_stopped_run_ends_with_the_bits_of_a_whole_one(tmp_path, stage, precision):
    made = recipe(stage, precision=precision)

    class Killed(Exception):
        pass

    def kill(images_seen):
        if images_seen > made.total_images // 2:
            raise Killed

    whole = train(made, pictures(), tmp_path / "whole")
    with pytest.raises(Killed):
        train(made, pictures(), tmp_path / "stopped", on_step=kill)
    resumed = train(made, pictures(), tmp_path / "stopped")
    again = train(made, pictures(), tmp_path / "again")
    assert torch.equal(weights(whole), weights(again)), "two runs differ: the device's kernels are not deterministic"
    assert torch.equal(weights(whole), weights(resumed))


@pytest.mark.parametrize("stage", STAGES)
def test_examples_are_those_of_the_cpu(stage):
    made = recipe(stage)
    phase = made.phases[-1]
    there = TrainingExamples(ResidentPictures(pictures(), DEVICE), made, phase, 2)
    here = TrainingExamples(pictures(), made, phase, 2)
    on_cpu = here.complete(here.read(range(48)))
    on_cuda = there.complete({name: value.to(DEVICE) for name, value in there.read(range(48)).items()})
    assert torch.equal(on_cuda["x0"].cpu(), on_cpu["x0"]) and torch.equal(on_cuda["label"].cpu(), on_cpu["label"])
    for name in {"eps", "low_res"} & on_cpu.keys():
        torch.testing.assert_close(on_cuda[name].cpu(), on_cpu[name], rtol=0, atol=2e-5)


def begun(tmp_path, made):
    state = TrainingState.begin(made, 2, tmp_path, _accelerator(made.optimization.precision, pytest.fail), pytest.fail)
    return state, TrainingExamples(ResidentPictures(pictures(), DEVICE), made, made.phases[-1], state.network.null_label)


def taken(state, stepper, examples, steps, batch_size=32):
    losses = []
    for _ in range(steps):
        losses.append(stepper([examples.read(range(state.images_seen, state.images_seen + batch_size))], examples).losses)
        state.images_seen += batch_size
        state.average(state.images_seen - batch_size)
    return torch.stack(losses)


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("compile", [False, True])
def test_recorded_steps_are_the_ordinary_ones_up_to_rounding(tmp_path, stage, compile):
    made = recipe(stage, warmup=0, compile=compile, precision="float32")
    made = replace(made, network={**made.network, "dropout": 0.0})
    losses, moved = [], []
    for recorded in (True, False):
        state, examples = begun(tmp_path / str(recorded), made)
        before, stepper = weights(state.network), Stepper(state, pytest.fail)
        assert stepper._recorded is not None
        stepper._recorded = stepper._recorded if recorded else None
        losses.append(taken(state, stepper, examples, 6))
        moved.append(weights(state.network) - before)
    torch.testing.assert_close(*losses, rtol=0.02, atol=1e-3)
    assert torch.nn.functional.cosine_similarity(*moved, dim=0) > 0.98


@pytest.mark.parametrize("stage", STAGES)
def test_no_step_waits_for_the_device(tmp_path, stage):
    state, examples = begun(tmp_path, recipe(stage))
    stepper = Stepper(state, pytest.fail)
    taken(state, stepper, examples, 5)  # recorded by now, whatever the number of coarse images
    stepper._look_every = 10**9
    torch.cuda.set_sync_debug_mode("error")
    try:
        batch = [examples.read(range(state.images_seen - 32, state.images_seen))]
        stepper(batch, examples)
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_a_step_without_a_finite_gradient_moves_nothing(tmp_path):
    state, examples = begun(tmp_path, recipe())
    said = []
    stepper = Stepper(state, said.append)
    taken(state, stepper, examples, 10)
    before = weights(state.network)
    with torch.no_grad():
        stepper._recorded.copies[0].fill_(float("nan"))  # the copy that computes: mended by the next step
    taken(state, stepper, examples, 1)
    stepper.look(str)
    assert torch.equal(weights(state.network), before) and len(said) == 1 and "is not a number" in said[0]
    taken(state, stepper, examples, 10)
    assert not torch.equal(weights(state.network), before) and state.bad_steps == 0


def test_a_time_box_ends_on_time(tmp_path):
    rng = np.random.default_rng(0)
    for name in ("ant", "bee"):
        (tmp_path / "data" / name).mkdir(parents=True)
        for place in range(8):
            Image.fromarray(rng.integers(0, 256, (16, 16, 3), dtype=np.uint8)).save(tmp_path / "data" / name / f"{place}.png")
    made = replace(recipe(images=10**7), data=Data(source=str(tmp_path / "data")), sampling={"num_inference_steps": 2})
    begun_at = time.monotonic()
    done = train_stage(made, tmp_path / "run", trackers=[], seconds=30)
    assert 26 < time.monotonic() - begun_at < 32 and done.images_seen > 5000
