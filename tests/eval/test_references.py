"""References: made once, read back, ADM's read as they are, and never compared with what they cannot judge."""

from dataclasses import replace

import numpy as np
import pytest

from eval.features import all_features
from eval.frechet import frechet_distance
from eval.images import image_array
from eval.references import (
    ADM_CROP_RULE,
    build_reference,
    check_comparable,
    distance_to,
    load_adm_reference,
    load_reference,
    measure,
)
from eval.statistics import FeatureStatistics, Provenance


class BlockMeans:
    """Twelve features: the mean colour of each quarter."""

    name, resize_mode, weights_hash, dimension = "block-means", "none", "0" * 64, 12

    def __call__(self, images):
        half = images.shape[1] // 2
        blocks = images.reshape(len(images), 2, half, 2, half, 3).mean(axis=(2, 4), dtype=np.float32)
        return blocks.reshape(len(images), 12)


def pictures(seed: int, count: int = 50, size: int = 8) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (count, size, size, 3), dtype=np.uint8)


def test_a_reference_keeps_statistics_and_origin(tmp_path):
    images = image_array(pictures(0))
    built = build_reference(tmp_path / "real.npz", images, BlockMeans(), crop_rule="centre")
    features = all_features(images, BlockMeans()).astype(np.float64)
    loaded = load_reference(tmp_path / "real.npz")
    np.testing.assert_allclose(loaded.cov, np.cov(features, rowvar=False), rtol=1e-10)
    assert (loaded.name, loaded.count, loaded.file_hash) == ("real", 50, built.file_hash)
    assert loaded.provenance == Provenance(
        extractor="block-means",
        weights_hash="0" * 64,
        resize_mode="none",
        image_size=8,
        crop_rule="centre",
        source_hash=images.source_hash(),
    )


def test_a_result_carries_the_distance_and_what_it_depends_on(tmp_path):
    real, samples = image_array(pictures(0)), image_array(pictures(1, count=40))
    reference = build_reference(tmp_path / "real.npz", real, BlockMeans(), crop_rule="centre")
    result = distance_to(reference, *measure(samples, BlockMeans(), crop_rule="centre", batch_size=7))
    x, y = (all_features(s, BlockMeans()).astype(np.float64) for s in (samples, real))
    want = frechet_distance(x.mean(0), np.cov(x, rowvar=False), y.mean(0), np.cov(y, rowvar=False))
    assert result.distance == pytest.approx(want, rel=1e-9)
    assert (result.num_samples, result.reference, result.reference_count) == (40, "real", 50)
    assert result.reference_hash == reference.file_hash and result.provenance.source_hash == samples.source_hash()


def test_real_images_are_at_distance_zero_from_their_own_reference(tmp_path):
    images = image_array(pictures(0, count=9))      # fewer images than features
    reference = build_reference(tmp_path / "real.npz", images, BlockMeans(), crop_rule="centre")
    result = distance_to(reference, *measure(images, BlockMeans(), crop_rule="centre"))
    assert result.distance <= 1e-9 * np.trace(reference.cov)


@pytest.mark.parametrize("field", ["extractor", "weights_hash", "resize_mode", "image_size", "crop_rule"])
def test_what_was_made_in_another_way_is_refused(field):
    one = Provenance(extractor="a", weights_hash="b", resize_mode="c", image_size=64, crop_rule="d", source_hash="e")
    other = replace(one, **{field: 256 if field == "image_size" else "other"})
    with pytest.raises(ValueError, match=field.replace("_", " ")):
        check_comparable(one, other)
    check_comparable(one, replace(one, source_hash="another"))
    if field in ("weights_hash", "image_size", "crop_rule"):
        check_comparable(one, replace(one, **{field: None}))


@pytest.fixture
def adm_file(tmp_path):
    rng = np.random.default_rng(0)
    images = pictures(2, count=5)
    path = tmp_path / "VIRTUAL_imagenet8_labeled.npz"
    arrays = {"mu": rng.normal(size=6), "sigma": np.eye(6), "mu_s": rng.normal(size=4), "sigma_s": 2 * np.eye(4)}
    np.savez(path, arr_0=images, **arrays)
    return path, arrays, images


def test_adms_references_are_read_as_they_are(adm_file):
    path, arrays, images = adm_file
    reference = load_adm_reference(path, image_size=8)
    np.testing.assert_array_equal(reference.mean, arrays["mu"])
    np.testing.assert_array_equal(reference.cov, arrays["sigma"])
    np.testing.assert_array_equal(reference.mean_spatial, arrays["mu_s"])
    np.testing.assert_array_equal(reference.cov_spatial, arrays["sigma_s"])
    np.testing.assert_array_equal(reference.images, images)
    assert (reference.provenance.resize_mode, reference.provenance.crop_rule) == ("legacy_tensorflow", ADM_CROP_RULE)


def test_the_distance_to_adms_reference(adm_file):
    path, arrays, _ = adm_file
    reference = load_adm_reference(path, image_size=8)
    statistics = FeatureStatistics(6)
    statistics.update(arrays["mu"] + np.vstack([np.eye(6), -np.eye(6)]))        # covariance 2 / 11 identity
    got = distance_to(reference, statistics, replace(reference.provenance, weights_hash="f" * 64))
    assert got.distance == pytest.approx(6 * (1 - np.sqrt(2 / 11)) ** 2, rel=1e-9)


def test_adms_reference_of_another_size_or_content_is_refused(adm_file, tmp_path):
    path, arrays, _ = adm_file
    with pytest.raises(ValueError, match="holds images of 8x8"):
        load_adm_reference(path, image_size=256)
    np.savez(tmp_path / "half.npz", mu=arrays["mu"], sigma=arrays["sigma"])
    with pytest.raises(ValueError, match=r"lacks the arrays \['mu_s', 'sigma_s'\]"):
        load_adm_reference(tmp_path / "half.npz", image_size=8)
