"""Turning a published weight file into a stage folder once, for loading without it ever after."""

from __future__ import annotations

import hashlib
import shutil
import tempfile
from collections.abc import Mapping
from os import PathLike
from pathlib import Path
from typing import Any

from cascade.stages.base import BasePipeline
from cascade.stages.published import catalogue
from cascade.stages.published.clock import PublishedDenoiser
from cascade.stages.published.loading import empty_denoiser, pipeline_of, read, stage_family
from cascade.stages.sr3 import SR3Pipeline


def convert(family: str, weights: str | PathLike[str], config: Mapping[str, Any] | None, out: str | PathLike[str]) -> Path:
    """Write a published file as a stage: a diffusers folder with safetensors, scheduler and model card.

    The folder appears only once it is complete. Weights keep the number type of the file, and are not held in memory beside it.

    Args:
        family: One of `cascade.stages.published.loading.DENOISERS`.
        weights: As for `cascade.stages.published.load`.
        config: As for `cascade.stages.published.load`.
        out: Folder to make; must not exist.

    Returns:
        `out`.

    Raises:
        ValueError: as `cascade.stages.published.stage`; and if `out` exists.
    """
    source, out = Path(weights), Path(out)
    if out.exists():
        raise ValueError(f"{out} exists already; give another folder, or remove it first")
    network, config = read(stage_family(family), source, config, dtype=None)
    denoiser = empty_denoiser(family, config)
    pipeline = pipeline_of(family, config, denoiser)  # of empty weights: a pipeline rearranges those that it is given in memory
    denoiser.network = network
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=f".{out.name}-") as scratch:
        folder = Path(scratch) / "stage"
        pipeline.save_config(folder)
        pipeline.scheduler.save_pretrained(folder / "scheduler")
        denoiser.save_pretrained(folder / "unet")
        (folder / "README.md").write_text(model_card(family, source, denoiser), encoding="utf-8")
        folder.chmod(0o755)
        for file in folder.glob("unet/*.safetensors"):
            file.chmod(0o644)  # safetensors writes them for their owner only
        shutil.move(folder, out)
    return out


def model_card(family: str, source: Path, denoiser: PublishedDenoiser) -> str:
    """What a converted stage is, where it comes from, and under which licence; with the hash of its source."""
    checkpoint, licence = catalogue.known(source.name), catalogue.LICENCES[family]
    size, low_res_size = denoiser.config["sample_size"], denoiser.config["low_res_size"]
    task = (
        f"makes {size}x{size} images"
        if low_res_size is None
        else f"refines {low_res_size}x{low_res_size} images to {size}x{size}"
    )
    classes = "It knows no classes."
    if denoiser.num_classes is not None:
        possible = "possible" if denoiser.null_label is not None else "impossible: it was trained without dropping labels"
        classes = f"It knows {denoiser.num_classes} classes; classifier-free guidance is {possible}."
    pipeline = BasePipeline if low_res_size is None else SR3Pipeline
    restricted = (
        "\n**Non-commercial: these weights may not be used, or passed on, for commercial purposes.**\n"
        if licence == catalogue.NON_COMMERCIAL
        else ""
    )
    return f"""---
license: {"cc-by-nc-sa-4.0" if licence == catalogue.NON_COMMERCIAL else licence.lower()}
---
# {source.stem}

A stage converted from a published `{family}` checkpoint. It {task}, with {denoiser.num_parameters():,} parameters.
{classes}

```python
import cascade.stages.published  # so that diffusers finds the network's class
from {pipeline.__module__} import {pipeline.__name__}

stage = {pipeline.__name__}.from_pretrained("path/to/this/folder")
```

Licence of the published weights: {licence}.
{restricted}
| source | |
|---|---|
| file | `{source.name}` |
| SHA-256 | `{sha256_of(source)}` |
| published at | {checkpoint.url if checkpoint else catalogue.SOURCES[family]} |
| project | {catalogue.SOURCES[family]} |
"""


def sha256_of(path: Path) -> str:
    """SHA-256 of a file's content, in hexadecimal."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
