"""SR3 stages measured as the paper did: real images made small, enlarged again, and compared with themselves."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from cascade.eval.classifier import errors
from cascade.eval.features import FeatureExtractor
from cascade.eval.images import Images, area_downsample, image_array
from cascade.eval.paired import consistency, psnr, ssim
from cascade.eval.references import Reference
from cascade.eval.report import Value
from cascade.eval.scoring import feature_set, mean_interval, score
from cascade.folder import StageEntry, load_stage
from cascade.measure.named import Classify
from cascade.pipeline import CascadePipeline
from cascade.runs.run import complete, image_name

Enlarge = Callable[[list[Image.Image], list[int] | None, list[int]], list[Image.Image]]
"""Small images, the class of each (None for a model without classes) and the seed of each, to large images."""


def low_resolution(originals: Images, size: int) -> Images:
    """Originals averaged over blocks and rounded to 8 bits, uint8 [N, size, size, 3]."""
    return area_downsample(originals, size).round().astype(np.uint8)


def bicubic(low_res: Images, size: int) -> Images:
    """Images enlarged by Pillow's bicubic filter, uint8 [N, size, size, 3]."""
    return np.stack([np.asarray(Image.fromarray(one).resize((size, size), Image.Resampling.BICUBIC)) for one in low_res])


def by_stage(cascade: CascadePipeline, stage: str, arguments: Mapping[str, Any]) -> Enlarge:
    """What a stage of a cascade makes of small images, with these settings of the cascade's call."""

    def enlarge(images: list[Image.Image], labels: list[int] | None, seeds: list[int]) -> list[Image.Image]:
        made: Any = cascade.upscale(images, labels, stage, seeds=seeds, size=cascade.sizes[stage], **arguments)
        return made.images

    return enlarge


def by_regression(folder: Path, size: int, low_res_size: int, dtype: torch.dtype, device: torch.device) -> Enlarge:
    """What SR3's regression baseline makes of small images.

    Args:
        folder: Of a stage that is a `RegressionPipeline`.
        size: Side of the images that it must make.
        low_res_size: Side of the small ones.
        dtype, device: Where and in which number type it runs.

    Raises:
        ValueError: if the folder holds no such stage, or one of other sizes.
    """
    if not (folder / "model_index.json").is_file():
        raise ValueError(f"{folder} is no stage; give the folder of a RegressionPipeline, which holds a model_index.json")
    home = folder.resolve()
    stage: Any = load_stage(home.parent, StageEntry("regression", home.name, "RegressionPipeline", size, low_res_size), dtype)
    if (stage.size, stage.low_res_size) != (size, low_res_size):
        made = f"{stage.low_res_size} to {stage.size} px"
        raise ValueError(f"the regression in {folder} is of {made}, but the SR3 stage of {low_res_size} to {size} px")
    stage.to(device)
    stage.set_progress_bar_config(disable=True)

    def enlarge(images: list[Image.Image], labels: list[int] | None, seeds: list[int]) -> list[Image.Image]:
        return stage(images, labels if stage.unet.num_classes is not None else None).images

    return enlarge


def enlarged(
    enlarge: Enlarge,
    low_res: Images,
    labels: list[int] | None,
    out: Path,
    *,
    seed: int = 0,
    batch_size: int = 1,
    on_progress: Callable[[int, int], None] | None = None,
) -> Images:
    """Large images, each kept as a PNG file as soon as it is there; existing ones are not made again.

    Args:
        enlarge: Makes them.
        low_res: uint8 [N, s, s, 3].
        labels: Class of each; None for a model without classes.
        out: Folder of the files, which nothing else is written to.
        seed: Of the first image; image i has seed + i.
        batch_size: Consecutive images that are made together, always the same ones.
        on_progress: Called with (images done, images in all).

    Returns:
        uint8 [N, S, S, 3].
    """
    out.mkdir(parents=True, exist_ok=True)
    files = [out / image_name(i) for i in range(len(low_res))]
    for start in range(0, len(low_res), batch_size):
        block = range(start, min(start + batch_size, len(low_res)))
        if on_progress is not None:
            on_progress(start, len(low_res))
        if all(files[i].is_file() for i in block):
            continue
        small = [Image.fromarray(low_res[i]) for i in block]
        made = enlarge(small, None if labels is None else [labels[i] for i in block], [seed + i for i in block])
        for i, image in zip(block, made, strict=True):
            with complete(files[i]) as file:
                image.save(file, format="PNG")
    if on_progress is not None:
        on_progress(len(low_res), len(low_res))
    return np.stack([_pixels(file) for file in files])


def paired_values(outputs: Images, originals: Images, low_res: Images, resamples: int) -> dict[str, Value]:
    """PSNR in dB, SSIM and SR3's consistency in 1e-5 of outputs against their originals, means over images."""
    values = {"PSNR": psnr(outputs, originals), "SSIM": ssim(outputs, originals), "consistency": consistency(outputs, low_res)}
    return {name: mean_interval(one, resamples) for name, one in values.items()}


def distance_values(
    outputs: Images, real: Reference, extractor: FeatureExtractor, crop_rule: str | None, resamples: int
) -> dict[str, Value]:
    """Distance of outputs to the originals' statistics by its name, and the Inception Score where the extractor has it."""
    scores = score(feature_set(image_array(outputs), extractor, crop_rule=crop_rule), real, resamples=resamples)
    return dict(scores.values())


def error_values(outputs: Images, labels: list[int], classify: Classify, resamples: int) -> dict[str, Value]:
    """Shares of outputs whose class a classifier does not name first, or among its first five."""
    top1, top5 = errors(classify(outputs), np.array(labels))
    return {"top-1 error": mean_interval(top1, resamples), "top-5 error": mean_interval(top5, resamples)}


def sr_stage(cascade: CascadePipeline, name: str | None) -> str:
    """The stage of this name that refines images; None = the last one. Raises ValueError if there is none."""
    found = [stage for stage, pipeline in cascade.stages.items() if getattr(pipeline, "low_res_size", None)]
    if not found:
        raise ValueError(f"{cascade.name!r} has no stage that refines images")
    if name is not None and name not in found:
        raise ValueError(f"{name!r} is no stage of {cascade.name!r} that refines images; these are {', '.join(found)}")
    return name or found[-1]


def _pixels(path: Path) -> Images:
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB"))
