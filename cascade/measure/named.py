"""What commands that measure are given as words: where images lie, which network describes them, and references."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from cascade.classes import EMOJI, Vocabulary, imagenet
from cascade.data.drawings import DRAWINGS, cached_array
from cascade.eval.features import FeatureExtractor
from cascade.eval.images import Images, ImageSet, image_array, image_folder
from cascade.eval.references import Reference, load_adm_reference, load_clean_fid_reference, load_plain_reference, load_reference
from cascade.eval.statistics import Provenance, read_npz
from cascade.files import Progress, cache_folder
from cascade.measure.protocols import EXTRACTORS

INCEPTION_MODES: dict[str, Any] = {
    "inception-clean": "clean",
    "inception-tensorflow": "legacy_tensorflow",
    "inception-pytorch": "legacy_pytorch",
}
DRAWINGS_CROP_RULE = "drawings"
CLEAN_FID_PREFIX = "cleanfid:"

Classify = Callable[[Images], np.ndarray]
"""Class probabilities [N, C] of uint8 RGB images [N, S, S, 3]."""


def image_source(
    text: str, *, size: int | None = None, minimum: int = 1, progress: Progress | None = None
) -> tuple[ImageSet, np.ndarray | None]:
    """The images that a person means, and their classes where they are known.

    Args:
        text: "drawings" (those that are trained on) or "drawings:heldout"; a folder; or an .npz with `arr_0`.
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
        arrays = read_npz(path, {"arr_0"})
        return image_array(arrays["arr_0"], name=str(path), size=size, minimum=minimum), arrays.get("arr_1")
    if not path.exists():
        raise ValueError(f"there is no {text}; give a folder of images, an .npz, or {', '.join(DRAWINGS)}")
    return image_folder(path, size=size, minimum=minimum), None


def crop_rule_of(text: str, given: str | None) -> str | None:
    """How the images were cut from their originals: what a person says, or what drawings have."""
    return given or (DRAWINGS_CROP_RULE if text in DRAWINGS else None)


def extractor_of(name: str, weights: Path | None = None, device: str = "cpu") -> FeatureExtractor:
    """The feature network of this name, one of `EXTRACTORS`.

    `weights` is its file; None = from the user's cache, downloaded once. EfficientNet-Lite has its own.

    Raises:
        ValueError: if there is no such network, a package is missing, or the file is missing or another one.
        ConnectionError: if weights must be downloaded and can't be.
    """
    if name == "efficientnet-lite0":
        from cascade.eval.efficientnet import EfficientNetLite

        if weights is not None:
            raise ValueError(f"weights are {weights}, but EfficientNet-Lite brings its own; leave them out")
        return EfficientNetLite(device)
    if name == "dinov2":
        from cascade.eval.dinov2 import DINOv2

        return DINOv2(weights, device=device)
    from cascade.eval.inception import ADMInception, Inception

    if name not in INCEPTION_MODES:
        raise ValueError(f"extractor is {name!r}, expected one of {', '.join(EXTRACTORS)}")
    if name == "inception-tensorflow":
        return ADMInception(weights, device=device)
    return Inception(INCEPTION_MODES[name], weights, device=device)


def reference_source(
    text: str,
    *,
    image_size: int,
    extractor: str,
    crop_rule: str | None = None,
    minimum: int = 1,
    progress: Progress | None = None,
) -> Reference | ImageSet:
    """What samples are measured against, as a person means it.

    Args:
        text: Real images, as `image_source` names them; an .npz of `cascade evaluate reference`, of ADM, or with `mu` and `sigma`
            alone (clean-fid, EDM, pytorch-fid); or "cleanfid:NAME" or "cleanfid:NAME:SPLIT", statistics that clean-fid publishes.
        image_size: Side of the samples in pixels.
        extractor: By which samples are measured; a file of `mu` and `sigma` alone is taken to be of the same.
        crop_rule: How the images of such a file were cut; None = not known.
        minimum: How many images are needed at least.
        progress: Called while drawings are rendered.

    Raises:
        ValueError: if it is missing or damaged, or of another image size.
        ConnectionError: if it must be downloaded and can't be.
    """
    if text.startswith(CLEAN_FID_PREFIX):
        if extractor not in INCEPTION_MODES:
            raise ValueError(f"{text} is measured by Inception, so --extractor must be one of {', '.join(INCEPTION_MODES)}")
        name, _, split = text.removeprefix(CLEAN_FID_PREFIX).partition(":")
        return load_clean_fid_reference(name, split or "train", image_size, INCEPTION_MODES[extractor])
    path = Path(text).expanduser()
    if path.suffix == ".npz" and path.is_file():
        arrays = read_npz(path, set()).keys()
        if "provenance" in arrays:
            return load_reference(path)
        if "mu_s" in arrays:
            return load_adm_reference(path, image_size)
        if "arr_0" not in arrays:
            network = "inception-v3" if extractor in INCEPTION_MODES else extractor
            made_by = Provenance(
                extractor=network, weights_hash=None, resize_mode=INCEPTION_MODES.get(extractor), crop_rule=crop_rule
            )
            return load_plain_reference(path, made_by)
    return image_source(text, size=image_size, minimum=minimum, progress=progress)[0]


def classifier_of(classes: Vocabulary | None, device: str = "cpu") -> tuple[str, Classify] | None:
    """A classifier of these classes, and its name: the shipped one of drawings, or EfficientNet-Lite for ImageNet; else None."""
    if classes == EMOJI:
        from cascade.eval.classifier import class_probabilities, load_classifier

        model, _ = load_classifier()
        return "the shipped classifier of drawings", lambda images: class_probabilities(model, images)
    if classes == imagenet():
        from cascade.eval.efficientnet import EfficientNetLite

        return "EfficientNet-Lite0", EfficientNetLite(device).probabilities
    return None


def feature_cache() -> Path:
    """Where features of references are kept: under XDG_CACHE_HOME or ~/.cache."""
    return cache_folder() / "features"
