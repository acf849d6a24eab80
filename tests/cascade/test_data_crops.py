"""Crop rules against independent transcriptions and closed forms."""

import math

import numpy as np
import pytest
import torch
from PIL import Image

from cascade.data.crops import crop_adm, crop_area, crop_rule
from cascade.stages.conditioning import resize


def noise(width: int, height: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(width * height).integers(0, 256, (height, width, 3), dtype=np.uint8))


def adm_transcribed(image: Image.Image, size: int) -> np.ndarray:
    """The rule from its description, with the number of halvings found beforehand and the crop by Pillow."""
    shorter, halvings = min(image.size), 0
    while shorter // 2**halvings >= 2 * size:
        halvings += 1
    for _ in range(halvings):
        w, h = image.size
        image = image.resize((math.floor(w / 2), math.floor(h / 2)), resample=4)  # 4: Pillow's box filter
    w, h = image.size
    factor = size / min(w, h)
    image = image.resize((round(factor * w), round(factor * h)), resample=3)  # 3: Pillow's bicubic
    left, top = (image.size[0] - size) // 2, (image.size[1] - size) // 2
    return np.array(image.crop((left, top, left + size, top + size)))


@pytest.mark.parametrize("size", [1, 8, 13, 16])
def test_adm_is_adms_rule_to_the_pixel_at_odd_sizes(size):
    for width in (size, size + 1, 2 * size - 1, 2 * size, 2 * size + 1, 4 * size - 1, 4 * size + 3, 61):
        for height in (size, size + 3, 2 * size + 1, 5 * size, 67):
            image = noise(width, height)
            got = crop_adm(image, size)
            assert got.shape == (size, size, 3) and got.dtype == np.uint8
            assert np.array_equal(got, adm_transcribed(image, size)), (width, height)


def test_a_picture_of_the_size_is_left_as_it_is():
    image = noise(16, 16)
    for name in ("adm", "area"):
        assert np.array_equal(crop_rule(name).crop(image, 16), np.asarray(image))


@pytest.mark.parametrize("factor", [2, 3, 4])
def test_area_is_the_mean_over_blocks_of_the_centre(factor):
    size, image = 8, noise(8 * factor + 5, 8 * factor)
    centre = np.asarray(image)[:, 2 : 2 + 8 * factor].astype(float)
    mean = centre.reshape(size, factor, size, factor, 3).mean(axis=(1, 3))
    assert np.array_equal(crop_area(image, size), np.floor(mean + 0.5))


def test_area_of_any_size_keeps_the_mean():
    image = noise(37, 37)
    for size in (1, 5, 11, 36):
        assert crop_area(image, size).mean() == pytest.approx(np.asarray(image).mean(), abs=0.3)


def test_small_images_of_training_are_those_of_both_rules():
    """A block mean of the cropped picture, as low-res inputs are made, is what the rules make of it.

    Pillow halves in two passes and rounds halves up in each, by a quarter of a level on average: 4 passes here.
    """
    picture = np.asarray(noise(64, 64))
    pixels = torch.from_numpy(picture.transpose(2, 0, 1).copy())[None].double()
    low_res = resize(pixels, 16)[0].permute(1, 2, 0).numpy()
    assert np.abs(crop_area(Image.fromarray(picture), 16) - low_res).max() <= 0.5
    above = crop_adm(Image.fromarray(picture), 16) - low_res
    assert above.min() >= 0 and above.max() <= 2 and above.mean() == pytest.approx(1, abs=0.1)


def test_an_unknown_rule_is_named():
    with pytest.raises(ValueError, match="the crop rule is 'center', expected one of adm, area"):
        crop_rule("center")
