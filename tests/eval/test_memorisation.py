"""Nearest training neighbours against brute force, and on sets whose answer is known."""

import numpy as np
import pytest

from cascade.eval.memorisation import nearest_in_features, nearest_in_pixels


def pictures(count: int, seed: int, size: int = 16) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (count, size, size, 3), dtype=np.uint8)


def test_pixel_neighbours_follow_the_definition(monkeypatch):
    monkeypatch.setattr("cascade.eval.memorisation.BLOCK", 4)
    images, training = pictures(9, 0), pictures(30, 1)
    got = nearest_in_pixels(images, training, size=16)
    table = np.abs(images[:, None].astype(float) - training[None]).mean(axis=(2, 3, 4))
    np.testing.assert_array_equal(got.index, table.argmin(axis=1))
    np.testing.assert_allclose(got.distance, table.min(axis=1), rtol=1e-5)


def test_feature_neighbours_follow_the_definition():
    rng = np.random.default_rng(2)
    features, training = rng.normal(size=(9, 5)), rng.normal(size=(40, 5))
    got = nearest_in_features(features, training)
    table = np.linalg.norm(features[:, None] - training[None], axis=2)
    np.testing.assert_array_equal(got.index, table.argmin(axis=1))
    np.testing.assert_allclose(got.distance, table.min(axis=1), rtol=1e-5)


def test_copies_are_found_at_distance_zero_at_any_size():
    training = pictures(20, 3, size=8)
    copies = training[[4, 17]].repeat(4, axis=1).repeat(4, axis=2)
    got = nearest_in_pixels(copies, training, size=8)
    assert got.index.tolist() == [4, 17] and (got.distance == 0).all()
    far_from_zero = 1e4 + np.random.default_rng(0).normal(size=(20, 6))
    assert (nearest_in_features(far_from_zero[:3], far_from_zero).distance == 0).all()


def test_a_brighter_copy_is_at_its_brightness_difference():
    training = np.full((1, 8, 8, 3), 100, np.uint8)
    assert nearest_in_pixels(training + 7, training, size=8).distance[0] == pytest.approx(7)


def test_empty_sets_are_refused():
    with pytest.raises(ValueError, match="cannot look for neighbours"):
        nearest_in_features(np.zeros((0, 3)), np.zeros((4, 3)))
