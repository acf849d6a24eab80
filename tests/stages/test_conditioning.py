import math

import pytest
import torch

from cascade.stages.conditioning import augment, gaussian_blur, resize

IMAGES = torch.rand(2, 3, 16, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) * 2 - 1


def test_whole_reductions_are_block_means():
    blocks = IMAGES.reshape(2, 3, 4, 4, 4, 4).mean(dim=(3, 5))
    torch.testing.assert_close(resize(IMAGES, 4), blocks)


def test_an_image_of_the_right_size_is_left_alone():
    assert resize(IMAGES, 16) is IMAGES


@pytest.mark.parametrize("size", [5, 10, 24, 64])
@pytest.mark.parametrize("mode", ["area", "bicubic"])
def test_other_sizes_keep_constants_and_gradients(size, mode):
    """Cubic convolution reproduces straight lines, away from the borders."""
    ramp = torch.arange(16, dtype=torch.float64).expand(1, 1, 16, 16)
    torch.testing.assert_close(resize(torch.ones_like(ramp), size, mode), torch.ones(1, 1, size, size).double())
    want = (torch.arange(size) + 0.5).double() * 16 / size - 0.5
    inside = (want > 5) & (want < 10)
    torch.testing.assert_close(resize(ramp, size, mode)[0, 0, 0][inside], want[inside], rtol=0, atol=0.05)


def test_reductions_do_not_alias():
    stripes = (torch.arange(16) % 2 * 2.0 - 1).expand(1, 1, 16, 16)
    for size, mode in [(8, "bicubic"), (8, "area"), (5, "area")]:
        assert resize(stripes, size, mode).abs().max() < 0.35


def test_bilinear_reductions_by_four_are_the_middle_of_each_block_and_alias():
    """A sample lies between pixels 4i + 1 and 4i + 2; the outer ones are never seen, so stripes of their period stay."""
    middle = IMAGES.reshape(2, 3, 4, 4, 4, 4)[:, :, :, 1:3, :, 1:3].mean(dim=(3, 5))
    torch.testing.assert_close(resize(IMAGES, 4, "bilinear"), middle)
    stripes = torch.tensor([-1.0, 1, 1, -1]).repeat(4).expand(1, 1, 16, 16)
    assert (resize(stripes, 4, "bilinear") == 1).all() and (resize(stripes, 4) == 0).all()


def test_blur_of_a_point_is_a_gaussian_of_each_images_width():
    point = torch.zeros(2, 3, 33, 33, dtype=torch.float64)
    point[:, :, 16, 16] = 1
    sigma = torch.tensor([1.0, 2.5])
    blurred = gaussian_blur(point, sigma)
    place = torch.arange(33).double() - 16
    for image, width in zip(blurred, sigma.tolist(), strict=True):
        for channel in image:
            assert channel.sum().item() == pytest.approx(1)
            variance = (channel.sum(dim=0) * place**2).sum().item()
            assert variance == pytest.approx(width**2, rel=0.03)  # cut off at 3 sigma
            torch.testing.assert_close(channel, torch.outer(channel.sum(1), channel.sum(0)))  # separable


def test_blur_of_width_zero_is_the_image_and_does_not_depend_on_the_batch():
    blurred = gaussian_blur(IMAGES, torch.tensor([0.0, 1.3]))
    assert torch.equal(blurred[0], IMAGES[0])
    torch.testing.assert_close(blurred[1:], gaussian_blur(IMAGES[1:], torch.tensor([1.3])), rtol=0, atol=1e-15)
    torch.testing.assert_close(gaussian_blur(torch.ones(1, 3, 8, 8), torch.tensor([4.0])), torch.ones(1, 3, 8, 8))  # borders


def test_augmentation_follows_the_cosine_schedule():
    eps = torch.randn(IMAGES.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    z = augment(IMAGES, torch.tensor([0.0, 1 / 3]), eps)
    assert torch.equal(z[0], IMAGES[0])
    torch.testing.assert_close(z[1], math.cos(math.pi / 6) * IMAGES[1] + 0.5 * eps[1])
    torch.testing.assert_close(augment(IMAGES, torch.ones(2), eps), eps)


@pytest.mark.parametrize(
    "wrong, word",
    [
        (lambda: augment(IMAGES, torch.tensor([0.1, 1.1]), IMAGES), r"\[0, 1\], got \[0.1, 1.1\]"),
        (lambda: augment(IMAGES, torch.tensor([0.1, math.nan]), IMAGES), "nan"),
        (lambda: gaussian_blur(IMAGES, torch.tensor([-1.0, 1.0])), "at least 0, got -1"),
    ],
)
def test_levels_out_of_range_are_refused(wrong, word):
    with pytest.raises(ValueError, match=word):
        wrong()
