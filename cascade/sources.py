"""What commands that measure are given as words: where images lie, which network describes them, and references."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np

from cascade.drawings import Progress as DrawingsProgress
from cascade.drawings import cached_array
from eval.features import FeatureExtractor
from eval.images import ImageSet, image_archive, image_array, image_folder
from eval.references import Reference, load_adm_reference, load_reference
from eval.statistics import read_npz

DRAWINGS = {"drawings:train": "train", "drawings:heldout": "heldout"}
EXTRACTORS = ("efficientnet-lite0", "inception-clean", "inception-tensorflow", "inception-pytorch", "dinov2")
DRAWINGS_CROP_RULE = "drawings"


def image_source(
    text: str, *, size: int | None = None, minimum: int = 1, progress: DrawingsProgress | None = None
) -> tuple[ImageSet, np.ndarray | None]:
    """The images that a person means, and their classes where they are known.

    Args:
        text: "drawings:train" or "drawings:heldout"; a folder; or an .npz with `arr_0`.
        size: Side that the images must have, or at which drawings are rendered; None = as they are, drawings at 256.
        minimum: How many images are needed at least.
        progress: Called while drawings are rendered.

    Returns:
        The images, and int64 [N] classes: of drawings, or an archive's `arr_1`; None where they are not known.

    Raises:
        ValueError: if there are none, too few, or not of one size.
    """
    if text in DRAWINGS:
        pictures, labels = cached_array(size or 256, DRAWINGS[text], progress=progress)
        return image_array(pictures, name=text, minimum=minimum), labels
    path = Path(text).expanduser()
    if path.suffix == ".npz":
        found = read_npz(path, {"arr_0"}).get("arr_1") if path.is_file() else None
        return image_archive(path, size=size, minimum=minimum), found
    if not path.exists():
        raise ValueError(f"there is no {text}; give a folder of images, an .npz, or {' or '.join(DRAWINGS)}")
    return image_folder(path, size=size, minimum=minimum), None


def crop_rule_of(text: str, given: str | None) -> str | None:
    """How the images were cut from their originals: what a person says, or what drawings have."""
    return given or (DRAWINGS_CROP_RULE if text in DRAWINGS else None)


def extractor_of(name: str, weights: Path | None = None, device: str = "cpu") -> FeatureExtractor:
    """The feature network of this name.

    Args:
        name: One of `EXTRACTORS`.
        weights: Its file; None = from the user's cache, downloaded once; EfficientNet-Lite has its own.
        device: Where to run.

    Raises:
        ValueError: if there is no such network, a package is missing, or the file is missing or another one.
        ConnectionError: if weights must be downloaded and can't be.
    """
    if name == "efficientnet-lite0":
        from eval.efficientnet import EfficientNetLite

        if weights is not None:
            raise ValueError(f"weights are {weights}, but EfficientNet-Lite brings its own; leave them out")
        return EfficientNetLite(device)
    if name == "dinov2":
        from eval.dinov2 import DINOv2

        return DINOv2(weights, device=device)
    from eval.inception import Inception

    modes: dict[str, Any] = {
        "inception-clean": "clean",
        "inception-tensorflow": "legacy_tensorflow",
        "inception-pytorch": "legacy_pytorch",
    }
    if name not in modes:
        raise ValueError(f"extractor is {name!r}, expected one of {', '.join(EXTRACTORS)}")
    return Inception(modes[name], weights, device=device)


def reference_file(path: Path, image_size: int) -> Reference | None:
    """The statistics in an .npz: ours, or ADM's published ones; None if it holds images alone.

    Raises:
        ValueError: if it is missing or damaged, or of another image size.
    """
    arrays = read_npz(path, set()).keys()
    if "provenance" in arrays:
        return load_reference(path)
    return load_adm_reference(path, image_size) if {"mu", "sigma"} <= arrays else None


def feature_cache() -> Path:
    """Where features of references are kept: under XDG_CACHE_HOME or ~/.cache."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "cascade-diffusion" / "features"

