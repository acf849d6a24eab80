"""Turning a published weight file into a stage folder once, for loading without it ever after."""

from os import PathLike
from pathlib import Path
from typing import Any

from cascade.stages.files import complete_folder, sha256
from cascade.stages.published.families import family_of
from cascade.stages.published.family import NON_COMMERCIAL, Config
from cascade.stages.published.loading import stage


def convert(family: str, weights: str | PathLike[str], config: Config | None, out: str | PathLike[str]) -> Path:
    """Write a published file as a stage: a diffusers folder with safetensors, scheduler and model card.

    The folder appears only once it is complete. Weights keep the number type of the file, and are not held in memory beside it.
    The first arguments and errors are those of `cascade.stages.published.stage`; `out` is the folder to make, and is returned.
    ValueError too if it exists or another process is writing it, OSError if it can't be written.
    """
    source, out = Path(weights), Path(out)
    _check_new(out)
    pipeline = stage(family, source, config, dtype=None)
    try:
        with complete_folder(out) as folder:
            _check_new(out)  # still so, now that no other process can write it
            pipeline.save_pretrained(folder)
            (folder / "README.md").write_text(model_card(family, source, pipeline), encoding="utf-8")
    except OSError as error:
        raise OSError(f"the stage could not be written to {out}: {error.strerror or error}; nothing of it is left") from error
    return out


def _check_new(out: Path) -> None:
    if out.exists() or out.is_symlink():
        raise ValueError(f"{out} exists already; give another folder, or remove it first")


def model_card(family: str, source: Path, pipeline: Any) -> str:
    """What a converted stage is, where it comes from, and under which licence; with the hash of its source."""
    record, denoiser, kind = family_of(family), pipeline.unet, type(pipeline)
    size, low_res_size = denoiser.config["sample_size"], denoiser.config["low_res_size"]
    task = f"refines {low_res_size}x{low_res_size} images to {size}x{size}" if low_res_size else f"makes {size}x{size} images"
    classes = "It knows no classes."
    if denoiser.num_classes is not None:
        guidance = "possible" if denoiser.null_label is not None else "impossible: it was trained without dropping labels"
        if getattr(denoiser, "flow_map", False):
            guidance = "not needed: the network sees its guidance as an input"
        classes = f"It knows {denoiser.num_classes} classes; classifier-free guidance is {guidance}."
    licence, restriction = record.licence.lower(), ""
    if record.licence == NON_COMMERCIAL:
        licence = "cc-by-nc-sa-4.0"
        restriction = "\n**Non-commercial: these weights may not be used, or passed on, for commercial purposes.**\n"
    checkpoint, taken = record.known(source.name), denoiser.config["published"].get("average")
    average = "" if taken is None else f"| weights taken of it | `{taken}` |\n"
    return f"""---
license: {licence}
---
# {source.stem}

A stage converted from a published `{family}` checkpoint. It {task}, with {denoiser.num_parameters():,} parameters.
{classes}

```python
from {kind.__module__} import {kind.__name__}

stage = {kind.__name__}.from_pretrained("path/to/this/folder")
```

Licence of the published weights: {record.licence}.
{restriction}
| source | |
|---|---|
| file | `{source.name}` |
| SHA-256 | `{sha256(source)}` |
{average}| published at | {checkpoint.url if checkpoint else record.project} |
| project | {record.project} |
"""
