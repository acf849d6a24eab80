"""What samples are measured against: statistics of real images' features, and the rule of what may be compared."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path

from numpy.typing import NDArray

from cascade.eval.features import FeatureExtractor, Walk
from cascade.eval.files import file_sha256
from cascade.eval.frechet import frechet_distance
from cascade.eval.images import Images, ImageSet, ImageStream
from cascade.eval.published_weights import cached_download
from cascade.eval.statistics import FeatureStatistics, Measurement, Provenance, load_measurement, read_npz, square

# Halve by box while twice the size or more, bicubic to size, centre crop: the data loader of arXiv:2105.05233.
ADM_CROP_RULE = "adm-box-bicubic-centre"
CLEAN_FID = "https://www.cs.cmu.edu/~clean-fid/stats"


@dataclass(frozen=True, kw_only=True)
class Reference(Measurement):
    """Feature statistics of real images.

    name: Where they come from, as reports print it.
    file_hash: SHA-256 of the file that the reference was read from; None = made in this process.
    images: uint8 [N, S, S, 3], real images for precision and recall; None = not part of this reference.
    """

    name: str
    file_hash: str | None = None
    images: Images | None = None


@dataclass(frozen=True, kw_only=True)
class FrechetResult:
    """A Frechet distance with everything that it depends on; `provenance` is of the samples.

    reference_hash: SHA-256 of the reference's file, or of the real images' pixels in order.
    """

    distance: float
    num_samples: int
    reference: str
    reference_count: int | None
    reference_hash: str | None
    reference_provenance: Provenance
    provenance: Provenance


def measure(
    images: ImageSet | ImageStream,
    extractor: FeatureExtractor,
    *,
    crop_rule: str | None,
    on_batch: Callable[[int], None] | None = None,
) -> Measurement:
    """Feature statistics of at least 2 images, of spatial features too where the extractor has them, and where they came from.

    `crop_rule` is how the images were cut from their originals; `on_batch` is called with the number of images done so far.
    """
    statistics: list[FeatureStatistics] = []
    walk = Walk(images, extractor, crop_rule)
    for parts in walk:
        statistics = statistics or [FeatureStatistics(part.shape[1]) for part in parts[:2]]
        for one, part in zip(statistics, parts[:2], strict=True):
            one.update(part)
        if on_batch:
            on_batch(statistics[0].count)
    return Measurement.of(walk.provenance, *statistics)


def reference_of(name: str, measurement: Measurement, file_hash: str | None) -> Reference:
    """Measured images as a reference; `name` and `file_hash` as `Reference` has them."""
    return Reference(**vars(measurement), name=name, file_hash=file_hash)


def load_reference(path: Path) -> Reference:
    """What `save_measurement` kept. Raises ValueError if the file is missing, damaged or something else."""
    return reference_of(path.stem, load_measurement(path), file_sha256(path))


def load_adm_reference(path: Path, image_size: int) -> Reference:
    """One of ADM's published references (VIRTUAL_imagenet256_labeled.npz and its like), as it is.

    Its features are those of `Inception("legacy_tensorflow")`, `mu_s` and `sigma_s` those of ADM's spatial layer; `arr_0` are
    uint8 real images where the file has them. How many images the statistics are made of is not on file.

    Raises ValueError if the file is missing or damaged, lacks mu, sigma, mu_s or sigma_s, or has images of a side other than
    `image_size` pixels.
    """
    arrays = read_npz(path, {"mu", "sigma", "mu_s", "sigma_s"})
    images = arrays.get("arr_0")
    if images is not None and (images.ndim != 4 or images.shape[3] != 3):
        raise ValueError(f"{path} has arr_0 of shape {images.shape}, expected RGB images, [N, S, S, 3]")
    if images is not None and images.shape[1:3] != (image_size, image_size):
        raise ValueError(
            f"{path} holds images of {images.shape[2]}x{images.shape[1]}, but was asked for as the reference of"
            f" {image_size}x{image_size}; is it the file of another size?"
        )
    made_by = Provenance(
        extractor="inception-v3",
        weights_hash=None,
        resize_mode="legacy_tensorflow",
        image_size=image_size,
        crop_rule=ADM_CROP_RULE,
    )
    mean, cov = square(arrays, "mu_s", "sigma_s", path)
    return replace(_of_arrays(path, arrays, made_by), mean_spatial=mean, cov_spatial=cov, images=images)


def load_plain_reference(path: Path, provenance: Provenance, name: str | None = None) -> Reference:
    """Someone else's .npz of `mu` and `sigma`, as clean-fid, EDM and pytorch-fid write them; `provenance` is not on file.

    Reports print `name`, by default that of the file. Raises ValueError if it is missing or damaged, or lacks one of the two.
    """
    return replace(_of_arrays(path, read_npz(path, {"mu", "sigma"}), provenance), name=name or path.stem)


def load_clean_fid_reference(name: str, split: str, image_size: int, mode: str) -> Reference:
    """Statistics that clean-fid publishes by name (Parmar et al. 2022, arXiv:2104.11222), downloaded once into the user's cache.

    clean-fid publishes no hashes, so none can be checked; the file's own is on record in the result (`file_hash`).

    `name` and `split` are those of the data set, for example "ffhq" and "trainval70k"; `mode` is that of `Inception`. Raises
    ValueError if what was downloaded is not such a file, ConnectionError if it is not in the cache and can't be downloaded.
    """
    url = f"{CLEAN_FID}/{name}_{mode}_{split}_{image_size}.npz".lower()
    made_by = Provenance(extractor="inception-v3", weights_hash=None, resize_mode=mode, image_size=image_size)
    return load_plain_reference(cached_download(url), made_by, f"clean-fid's {name}, {split}")


def distance_to(reference: Reference, samples: Measurement) -> FrechetResult:
    """Frechet distance of measured images to a reference. Raises ValueError unless they are comparable (`check_comparable`)."""
    check_comparable(reference.provenance, samples.provenance)
    assert samples.count is not None  # as of all images that were measured here
    return FrechetResult(
        distance=frechet_distance(samples.mean, samples.cov, reference.mean, reference.cov),
        num_samples=samples.count,
        reference=reference.name,
        reference_count=reference.count,
        reference_hash=reference.file_hash,
        reference_provenance=reference.provenance,
        provenance=samples.provenance,
    )


def check_comparable(reference: Provenance, samples: Provenance) -> None:
    """Raise ValueError unless networks, weights, resize modes, image sizes and crop rules agree; what is not known passes."""
    for field in fields(Provenance):
        of_reference, of_samples = getattr(reference, field.name), getattr(samples, field.name)
        known = of_reference is not None and of_samples is not None
        if field.name != "source_hash" and known and of_reference != of_samples:
            raise ValueError(
                f"the reference has {field.name.replace('_', ' ')} {of_reference} but the samples {of_samples};"
                " distances between the two mean nothing, use a reference made in the same way"
            )


def _of_arrays(path: Path, arrays: Mapping[str, NDArray], made_by: Provenance) -> Reference:
    mean, cov = square(arrays, "mu", "sigma", path)
    return Reference(name=path.stem, mean=mean, cov=cov, count=None, provenance=made_by, file_hash=file_sha256(path))
