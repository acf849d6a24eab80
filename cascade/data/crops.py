"""How a photo becomes a square picture of one size. One rule, by its name, for training and for references.

Low-resolution inputs are made from the square picture by the mean over blocks (`cascade.stages.conditioning.resize`). For every
factor that is what rule "area" does, and for factors that are powers of two what rule "adm" does, but for Pillow's rounding,
which makes its pictures brighter by half a level of 255 with each halving.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from PIL import Image

from cascade.data.drawings import area_average

Crop = Callable[[Image.Image, int], np.ndarray]
"""From an RGB image of any shape and the side of the square in pixels to uint8 [size, size, 3]."""


def crop_adm(image: Image.Image, size: int) -> np.ndarray:
    """Halve by box filter while twice the size or more, then bicubic to the size, then the centre (arXiv:2105.05233's loader).

    An image whose shorter side is below `size` is enlarged, as there; `cascade.data.decoding` lets none through.
    """
    while min(image.size) >= 2 * size:
        image = image.resize((image.width // 2, image.height // 2), Image.Resampling.BOX)
    scale = size / min(image.size)
    image = image.resize((round(image.width * scale), round(image.height * scale)), Image.Resampling.BICUBIC)
    left, top = (image.width - size) // 2, (image.height - size) // 2
    return np.asarray(image)[top : top + size, left : left + size]


def crop_area(image: Image.Image, size: int) -> np.ndarray:
    """The largest square in the centre, reduced by area average (SR3, arXiv:2104.07636, section 4).

    Raises:
        ValueError: if its shorter side is below `size`.
    """
    side = min(image.size)
    left, top = (image.width - side) // 2, (image.height - side) // 2
    return area_average(np.asarray(image)[top : top + side, left : left + side], size)


@dataclass(frozen=True, slots=True)
class CropRule:
    """What makes a photo square, and what a reference that is measured on such pictures says of it (`Provenance.crop_rule`)."""

    crop: Crop
    recorded: str


CROP_RULES = {"adm": CropRule(crop_adm, "adm-box-bicubic-centre"), "area": CropRule(crop_area, "area-centre")}
"""By the names that recipes and the command line give them."""


def crop_rule(name: str) -> CropRule:
    """The rule of this name. Raises ValueError if there is none."""
    if name not in CROP_RULES:
        raise ValueError(f"the crop rule is {name!r}, expected one of {', '.join(CROP_RULES)}")
    return CROP_RULES[name]
