"""Turning a published weight file into a stage folder once, for loading without it ever after."""

from __future__ import annotations

import hashlib
import shutil
import tempfile
from collections.abc import Mapping
from os import PathLike
from pathlib import Path
from typing import Any

from stages.published import catalogue
from stages.published.loading import as_stage


def convert(family: str, weights: str | PathLike[str], config: Mapping[str, Any] | None, out: str | PathLike[str]) -> Path:
    """Write a published file as a stage: a diffusers folder with safetensors, scheduler and model card.

    The folder appears only once it is complete. Weights keep the number type of the file, and are not held in memory beside it.

    Args:
        family: One of `stages.published.loading.DENOISERS`.
        weights: As for `stages.published.load`.
        config: As for `stages.published.load`.
        out: Folder to make; must not exist.

    Returns:
        `out`.

    Raises:
        ValueError: as `stages.published.stage`; and if `out` exists.
    """
    source, out = Path(weights), Path(out)
    if out.exists():
        raise ValueError(f"{out} exists already; give another folder, or remove it first")
    pipeline = as_stage(family, source, config, dtype=None)
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=f".{out.name}-") as scratch:
        folder = Path(scratch) / "stage"
        pipeline.save_pretrained(folder)
        (folder / "README.md").write_text(model_card(family, source, pipeline), encoding="utf-8")
        folder.chmod(0o755)
        shutil.move(folder, out)
    return out


def model_card(family: str, source: Path, pipeline: Any) -> str:
    """What a converted stage is, where it comes from, and under which licence; with the hash of its source."""
    denoiser, checkpoint = pipeline.unet, catalogue.known(source.name)
    licence = catalogue.LICENCES[family]
    size, low_res_size = denoiser.config.sample_size, denoiser.config.low_res_size
    task = (
        f"makes {size}x{size} images"
        if low_res_size is None
        else f"refines {low_res_size}x{low_res_size} images to {size}x{size}"
    )
    classes = "no classes" if denoiser.num_classes is None else f"{denoiser.num_classes} classes"
    guidance = (
        "It was trained without dropping labels, so classifier-free guidance is impossible."
        if denoiser.null_label is None
        else "Classifier-free guidance is possible."
    )
    with source.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    restricted = (
        "\n**Non-commercial: these weights may not be used, or passed on, for commercial purposes.**\n"
        if licence == catalogue.NON_COMMERCIAL
        else ""
    )
    return f"""---
license: {"cc-by-nc-sa-4.0" if licence == catalogue.NON_COMMERCIAL else licence.lower()}
---
# {source.stem}

A stage converted from a published `{family}` checkpoint. It {task}, {classes}, with {denoiser.num_parameters():,} parameters.
{guidance}

Licence of the published weights: {licence}.
{restricted}
| source | |
|---|---|
| file | `{source.name}` |
| SHA-256 | `{digest}` |
| published at | {checkpoint.url if checkpoint else catalogue.SOURCES[family]} |
| project | {catalogue.SOURCES[family]} |
"""
