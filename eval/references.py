"""What samples are measured against: statistics of real images' features, and the rule of what may be compared."""

from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from cascade.eval.features import ADMExtractor, FeatureExtractor, provenance
from cascade.eval.frechet import frechet_distance
from cascade.eval.images import Images, ImageSet
from cascade.eval.published_weights import cached_download, file_sha256
from cascade.eval.statistics import FeatureStatistics, Measurement, Provenance, load_measurement, read_npz, save_measurement

# Halve by box while twice the size or more, bicubic to size, centre crop: the data loader of arXiv:2105.05233.
ADM_CROP_RULE = "adm-box-bicubic-centre"
CLEAN_FID = "https://www.cs.cmu.edu/~clean-fid/stats"


@dataclass(frozen=True, kw_only=True)
class Reference:
    """Feature statistics of real images.

    Attributes:
        name: where they come from, as reports print it.
        mean: [D].
        cov: [D, D].
        count: number of images; None = not on record.
        provenance: how the features were made.
        file_hash: SHA-256 of the file that the reference was read from; None = made in this process.
        mean_spatial, cov_spatial: of ADM's spatial features, for sFID; None = not part of this reference.
        images: uint8 [N, S, S, 3], real images for precision and recall; None = not part of this reference.
    """

    name: str
    mean: NDArray[np.float64]
    cov: NDArray[np.float64]
    count: int | None
    provenance: Provenance
    file_hash: str | None = None
    mean_spatial: NDArray[np.float64] | None = None
    cov_spatial: NDArray[np.float64] | None = None
    images: Images | None = None


@dataclass(frozen=True, kw_only=True)
class FrechetResult:
    """A Frechet distance with everything that it depends on."""

    distance: float
    num_samples: int
    reference: str
    reference_count: int | None
    reference_hash: str | None
    provenance: Provenance          # of the samples


def measure(
    images: ImageSet,
    extractor: FeatureExtractor,
    *,
    crop_rule: str | None,
    batch_size: int = 64,
    on_batch: Callable[[int], None] | None = None,
) -> Measurement:
    """Feature statistics of a set of images, of spatial features too where the extractor has them, and where they came from.

    Args:
        images: what to measure.
        extractor: by what.
        crop_rule: how the images were cut from their originals; for samples, that of the images their model learned.
        batch_size: images per network evaluation; does not change the result beyond rounding.
        on_batch: called with the number of images done so far.
    """
    statistics, spatial = FeatureStatistics(extractor.dimension), None
    for batch in images.batches(batch_size):
        if isinstance(extractor, ADMExtractor):
            found = extractor.all_outputs(batch)
            spatial = spatial or FeatureStatistics(found.spatial.shape[1])
            spatial.update(found.spatial)
            statistics.update(found.pooled)
        else:
            statistics.update(extractor(batch))
        if on_batch:
            on_batch(statistics.count)
    return Measurement(statistics, provenance(images, extractor, crop_rule), spatial)


def build_reference(
    path: Path,
    images: ImageSet,
    extractor: FeatureExtractor,
    *,
    crop_rule: str | None,
    on_batch: Callable[[int], None] | None = None,
) -> Reference:
    """Measure real images once and keep the result in a file. Arguments and errors as in `measure`."""
    save_measurement(path, measure(images, extractor, crop_rule=crop_rule, on_batch=on_batch))
    return load_reference(path)


def reference_of(name: str, measurement: Measurement, file_hash: str | None) -> Reference:
    """Measured images as a reference; `file_hash` as `Reference` has it."""
    spatial = measurement.spatial
    return Reference(
        name=name,
        mean=measurement.features.mean,
        cov=measurement.features.cov,
        count=measurement.features.count,
        provenance=measurement.provenance,
        file_hash=file_hash,
        mean_spatial=None if spatial is None else spatial.mean,
        cov_spatial=None if spatial is None else spatial.cov,
    )


def load_reference(path: Path) -> Reference:
    """A reference written by `build_reference`. Raises ValueError if the file is missing, damaged or something else."""
    return reference_of(path.stem, load_measurement(path), file_sha256(path))


def load_adm_reference(path: Path, image_size: int) -> Reference:
    """One of ADM's published references (VIRTUAL_imagenet256_labeled.npz and its like), as it is.

    Its features are those of `Inception("legacy_tensorflow")`, `mu_s` and `sigma_s` those of ADM's spatial layer;
    `arr_0` are uint8 real images where the file has them. How many images the statistics are made of is not on file.

    Args:
        path: the file.
        image_size: side of the images that it was made from, in pixels; checked against `arr_0` where that is present.

    Raises:
        ValueError: if the file is missing or damaged, lacks mu, sigma, mu_s or sigma_s, or has images of another size.
    """
    arrays = read_npz(path, {"mu", "sigma", "mu_s", "sigma_s"})
    images = arrays.get("arr_0")
    if images is not None and images.shape[1:3] != (image_size, image_size):
        raise ValueError(
            f"{path} holds images of {images.shape[2]}x{images.shape[1]}, but was asked for as the reference of"
            f" {image_size}x{image_size}; is it the file of another size?"
        )
    return Reference(
        name=path.stem,
        mean=arrays["mu"].astype(np.float64),
        cov=arrays["sigma"].astype(np.float64),
        count=None,
        provenance=Provenance(
            extractor="inception-v3",
            weights_hash=None,
            resize_mode="legacy_tensorflow",
            image_size=image_size,
            crop_rule=ADM_CROP_RULE,
        ),
        file_hash=file_sha256(path),
        mean_spatial=arrays["mu_s"].astype(np.float64),
        cov_spatial=arrays["sigma_s"].astype(np.float64),
        images=images,
    )


def load_plain_reference(path: Path, provenance: Provenance, name: str | None = None) -> Reference:
    """Someone else's .npz of `mu` and `sigma`, as clean-fid, EDM and pytorch-fid write them.

    Args:
        path: the file.
        provenance: how its features were made, which such a file doesn't say.
        name: where they come from, as reports print it; None = the name of the file.

    Raises:
        ValueError: if the file is missing or damaged, or lacks one of the two.
    """
    arrays = read_npz(path, {"mu", "sigma"})
    return Reference(
        name=name or path.stem,
        mean=arrays["mu"].astype(np.float64),
        cov=arrays["sigma"].astype(np.float64),
        count=None,
        provenance=provenance,
        file_hash=file_sha256(path),
    )


def load_clean_fid_reference(name: str, split: str, image_size: int, mode: str) -> Reference:
    """Statistics that clean-fid publishes by name, downloaded once into the user's cache.

    clean-fid publishes no hashes, so none can be checked; the file's own is on record in the result (`file_hash`).

    Args:
        name: of the data set, for example "ffhq".
        split: for example "train" or "trainval70k".
        image_size: side of the images in pixels.
        mode: of `Inception`.

    Raises:
        ValueError: if what was downloaded is no such file.
        ConnectionError: if the file is not in the cache and can't be downloaded.

    Source: Parmar, Zhang & Zhu 2022 (arXiv:2104.11222).
    """
    url = f"{CLEAN_FID}/{name}_{mode}_{split}_{image_size}.npz".lower()
    made_by = Provenance(extractor="inception-v3", weights_hash=None, resize_mode=mode, image_size=image_size)
    return load_plain_reference(cached_download(url), made_by, f"clean-fid's {name}, {split}")


def distance_to(reference: Reference, samples: Measurement) -> FrechetResult:
    """Frechet distance of measured images to a reference.

    Raises:
        ValueError: if the two are not comparable (`check_comparable`) or fewer than 2 images were measured.
    """
    check_comparable(reference.provenance, samples.provenance)
    features = samples.features
    return FrechetResult(
        distance=frechet_distance(features.mean, features.cov, reference.mean, reference.cov),
        num_samples=features.count,
        reference=reference.name,
        reference_count=reference.count,
        reference_hash=reference.file_hash,
        provenance=samples.provenance,
    )


def check_comparable(reference: Provenance, samples: Provenance) -> None:
    """Refuse to compare features of different networks, resize modes, image sizes or crop rules.

    What one side does not know passes.

    Raises:
        ValueError: naming the first that differs.
    """
    for field in fields(Provenance):
        of_reference, of_samples = getattr(reference, field.name), getattr(samples, field.name)
        known = of_reference is not None and of_samples is not None
        if field.name != "source_hash" and known and of_reference != of_samples:
            raise ValueError(
                f"the reference has {field.name.replace('_', ' ')} {of_reference} but the samples {of_samples};"
                " distances between the two mean nothing, use a reference made in the same way"
            )
