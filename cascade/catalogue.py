"""What `--model` can be on this machine: the models that are here by name, and presets, with what they lack. Needs no torch."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from cascade import models, presets
from cascade.files import read_text
from cascade.folder import CARD, MANIFEST, Manifest
from cascade.presets import Preset, PublishedFile
from cascade.stages.saved import ModelError


@dataclass(frozen=True)
class Entry:
    """A model as a list shows it.

    kind: "model", which is here; "preset", which is made from published files; or "broken: " and why.
    sizes: Sides of the pictures of its stages.
    classes: Their number; None = none, or not known before it is made.
    megabytes: Of its folder, or of the files that a preset needs; None = not stated.
    missing: Files that a preset lacks on this machine; none = it can be used.
    preset: What a preset says of itself.
    """

    name: str
    kind: str
    sizes: tuple[int, ...]
    classes: int | None
    megabytes: float | None
    licences: tuple[str, ...]
    missing: tuple[PublishedFile, ...] = ()
    preset: Preset | None = None


def catalogue() -> list[Entry]:
    """All models that have a name: those that are here, then presets."""
    here = [_here(name, folder) for name, folder in models.folders().items()]
    return here + [_preset(presets.named(name)) for name in presets.names()]


def _here(name: str, folder: Path) -> Entry:
    try:
        manifest = Manifest.read(folder)
    except ModelError as error:
        return Entry(name, f"broken: {error}", (), None, None, ())
    sizes = tuple(stage.size for stage in manifest.stages)
    classes = None if manifest.classes is None else len(manifest.classes)
    total = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    return Entry(name, "model", sizes, classes, total / 1e6, _licences_of(folder / CARD))


def _preset(preset: Preset) -> Entry:
    files = presets.files_of(preset)
    made = (presets.folder_of(preset.name) / MANIFEST).is_file()
    missing = () if made else tuple(file for file in files if not file.path.is_file())
    megabytes = [file.megabytes for file in files]
    total = None if None in megabytes else sum(size for size in megabytes if size is not None)
    sizes = tuple(stage.size for stage in preset.stages.values())
    sizes += tuple(_size_of(model, name) for name, model in preset.behind.items())
    return Entry(preset.name, "preset", sizes, 1000, total, tuple(sorted({file.licence for file in files})), missing, preset)


def _size_of(model: str, stage: str) -> int:
    return next(one.size for one in Manifest.read(models.folders()[model]).stages if one.name == stage)


def _licences_of(card: Path) -> tuple[str, ...]:
    """The licence that a model card's head states."""
    try:
        text = read_text(card)
    except (OSError, ValueError):  # none, or none that can be read
        return ()
    head = text.split("---")[1] if text.startswith("---") else ""
    stated = dict(line.split(": ", 1) for line in head.splitlines() if ": " in line)
    licence = stated.get("license_name", stated.get("license"))
    return () if licence is None else (licence,)
