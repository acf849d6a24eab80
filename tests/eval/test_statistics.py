"""Streaming statistics against numpy's own, and their file."""

import numpy as np
import pytest

from cascade.eval.statistics import FeatureStatistics, Measurement, Provenance, load_measurement, save_measurement

PROVENANCE = Provenance(
    extractor="test",
    weights_hash="cd" * 32,
    resize_mode="none",
    image_size=64,
    crop_rule="centre",
    source_hash="ab" * 32,
)


def features(count: int, dimension: int = 5, seed: int = 0) -> np.ndarray:
    # A mean far from 0 and correlated columns: what defeats a naive sum of squares in float32.
    rng = np.random.default_rng(seed)
    return (1e4 + rng.normal(size=(count, dimension)) @ rng.normal(size=(dimension, dimension))).astype(np.float32)


def streamed(values: np.ndarray, *cuts: int) -> FeatureStatistics:
    statistics = FeatureStatistics(values.shape[1])
    for batch in np.split(values, cuts):
        statistics.update(batch)
    return statistics


@pytest.mark.parametrize("cuts", [(), (1, 2, 3), (50,), (0, 99)])
def test_streaming_equals_numpy_however_the_batches_are_cut(cuts):
    values = features(100)
    got = streamed(values, *cuts)
    assert got.count == 100
    np.testing.assert_allclose(got.mean, values.astype(np.float64).mean(axis=0), rtol=1e-14)
    np.testing.assert_allclose(got.cov, np.cov(values.astype(np.float64), rowvar=False), rtol=1e-9)


def test_merging_processes_equals_one_process():
    values = features(90)
    first, second = streamed(values[:30]), streamed(values[30:])
    first.merge(second)
    whole = streamed(values)
    assert (first.count, second.count) == (90, 60)
    np.testing.assert_allclose(first.mean, whole.mean, rtol=1e-14)
    np.testing.assert_allclose(first.cov, whole.cov, rtol=1e-9)


def test_merging_nothing_changes_nothing():
    statistics = streamed(features(10))
    before = statistics.mean.copy(), statistics.cov
    statistics.merge(FeatureStatistics(5))
    np.testing.assert_array_equal(statistics.mean, before[0])
    np.testing.assert_array_equal(statistics.cov, before[1])


def test_saved_statistics_come_back_and_can_be_continued(tmp_path):
    values = features(80)
    path = tmp_path / "new folder" / "reference.npz"
    spatial = streamed(values[:50] ** 2)
    save_measurement(path, Measurement(streamed(values[:50]), PROVENANCE, spatial))
    measurement = load_measurement(path)
    loaded = measurement.features
    assert measurement.provenance == PROVENANCE
    np.testing.assert_allclose(measurement.spatial.cov, spatial.cov, rtol=1e-12)
    loaded.update(values[50:])
    np.testing.assert_allclose(loaded.cov, np.cov(values.astype(np.float64), rowvar=False), rtol=1e-9)
    assert [p.name for p in path.parent.iterdir()] == ["reference.npz"]


@pytest.mark.parametrize(
    ("batch", "message"),
    [(np.ones((3, 4)), "shape"), (np.ones(5), "shape"), (np.full((2, 5), np.nan), "NaN")],
)
def test_wrong_features_are_refused(batch, message):
    with pytest.raises(ValueError, match=message):
        FeatureStatistics(5).update(batch)


def test_a_covariance_needs_two_features():
    statistics = FeatureStatistics(2)
    statistics.update(np.ones((1, 2)))
    with pytest.raises(ValueError, match="at least 2"):
        statistics.cov  # noqa: B018


def test_unreadable_files_are_one_sentence(tmp_path):
    with pytest.raises(ValueError, match="does not exist"):
        load_measurement(tmp_path / "none.npz")
    (tmp_path / "text.npz").write_text("hello")
    with pytest.raises(ValueError, match="not a readable"):
        load_measurement(tmp_path / "text.npz")
    np.savez(tmp_path / "other.npz", mu=np.ones(3))
    with pytest.raises(ValueError, match="lacks the arrays"):
        load_measurement(tmp_path / "other.npz")


def test_pickled_objects_are_not_loaded(tmp_path):
    path = tmp_path / "pickled.npz"
    np.savez(path, mean=np.array([{}], dtype=object), cov=np.ones((1, 1)), count=2, provenance="{}")
    with pytest.raises(ValueError, match="plain arrays"):
        load_measurement(path)


def test_a_truncated_file_is_refused(tmp_path):
    path = tmp_path / "reference.npz"
    save_measurement(path, Measurement(streamed(features(50)), PROVENANCE))
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(ValueError, match="not a readable"):
        load_measurement(path)
