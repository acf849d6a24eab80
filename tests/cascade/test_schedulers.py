"""Whatever scheduler the shipped base is sampled with, its pictures show the classes asked for, or the scheduler is refused.

Measure: the probability that the drawings' classifier gives to the class asked for, averaged over pictures. Of the default, DDPM,
it is 0.87 at 20 steps; of deterministic schedulers about 0.66; of noise less than 0.15. Accepted: at least 0.4 of the default's.
"""

import diffusers
import numpy as np
import pytest
import torch

from cascade import CascadePipeline
from cascade.eval.classifier import class_probabilities, load_classifier

MARGIN = 0.4
REPAIRED = ["Heun", "PNDM", "KDPM2", "FlowMatchEuler"]
OTHERS = [
    "DDIM", "DDIMParallel", "DDPMParallel", "DEISMultistep", "DPMSolverMultistep", "DPMSolverSinglestep", "EDMDPMSolverMultistep",
    "EDMEuler", "EulerAncestral", "Euler", "FlowMatchHeun", "FlowMatchLCM", "KDPM2Ancestral", "LCM", "LMS", "SASolver", "TCD",
    "UniPCMultistep",
]  # fmt: skip


def scheduler(name):
    return getattr(diffusers, f"{name}Scheduler", None) or getattr(diffusers, f"{name}DiscreteScheduler")


@pytest.fixture(scope="module")
def base():
    base = CascadePipeline.from_pretrained("emoji", dtype="float32").stages["base"]  # the same on every machine
    base.set_progress_bar_config(disable=True)
    return base


def agreement(base, labels, steps=20):
    """Mean probability of the class asked for."""
    generators = [torch.Generator().manual_seed(seed) for seed in range(len(labels))]
    images = base(labels, generator=generators, num_inference_steps=steps, output_type="np", batch_size=len(labels)).images
    probabilities = class_probabilities(load_classifier()[0], (255 * images).round().astype(np.uint8))
    return probabilities[range(len(labels)), labels].mean()


@pytest.mark.parametrize("name", ["Heun", "PNDM", "FlowMatchEuler"])
def test_schedulers_that_painted_noise_paint_classes(base, name, monkeypatch):
    monkeypatch.setattr(base, "scheduler", scheduler(name).from_config(base.scheduler.config))
    assert agreement(base, [12, 63], steps=15 if name == "PNDM" else 10) > MARGIN * 0.87  # cat, smiling-face


@pytest.mark.slow
@pytest.mark.parametrize("name", REPAIRED + OTHERS)
def test_every_accepted_scheduler_paints_classes(base, name, monkeypatch):
    labels = [12, 63, 29, 13, 23, 69, 9, 65]  # cat, smiling-face, heart, clock, flag, train, building, sun-and-star
    default = agreement(base, labels)
    monkeypatch.setattr(base, "scheduler", scheduler(name).from_config(base.scheduler.config))
    assert agreement(base, labels, steps=36 if name == "KDPM2Ancestral" else 20) > MARGIN * default


@pytest.mark.parametrize("name", ["CMStochasticIterative", "KDPM2Ancestral", "IPNDM", "MiniMaxH3"])
def test_others_are_refused_in_one_sentence(base, name, monkeypatch):
    monkeypatch.setattr(base, "scheduler", scheduler(name).from_config(base.scheduler.config))
    with pytest.raises(ValueError, match=f"^{name}.*Scheduler (can't be sampled with|makes noise of steps as wide)"):
        base([0], num_inference_steps=20)
