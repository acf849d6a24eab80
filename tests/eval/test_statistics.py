"""Streaming statistics against numpy's own, and their file."""

from dataclasses import replace

import numpy as np
import pytest

from cascade.eval import statistics as of_files
from cascade.eval.statistics import (
    FeatureStatistics,
    Measurement,
    Provenance,
    load_measurement,
    npz_names,
    read_npz,
    save_measurement,
)

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


def test_saved_statistics_come_back(tmp_path):
    values, path = features(50), tmp_path / "new folder" / "reference.npz"
    saved = Measurement.of(PROVENANCE, streamed(values), streamed(values**2))
    save_measurement(path, saved)
    loaded = load_measurement(path)
    assert (loaded.provenance, loaded.count) == (PROVENANCE, 50)
    for name in ("mean", "cov", "mean_spatial", "cov_spatial"):
        np.testing.assert_array_equal(getattr(loaded, name), getattr(saved, name))
    assert [p.name for p in path.parent.iterdir()] == ["reference.npz"]


@pytest.mark.parametrize("change", [{"cov": np.eye(4)}, {"mean": np.eye(5)}, {"cov_spatial": np.eye(4)}])
def test_statistics_whose_shapes_differ_are_refused(tmp_path, change):
    path = tmp_path / "reference.npz"
    save_measurement(path, replace(Measurement.of(PROVENANCE, streamed(features(50)), streamed(features(50))), **change))
    with pytest.raises(ValueError, match="a mean of shape .* and a covariance of shape"):
        load_measurement(path)


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
    save_measurement(path, Measurement.of(PROVENANCE, streamed(features(50))))
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(ValueError, match="not a readable"):
        load_measurement(path)


@pytest.mark.parametrize("order", ["C", "F"])
def test_a_large_array_of_an_archive_stays_in_the_file(tmp_path, monkeypatch, order):
    monkeypatch.setattr(of_files, "LARGE", 1000)
    pixels = np.asarray(np.random.default_rng(0).integers(0, 256, (9, 8, 8, 3), dtype=np.uint8), order=order)
    for name, save in (("plain.npz", np.savez), ("packed.npz", np.savez_compressed)):
        save(tmp_path / name, arr_0=pixels, arr_1=np.arange(9))
        found = read_npz(tmp_path / name, {"arr_0", "arr_1"})
        np.testing.assert_array_equal(found["arr_0"], pixels)
        assert found["arr_1"].tolist() == list(range(9)) and npz_names(tmp_path / name) == {"arr_0", "arr_1"}
        assert isinstance(found["arr_0"], np.memmap) == (name == "plain.npz")


def test_a_large_array_of_objects_is_never_unpickled(tmp_path, monkeypatch):
    monkeypatch.setattr(of_files, "LARGE", 10)
    np.savez(tmp_path / "objects.npz", arr_0=np.array([{"a": 1}] * 50, dtype=object))
    with pytest.raises(ValueError, match="not a readable .npz archive of plain arrays"):
        read_npz(tmp_path / "objects.npz", {"arr_0"})
