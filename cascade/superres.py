"""SR3 stages measured as the paper did: real images made small, enlarged again, and compared with themselves."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from cascade.pipeline import CascadePipeline
from cascade.runs import complete, image_name
from eval.features import FeatureExtractor
from eval.frechet import frechet_distance
from eval.images import Images, area_downsample, image_array
from eval.paired import consistency, psnr, ssim
from eval.scoring import distance_name, measured


@dataclass(frozen=True, kw_only=True)
class PairedScores:
    """Means over images of outputs against their originals.

    psnr: In dB.
    ssim: In [-1, 1].
    consistency: Squared error of the outputs, made small again, to their inputs, in 1e-5.
    distance: Frechet distance of the outputs to the originals; None = not measured.
    """

    psnr: float
    ssim: float
    consistency: float
    distance: float | None


def low_resolution(originals: Images, size: int) -> Images:
    """Originals averaged over blocks and rounded to 8 bits, uint8 [N, size, size, 3]."""
    return area_downsample(originals, size).round().astype(np.uint8)


def bicubic(low_res: Images, size: int) -> Images:
    """Images enlarged by Pillow's bicubic filter, uint8 [N, size, size, 3]."""
    return np.stack([np.asarray(Image.fromarray(one).resize((size, size), Image.Resampling.BICUBIC)) for one in low_res])


def enlarge(
    cascade: CascadePipeline,
    stage: str,
    low_res: Images,
    labels: list[int] | None,
    out: Path,
    arguments: Mapping[str, Any],
    seed: int = 0,
    on_progress: Callable[[int, int], None] | None = None,
) -> Images:
    """What a stage makes of small images, each kept as a PNG file as soon as it is there; existing ones are not made again.

    Args:
        cascade: Whose stage.
        stage: Its name.
        low_res: uint8 [N, s, s, 3].
        labels: Class of each; None for a model without classes.
        out: Folder of the files, which nothing else is written to.
        arguments: Settings of the cascade's call.
        seed: Of the first image; image i has seed + i.
        on_progress: Called with (images done, images in all).

    Returns:
        uint8 [N, S, S, 3].
    """
    out.mkdir(parents=True, exist_ok=True)
    for i, image in enumerate(low_res):
        if on_progress is not None:
            on_progress(i, len(low_res))
        if (out / image_name(i)).is_file():
            continue
        label = None if labels is None else [labels[i]]
        made: Any = cascade.upscale(
            Image.fromarray(image), label, stage, seeds=[seed + i], size=cascade.sizes[stage], **arguments
        )
        with complete(out / image_name(i)) as file:
            made.images[0].save(file, format="PNG")
    if on_progress is not None:
        on_progress(len(low_res), len(low_res))
    return np.stack([_pixels(out / image_name(i)) for i in range(len(low_res))])


def paired_scores(
    outputs: Images, originals: Images, low_res: Images, extractor: FeatureExtractor | None
) -> tuple[PairedScores, str]:
    """Scores of outputs against their originals, and what the distance among them is called."""
    distance, name = None, "distance"
    if extractor is not None and len(outputs) > 1:
        sets = [measured(image_array(one), extractor, crop_rule=None) for one in (outputs, originals)]
        made, real = (each.statistics() for each in sets)
        distance = frechet_distance(made.mean, made.cov, real.mean, real.cov)
        name = distance_name(sets[0].provenance)
    scores = PairedScores(
        psnr=float(psnr(outputs, originals).mean()),
        ssim=float(ssim(outputs, originals).mean()),
        consistency=float(consistency(outputs, low_res).mean()),
        distance=distance,
    )
    return scores, name


def sr_stage(cascade: CascadePipeline, name: str | None) -> str:
    """The SR3 stage of this name; None = the last one. Raises ValueError if there is none."""
    found = [stage for stage, pipeline in cascade.stages.items() if getattr(pipeline, "low_res_size", None)]
    if not found:
        raise ValueError(f"{cascade.name!r} has no stage that refines images")
    if name is not None and name not in found:
        raise ValueError(f"{name!r} is no stage of {cascade.name!r} that refines images; these are {', '.join(found)}")
    return name or found[-1]


def _pixels(path: Path) -> Images:
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB"))
