"""Averages of any length after the training, from snapshots of two power-function averages (EDM2, Karras et al. 2024,
arXiv:2312.02696, section 3.2 and appendix C).

A power average of width `std` after N images is an integral over the training's weights with the profile
`(gamma + 1) n^gamma / N^(gamma + 1)` on [0, N]. A sum of such averages has the sum of their profiles. So the sum that comes
closest to a wanted average is found by least squares between profiles, without a look at any weights.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike
from safetensors import SafetensorError
from torch import Tensor

from cascade.stages.files import remove_folder
from cascade.stages.training import checkpoint
from cascade.stages.training.ema import PowerAverage, gamma_of

FOLDER = "snapshots"


@dataclass(frozen=True, slots=True)
class Profile:
    """How an average weights a training's weights: by its relative width, see `ema.gamma_of`, and the images that it ends at."""

    std: float
    images: int


def inner_product(gamma_a: ArrayLike, end_a: ArrayLike, gamma_b: ArrayLike, end_b: ArrayLike) -> np.ndarray:
    """Integral of the product of two profiles, by their exponents and ends (EDM2, Eq. 151). Arrays are broadcast; float64."""
    ga, a, gb, b = (np.asarray(value, dtype=np.float64) for value in (gamma_a, end_a, gamma_b, end_b))
    later = np.maximum(a, b)
    gamma_of_later = np.where(a <= b, gb, ga)  # the earlier one's power of its own end cancels
    return (ga + 1) * (gb + 1) / (ga + gb + 1) * (np.minimum(a, b) / later) ** gamma_of_later / later


def mixture(profiles: Sequence[Profile], wanted: Profile) -> tuple[np.ndarray, float]:
    """The sum of profiles that comes closest to a wanted one, which ends no later than the last of them.

    The factors sum to 1, so that weights that never moved come back as they are. EDM2 scales the free solution to that; here it
    is a condition of the least squares; the distance over 8 to 512 snapshots is that of the free solution to less than 1 %.

    Returns:
        Factor of each profile, float64, and the distance that is left: the L2 norm of the difference over that of the wanted one.
    """
    gammas, ends = np.array([gamma_of(p.std) for p in profiles]), np.array([p.images / wanted.images for p in profiles])
    gamma = gamma_of(wanted.std)
    products = inner_product(gammas[:, None], ends[:, None], gammas, ends)
    aims, norm = inner_product(gammas, ends, gamma, 1.0), inner_product(gamma, 1.0, gamma, 1.0)
    scale = np.sqrt(np.diag(products))  # unit norms: the system is solved to rounding for hundreds of snapshots
    count = len(profiles)
    system = np.zeros((count + 1, count + 1))
    system[:count, :count] = products / np.outer(scale, scale)
    system[:count, count] = system[count, :count] = 1 / scale
    factors = np.linalg.solve(system, np.append(aims / scale, 1.0))[:count] / scale
    left = norm - 2 * factors @ aims + factors @ products @ factors
    return factors, float(np.sqrt(max(left, 0.0) / norm))


def save(run: Path, images_seen: int, averages: Sequence[PowerAverage], network: Mapping[str, Any]) -> None:
    """Write a snapshot of averages of a network with these settings, whole or not at all. It outlives the run's checkpoints.

    Weights are float16, as in an exported stage. Measured in a toy training with 16 snapshots, a reconstruction from float16 is
    2e-4 off the average tracked directly (relative L2), which is the rounding of one average to float16; from float32 it is 1e-5.
    The factors of a mixture for widths from 0.05 on have an L2 norm of at most about 1, so they don't magnify the rounding.
    """
    tensors = {average.name: {name: value.half() for name, value in average.weights.items()} for average in averages}
    stds = {average.name: average.std for average in averages}
    state = {"images_seen": images_seen, "stds": stds, "network": dict(network)}
    try:
        checkpoint.write(run / FOLDER / f"{images_seen:012d}", tensors, state)
    except OSError as error:
        raise OSError(
            f"the snapshot of {images_seen} images could not be written to {run} ({error});"
            " make room, then run the same command again"
        ) from error


def forget(run: Path, after: int) -> None:
    """Remove the snapshots of a run that goes on at `after` images: it makes them again, or others if its recipe changed."""
    checkpoint.clean(run / FOLDER, "")
    for folder in _folders(run):
        if folder.name > f"{after:012d}":
            remove_folder(folder)


@dataclass(frozen=True, slots=True)
class Snapshots:
    """The snapshots of a run up to some number of images, and what can be made of them.

    images: The last one's number of images.
    network: Settings of the network whose weights they are.
    profiles: Of every stored average, by folder and name.
    """

    images: int
    network: dict[str, Any]
    profiles: dict[tuple[Path, str], Profile]

    @classmethod
    def find(cls, run: Path, images: int | None = None) -> Snapshots:
        """Those up to `images`; None = all. Raises ValueError if there are none, or none of that number."""
        states = {folder: _state(folder) for folder in _folders(run)}
        if not states:
            raise ValueError(f"{run} holds no snapshots; they are written when the recipe has a section `snapshots`")
        known = [state["images_seen"] for state in states.values()]
        last = known[-1] if images is None else images
        if last not in known:
            near = sorted(known, key=lambda one: abs(one - last))[:3]
            raise ValueError(f"{run} has no snapshot of {last} images; near it are {', '.join(map(str, sorted(near)))}")
        profiles = {
            (folder, name): Profile(std, state["images_seen"])
            for folder, state in states.items()
            if state["images_seen"] <= last
            for name, std in state["stds"].items()
        }
        return cls(last, next(iter(states.values()))["network"], profiles)

    def average(self, std: float) -> tuple[dict[str, Tensor], float]:
        """The power average of a relative width, see `ema.gamma_of`, reconstructed with one snapshot at a time in memory.

        Returns weights, float32 by name, and the distance of their profile from the wanted one, see `mixture`. Raises ValueError
        if there is no such average, or a snapshot is damaged.
        """
        factors, distance = mixture(list(self.profiles.values()), Profile(std, self.images))
        by_folder: dict[Path, dict[str, float]] = {}
        for (folder, name), factor in zip(self.profiles, factors, strict=True):
            by_folder.setdefault(folder, {})[name] = float(factor)
        total: dict[str, Tensor] = {}
        for folder, mine in by_folder.items():
            with _damaged(folder):
                stored, _ = checkpoint.load(folder)
                tensors = {average: stored[average] for average in mine}
            for average, factor in mine.items():
                for name, value in tensors[average].items():
                    total[name] = total.get(name, torch.zeros(())) + factor * value.float()
        return total, distance


def _folders(run: Path) -> list[Path]:
    return checkpoint.named_folders(run / FOLDER)


def _state(folder: Path) -> dict[str, Any]:
    with _damaged(folder):
        state = checkpoint.read_state(folder)
        return {"images_seen": int(state["images_seen"]), "stds": dict(state["stds"]), "network": dict(state["network"])}


@contextmanager
def _damaged(folder: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
        raise ValueError(f"the snapshot {folder} is damaged ({error}); remove it, the others may do without it") from error
