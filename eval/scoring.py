"""The scores of a set of samples against real images, from features that are computed once."""

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from cascade.eval.bootstrap import Interval, bootstrap_interval, distance_interval, share_interval
from cascade.eval.features import FeatureExtractor, Walk, provenance
from cascade.eval.files import complete
from cascade.eval.frechet import distance_of_part, frechet_distance, standard_error
from cascade.eval.images import ImageSet
from cascade.eval.metrics import ADM_SPLIT, Estimate, inception_score, jackknife_error, kid, overlap
from cascade.eval.references import FrechetResult, Reference, check_comparable, distance_to, reference_of
from cascade.eval.statistics import FeatureStatistics, Measurement, Provenance

MANIFOLD_K = 3  # as ADM's evaluator has it
HALVINGS = 5  # random ones, both halves of which the extrapolation is made of
GROUPS = 20  # of samples, each left out in turn for the intervals of recall and coverage
FEWEST_FOR_PUBLISHED = 50_000
"""Samples below which a Frechet distance is not comparable with published ones."""

DISTANCE_NAMES = {"efficientnet-lite0": "EfficientNet-Lite Frechet distance", "inception-v3": "FID", "dinov2-vitl14": "FD-DINOv2"}
"""What a Frechet distance between features of each network is called."""


@dataclass(frozen=True)
class FeatureSet:
    """Features of a set of images, [N, D], in their order, and where they came from.

    name: Of the images.
    spatial, probabilities: As `ADMFeatures` has them; None = not measured.
    """

    name: str
    features: NDArray[np.float32]
    provenance: Provenance
    spatial: NDArray[np.float32] | None = None
    probabilities: NDArray[np.float32] | None = None

    def measurement(self) -> Measurement:
        """Mean and covariance of the features."""
        spatial = None if self.spatial is None else _statistics(self.spatial)
        return Measurement.of(self.provenance, _statistics(self.features), spatial)


@dataclass(frozen=True, kw_only=True)
class Scores:
    """What samples score.

    distance_name: What the Frechet distance is called; never FID unless it is that.
    frechet: The distance with all that it depends on.
    extrapolated: The distance of infinitely many samples, as far as these tell; None = not measured, or there are enough.
    sfid: Frechet distance of ADM's spatial features; None = not measured, or the reference lacks them.
    inception_score: Of the samples alone; None = not measured.
    kid: Kernel distance of the same features; this and the next are None against a reference of statistics alone.
    manifold: Precision, recall, density and coverage, k = 3 (`overlap`).
    intervals: 95 % intervals by the names of `values`; see `score`.
    """

    distance_name: str
    frechet: FrechetResult
    extrapolated: float | None = None
    sfid: float | None = None
    inception_score: Estimate | None = None
    kid: Estimate | None = None
    manifold: Mapping[str, float] | None = None
    intervals: Mapping[str, Interval] = field(default_factory=dict)

    @property
    def kernel_name(self) -> str:
        """What the kernel distance is called; never KID unless it is that."""
        return "KID x 1000" if self.frechet.provenance.extractor == "inception-v3" else "kernel distance x 1000"

    def values(self) -> dict[str, float | Interval]:
        """All that was measured, by the names that tables have, with its interval where there is one."""
        found: dict[str, float | None] = {
            self.distance_name: self.frechet.distance,
            f"{self.distance_name}, extrapolated": self.extrapolated,
            "sFID": self.sfid,
            "IS": None if self.inception_score is None else self.inception_score.mean,
            self.kernel_name: None if self.kid is None else 1000 * self.kid.mean,
            **(self.manifold or {}),
        }
        return {name: self.intervals.get(name, value) for name, value in found.items() if value is not None}


def feature_set(
    images: ImageSet,
    extractor: FeatureExtractor,
    *,
    crop_rule: str | None,
    cache: Path | None = None,
    on_batch: Callable[[int, int], None] | None = None,
) -> FeatureSet:
    """Features of a set of images, cut by `crop_rule` (of samples, that of what their model learned; None = not known).

    With an `ADMExtractor` spatial features and class probabilities too. The folder `cache` keeps features under the hashes of
    images and network, to be found again; spatial features and probabilities, which are asked of samples, are not kept.
    `on_batch` is called with (images done, images in all).
    """
    if cache is not None:
        return _kept_features(images, extractor, crop_rule, cache, on_batch)
    walk = Walk(images, extractor, crop_rule)
    columns = _columns(walk, len(images), on_batch)
    return FeatureSet(images.name, columns[0], walk.provenance, *columns[1:])


def _kept_features(
    images: ImageSet, extractor: FeatureExtractor, crop_rule: str | None, cache: Path, on_batch: Callable[[int, int], None] | None
) -> FeatureSet:
    made_by = provenance(extractor, images.size, crop_rule, images.source_hash())
    path = cache / f"{extractor.name}-{extractor.resize_mode}-{extractor.weights_hash[:16]}-{made_by.source_hash}.npy"
    if path.is_file():
        return FeatureSet(images.name, np.load(path, allow_pickle=False), made_by)
    (features,) = _columns(((extractor(batch),) for batch in images.batches()), len(images), on_batch)
    with complete(path) as file:
        np.save(file, features)
    return FeatureSet(images.name, features, made_by)


def _columns(
    batches: Iterable[tuple[NDArray[np.float32], ...]], count: int, on_batch: Callable[[int, int], None] | None
) -> list[NDArray[np.float32]]:
    """What a network says of `count` images, one array for each of its outputs, filled as batches arrive."""
    columns: list[NDArray[np.float32]] = []
    done = 0
    for found in batches:
        columns = columns or [np.empty((count, part.shape[1]), np.float32) for part in found]
        for column, part in zip(columns, found, strict=True):
            column[done : done + len(part)] = part
        done += len(found[0])
        if on_batch is not None:
            on_batch(done, count)
    return columns


def distance_name(made_by: Provenance) -> str:
    """What a Frechet distance between these features is called."""
    name = DISTANCE_NAMES.get(made_by.extractor, f"{made_by.extractor} Frechet distance")
    return f"{name} ({made_by.resize_mode})" if made_by.extractor == "inception-v3" else name


def score(
    samples: FeatureSet,
    reference: Reference | FeatureSet,
    real: FeatureSet | None = None,
    *,
    resamples: int,
    overlaps: bool = True,
    on_resample: Callable[[int, int], None] | None = None,
) -> Scores:
    """All that can be measured of samples against a reference.

    Intervals hold the number that sets of as many samples of the same model have on average, against the same reference, in 95 %
    of cases: of distances by `frechet.standard_error`, of recall and coverage by leaving parts of the samples out, of precision
    and density, which are means over samples, by `mean_interval`. The Inception Score and the kernel distance have the spread
    over their parts instead.

    Args:
        reference: Statistics of real images, or their features.
        real: Features of real images, for kernel distance and overlap; None = those of `reference` if it has them.
        resamples: Redrawn sets behind the intervals of means; 0 = no intervals and no extrapolation.
        overlaps: Whether precision, recall, density and coverage are wanted, which take the most time.
        on_resample: Called with (parts done, in all) of the extrapolation, which takes long.

    Raises ValueError if they are not comparable (`references.check_comparable`) or have too few images.
    """
    if isinstance(reference, FeatureSet):
        real = real or reference
        reference = _statistics_alone(reference)
    measured = samples.measurement()
    frechet = distance_to(reference, measured)
    name, sfid = distance_name(samples.provenance), None
    intervals: dict[str, Interval] = {}
    if resamples:
        error = standard_error(samples.features, measured.mean, measured.cov, reference.mean, reference.cov)
        intervals[name] = distance_interval(frechet.distance, error)
    if measured.mean_spatial is not None and reference.mean_spatial is not None:
        assert measured.cov_spatial is not None and reference.cov_spatial is not None and samples.spatial is not None
        of_samples, of_real = (measured.mean_spatial, measured.cov_spatial), (reference.mean_spatial, reference.cov_spatial)
        sfid = frechet_distance(*of_samples, *of_real)
        if resamples:
            intervals["sFID"] = distance_interval(sfid, standard_error(samples.spatial, *of_samples, *of_real))
    extrapolated = None
    if resamples and MANIFOLD_K < len(samples.features) < FEWEST_FOR_PUBLISHED:
        extrapolated = _extrapolated(samples.features, reference, frechet.distance, on_resample)
    kernel = found = None
    if real is not None:
        check_comparable(real.provenance, samples.provenance)
        kernel = kid(samples.features, real.features)
        if overlaps and min(len(samples.features), len(real.features)) > MANIFOLD_K:
            found, of_overlap = _overlap(samples.features, real.features, resamples)
            intervals |= of_overlap
    return Scores(
        distance_name=name,
        frechet=frechet,
        extrapolated=extrapolated,
        sfid=sfid,
        inception_score=inception_score_of(samples),
        kid=kernel,
        manifold=found,
        intervals=intervals,
    )


def interval_by_groups(samples: FeatureSet, reference: Reference | FeatureSet, groups: NDArray) -> Interval:
    """The Frechet distance with its interval where samples of a group, [N], are not independent of each other."""
    reference = _statistics_alone(reference) if isinstance(reference, FeatureSet) else reference
    measured = samples.measurement()
    of_both = (measured.mean, measured.cov, reference.mean, reference.cov)
    return distance_interval(frechet_distance(*of_both), standard_error(samples.features, *of_both, groups))


def _statistics_alone(real: FeatureSet) -> Reference:
    return reference_of(real.name, real.measurement(), real.provenance.source_hash)


def _extrapolated(
    features: NDArray[np.float32], reference: Reference, distance: float, on_part: Callable[[int, int], None] | None
) -> float:
    """The distance of infinitely many samples, if it falls with their inverse number (Chong & Forsyth 2020, arXiv:1911.07023): as
    much below that of all as that is below the mean of random halves."""
    of_part, rng = distance_of_part(features, reference.mean, reference.cov), np.random.default_rng(0)
    halves = [half for _ in range(HALVINGS) for half in np.array_split(rng.permutation(len(features)), 2)]
    found = []
    for half in halves:
        found.append(of_part(half))
        if on_part is not None:
            on_part(len(found), len(halves))
    return 2 * distance - float(np.mean(found))


def _overlap(samples: NDArray, real: NDArray, resamples: int) -> tuple[dict[str, float], dict[str, Interval]]:
    """Precision, recall, density and coverage, and their intervals."""
    num_groups = min(GROUPS, len(samples) // 2) if resamples and len(samples) > 2 * MANIFOLD_K + 1 else 0
    values = overlap(samples, real, k=MANIFOLD_K, num_groups=num_groups)
    found = {name: float(getattr(values, name).mean()) for name in ("precision", "recall", "density", "coverage")}
    intervals: dict[str, Interval] = {}
    for name in ("precision", "density"):
        if isinstance(interval := mean_interval(getattr(values, name), resamples), Interval):
            intervals[name] = interval
    for name in ("recall", "coverage") if num_groups else ():
        error = jackknife_error(getattr(values, f"{name}_without"))
        intervals[name] = share_interval(found[name], error, num_groups - 1)
    return found, intervals


def inception_score_of(samples: FeatureSet) -> Estimate | None:
    """The Inception Score in random parts of at most ADM_SPLIT; None where class probabilities were not measured."""
    if samples.probabilities is None:
        return None
    return inception_score(samples.probabilities, num_splits=math.ceil(len(samples.probabilities) / ADM_SPLIT))


def mean_interval(values: NDArray, resamples: int) -> float | Interval:
    """Mean of values of one per image, [N], with its interval from images drawn again; `resamples` 0 = the mean alone."""
    if not resamples:
        return float(values.mean())
    return bootstrap_interval(lambda index: float(values[index].mean()), len(values), num_resamples=resamples)


def _statistics(features: NDArray[np.float32]) -> FeatureStatistics:
    statistics = FeatureStatistics(features.shape[1])
    for start in range(0, len(features), 1024):
        statistics.update(features[start : start + 1024])
    return statistics
