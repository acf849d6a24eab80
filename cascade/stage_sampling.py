"""How a stage is sampled, as one value: what a call, a run, a report and the text of a PNG say of it all come from here.

Needs no torch, so that a request is checked before anything is loaded.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, TypedDict

from cascade.schedulers import SCHEDULERS, scheduler_class

MOST_STEPS = 100_000


@dataclass(frozen=True, kw_only=True, slots=True)
class StageSampling:
    """How one stage is sampled; where a value is None, the stage's own default stands. Nothing here needs another training run.

    num_inference_steps: Steps of the scheduler.
    guidance_scale: 1 = no guidance.
    aug_level: Noise added to the small images of an SR3 stage, in [0, 1].
    consistency: Whether the images of an SR3 stage must average to the small ones that they are made from.
    guidance_interval: Lowest and highest EDM sigma that is guided.
    tile_size: Side of the tiles, in pixels, that the network of an SR3 stage sees at once, which bounds its memory.
    scheduler: Short name ("euler", see `cascade.schedulers`) or class of a diffusers scheduler, which takes over the config of
        the stage's own.

    Raises:
        ValueError: for a value that no stage can be sampled with.
    """

    num_inference_steps: int | None = None
    guidance_scale: float | None = None
    aug_level: float | None = None
    consistency: bool | None = None
    guidance_interval: tuple[float, float] | None = None
    tile_size: int | None = None
    scheduler: str | type | None = None

    def __post_init__(self) -> None:
        steps = 1 if self.num_inference_steps is None else self.num_inference_steps
        if not 1 <= steps <= MOST_STEPS:
            limit = "at least 1" if steps < 1 else f"at most {MOST_STEPS:,}"
            raise ValueError(f"num_inference_steps must be {limit}, got {steps}")
        if self.aug_level is not None and not 0 <= self.aug_level <= 1:
            raise ValueError(f"aug_level must lie in [0, 1], got {self.aug_level}")
        if self.guidance_interval is not None and len(self.guidance_interval) != 2:
            raise ValueError(f"guidance_interval must be (lowest sigma, highest sigma), got {self.guidance_interval}")
        if not isinstance(self.scheduler, type) and self.scheduler not in (None, *SCHEDULERS):
            raise ValueError(
                f"scheduler is {self.scheduler!r}, expected one of {', '.join(SCHEDULERS)}, or a class of diffusers schedulers"
            )

    @property
    def arguments(self) -> dict[str, Any]:
        """The values that are given, as arguments of the stage's call; the scheduler is no argument."""
        given = {name: getattr(self, name) for name in SETTINGS if name != "scheduler"}
        return {name: value for name, value in given.items() if value is not None}

    def described(self, stage: Any) -> dict[str, Any]:
        """Every setting that the stage's images depend on, its defaults written out, as plain values."""
        values = {name: self.arguments.get(name, stage.config.get(name)) for name in SETTINGS}
        scheduler = getattr(stage, "scheduler", None)
        if scheduler is not None:
            values["scheduler"] = (type(scheduler) if self.scheduler is None else scheduler_class(self.scheduler)).__name__
        return {name: list(v) if isinstance(v, tuple) else v for name, v in values.items() if v is not None}


SETTINGS = tuple(field.name for field in fields(StageSampling))


class SamplingSettings(TypedDict, total=False):
    """The fields of `StageSampling` as arguments of a cascade's call: each one value, or a mapping from stage names to values."""

    num_inference_steps: int | Mapping[str, int] | None
    guidance_scale: float | Mapping[str, float] | None
    aug_level: float | Mapping[str, float] | None
    consistency: bool | Mapping[str, bool] | None
    guidance_interval: Sequence[float] | Mapping[str, Sequence[float]] | None
    tile_size: int | Mapping[str, int] | None
    scheduler: str | type | Mapping[str, str | type] | None


Sampling = Mapping[str, StageSampling]
"""How each stage is sampled, by its name; a stage that is left out has its own defaults."""


def sampling_of(
    takes: Mapping[str, frozenset[str]], given: Sampling | None, settings: Mapping[str, Any]
) -> dict[str, StageSampling]:
    """How every stage is sampled: as `given` by stage, and by `settings` (as in `SamplingSettings`), which win.

    `takes` names the settings that each stage has, see `settings_taken`. Raises ValueError for a stage that there is not, or a
    setting that it doesn't take, and TypeError for a setting that no stage has.
    """
    found = {name: StageSampling() for name in takes}
    for name, one in (given or {}).items():
        check_name(name, takes)
        for key in SETTINGS:
            if getattr(one, key) is not None:
                _check_taken(key, name, takes)
        found[name] = one
    for key, value in settings.items():
        if key not in SETTINGS:
            raise TypeError(f"there is no argument {key!r}; the settings of a stage are {', '.join(SETTINGS)}")
        for name in value if isinstance(value, Mapping) else ():
            check_name(name, takes)
            _check_taken(key, name, takes)
        for name in takes:
            mine = value.get(name) if isinstance(value, Mapping) else value
            if mine is not None and key in takes[name]:
                changed: dict[str, Any] = {key: tuple(mine) if key == "guidance_interval" else mine}
                try:
                    found[name] = replace(found[name], **changed)
                except ValueError as error:
                    raise ValueError(f"stage {name!r}: {error}") from None
    return found


def settings_taken(stage: Any) -> frozenset[str]:
    """Names of the settings that a pipeline has."""
    names = {name for name in inspect.signature(stage.__call__).parameters if name in SETTINGS}
    return frozenset(names | ({"scheduler"} if getattr(stage, "scheduler", None) is not None else set()))


def check_name(name: str, stages: Mapping[str, Any]) -> None:
    """Raise ValueError unless there is a stage of this name."""
    if name not in stages:
        raise ValueError(f"there is no stage {name!r}; the stages are {', '.join(stages)}")


def _check_taken(key: str, name: str, takes: Mapping[str, frozenset[str]]) -> None:
    if key not in takes[name]:
        raise ValueError(f"stage {name!r} takes no {key}")
