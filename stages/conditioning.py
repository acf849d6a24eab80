"""The hand-over between stages: how the images of one become the conditioning of the next."""

from __future__ import annotations

import math
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from cascade.stages.noise import like_image


def resize(images: Tensor, size: int, mode: Literal["area", "bilinear", "bicubic"] = "area") -> Tensor:
    """Resize square images to `size`; those that have it already are returned as they are.

    Args:
        images: [B, C, H, H], any range.
        size: Side of the result.
        mode: "area" = mean over blocks where `size` divides H, bicubic otherwise; "bicubic" = antialiased bicubic always, which
            may overshoot the range of the input; "bilinear" = between the four pixels that are nearest, without antialiasing: as
            the pictures of Tiny ImageNet were made, with jags and moire.

    Returns:
        Images, [B, C, size, size].
    """
    side = images.shape[-1]
    if side == size:
        return images
    if mode == "area" and side % size == 0:
        return F.avg_pool2d(images, side // size)
    if mode == "bilinear":
        return F.interpolate(images, size=(size, size), mode="bilinear", align_corners=False)
    return F.interpolate(images, size=(size, size), mode="bicubic", antialias=True)


def gaussian_blur(images: Tensor, sigma: Tensor, largest: float | None = None) -> Tensor:
    """Blur with a Gaussian of each image's own width, cut off at 3 sigma; borders are extended by their last pixel.

    CDM blurs the conditioning of its large stages (Ho et al. 2021, arXiv:2106.15282, section 4.2).

    Args:
        images: [B, C, H, W].
        sigma: Std of the Gaussian in pixels of `images`, [B]; 0 leaves the image as it is.
        largest: What no sigma exceeds; None = looked at, which waits for an accelerator.

    Raises:
        ValueError: if a sigma is negative, unless `largest` is given.
    """
    if largest is None:
        largest = float(sigma.max())
        if not sigma.min() >= 0:
            raise ValueError(f"sigma of the blur must be at least 0, got {sigma.min():g}")
    b, c, h, w = images.shape
    width = sigma.to(images.device, torch.float64)[:, None]
    radius = math.ceil(3 * largest)
    place = torch.arange(-radius, radius + 1, device=images.device, dtype=torch.float64)
    kernel = torch.exp(-0.5 * (place / width.clamp(min=1e-6)) ** 2) * (place.abs() <= torch.ceil(3 * width))
    kernel = (kernel / kernel.sum(dim=1, keepdim=True)).to(images).repeat_interleave(c, dim=0)[:, None]
    x = F.pad(images.reshape(1, b * c, h, w), (radius,) * 4, mode="replicate")
    x = F.conv2d(x, kernel[:, :, None, :], groups=b * c)
    return F.conv2d(x, kernel[:, :, :, None], groups=b * c).reshape(b, c, h, w)


def augment(low_res: Tensor, aug_level: Tensor, eps: Tensor) -> Tensor:
    """Gaussian-noise augmentation of conditioning images, at their own resolution: `cos(pi s / 2) low_res + sin(pi s / 2) eps`.

    The noise hides the flaws of the stage before, and the network is told its level (Ho et al. 2021, arXiv:2106.15282, section 4;
    Saharia et al. 2022, arXiv:2205.11487, section 2.3).

    Args:
        low_res: Images in [-1, 1], [B, C, h, w].
        aug_level: s in [0, 1], the time of the plain cosine schedule, [B]; 0 returns the image exactly, 1 returns pure noise.
        eps: Unit Gaussian noise, shape of `low_res`.

    Raises:
        ValueError: if a level on a CPU lies outside [0, 1]; a look at an accelerator's would wait for it.
    """
    if aug_level.device.type == "cpu" and not (aug_level.min() >= 0 and aug_level.max() <= 1):
        raise ValueError(f"aug_level must lie in [0, 1], got [{aug_level.min():g}, {aug_level.max():g}]")
    angle = aug_level.double() * (math.pi / 2)
    return like_image(angle.cos(), low_res) * low_res + like_image(angle.sin(), low_res) * eps
