"""PSNR, SSIM and consistency against closed forms and scikit-image."""

import numpy as np
import pytest

from cascade.eval.images import area_downsample
from cascade.eval.paired import consistency, psnr, ssim


@pytest.fixture
def originals() -> np.ndarray:
    # Smooth waves with some noise: structure at several scales, as in a picture.
    rng = np.random.default_rng(0)
    y, x = np.mgrid[:48, :48] / 48
    waves = [np.sin(2 * np.pi * (f * x + g * y) + p) for f, g, p in rng.uniform(0, 4, (12, 3))]
    images = 128 + 60 * np.stack(waves).reshape(4, 3, 48, 48).transpose(0, 2, 3, 1)
    return (images + rng.normal(0, 5, images.shape)).clip(0, 255).astype(np.uint8)


@pytest.fixture
def outputs(originals) -> np.ndarray:
    noise = np.random.default_rng(1).normal(0, 1, originals.shape) * np.array([2, 8, 20, 60])[:, None, None, None]
    return (originals + noise).clip(0, 255).astype(np.uint8)


def test_psnr_of_a_constant_difference():
    black = np.zeros((3, 16, 16, 3), np.uint8)
    grey = black + np.array([1, 51, 255], np.uint8)[:, None, None, None]
    np.testing.assert_allclose(psnr(grey, black), 20 * np.log10([255, 5, 1]), rtol=1e-12)


def test_an_image_equals_itself(originals):
    assert np.isposinf(psnr(originals, originals)).all()
    np.testing.assert_allclose(ssim(originals, originals), 1, rtol=1e-12)


def test_psnr_and_ssim_agree_with_scikit_image(outputs, originals):
    metrics = pytest.importorskip("skimage.metrics")
    pairs = list(zip(outputs, originals, strict=True))
    want_psnr = [metrics.peak_signal_noise_ratio(y, x, data_range=255) for x, y in pairs]
    settings = {
        "gaussian_weights": True,
        "sigma": 1.5,
        "use_sample_covariance": False,
        "data_range": 255,
        "channel_axis": -1,
    }
    want_ssim = [metrics.structural_similarity(x, y, **settings) for x, y in pairs]
    np.testing.assert_allclose(psnr(outputs, originals), want_psnr, rtol=1e-12)
    np.testing.assert_allclose(ssim(outputs, originals), want_ssim, rtol=1e-10)


def test_ssim_of_two_flat_images_is_the_luminance_term():
    # Without variance, SSIM is (2ab + c1) / (a^2 + b^2 + c1) with c1 = (0.01 * 255)^2.
    a, b, c1 = 100.0, 150.0, 2.55**2
    flat = np.full((1, 16, 16, 3), 100, np.uint8), np.full((1, 16, 16, 3), 150, np.uint8)
    np.testing.assert_allclose(ssim(*flat), (2 * a * b + c1) / (a * a + b * b + c1), rtol=1e-10)


def test_consistency_counts_in_hundred_thousandths_of_the_squared_range():
    low_res = np.full((2, 4, 4, 3), 100, np.uint8)
    outputs = np.full((2, 16, 16, 3), 100, np.uint8)
    outputs[1] += 1
    np.testing.assert_allclose(consistency(outputs, low_res), [0, 1e5 / 255**2], rtol=1e-12)


def test_consistency_sees_only_what_survives_averaging(outputs):
    low_res = area_downsample(outputs, 12).round().astype(np.uint8)
    rounding = 1e5 / 255**2 / 12  # variance of rounding to whole numbers
    np.testing.assert_allclose(consistency(outputs, low_res), rounding, rtol=0.25)


def test_unequal_pairs_are_refused(originals):
    with pytest.raises(ValueError, match="pairs of equal images"):
        psnr(originals[:, :24], originals)
    with pytest.raises(ValueError, match="expected uint8"):
        ssim(originals / 255.0, originals)
    with pytest.raises(ValueError, match="window of 11"):
        ssim(originals[:, :8], originals[:, :8])
    with pytest.raises(ValueError, match="4 outputs but 3"):
        consistency(originals, originals[:3, :12, :12])
