"""From stages to a model: folders of stages, or of the training runs that made them, become a cascade."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cascade.classes import Vocabulary
from cascade.folder import stage_folder
from cascade.pipeline import CascadePipeline
from cascade.stages import saved


def compose(
    *stages: str | Path,
    name: str = "cascade",
    classes: Vocabulary | Sequence[str] | None = None,
    card: str | None = None,
    default_size: int | None = None,
) -> CascadePipeline:
    """A cascade of stages that lie in folders, to use or to save; each keeps the number type in which it is stored.

    Args:
        *stages: Folders in the order in which the stages run: of a stage, or of the training run that made one. The base is
            called "base", an SR3 stage after the side of its images ("sr256").
        name, classes, card, default_size: Of `CascadePipeline`. Where no `classes` are given, they are called as in the pictures
            that the stages were trained on.

    Raises:
        ModelError: a ValueError, if a folder holds no stage, or a damaged one.
        ValueError: if the stages don't fit together.
    """
    loaded: dict[str, Any] = {}
    for given in stages:
        folder = stage_folder(given)
        if folder is None:
            raise saved.ModelError(f"{given} holds no stage; give the folder of a stage, or of the training run that made one")
        stage = saved.load_stage(folder, None)
        word = "base" if getattr(stage, "low_res_size", None) is None else f"sr{stage.size}"
        if word in loaded:
            raise ValueError(f"{given} is a second stage {word!r}; give one base, then stages that make ever larger images")
        loaded[word] = stage
    return CascadePipeline(loaded, classes, name, card, default_size)
