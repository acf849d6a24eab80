"""Nearest training neighbours against brute force, and the summary on sets whose answer is known."""

import numpy as np
import pytest

from cascade.eval.memorisation import Neighbours, memorisation, nearest_in_features, nearest_in_pixels, picture_of_closest


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


def test_the_summary_of_copies_and_of_honest_samples():
    heldout = Neighbours(np.linspace(10, 110, 101), np.zeros(101, int))
    copies = memorisation(Neighbours(np.zeros(50), np.zeros(50, int)), heldout)
    assert (copies.median, copies.share_closer) == (0, 1)
    honest = memorisation(heldout, heldout)
    assert (honest.median, honest.heldout_median, honest.percentile5) == (60, 60, 15)
    assert honest.share_closer == pytest.approx(5 / 101)


def test_the_picture_shows_the_closest_pairs_first():
    images, training = pictures(5, 4), pictures(6, 5)
    images[3], images[1] = training[2], training[5] // 2 + training[0] // 2
    got = nearest_in_pixels(images, training, size=16)
    picture = picture_of_closest(images, training, got, count=3)
    assert picture.shape == (32, 48, 3)
    np.testing.assert_array_equal(picture[:16, :16], images[3])
    np.testing.assert_array_equal(picture[16:, :16], training[2])
    with pytest.raises(ValueError, match="equal sizes"):
        picture_of_closest(images, training[:, :8, :8], got)


def test_empty_sets_are_refused():
    with pytest.raises(ValueError, match="cannot look for neighbours"):
        nearest_in_features(np.zeros((0, 3)), np.zeros((4, 3)))
