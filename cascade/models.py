"""Models on disk: names to folders, `cascade.json`, and stage folders to pipelines.

Nothing in a file is executed or unpickled. The top of this module needs no torch, so that a command can read what a model is
before it loads it.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cascade import presets
from cascade.classes import Vocabulary, imagenet
from cascade.stages import saved
from cascade.stages.saved import ModelError as ModelError

if TYPE_CHECKING:
    import torch
    from diffusers import DiffusionPipeline

FORMAT = 1
MANIFEST = "cascade.json"
CARD = "README.md"
SHIPPED = {"emoji": Path(__file__).parent / "assets" / "emoji"}

_PLAIN = r"\w[\w.-]*"
_IMAGENET = {"vocabulary": "imagenet"}


@dataclass(frozen=True)
class StageEntry:
    """A stage in `cascade.json`.

    name: What it is called.
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


@dataclass(frozen=True)
class Manifest:
    """The contents of `cascade.json`: what a cascade is, without its weights.

    name: Name of the model.
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
        """The manifest of the cascade in `folder`, as `resolve` returns it.

        Raises:
            ModelError: if there is none, or it can't be understood.
        """
        path = folder / MANIFEST
        if not path.is_file():
            raise ModelError(f"{folder} is not a cascade, or an incomplete one: it has no {MANIFEST}")
        values = saved.read_json(path)
        if values.get("format") != FORMAT:
            raise ModelError(f"{path} has format {values.get('format')!r}, but this version of cascade reads format {FORMAT}")
        with saved.damaged(path):
            stages = tuple(StageEntry(**entry) for entry in values["stages"])
            manifest = cls(str(values["name"]), _classes_from_json(values["classes"]), stages, values.get("default_size"))
        if not stages:
            raise ModelError(f"{path} has no stages")
        for stage in stages:
            if not all(re.fullmatch(_PLAIN, str(part)) for part in (stage.name, stage.folder, stage.pipeline)):
                raise ModelError(f"{path} has a stage {stage.name!r} in folder {stage.folder!r}, expected names without a path")
            if type(stage.size) is not int or type(stage.low_res_size) not in (int, type(None)):
                raise ModelError(f"{path} has a stage of size {stage.size!r} from {stage.low_res_size!r}, expected whole numbers")
        if manifest.default_size not in (None, *(stage.size for stage in stages)):
            raise ModelError(f"{path} has default_size {manifest.default_size!r}, expected the size of one of its stages")
        return manifest

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


def resolve(name_or_path: str | Path) -> Path:
    """The folder of a model.

    Args:
        name_or_path: The name of a shipped model ("emoji") or a preset, a folder (./emoji for one of a shipped model's name), or
            the id of a model on the Hugging Face Hub ("someone/something"), of which only json, safetensors and md files are
            downloaded.

    Raises:
        ModelError: if there is no such model, or it can't be downloaded.
        ValueError: if files of a preset are missing.
    """
    name, path = str(name_or_path), Path(name_or_path).expanduser()
    if name in SHIPPED:
        if not (SHIPPED[name] / MANIFEST).is_file():
            raise ModelError(
                f"the shipped model {name!r} is missing from this installation: there is no {SHIPPED[name] / MANIFEST}"
            )
        return SHIPPED[name]
    if path.is_dir():
        return path
    if path.exists():
        raise ModelError(f"model {name!r} is a file, expected the folder of a cascade")
    if name in presets.names():
        return presets.assembled(name)
    if re.fullmatch(saved.HUB_ID, name) and not path.parent.is_dir():
        return saved.download(name)
    raise ModelError(
        f"there is no model {name!r}: it is no folder, and the models known by name are"
        f" {', '.join([*SHIPPED, *presets.names()])}"
    )


def load_stage(folder: Path, entry: StageEntry, dtype: torch.dtype) -> DiffusionPipeline:
    """The pipeline of a stage, on the CPU, its weights as `dtype` whatever number type they are stored in.

    Args:
        folder: The cascade's.
        entry: Which of its stages.

    Raises:
        ModelError: if the stage is incomplete, damaged, not what `cascade.json` says, or would execute or unpickle something.
    """
    home = folder / entry.folder
    saved.class_named(entry.pipeline, f"stage {entry.name!r} in {folder / MANIFEST}")
    if not home.is_dir():
        raise ModelError(f"{folder} is incomplete: it lacks the folder {entry.folder!r} of stage {entry.name!r}")
    if saved.read_json(home / saved.INDEX).get("_class_name") != entry.pipeline:
        raise ModelError(f"{home / saved.INDEX} does not describe the {entry.pipeline} that {MANIFEST} names")
    return saved.load_stage(home, dtype)


def _classes_from_json(value: Any) -> Vocabulary | None:
    if value is None or isinstance(value, list):
        return None if value is None else Vocabulary.from_names(value)
    if value == _IMAGENET:
        return imagenet()
    raise ValueError(f"classes is {value!r}, expected a list of names, {_IMAGENET} or null")


def _classes_to_json(classes: Vocabulary | None) -> list[str] | dict[str, str] | None:
    if classes is None:
        return None
    return _IMAGENET if classes.wordnet_ids and classes == imagenet() else list(classes.names)
