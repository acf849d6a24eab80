"""Presets: useful compositions of published checkpoints. Their files are the user's to fetch; the rest happens by itself."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cascade.files import CONFIGS, cache_folder

_SAMPLING = ("num_inference_steps", "guidance_scale", "guidance_interval", "aug_level")


@dataclass(frozen=True)
class PublishedFile:
    """A checkpoint that a preset needs.

    family: As for `cascade.stages.published.stage`.
    name: Of the file, by which its configuration is known.
    address: Where it is published.
    licence: Of the weights.
    """

    family: str
    name: str
    address: str
    licence: str

    @property
    def path(self) -> Path:
        """Where the user has to put it."""
        return cache_folder() / "published" / self.name


@dataclass(frozen=True)
class PresetStage:
    """One stage of a preset: its network, perhaps a weaker one that guides it, and how it is sampled."""

    network: PublishedFile
    guide: PublishedFile | None
    sampling: Mapping[str, Any]


def names() -> list[str]:
    """Names of all presets."""
    return sorted(path.stem for path in (CONFIGS / "presets").glob("*.yaml"))


def stages_of(name: str) -> dict[str, PresetStage]:
    """The stages of a preset by name, in the order in which they run."""
    import yaml

    values = yaml.safe_load((CONFIGS / "presets" / f"{name}.yaml").read_text("utf-8"))
    return {
        stage: PresetStage(
            _file(entry),
            _file(entry["guide"]) if "guide" in entry else None,
            {key: entry[key] for key in _SAMPLING if key in entry},
        )
        for stage, entry in values["stages"].items()
    }


def assembled(name: str) -> Path:
    """The folder of the cascade that a preset describes, made from its files at the first call.

    Raises:
        ValueError: if files are missing; it says which, where they are published, and where to put them.
    """
    folder = cache_folder() / "presets" / name
    if (folder / "cascade.json").is_file():
        return folder
    stages = stages_of(name)
    missing = [file for file in _files(stages) if not file.path.is_file()]
    if missing:
        lines = [f"  {file.path} from {file.address} ({file.licence})" for file in missing]
        raise ValueError(f"preset {name!r} needs {len(missing)} file{'s' * (len(missing) > 1)} put here:\n" + "\n".join(lines))
    _assemble(name, stages).save_pretrained(folder)
    return folder


def _assemble(name: str, stages: Mapping[str, PresetStage]) -> Any:
    from cascade.classes import imagenet
    from cascade.pipeline import CascadePipeline
    from cascade.stages import published

    pipelines: dict[str, Any] = {}
    for stage_name, stage in stages.items():
        pipeline = published.stage(stage.network.family, stage.network.path)
        if stage.guide is not None:
            pipeline.register_modules(guide_unet=published.stage(stage.guide.family, stage.guide.path).unet)
        pipeline.register_to_config(**stage.sampling)
        pipelines[stage_name] = pipeline
    licences = sorted({f"{file.name}: {file.licence}, from {file.address}" for file in _files(stages)})
    card = f"# {name}\n\nMade from published checkpoints:\n\n" + "".join(f"- {line}\n" for line in licences)
    return CascadePipeline(pipelines, classes=imagenet(), name=name, card=card)


def _files(stages: Mapping[str, PresetStage]) -> Iterator[PublishedFile]:
    for stage in stages.values():
        yield stage.network
        if stage.guide is not None:
            yield stage.guide


def _file(entry: Mapping[str, Any]) -> PublishedFile:
    return PublishedFile(entry["family"], entry["file"], entry["published"], entry["licence"])
