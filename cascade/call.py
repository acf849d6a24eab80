"""What a call of a cascade asks for: the seeds of its images, and stages that can run as they are asked to."""

from __future__ import annotations

import hashlib
import operator
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch

from cascade.schedulers import scheduler_class
from cascade.stage_sampling import Sampling, StageSampling
from cascade.stages.sampling import Run, check_compatible, generators_of
from cascade.stages.sr3 import SR3Pipeline
from cascade.stages.stage import Generators, StagePipeline

Seeds = int | Iterable[int]


def seeds_of(seeds: Seeds | None, generator: Generators | None, count: int) -> list[int]:
    """The seed of every image: those given, s + i for a single one s and image i, or drawn from `generator` (None = torch's own).

    Raises ValueError if both are given, their number is not `count`, or a seed is not a whole number.
    """
    if seeds is None:
        drawing = generators_of(generator, count)
        return [int(torch.randint(2**32, (), generator=one, device=one.device)) for one in drawing]
    if generator is not None:
        raise ValueError("got both seeds and generator; give one of them")
    try:
        if not isinstance(seeds, Iterable):
            return [operator.index(seeds) + i for i in range(count)]
        found = [operator.index(seed) for seed in seeds]
    except TypeError:
        raise ValueError(f"seeds must be a whole number or a list of them, got {seeds!r}") from None
    if len(found) != count:
        raise ValueError(f"got {len(found)} seeds for {count} images; give one per image, or a single one to count up from")
    return found


def generator_of(seed: int, stage: str) -> torch.Generator:
    """The source of an image's noise in a stage: a CPU generator, seeded from the first 8 bytes of SHA-256 of "seed/stage"."""
    digest = hashlib.sha256(f"{seed}/{stage}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)


def check_sampling(name: str, stage: Any, sampling: StageSampling) -> None:
    """Raise ValueError, which names the stage, unless it can be sampled so; no network is run."""
    given = sampling.arguments
    if not isinstance(stage, StagePipeline) or stage.scheduler is None:  # not ours, or one evaluation and nothing to set
        return
    try:
        denoiser = stage.guided(sampling.guidance_scale, sampling.guidance_interval)
        check_compatible(Run.of(stage.scheduler, given.get("num_inference_steps", stage.config["num_inference_steps"])), denoiser)
        if isinstance(stage, SR3Pipeline):
            stage.check_aug_level(given.get("aug_level", stage.config["aug_level"]))
            stage.check_consistency(given.get("consistency", stage.config["consistency"]))
            stage.check_tile_size(given.get("tile_size", stage.config["tile_size"]))
    except ValueError as error:
        raise ValueError(f"stage {name!r}: {error}") from error


@contextmanager
def exchanged_schedulers(stages: Mapping[str, Any], sampling: Sampling) -> Iterator[None]:
    """Exchanges the schedulers of stages for the time of a call; each takes over the config of the one that it replaces."""
    before = {name: stages[name].scheduler for name, one in sampling.items() if one.scheduler is not None}
    kinds = {name: scheduler_class(sampling[name].scheduler or "") for name in before}
    try:
        for name, kind in kinds.items():
            stages[name].scheduler = kind.from_config(before[name].config)
        yield
    finally:
        for name, scheduler in before.items():
            stages[name].scheduler = scheduler
