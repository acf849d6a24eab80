"""The scores of a set of samples against real images, from features that are computed once."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from eval.features import FeatureExtractor, provenance
from eval.images import ImageSet
from eval.metrics import Estimate, Manifold, kid, manifold
from eval.references import FrechetResult, Reference, check_comparable, distance_to
from eval.statistics import FeatureStatistics, Provenance

MANIFOLD_K = 3      # as ADM's evaluator has it
FEWEST = 10_000     # samples below which a Frechet distance stands beside no published one

DISTANCE_NAMES = {
    "efficientnet-lite0": "EfficientNet-Lite Frechet distance",
    "inception-v3": "FID",
    "dinov2-vitl14": "FD-DINOv2",
}
"""What a Frechet distance between features of each network is called."""


@dataclass(frozen=True)
class Measured:
    """Features of a set of images and where they came from; features [N, D]."""

    name: str
    features: NDArray[np.float32]
    provenance: Provenance

    def statistics(self) -> FeatureStatistics:
        """Mean and covariance of the features."""
        statistics = FeatureStatistics(self.features.shape[1])
        for start in range(0, len(self.features), 1024):
            statistics.update(self.features[start : start + 1024])
        return statistics


@dataclass(frozen=True, kw_only=True)
class Scores:
    """What samples score; the last two are None against a reference that holds statistics alone.

    Attributes:
        distance_name: what the Frechet distance is called; never FID unless it is that.
        frechet: the distance with all that it depends on.
        kid: kernel distance of the same features.
        manifold: precision, recall, density, coverage, k = 3.
    """

    distance_name: str
    frechet: FrechetResult
    kid: Estimate | None = None
    manifold: Manifold | None = None


def measured(
    images: ImageSet,
    extractor: FeatureExtractor,
    *,
    crop_rule: str | None,
    cache: Path | None = None,
    on_batch: Callable[[int, int], None] | None = None,
    batch_size: int = 64,
) -> Measured:
    """Features of a set of images.

    Args:
        images: what to measure.
        extractor: by what.
        crop_rule: as `references.measure` has it.
        cache: folder in which the features are kept under the hashes of images and network, and found again; None = not.
        on_batch: called with (images done, images in all).
        batch_size: images per network evaluation; does not change the result beyond rounding.
    """
    made_by = provenance(images, extractor, crop_rule)
    path = None
    if cache is not None:
        path = cache / f"{extractor.name}-{extractor.weights_hash[:16]}-{made_by.source_hash}.npy"
        if path.is_file():
            return Measured(images.name, np.load(path, allow_pickle=False), made_by)
    parts: list[NDArray[np.float32]] = []
    done = 0
    for batch in images.batches(batch_size):
        parts.append(extractor(batch))
        done += len(batch)
        if on_batch is not None:
            on_batch(done, len(images))
    features = np.concatenate(parts)
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_name(f"{path.name}.partial")
        with partial.open("wb") as file:
            np.save(file, features)
        partial.replace(path)
    return Measured(images.name, features, made_by)


def distance_name(made_by: Provenance) -> str:
    """What a Frechet distance between these features is called."""
    name = DISTANCE_NAMES.get(made_by.extractor, f"{made_by.extractor} Frechet distance")
    return f"{name} ({made_by.resize_mode})" if made_by.extractor == "inception-v3" else name


def score(samples: Measured, reference: Measured) -> Scores:
    """Distance, kernel distance and overlap of two measured sets.

    Raises:
        ValueError: if they are not comparable (`references.check_comparable`) or have too few images.
    """
    check_comparable(reference.provenance, samples.provenance)
    enough = min(len(samples.features), len(reference.features)) > MANIFOLD_K
    statistics = reference.statistics()
    real = Reference(
        name=reference.name,
        mean=statistics.mean,
        cov=statistics.cov,
        count=statistics.count,
        provenance=reference.provenance,
        file_hash=reference.provenance.source_hash,
    )
    return Scores(
        distance_name=distance_name(samples.provenance),
        frechet=distance_to(real, samples.statistics(), samples.provenance),
        kid=kid(samples.features, reference.features),
        manifold=manifold(samples.features, reference.features, k=MANIFOLD_K) if enough else None,
    )


def score_against(samples: Measured, reference: Reference, extractor: FeatureExtractor) -> Scores:
    """Distance to a reference that was read from a file, and overlap with its images where it has any.

    Raises:
        ValueError: as `score`.
    """
    frechet = distance_to(reference, samples.statistics(), samples.provenance)
    overlap = None
    if reference.images is not None:
        parts = [extractor(reference.images[i : i + 64]) for i in range(0, len(reference.images), 64)]
        overlap = manifold(samples.features, np.concatenate(parts), k=MANIFOLD_K)
    return Scores(distance_name=distance_name(samples.provenance), frechet=frechet, manifold=overlap)
