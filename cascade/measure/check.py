"""Our figures of samples that ADM publishes, beside those that its own evaluator prints of them: do the two programs agree?"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from cascade.devices import find_device
from cascade.eval.metrics import ADM_SPLIT, inception_score
from cascade.eval.references import Reference
from cascade.eval.scoring import MANIFOLD_K, feature_set, score
from cascade.measure.comparisons import reference_features
from cascade.measure.named import extractor_of, image_source, reference_source
from cascade.progress import OnProgress, part


@dataclass(frozen=True)
class Figure:
    """What ADM's evaluator prints, and how far ours may be from it to be called equal."""

    value: float
    tolerance: float


ADM_BATCHES = "https://openaipublic.blob.core.windows.net/diffusion/jul-2021/ref_batches/imagenet/256"
SAMPLES, REFERENCE = "admnet_guided_upsampled_imagenet256.npz", "VIRTUAL_imagenet256_labeled.npz"

FIGURES: Mapping[str, Figure] = {
    "IS": Figure(215.837, 0.2),
    "FID": Figure(3.94256, 0.005),
    "sFID": Figure(6.1404, 0.01),
    "precision": Figure(0.8265, 0.001),
    "recall": Figure(0.5309, 0.001),
}
"""Of SAMPLES against REFERENCE, as the README of guided-diffusion's evaluations prints them. The tolerances are a choice of ours,
one or two thousandths of each: papers print three digits."""


@dataclass(frozen=True)
class Compared:
    """One of the figures: ours beside ADM's."""

    name: str
    ours: float
    published: Figure

    @property
    def agrees(self) -> bool:
        return abs(self.ours - self.published.value) <= self.published.tolerance


@dataclass(frozen=True)
class Check:
    """All figures, the number of samples, and the SHA-256 of the reference's file and of the samples' pixels in order."""

    figures: tuple[Compared, ...]
    num_samples: int
    reference_hash: str | None
    samples_hash: str | None

    @property
    def agrees(self) -> bool:
        return all(figure.agrees for figure in self.figures)


def check_against_adm(
    samples: str | Path,
    reference: str | Path,
    *,
    weights: Path | None = None,
    device: str | None = None,
    on_progress: OnProgress | None = None,
) -> Check:
    """Measure ADM's published samples as ADM's evaluator does: the Inception Score in consecutive parts, all else as `evaluate`.

    Args:
        samples, reference: The files SAMPLES and REFERENCE from ADM_BATCHES.
        weights: The file of NVIDIA's TorchScript Inception; None = from the cache, downloaded once.
        device: Where it runs; None = on an accelerator if there is one.
        on_progress: Told of the features.

    Raises:
        ValueError: if a file is missing or another one.
        ConnectionError: if the weights must be downloaded and can't be.
    """
    images, _ = image_source(str(samples), minimum=MANIFOLD_K + 1)
    real = reference_source(str(reference), image_size=images.size, extractor="inception-tensorflow")
    if not isinstance(real, Reference) or real.images is None or real.mean_spatial is None:
        raise ValueError(
            f"{reference} is not one of ADM's references with mu, sigma, mu_s, sigma_s and arr_0; expected {REFERENCE}"
        )
    network = extractor_of("inception-tensorflow", weights, str(find_device(device)))
    told = part(on_progress, "features of the samples")
    measured = feature_set(images, network, crop_rule=None, on_batch=told)
    _, of_real = reference_features(real, network, None, on_progress)
    scores = score(measured, real, of_real, resamples=0)
    assert measured.probabilities is not None and scores.manifold is not None and scores.sfid is not None
    parts = math.ceil(len(images) / ADM_SPLIT)
    found = {
        "IS": inception_score(measured.probabilities, num_splits=parts, in_order=True).mean,
        "FID": scores.frechet.distance,
        "sFID": scores.sfid,
        "precision": scores.manifold["precision"],
        "recall": scores.manifold["recall"],
    }
    figures = tuple(Compared(name, found[name], figure) for name, figure in FIGURES.items())
    return Check(figures, len(images), real.file_hash, measured.provenance.source_hash)
