"""Presets: useful compositions of published checkpoints. Their files are the user's to fetch; the rest happens by itself."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cascade import typed
from cascade.classes import imagenet
from cascade.files import CONFIGS, cache_folder, complete_folder
from cascade.folder import CARD, MANIFEST, Manifest, StageEntry


@dataclass(frozen=True, kw_only=True)
class PublishedFile:
    """A checkpoint that a preset needs.

    family: As for `cascade.stages.published.stage`.
    file: Its name, by which its configuration is known.
    published: The address where it is published.
    licence: Of the weights.
    gmac_per_evaluation: What one image costs, in 10^9 multiply-adds.
    """

    family: str
    file: str
    published: str
    licence: str
    gmac_per_evaluation: float | None = None

    @property
    def path(self) -> Path:
        """Where the user has to put it."""
        return cache_folder() / "published" / self.file


@dataclass(frozen=True, kw_only=True)
class PresetStage(PublishedFile):
    """One stage of a preset: its network, perhaps a weaker one that guides it, how it is sampled, and evaluations per image."""

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

    nfe: Network evaluations, those that guide included.
    tmac_per_image: 10^12 multiply-adds.
    fid_published: None = nobody has measured this composition.
    """

    name: str
    stages: dict[str, PresetStage]
    nfe: int | None = None
    tmac_per_image: float | None = None
    fid_published: float | None = None


def names() -> list[str]:
    """Names of all presets."""
    return sorted(path.stem for path in (CONFIGS / "presets").glob("*.yaml"))


def stages_of(name: str) -> dict[str, PresetStage]:
    """The stages of a preset by name, in the order in which they run; ValueError, with file and key, for a file that is wrong."""
    path = CONFIGS / "presets" / f"{name}.yaml"
    values = typed.read(path)
    try:
        return typed.build(Preset, values).stages
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def assembled(name: str) -> Path:
    """The folder of the cascade that a preset describes, made from its files at the first call.

    Raises ValueError if files are missing; it says which, where they are published, and where to put them.
    """
    folder = cache_folder() / "presets" / name
    if (folder / MANIFEST).is_file():
        return folder
    stages = stages_of(name)
    missing = [file for file in _files(stages) if not file.path.is_file()]
    if missing:
        lines = [f"  {file.path} from {file.published} ({file.licence})" for file in missing]
        raise ValueError(f"preset {name!r} needs {len(missing)} file{'s' * (len(missing) > 1)} put here:\n" + "\n".join(lines))
    with complete_folder(folder) as written:
        _assemble(name, stages, written)
    return folder


def _assemble(name: str, stages: Mapping[str, PresetStage], folder: Path) -> None:
    """Write the cascade into a new folder."""
    from cascade.stages import published

    entries = []
    for stage_name, stage in stages.items():
        pipeline = published.stage(stage.family, stage.path)
        if stage.guide is not None:
            pipeline.register_modules(guide_unet=published.stage(stage.guide.family, stage.guide.path).unet)
        pipeline.register_to_config(**stage.sampling)
        pipeline.save_pretrained(folder / stage_name)
        entries.append(StageEntry.of(stage_name, pipeline))
    licences = sorted({f"{file.file}: {file.licence}, from {file.published}" for file in _files(stages)})
    card = f"# {name}\n\nMade from published checkpoints:\n\n" + "".join(f"- {line}\n" for line in licences)
    (folder / CARD).write_text(card, "utf-8")
    Manifest(name, imagenet(), tuple(entries)).write(folder)


def _files(stages: Mapping[str, PresetStage]) -> Iterator[PublishedFile]:
    for stage in stages.values():
        yield stage
        if stage.guide is not None:
            yield stage.guide
