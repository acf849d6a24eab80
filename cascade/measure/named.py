"""What commands that measure are given as words: where images lie, which network describes them, and references."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from cascade.classes import EMOJI, Vocabulary, imagenet
from cascade.data.drawings import DRAWINGS, cached_array, glyphs
from cascade.eval.classifier import class_probabilities, load_classifier
from cascade.eval.dinov2 import VIT_L14, DINOv2
from cascade.eval.efficientnet import EfficientNetLite
from cascade.eval.features import FeatureExtractor
from cascade.eval.images import Images, ImageSet, image_array, image_folder
from cascade.eval.inception import PYTORCH_FID, TORCHSCRIPT, ADMInception, Inception
from cascade.eval.references import Reference, load_adm_reference, load_clean_fid_reference, load_plain_reference, load_reference
from cascade.eval.resnet import ResNet50
from cascade.eval.scoring import MANIFOLD_K
from cascade.eval.statistics import Provenance, npz_names, read_npz
from cascade.files import Progress
from cascade.measure.protocols import CLASSIFIERS, EXTRACTORS

INCEPTION_MODES: dict[str, Any] = {
    "inception-clean": "clean",
    "inception-tensorflow": "legacy_tensorflow",
    "inception-pytorch": "legacy_pytorch",
}
DRAWINGS_CROP_RULE = "drawings"
WEIGHTS = {
    "inception-clean": TORCHSCRIPT,
    "inception-tensorflow": TORCHSCRIPT,
    "inception-pytorch": PYTORCH_FID,
    "dinov2": VIT_L14,
}
"""The published weights of each extractor that has any."""

Classify = Callable[[Images], np.ndarray]
"""Class probabilities [N, C] of uint8 RGB images [N, S, S, 3]."""


def check_named(text: str) -> None:
    """Raise ValueError unless there is something of this name, before any work is done for it."""
    if text not in DRAWINGS and not Path(text).expanduser().exists():
        raise ValueError(f"there is no {text}; give a folder of images, an .npz, or {', '.join(DRAWINGS)}")


def check_reference(text: str, extractor: str) -> None:
    """Raise ValueError unless there may be such a reference, measured by this network."""
    if not text.startswith("cleanfid:"):
        check_named(text)
    elif extractor not in INCEPTION_MODES:
        raise ValueError(f"{text} is measured by Inception, so --extractor must be one of {', '.join(INCEPTION_MODES)}")


def image_source(
    text: str, *, size: int | None = None, minimum: int = 1, progress: Progress | None = None
) -> tuple[ImageSet, np.ndarray | None]:
    """The images that a person means, and int64 [N] classes: of drawings, or an archive's `arr_1`; None where they are not known.

    `text` is "drawings" (those that are trained on) or "drawings:heldout"; a folder; or an .npz with `arr_0`. `size` is the side
    that the images must have, or at which drawings are rendered; None = as they are, drawings at 256. `progress` is told of the
    rendering. Raises ValueError if there are none, fewer than `minimum`, or not of one size.
    """
    if text in DRAWINGS:
        pictures, labels = cached_array(size or 256, DRAWINGS[text], progress=progress)
        return image_array(pictures, name=text, minimum=minimum), labels
    path = Path(text).expanduser()
    if path.suffix == ".npz":
        arrays = read_npz(path, {"arr_0"})
        images = image_array(arrays["arr_0"], name=str(path), size=size, minimum=minimum)
        classes = arrays.get("arr_1")
        if classes is not None and (classes.dtype.kind not in "iu" or classes.shape != (len(images),)):
            raise ValueError(f"{path} holds arr_1 as {classes.dtype} of shape {classes.shape}, expected a class per image")
        return images, classes
    check_named(text)
    return image_folder(path, size=size, minimum=minimum), None


@dataclass(frozen=True)
class HeldOut:
    """Held-out drawings: their pictures, their classes, and what each draws, by its code points, as other sets do too, [N]."""

    images: ImageSet
    labels: np.ndarray
    glyphs: np.ndarray


def heldout_drawings(size: int, count: int, progress: Progress) -> HeldOut:
    """`count` of the held-out drawings, always the same ones, in order, `size` pixels wide; ValueError if there are fewer."""
    pictures, labels = cached_array(size, "heldout", progress=progress)
    if count > len(pictures):
        raise ValueError(f"num_images is {count}, but there are only {len(pictures)} held-out drawings for the floor")
    chosen = np.sort(np.random.default_rng(0).permutation(len(pictures))[:count])
    return HeldOut(image_array(pictures, name="drawings:heldout").take(chosen), labels[chosen], glyphs("heldout")[chosen])


def crop_rule_of(text: str, given: str | None) -> str | None:
    """How the images were cut from their originals: what a person says, or what drawings have."""
    return given or (DRAWINGS_CROP_RULE if text in DRAWINGS else None)


def extractor_of(name: str, weights: Path | None = None, device: str = "cpu") -> FeatureExtractor:
    """The feature network of this name, one of `EXTRACTORS`.

    `weights` is its file; None = from the user's cache, downloaded once; EfficientNet-Lite has its own. Raises ValueError if
    there is no such network, a package is missing, or the file is missing or another one; ConnectionError if a download fails.
    """
    if name == "efficientnet-lite0":
        if weights is not None:
            raise ValueError(f"weights are {weights}, but EfficientNet-Lite brings its own; leave them out")
        return EfficientNetLite(device)
    if name == "dinov2":
        return DINOv2(weights, device=device)
    if name not in INCEPTION_MODES:
        raise ValueError(f"extractor is {name!r}, expected one of {', '.join(EXTRACTORS)}")
    if name == "inception-tensorflow":
        return ADMInception(weights, device=device)
    return Inception(INCEPTION_MODES[name], weights, device=device)


def reference_source(
    text: str, *, image_size: int, extractor: str, crop_rule: str | None = None, progress: Progress | None = None
) -> Reference | ImageSet:
    """What samples are measured against, as a person means it.

    `text` is real images, as `image_source` names them; an .npz of `cascade evaluate reference`, of ADM, or with `mu` and `sigma`
    alone (clean-fid, EDM, pytorch-fid); or "cleanfid:NAME" or "cleanfid:NAME:SPLIT", statistics that clean-fid publishes. Samples
    are `image_size` pixels wide and measured by `extractor`; a file of `mu` and `sigma` alone is taken to be by the same, of
    images cut by `crop_rule` (None = not known). Raises ValueError if it is missing, damaged, of another image size, or of too
    few images to score against; ConnectionError if it must be downloaded and can't be.
    """
    check_reference(text, extractor)
    if text.startswith("cleanfid:"):
        name, _, split = text.removeprefix("cleanfid:").partition(":")
        return load_clean_fid_reference(name, split or "train", image_size, INCEPTION_MODES[extractor])
    path = Path(text).expanduser()
    if path.suffix == ".npz" and path.is_file():
        arrays = npz_names(path)
        if "provenance" in arrays:
            return load_reference(path)
        if "mu_s" in arrays:
            return load_adm_reference(path, image_size)
        if "arr_0" not in arrays:
            mode = INCEPTION_MODES.get(extractor)
            network = "inception-v3" if mode else extractor
            made_by = Provenance(extractor=network, weights_hash=None, resize_mode=mode, crop_rule=crop_rule)
            return load_plain_reference(path, made_by)
    return image_source(text, size=image_size, minimum=MANIFOLD_K + 1, progress=progress)[0]


def classifier_of(
    classes: Vocabulary | None, device: str = "cpu", name: str = "efficientnet-lite0", weights: Path | None = None
) -> tuple[str, Classify] | None:
    """A classifier of these classes, and what it is called: the shipped one of drawings, or that of this name, one of
    `CLASSIFIERS`, for classes of ImageNet, all or some; else None.

    `weights` is the file of a ResNet-50; None = from the user's cache, downloaded once. Raises ValueError if there is no such
    classifier, a package is missing, or the file is missing or another one; ConnectionError if a download fails.
    """
    if name not in CLASSIFIERS:
        raise ValueError(f"classifier is {name!r}, expected one of {', '.join(CLASSIFIERS)}")
    if weights is not None and name != "resnet50":
        raise ValueError(f"the classifier's weights are {weights}, but only resnet50 takes some; name it, or leave them out")
    if classes == EMOJI:
        model, _ = load_classifier()
        return "the shipped classifier of drawings", lambda images: class_probabilities(model, images)
    if classes is None or not classes.wordnet_ids or not set(classes.wordnet_ids) <= set(imagenet().wordnet_ids):
        return None
    if name == "resnet50":
        resnet = ResNet50(weights, device=device)
        called, probabilities = f"torchvision's {resnet.name} (SHA-256 {resnet.weights_hash})", resnet.probabilities
    else:
        called, probabilities = "EfficientNet-Lite0", EfficientNetLite(device).probabilities
    if classes.wordnet_ids == imagenet().wordnet_ids:
        return called, probabilities
    columns = [imagenet().index(one) for one in classes.wordnet_ids]
    return f"{called} among {len(classes)} classes", lambda images: probabilities(images)[:, columns]
