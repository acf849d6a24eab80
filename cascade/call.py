"""What a call of a cascade asks for: seeds of its images, settings of its stages, and whether the stages can do it."""

from __future__ import annotations

import hashlib
import inspect
import operator
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from diffusers import SchedulerMixin

from cascade.stages.sampling import Run, check_compatible, generators_of
from cascade.stages.sr3 import SR3Pipeline
from cascade.stages.stage import Generators, StagePipeline

Seeds = int | Iterable[int]


def seeds_of(seeds: Seeds | None, generator: Generators | None, count: int) -> list[int]:
    """The seed of every image.

    Args:
        seeds: One an image, or a single one s: image i gets s + i. None = drawn from `generator`.
        generator: One an image, or a single one for all; None = torch's own.
        count: Number of images.

    Raises:
        ValueError: if both are given, their number is not `count`, or a seed is no whole number.
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
        raise ValueError(f"got {len(found)} seeds for {count} images; give one an image, or a single one to count up from")
    return found


def generator_of(seed: int, stage: str) -> torch.Generator:
    """The source of an image's noise in a stage: a CPU generator, seeded from the first 8 bytes of SHA-256 of "seed/stage"."""
    digest = hashlib.sha256(f"{seed}/{stage}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)


def settings_of(stages: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """The settings of every stage, by its name: those that are given, and that its call takes.

    Args:
        stages: Pipelines by name.
        given: Value of each setting: one for all stages that take it, a mapping from stage names to values, or None.

    Raises:
        ValueError: if a mapping names a stage that there is not, or that doesn't take the setting.
    """
    takes = {name: inspect.signature(stage.__call__).parameters for name, stage in stages.items()}
    settings: dict[str, dict[str, Any]] = {name: {} for name in stages}
    for key, value in given.items():
        if isinstance(value, Mapping):
            for name in value:
                check_name(name, stages)
                if key not in takes[name]:
                    raise ValueError(f"stage {name!r} takes no {key}")
        for name in stages:
            mine = value.get(name) if isinstance(value, Mapping) else value
            if mine is not None and key in takes[name]:
                settings[name][key] = mine
    return settings


def accepted(stage: Any, given: Mapping[str, Any]) -> dict[str, Any]:
    """Those of the arguments that the stage's call takes."""
    takes = inspect.signature(stage.__call__).parameters
    return {key: value for key, value in given.items() if key in takes}


def check_name(name: str, stages: Mapping[str, Any]) -> None:
    """ValueError if there is no stage of this name."""
    if name not in stages:
        raise ValueError(f"there is no stage {name!r}; the stages are {', '.join(stages)}")


def check_settings(name: str, stage: Any, settings: Mapping[str, Any]) -> None:
    """Whether a stage can run with its settings; no network is run.

    Raises:
        ValueError: if not; its message names the stage.
    """
    steps = settings.get("num_inference_steps")
    try:
        if not isinstance(stage, StagePipeline):
            if steps is not None and steps < 1:
                raise ValueError(f"num_inference_steps must be at least 1, got {steps}")
            return
        if stage.scheduler is None:  # one evaluation, and nothing to set
            return
        denoiser = stage.guided(settings.get("guidance_scale"), settings.get("guidance_interval"))
        check_compatible(Run.of(stage.scheduler, stage.config["num_inference_steps"] if steps is None else steps), denoiser)
        if isinstance(stage, SR3Pipeline):
            stage.check_aug_level(settings.get("aug_level", stage.config["aug_level"]))
            stage.check_consistency(settings.get("consistency", stage.config["consistency"]))
            stage.check_tile_size(settings.get("tile_size", stage.config["tile_size"]))
    except ValueError as error:
        raise ValueError(f"stage {name!r}: {error}") from error


@contextmanager
def schedulers(stages: Mapping[str, Any], chosen: type | Mapping[str, type] | None) -> Iterator[None]:
    """Exchanges the schedulers of stages for the time of a call; each takes over the config of the one it replaces.

    Raises:
        ValueError: if a mapping names a stage that there is not, or something is no class of diffusers schedulers.
    """
    every = [name for name, stage in stages.items() if chosen is not None and _scheduler_of(stage) is not None]
    wanted: Mapping[str, Any] = chosen if isinstance(chosen, Mapping) else dict.fromkeys(every, chosen)
    for name, kind in wanted.items():
        check_name(name, stages)
        if not (isinstance(kind, type) and issubclass(kind, SchedulerMixin)):
            raise ValueError(f"scheduler is {kind!r}, expected a class of diffusers schedulers, such as DDIMScheduler")
        if _scheduler_of(stages[name]) is None:
            raise ValueError(f"stage {name!r} has no scheduler that could be exchanged")
    before = {name: stages[name].scheduler for name in wanted}
    try:
        for name, kind in wanted.items():
            stages[name].scheduler = kind.from_config(before[name].config)
        yield
    finally:
        for name, scheduler in before.items():
            stages[name].scheduler = scheduler


def _scheduler_of(stage: Any) -> Any:
    return getattr(stage, "scheduler", None)
