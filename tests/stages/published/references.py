"""The small reference networks of `reference/`, see its NOTICE."""

import json
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from cascade.stages import published

ROOT = Path(__file__).parent / "reference"
INPUTS = {
    "guided-diffusion": ("x", "timesteps", "y"),
    "guided-diffusion-sr": ("x", "timesteps", "low_res", "y"),
    "improved-diffusion": ("x", "timesteps", "y"),
    "improved-diffusion-sr": ("x", "timesteps", "low_res", "y"),
    "consistency": ("x", "sigma", "y"),
    "edm": ("x", "sigma", "class_labels"),
    "edm2": ("x", "sigma", "class_labels"),
    "sr3": ("x", "cond", "noise_level"),
    "sr3-ddpm": ("x", "cond", "t"),
    "jit": ("x", "t", "y"),
    "pmf": ("x", "h", "w", "t_min", "t_max", "y"),
}
OUTPUT = {"consistency": "denoised_boundary", "edm": "denoised", "edm2": "denoised", "pmf": "x_pred"}
FAMILIES = tuple(INPUTS)


@cache
def config_of(family: str) -> dict[str, Any]:
    return json.loads((ROOT / family / "config.json").read_text())


def weights_of(family: str) -> Path:
    return next((ROOT / family).glob("*.safetensors"))


@cache
def network_of(family: str) -> Any:
    return published.load(family, weights_of(family), config_of(family))


@cache
def stage_of(family: str) -> Any:
    pipeline = published.stage(family, weights_of(family), config_of(family))
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def arrays(family: str, file: str = "io") -> dict[str, Tensor]:
    return {name: torch.from_numpy(values) for name, values in np.load(ROOT / family / f"{file}.npz").items()}


def relative_error(got: Tensor, expected: Tensor) -> float:
    return float((got.double() - expected.double()).norm() / expected.double().norm())
