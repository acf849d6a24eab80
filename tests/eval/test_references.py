"""References: made once, read back, ADM's read as they are, and never compared with what they cannot judge."""

from dataclasses import replace

import numpy as np
import pytest

from cascade.eval.files import file_sha256
from cascade.eval.frechet import frechet_distance
from cascade.eval.images import image_array
from cascade.eval.references import (
    ADM_CROP_RULE,
    check_comparable,
    distance_to,
    load_adm_reference,
    load_clean_fid_reference,
    load_plain_reference,
    load_reference,
    measure,
)
from cascade.eval.statistics import FeatureStatistics, Measurement, Provenance, save_measurement


class BlockMeans:
    """Twelve features: the mean colour of each quarter."""

    name, resize_mode, weights_hash = "block-means", "none", "0" * 64

    def __call__(self, images):
        half = images.shape[1] // 2
        blocks = images.reshape(len(images), 2, half, 2, half, 3).mean(axis=(2, 4), dtype=np.float32)
        return blocks.reshape(len(images), 12)


def pictures(seed: int, count: int = 50, size: int = 8) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (count, size, size, 3), dtype=np.uint8)


def kept(path, images):
    """Measured, kept in a file and read again."""
    save_measurement(path, measure(images, BlockMeans(), crop_rule="centre"))
    return load_reference(path)


def test_a_reference_keeps_statistics_and_origin(tmp_path):
    images = image_array(pictures(0))
    loaded = kept(tmp_path / "real.npz", images)
    features = BlockMeans()(images.array()).astype(np.float64)
    np.testing.assert_allclose(loaded.cov, np.cov(features, rowvar=False), rtol=1e-10)
    assert (loaded.name, loaded.count, loaded.file_hash) == ("real", 50, file_sha256(tmp_path / "real.npz"))
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
    reference = kept(tmp_path / "real.npz", real)
    result = distance_to(reference, measure(samples, BlockMeans(), crop_rule="centre"))
    x, y = (BlockMeans()(s.array()).astype(np.float64) for s in (samples, real))
    want = frechet_distance(x.mean(0), np.cov(x, rowvar=False), y.mean(0), np.cov(y, rowvar=False))
    assert result.distance == pytest.approx(want, rel=1e-9)
    assert (result.num_samples, result.reference, result.reference_count) == (40, "real", 50)
    assert result.reference_hash == reference.file_hash and result.provenance.source_hash == samples.source_hash()


def test_real_images_are_at_distance_zero_from_their_own_reference(tmp_path):
    images = image_array(pictures(0, count=9))  # fewer images than features
    reference = kept(tmp_path / "real.npz", images)
    result = distance_to(reference, measure(images, BlockMeans(), crop_rule="centre"))
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
    statistics.update(arrays["mu"] + np.vstack([np.eye(6), -np.eye(6)]))  # covariance 2 / 11 identity
    got = distance_to(reference, Measurement.of(replace(reference.provenance, weights_hash="f" * 64), statistics))
    assert got.distance == pytest.approx(6 * (1 - np.sqrt(2 / 11)) ** 2, rel=1e-9)


def test_adms_reference_of_another_size_or_content_is_refused(adm_file, tmp_path):
    path, arrays, _ = adm_file
    with pytest.raises(ValueError, match="holds images of 8x8"):
        load_adm_reference(path, image_size=256)
    np.savez(tmp_path / "half.npz", mu=arrays["mu"], sigma=arrays["sigma"])
    with pytest.raises(ValueError, match=r"lacks the arrays \['mu_s', 'sigma_s'\]"):
        load_adm_reference(tmp_path / "half.npz", image_size=8)


@pytest.fixture
def clean_fid(tmp_path, monkeypatch):
    """clean-fid's server, on this disk, and an empty cache."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    server = tmp_path / "server"
    server.mkdir()
    np.savez(server / "cifar10_clean_test_32.npz", mu=np.arange(4.0), sigma=np.eye(4))
    monkeypatch.setattr("cascade.eval.references.CLEAN_FID", server.as_uri())
    return server


def test_statistics_that_clean_fid_publishes_are_fetched_once_and_their_hash_is_on_record(clean_fid):
    want = file_sha256(clean_fid / "cifar10_clean_test_32.npz")
    for _ in range(2):
        reference = load_clean_fid_reference("CIFAR10", "test", 32, "clean")
        assert reference.file_hash == want and reference.mean.tolist() == [0, 1, 2, 3]
        assert (reference.provenance.resize_mode, reference.provenance.image_size) == ("clean", 32)
        (clean_fid / "cifar10_clean_test_32.npz").unlink(missing_ok=True)


def test_statistics_that_clean_fid_does_not_publish_are_one_sentence(clean_fid):
    with pytest.raises(ConnectionError, match="cifar10_clean_train_32.npz is not in .* could not be downloaded"):
        load_clean_fid_reference("cifar10", "train", 32, "clean")


def test_a_file_of_mu_and_sigma_is_what_the_caller_says(tmp_path):
    np.savez(tmp_path / "theirs.npz", mu=np.zeros(12), sigma=np.eye(12))
    said = Provenance(extractor="block-means", weights_hash=None, resize_mode="none", crop_rule="theirs")
    reference = load_plain_reference(tmp_path / "theirs.npz", said)
    samples = measure(image_array(pictures(0)), BlockMeans(), crop_rule="theirs")
    want = frechet_distance(samples.mean, samples.cov, np.zeros(12), np.eye(12))
    assert distance_to(reference, samples).distance == pytest.approx(want, rel=1e-12)
    with pytest.raises(ValueError, match=r"lacks the arrays \['sigma'\]"):
        np.savez(tmp_path / "half.npz", mu=np.zeros(12))
        load_plain_reference(tmp_path / "half.npz", said)
