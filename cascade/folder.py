"""A cascade on disk: the folders of its stages, and `cascade.json`, which says what they are together.

Nothing in a file is executed or unpickled. The top of this module needs no torch, so that a command can read what a model is
before it loads it.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cascade.classes import Vocabulary, imagenet
from cascade.stages import saved
from cascade.stages.saved import ModelError

if TYPE_CHECKING:
    import torch
    from diffusers import DiffusionPipeline

FORMAT = 1
MANIFEST = "cascade.json"
CARD = "README.md"
STAGE = "stage"
"""Folder of the finished stage in that of its training run."""

_PLAIN = r"\w[\w.-]*"
_IMAGENET: dict[str, Any] = {"vocabulary": "imagenet"}


@dataclass(frozen=True)
class StageEntry:
    """A stage in `cascade.json`.

    folder: Its folder beside `cascade.json`.
    pipeline: "BasePipeline", "SR3Pipeline", "RegressionPipeline", or the name of a diffusers pipeline.
    size: Side of the images that it makes.
    low_res_size: Side of the images that it refines; None for the base.
    """

    name: str
    folder: str
    pipeline: str
    size: int
    low_res_size: int | None = None

    @classmethod
    def of(cls, name: str, stage: Any, size: int | None = None) -> StageEntry:
        """The entry of a pipeline, in a folder of its name; `size` where the pipeline doesn't say it."""
        return cls(name, name, type(stage).__name__, size or stage.size, getattr(stage, "low_res_size", None))


@dataclass(frozen=True)
class Manifest:
    """The contents of `cascade.json`: what a cascade is, without its weights.

    classes: What its classes are called; None where they have no names.
    stages: In the order in which they run.
    default_size: Side of the images that are made where nothing else is asked for; None = those of the last stage.
    """

    name: str
    classes: Vocabulary | None
    stages: tuple[StageEntry, ...]
    default_size: int | None = None

    @classmethod
    def read(cls, folder: Path) -> Manifest:
        """The manifest of the cascade in `folder`, or of a base stage alone there; ModelError if there is none or a wrong one."""
        path = folder / MANIFEST
        if not path.is_file() and (folder / saved.INDEX).is_file():
            return cls._of_one_stage(folder)
        if not path.is_file():
            raise ModelError(f"{folder} is not a cascade, or an incomplete one: it has no {MANIFEST}")
        values = saved.read_json(path)
        if (found := values.get("format")) != FORMAT:
            newer = "; install a newer cascade-diffusion" if type(found) is int and found > FORMAT else ""
            raise ModelError(f"{path} has format {found!r}, but this version of cascade reads format {FORMAT}{newer}")
        with saved.damaged(path):
            stages = tuple(StageEntry(**entry) for entry in values["stages"])
            manifest = cls(str(values["name"]), _classes_from_json(values["classes"]), stages, values.get("default_size"))
        if not stages:
            raise ModelError(f"{path} has no stages")
        for stage in stages:
            if not all(
                isinstance(part, str) and re.fullmatch(_PLAIN, part) for part in (stage.name, stage.folder, stage.pipeline)
            ):
                raise ModelError(f"{path} has a stage {stage.name!r} in folder {stage.folder!r}, expected names without a path")
            if type(stage.size) is not int or type(stage.low_res_size) not in (int, type(None)):
                raise ModelError(f"{path} has a stage of size {stage.size!r} from {stage.low_res_size!r}, expected whole numbers")
        if manifest.default_size not in (None, *(stage.size for stage in stages)):
            raise ModelError(f"{path} has default_size {manifest.default_size!r}, expected the size of one of its stages")
        return manifest

    @classmethod
    def _of_one_stage(cls, folder: Path) -> Manifest:
        index, config = (saved.read_json(folder / name) for name in (saved.INDEX, "unet/config.json"))
        low_res_size, names = config.get("low_res_size"), index.get("id2label")
        if low_res_size is not None:
            raise ModelError(
                f"{folder} is a stage that enlarges {low_res_size} px pictures, which some base has to make first;"
                f" `cascade compose BASE {folder} --out MODEL` makes a model of both"
            )
        with saved.damaged(folder / saved.INDEX):
            entry = StageEntry("base", ".", str(index["_class_name"]), int(config["sample_size"]))
            name = folder.absolute().name
            name = folder.absolute().parent.name if name == STAGE else name
            return cls(name, None if names is None else Vocabulary.from_names(names[str(i)] for i in range(len(names))), (entry,))

    def up_to(self, size: int | None) -> Manifest:
        """The cascade that ends with the stage that makes images of side `size` (else ValueError); None = all of it."""
        if size is None:
            return self
        sizes = [stage.size for stage in self.stages]
        if size not in sizes:
            raise ValueError(f"no stage of {self.name!r} makes {size}x{size} images; choose from {', '.join(map(str, sizes))}")
        stages = self.stages[: sizes.index(size) + 1]
        return replace(self, stages=stages, default_size=min(size, self.default_size or size))

    def write(self, folder: Path) -> None:
        """Write `cascade.json` into `folder`."""
        values = {
            "format": FORMAT,
            "name": self.name,
            "classes": _classes_to_json(self.classes),
            "stages": [vars(stage) for stage in self.stages],
            "default_size": self.default_size,
        }
        (folder / MANIFEST).write_text(json.dumps(values, indent=2, ensure_ascii=False) + "\n", "utf-8")


def load_stage(folder: Path, entry: StageEntry, dtype: torch.dtype | str | None, variant: str | None = None) -> DiffusionPipeline:
    """The pipeline of a stage of the cascade in `folder`, on the CPU; `dtype` and `variant` as `saved.load_stage` takes them.

    Raises ModelError if it is incomplete, damaged, not what `cascade.json` says, or would execute or unpickle something.
    """
    home = folder / entry.folder
    saved.class_named(entry.pipeline, f"stage {entry.name!r} in {folder / MANIFEST}")
    if not home.is_dir():
        raise ModelError(f"{folder} is incomplete: it lacks the folder {entry.folder!r} of stage {entry.name!r}")
    if saved.read_json(home / saved.INDEX).get("_class_name") != entry.pipeline:
        raise ModelError(f"{home / saved.INDEX} does not describe the {entry.pipeline} that {MANIFEST} names")
    return saved.load_stage(home, dtype, variant)


def stage_folder(path: str | Path) -> Path | None:
    """The folder of a stage: itself, or that in the folder of the training run that made it; None where there is none."""
    folder = Path(path).expanduser()
    return next((one for one in (folder, folder / STAGE) if (one / saved.INDEX).is_file()), None)


def _classes_from_json(value: Any) -> Vocabulary | None:
    if value is None or isinstance(value, list):
        return None if value is None else Vocabulary.from_names(value)
    if value == _IMAGENET:
        return imagenet()
    if isinstance(value, dict) and value == _IMAGENET | {"wordnet_ids": value.get("wordnet_ids")}:
        return imagenet().only(value["wordnet_ids"])
    raise ValueError(f"classes is {value!r}, expected a list of names, {_IMAGENET}, the same with wordnet_ids of some, or null")


def _classes_to_json(classes: Vocabulary | None) -> list[str] | dict[str, Any] | None:
    if classes is None or not classes.wordnet_ids:
        return None if classes is None else list(classes.names)
    ids = classes.wordnet_ids
    if not set(ids) <= set(imagenet().wordnet_ids) or classes != imagenet().only(ids):
        return list(classes.names)
    return _IMAGENET if classes == imagenet() else _IMAGENET | {"wordnet_ids": list(ids)}
