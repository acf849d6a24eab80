"""Presets: useful compositions of published checkpoints. Their files are the user's to fetch; the rest happens by itself."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cascade import typed
from cascade.classes import imagenet
from cascade.files import CONFIGS, cache_folder, complete_folder, sha256
from cascade.folder import CARD, MANIFEST, Manifest, StageEntry, load_stage


@dataclass(frozen=True, kw_only=True)
class PublishedFile:
    """A checkpoint that a preset needs.

    family: As for `cascade.stages.published.stage`.
    file: Its name, by which its configuration is known.
    published: The address where it is published, or that of the page that leads to it.
    licence: Of the weights.
    gmac_per_evaluation: What one image costs, in 10^9 multiply-adds; of a classifier, with its gradient.
    megabytes: Size of the file; None = not stated.
    sha256: Of the file, where its authors state it.
    """

    family: str
    file: str
    published: str
    licence: str
    gmac_per_evaluation: float | None = None
    megabytes: float | None = None
    sha256: str | None = None

    @property
    def path(self) -> Path:
        """Where the user has to put it."""
        return cache_folder() / "published" / self.file

    @property
    def how_to_get(self) -> str:
        """The command that puts it there; where its address is not known, a sentence instead."""
        path = shlex.quote(str(self.path))
        if self.published.endswith("/" + self.file):
            return f"curl --fail --location --create-dirs --output {path} {shlex.quote(self.published)}"
        return f"get it by way of {self.published} and name it {path}"


@dataclass(frozen=True, kw_only=True)
class PresetStage(PublishedFile):
    """One stage of a preset.

    size: Side of its pictures.
    guide: A weaker network or a classifier that guides it.
    nfe: Evaluations per image.
    """

    size: int
    guide: PublishedFile | None = None
    num_inference_steps: int | None = None
    guidance_scale: float | None = None
    guidance_interval: tuple[float, ...] | None = None
    aug_level: float | None = None
    nfe: int | None = None

    @property
    def sampling(self) -> dict[str, Any]:
        """The settings of the stage's pipeline that the preset says."""
        names = ("num_inference_steps", "guidance_scale", "guidance_interval", "aug_level")
        return {name: value for name in names if (value := getattr(self, name)) is not None}


@dataclass(frozen=True, kw_only=True)
class Preset:
    """A composition of published checkpoints: its stages in the order in which they run, and per image what it costs and its FID.

    behind: Stages of models that are here by name, which go on from its pictures and take no class: the model of each.
    nfe: Network evaluations, those that guide included.
    tmac_per_image: 10^12 multiply-adds.
    fid_published: None = nobody has measured this composition.
    """

    name: str
    stages: dict[str, PresetStage]
    behind: dict[str, str] = field(default_factory=dict)
    nfe: int | None = None
    tmac_per_image: float | None = None
    fid_published: float | None = None


def names() -> list[str]:
    """Names of all presets."""
    return sorted(path.stem for path in (CONFIGS / "presets").glob("*.yaml"))


def named(name: str) -> Preset:
    """The preset of a name; ValueError, with file and key, for a file that is wrong."""
    path = CONFIGS / "presets" / f"{name}.yaml"
    values = typed.read(path)
    try:
        return typed.build(Preset, values)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def files_of(preset: Preset) -> list[PublishedFile]:
    """All checkpoints that a preset needs."""
    both = ((stage, stage.guide) for stage in preset.stages.values())
    return [file for pair in both for file in pair if file is not None]


def folder_of(name: str) -> Path:
    """Where the cascade of a preset lies, once it was assembled."""
    return cache_folder() / "presets" / name


class MissingFiles(ValueError):
    """A preset needs files that are not there; the text has a command for each."""


def assembled(name: str, find: Callable[[str], Path]) -> Path:
    """The folder of the cascade that a preset describes, made from its files at the first call.

    `find` gives the folder of a model by name. Raises MissingFiles if files are missing, and says how to get them; ValueError if
    one is not what its authors published.
    """
    folder = folder_of(name)
    if (folder / MANIFEST).is_file():
        return folder
    preset = named(name)
    missing = [file for file in files_of(preset) if not file.path.is_file()]
    if missing:
        lines = [f"  {file.how_to_get} ({file.licence})" for file in missing]
        raise MissingFiles(f"preset {name!r} needs {len(missing)} more file{'s' * (len(missing) > 1)}:\n" + "\n".join(lines))
    hashes = {file.file: sha256(file.path) for file in files_of(preset)}
    for file in files_of(preset):
        if file.sha256 not in (None, hashes[file.file]):
            raise ValueError(
                f"{file.path} has SHA-256 {hashes[file.file]}, but its authors published {file.sha256}; get it again from"
                f" {file.published}"
            )
    with complete_folder(folder) as written:
        _assemble(preset, find, hashes, written)
    return folder


def _assemble(preset: Preset, find: Callable[[str], Path], hashes: Mapping[str, str], folder: Path) -> None:
    """Write the cascade into a new folder."""
    entries = []
    for name, pipeline in _stages(preset, find):
        pipeline.save_pretrained(folder / name)
        entries.append(StageEntry.of(name, pipeline))
    lines = [f"{file.file}: {file.licence}, from {file.published}, SHA-256 {hashes[file.file]}" for file in files_of(preset)]
    lines += [f"{name}: of the model {model}, under its licence" for name, model in preset.behind.items()]
    card = f"# {preset.name}\n\nMade from published checkpoints:\n\n" + "".join(f"- {line}\n" for line in sorted(set(lines)))
    (folder / CARD).write_text(card, "utf-8")
    Manifest(preset.name, imagenet(), tuple(entries)).write(folder)


def _stages(preset: Preset, find: Callable[[str], Path]) -> Iterator[tuple[str, Any]]:
    """The pipelines of a preset by name, one after another, so that one at a time is in memory."""
    from cascade.stages import published

    for name, stage in preset.stages.items():
        pipeline = published.stage(stage.family, stage.path)
        if stage.guide is not None:
            pipeline.register_modules(guide_unet=published.guide(stage.guide.family, stage.guide.path))
        pipeline.register_to_config(**stage.sampling)
        yield name, pipeline
    for name, model in preset.behind.items():
        home = find(model)
        entry = next((one for one in Manifest.read(home).stages if one.name == name), None)
        if entry is None:
            raise ValueError(f"preset {preset.name!r} needs the stage {name!r} of {model!r}, which has none of that name")
        found: Any = load_stage(home, entry, "float32")
        yield name, type(found).from_pipe(found, unet=found.unet.without_classes(), id2label=None)
