"""Checks that stages make a cascade together."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from cascade.classes import Vocabulary
from cascade.stages.sr3 import RefiningPipeline


def check_kinds(stages: Mapping[str, Any]) -> None:
    """Raise ValueError unless the first stage makes images from noise, and all others enlarge them."""
    if not stages:
        raise ValueError("a cascade needs at least one stage, got none")
    for i, (name, stage) in enumerate(stages.items()):
        if not re.fullmatch(r"\w[\w-]*", name):
            raise ValueError(f"stage {name!r} needs a name of letters, digits, - and _; it becomes a folder's")
        if i == 0 and isinstance(stage, RefiningPipeline):
            raise ValueError(f"the first stage, {name!r}, enlarges images; put a base before it")
        if i > 0 and not isinstance(stage, RefiningPipeline):
            raise ValueError(
                f"stage {name!r} is a {type(stage).__name__}, but a stage after the first enlarges images: expected an"
                " SR3Pipeline or a RegressionPipeline"
            )


def check_sizes(own: Mapping[str, Any], sizes: Mapping[str, int]) -> None:
    """Raise ValueError unless every stage gets images at least as large as it refines, and makes larger ones."""
    names = list(sizes)
    for before, name in zip(names, names[1:], strict=False):
        needs = own[name].low_res_size
        if sizes[before] < needs:
            raise ValueError(f"stage {name!r} refines {needs} px images, but {before!r} before it makes only {sizes[before]} px")
        if sizes[name] <= sizes[before]:
            raise ValueError(f"stage {name!r} makes {sizes[name]} px images, and {before!r} before it {sizes[before]} px already")


def num_classes_of(own: Mapping[str, Any], classes: Vocabulary | None) -> int | None:
    """Number of classes that the stages agree on; None if none of them says."""
    counts = {name: stage.unet.num_classes for name, stage in own.items() if stage.unet.num_classes is not None}
    if len(set(counts.values())) > 1:
        listed = ", ".join(f"{name!r} {count}" for name, count in counts.items())
        raise ValueError(f"the stages know different numbers of classes: {listed}; they must be trained on the same classes")
    number = next(iter(counts.values()), None)
    if classes is not None and number not in (None, len(classes)):
        raise ValueError(f"got names for {len(classes)} classes, but the stages know {number}")
    return number


def class_names_of(stages: Mapping[str, Any]) -> tuple[str, ...] | None:
    """What the classes are called by the stages that were trained on them; None if no stage says so."""
    found = {name: names for name, stage in stages.items() if (names := getattr(stage, "class_names", None))}
    if len(set(found.values())) > 1:
        raise ValueError(f"the stages {', '.join(map(repr, found))} were trained on classes of different names; give `classes`")
    return next(iter(found.values()), None)
