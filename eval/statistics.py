"""Streaming mean and covariance of features, and the file that keeps them together with where they came from."""

import json
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

Features = NDArray[np.floating]     # [N, D], one row per image


@dataclass(frozen=True, kw_only=True)
class Provenance:
    """Where features came from. Sets of features may be compared only if all but `source_hash` agree."""

    extractor: str                  # name of the network, for example "efficientnet-lite0"
    weights_hash: str | None        # SHA-256 of its weights; None = not known
    resize_mode: str | None         # how images were brought to the network's input size; None = not known
    image_size: int | None = None   # side of the images in pixels before that; None = not known
    crop_rule: str | None = None    # how the images were cut from their originals; None = not known
    source_hash: str | None = None  # SHA-256 of the images' pixels in order (`ImageSet.source_hash`); None = not known


class FeatureStatistics:
    """Mean and covariance of features that arrive in batches, in float64 and independent of the batch sizes to
    rounding.

    Attributes:
        count: number of features seen.
        mean: [D].

    Source: Chan, Golub & LeVeque 1983, pairwise update of the sum of squared deviations.
    """

    def __init__(self, dimension: int):
        self.count = 0
        self.mean: NDArray[np.float64] = np.zeros(dimension)
        self._scatter: NDArray[np.float64] = np.zeros((dimension, dimension))   # sum of (x - mean)(x - mean)^T

    @property
    def cov(self) -> NDArray[np.float64]:
        """Unbiased covariance (divided by count - 1), [D, D]. Raises ValueError below 2 features."""
        if self.count < 2:
            raise ValueError(f"a covariance needs at least 2 features, got {self.count}")
        return self._scatter / (self.count - 1)

    def update(self, features: Features) -> None:
        """Take a batch in, [N, D]. Raises ValueError if D differs or a value is not finite."""
        if features.ndim != 2 or features.shape[1] != len(self.mean):
            raise ValueError(f"features have shape {features.shape}, expected [N, {len(self.mean)}]")
        if not np.isfinite(features).all():
            raise ValueError("features hold NaN or infinite values; are the images and the extractor's weights intact?")
        if len(features) == 0:
            return
        batch = features.astype(np.float64)
        mean = batch.mean(axis=0)
        centred = batch - mean
        self._combine(len(batch), mean, centred.T @ centred)

    def merge(self, other: "FeatureStatistics") -> None:
        """Take in what another process saw; `other` is left as it is."""
        if len(other.mean) != len(self.mean):
            raise ValueError(f"cannot merge statistics of dimension {len(other.mean)} into dimension {len(self.mean)}")
        self._combine(other.count, other.mean, other._scatter)

    def _combine(self, count: int, mean: NDArray[np.float64], scatter: NDArray[np.float64]) -> None:
        total = self.count + count
        if total == 0:
            return
        shift = mean - self.mean
        self._scatter = self._scatter + scatter + np.outer(shift, shift) * (self.count * count / total)
        self.mean = self.mean + shift * (count / total)
        self.count = total


@dataclass(frozen=True)
class Measurement:
    """Statistics of the features of a set of images, and where they came from.

    Attributes:
        features: of the features that the extractor is named for.
        provenance: how they were made.
        spatial: of ADM's spatial features, for sFID; None = not measured.
    """

    features: FeatureStatistics
    provenance: Provenance
    spatial: FeatureStatistics | None = None


def save_measurement(path: Path, measurement: Measurement) -> None:
    """Write mean, cov, count and provenance as .npz, without pickle; never leaves a half-written file at `path`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    arrays = {
        "mean": measurement.features.mean,
        "cov": measurement.features.cov,
        "count": np.int64(measurement.features.count),
        "provenance": np.array(json.dumps(asdict(measurement.provenance))),
    }
    if measurement.spatial is not None:
        arrays |= {"mean_spatial": measurement.spatial.mean, "cov_spatial": measurement.spatial.cov}
    partial = path.with_name(path.name + ".partial")
    with partial.open("wb") as file:
        np.savez(file, **arrays)  # type: ignore[arg-type]  # numpy's stubs take the names for its options
    partial.replace(path)


def load_measurement(path: Path) -> Measurement:
    """Read what `save_measurement` wrote; more features may be added to it.

    Raises:
        ValueError: if the file is missing, damaged or something else.
    """
    arrays = read_npz(path, {"mean", "cov", "count", "provenance"})
    try:
        values = json.loads(str(arrays["provenance"]))
        provenance = Provenance(**{field.name: values[field.name] for field in fields(Provenance)})
    except (json.JSONDecodeError, KeyError, TypeError) as error:
        raise ValueError(f"{path} does not say where its features came from: {error}") from error
    count = int(arrays["count"])
    spatial = None
    if "mean_spatial" in arrays:
        spatial = _statistics(path, arrays["mean_spatial"], arrays.get("cov_spatial", np.zeros(0)), count)
    return Measurement(_statistics(path, arrays["mean"], arrays["cov"], count), provenance, spatial)


def _statistics(path: Path, mean: NDArray, cov: NDArray, count: int) -> FeatureStatistics:
    if mean.ndim != 1 or cov.shape != (len(mean), len(mean)):
        raise ValueError(
            f"{path} holds a mean of shape {mean.shape} and a covariance of shape {cov.shape}, expected [D], [D, D]"
        )
    statistics = FeatureStatistics(len(mean))
    statistics._combine(count, mean.astype(np.float64), cov.astype(np.float64) * (count - 1))
    return statistics


def read_npz(path: Path, required: set[str]) -> dict[str, NDArray]:
    """All arrays of an .npz file, read without pickle.

    Raises:
        ValueError: if the file is missing, is no .npz, holds pickled objects, or lacks one of the `required` names.
    """
    if not path.is_file():
        raise ValueError(f"{path} does not exist")
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
    except Exception as error:  # zipfile, zlib, numpy and json each raise their own for a damaged archive
        raise ValueError(f"{path} is not a readable .npz archive of plain arrays: {error}") from error
    missing = sorted(required - arrays.keys())
    if missing:
        raise ValueError(f"{path} lacks the arrays {missing}; it holds {sorted(arrays)}")
    return arrays
