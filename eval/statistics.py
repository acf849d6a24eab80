"""Streaming mean and covariance of features, and the file that keeps them together with where they came from."""

import json
import math
import struct
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cascade.eval.files import complete

LARGE = 1 << 26  # bytes from which an array of an archive is not read into memory
BOMB_BYTES, BOMB_RATIO = 1 << 29, 50  # an array that is larger, and packed more than so many times, is made to fill the memory
LOCAL_HEADER = 30  # bytes of a member's header before its name, in a zip archive

Features = NDArray[np.floating]  # [N, D], one row per image


@dataclass(frozen=True, kw_only=True)
class Provenance:
    """Where features came from. Sets of features may be compared only if all but `source_hash` agree; None = not known.

    extractor: Name of the network and layer, for example "efficientnet-lite0".
    weights_hash: SHA-256 of its weights.
    resize_mode: How images were brought to the network's input size.
    image_size: Side of the images in pixels before that.
    crop_rule: How the images were cut from their originals.
    source_hash: SHA-256 of the images' pixels in order (`ImageSet.source_hash`).
    """

    extractor: str
    weights_hash: str | None
    resize_mode: str | None
    image_size: int | None = None
    crop_rule: str | None = None
    source_hash: str | None = None


class FeatureStatistics:
    """Mean [D] and covariance of features that arrive in batches, in float64 and independent of the batch sizes to rounding.

    Sums of squared deviations are combined pairwise (Chan, Golub & LeVeque 1983). `count` features were seen.
    """

    def __init__(self, dimension: int):
        self.count = 0
        self.mean: NDArray[np.float64] = np.zeros(dimension)
        self._scatter: NDArray[np.float64] = np.zeros((dimension, dimension))  # sum of (x - mean)(x - mean)^T

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
        centred, shift = batch - mean, mean - self.mean
        total = self.count + len(batch)
        self._scatter = self._scatter + centred.T @ centred + np.outer(shift, shift) * (self.count * len(batch) / total)
        self.mean = self.mean + shift * (len(batch) / total)
        self.count = total


@dataclass(frozen=True, kw_only=True)
class Measurement:
    """Mean [D] and unbiased covariance [D, D] of the features of a set of images, and where they came from.

    count: Number of images; None = not on record.
    mean_spatial, cov_spatial: Of ADM's spatial features, for sFID; None = not measured.
    """

    mean: NDArray[np.float64]
    cov: NDArray[np.float64]
    count: int | None
    provenance: Provenance
    mean_spatial: NDArray[np.float64] | None = None
    cov_spatial: NDArray[np.float64] | None = None

    @classmethod
    def of(cls, provenance: Provenance, features: FeatureStatistics, spatial: FeatureStatistics | None = None) -> "Measurement":
        """What was counted. Raises ValueError below 2 images."""
        of_spatial = {} if spatial is None else {"mean_spatial": spatial.mean, "cov_spatial": spatial.cov}
        return cls(mean=features.mean, cov=features.cov, count=features.count, provenance=provenance, **of_spatial)


def save_measurement(path: Path, measurement: Measurement) -> None:
    """Write mean, cov, count and provenance as .npz, without pickle; never leaves a half-written file at `path`."""
    values = {field.name: getattr(measurement, field.name) for field in fields(Measurement)}
    values["provenance"] = json.dumps(asdict(measurement.provenance))
    with complete(path) as file:
        np.savez(file, **{name: value for name, value in values.items() if value is not None})


def load_measurement(path: Path) -> Measurement:
    """Read what `save_measurement` wrote. Raises ValueError if the file is missing, damaged or something else."""
    arrays = read_npz(path, {"mean", "cov", "count", "provenance"})
    try:
        origin = json.loads(str(arrays["provenance"]))
        provenance = Provenance(**{field.name: origin[field.name] for field in fields(Provenance)})
    except (json.JSONDecodeError, KeyError, TypeError) as error:
        raise ValueError(f"{path} does not say where its features came from: {error}") from error
    values: dict[str, Any] = {}
    for kind in ("", "_spatial") if "mean_spatial" in arrays else ("",):
        values[f"mean{kind}"], values[f"cov{kind}"] = square(arrays, f"mean{kind}", f"cov{kind}", path)
    if arrays["count"].ndim or arrays["count"].dtype.kind not in "iu":
        raise ValueError(f"{path} holds a count of shape {arrays['count'].shape}, expected a whole number")
    return Measurement(**values, count=int(arrays["count"]), provenance=provenance)


def npz_names(path: Path) -> set[str]:
    """Names of the arrays of an .npz file. Raises ValueError as `read_npz`."""
    with _readable(path):
        return set(_members(path))


def read_npz(path: Path, required: set[str]) -> dict[str, NDArray]:
    """All arrays of an .npz file, read without pickle; those of `LARGE` bytes or more stay in the file where it is uncompressed.

    Raises ValueError if the file is missing, is not an .npz, holds pickled objects, or lacks one of the `required` names.
    """
    with _readable(path):
        members = _members(path)
    if missing := sorted(required - members.keys()):
        raise ValueError(f"{path} lacks the arrays {missing}; it holds {sorted(members)}")
    with _readable(path), np.load(path, allow_pickle=False) as file:
        return {name: _mapped(path, info) if _stays(info) else file[name] for name, info in members.items()}


def square(arrays: Mapping[str, NDArray], mean: str, cov: str, path: Path) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """A mean [D] and a covariance [D, D] of an archive by their names, float64. Raises ValueError if they are something else."""
    found = [arrays.get(name, np.zeros(0)) for name in (mean, cov)]
    shapes = [array.shape for array in found]
    if len(shapes[0]) != 1 or shapes[1] != shapes[0] * 2:
        described = f"a mean of shape {shapes[0]} and a covariance of shape {shapes[1]}"
        raise ValueError(f"{path} holds {described}, expected [D], [D, D]")
    if any(array.dtype.kind not in "fiu" or not np.isfinite(array).all() for array in found):
        raise ValueError(f"{path} holds {mean} or {cov} with values that are not finite numbers")
    return found[0].astype(np.float64), found[1].astype(np.float64)


@contextmanager
def _readable(path: Path) -> Iterator[None]:
    """ValueError where a file is missing or no archive of plain arrays."""
    if not path.is_file():
        raise ValueError(f"{path} is not a file" if path.exists() else f"{path} does not exist")
    try:
        yield
    except Exception as error:  # zipfile, zlib, numpy and json each raise their own for a damaged archive
        raise ValueError(f"{path} is not a readable .npz archive of plain arrays: {error}") from error


def _members(path: Path) -> dict[str, zipfile.ZipInfo]:
    """The arrays of an archive by name, none of which is read. Raises ValueError if one can't be what it says."""
    members = {}
    with zipfile.ZipFile(path) as archive:
        for info in archive.infolist():
            name = info.filename.removesuffix(".npy")
            if name == info.filename or name in members:
                raise ValueError(f"it holds {info.filename!r}, expected arrays of different names")
            if info.file_size > BOMB_BYTES and info.file_size > BOMB_RATIO * info.compress_size:
                raise ValueError(f"{name} would grow from {info.compress_size:,} to {info.file_size:,} bytes, as no images do")
            with archive.open(info) as member:
                shape, _, dtype = _header(member)
                size = math.prod(shape) * dtype.itemsize  # of Python's numbers, which don't overflow
                if member.tell() + size != info.file_size:
                    raise ValueError(f"{name} says that it is {dtype} of shape {shape}, which is not what it holds")
            members[name] = info
    return members


def _stays(info: zipfile.ZipInfo) -> bool:
    return info.compress_type == zipfile.ZIP_STORED and info.file_size >= LARGE


def _header(file: Any) -> tuple[tuple[int, ...], bool, np.dtype]:
    """Shape, whether columns come first, and type of an array whose file begins here; ValueError for Python objects."""
    version = np.lib.format.read_magic(file)
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, fortran, dtype = read(file)
    if dtype.hasobject:
        raise ValueError("it holds Python objects")
    return shape, fortran, dtype


def _mapped(path: Path, info: zipfile.ZipInfo) -> NDArray:
    """An array as it lies uncompressed in an archive, read-only."""
    with path.open("rb") as file:
        file.seek(info.header_offset)
        header = file.read(LOCAL_HEADER)
        file.seek(sum(struct.unpack("<HH", header[26:30])), 1)  # the member's name and extra field
        shape, fortran, dtype = _header(file)
        return np.memmap(path, dtype, "r", file.tell(), shape, "F" if fortran else "C")
