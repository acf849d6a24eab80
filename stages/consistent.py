"""Exact consistency: large images whose area average is the small image that they were made from."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from cascade.stages.conditioning import resize
from cascade.stages.denoiser import Denoiser, Wrapper, from_x0, to_x0

TOLERANCE = 1e-6
"""Largest error of an average that is left, in the units of images in [-1, 1]: a few roundings of float32."""

MAX_ROUNDS = 40


def project(images: Tensor, low_res: Tensor) -> Tensor:
    """Images in [-1, 1] near the given ones whose block means are `low_res`.

    What the means lack is added as a bicubic enlargement, which leaves no trace of the blocks; what is then left, by the nearest
    images (least squares) that keep range and means: a block x becomes clip(x + shift), its shift found by Newton's method.
    Images that are consistent already stay as they are. Adding the enlargement alone would be a step of iterative
    back-projection (Irani & Peleg 1991), the replicated shift alone the range-null space decomposition (Wang et al. 2022,
    arXiv:2212.00490, Eq. 7); on drawings the two together came nearer to the originals than either (docs/emoji.md).

    Args:
        images: [B, C, H, H]; values outside [-1, 1] are clipped.
        low_res: Means to reach, [B, C, h, h], h divides H; values outside [-1, 1] are clipped, as no image has such means.

    Returns:
        Images, [B, C, H, H].
    """
    size, small = images.shape[-1], low_res.shape[-1]
    wanted = low_res.to(images).clamp(-1, 1)
    images = images.clamp(-1, 1)
    lacking = wanted - resize(images, small)
    images = (images + F.interpolate(lacking, size=(size, size), mode="bicubic", align_corners=False)).clamp(-1, 1)
    shift, lowest, highest = torch.zeros_like(wanted), torch.full_like(wanted, -2), torch.full_like(wanted, 2)
    placed = images
    for _ in range(MAX_ROUNDS):
        lacking = wanted - resize(placed, small)
        if lacking.abs().max() <= TOLERANCE:
            break
        lowest, highest = torch.where(lacking > 0, shift, lowest), torch.where(lacking < 0, shift, highest)
        movable = resize((placed.abs() < 1).to(placed), small)  # share of a block's pixels that follow the shift
        newton = shift + lacking / movable
        shift = torch.where((newton > lowest) & (newton < highest), newton, (lowest + highest) / 2)
        placed = (images + F.interpolate(shift, size=(size, size), mode="nearest")).clamp(-1, 1)
    return placed


class Consistent(Wrapper):
    """A denoiser whose denoised images are consistent with a small image, at every step. Itself a `Denoiser`; guidance and tiles
    go inside.

    Args:
        denoiser: Of any prediction type.
        low_res: The small images, without augmentation, [B, C, h, h]; h divides the side of the noisy images.
    """

    def __init__(self, denoiser: Denoiser, low_res: Tensor) -> None:
        super().__init__(denoiser)
        self.low_res = low_res

    def __call__(
        self,
        x_t: Tensor,
        log_snr: Tensor,
        class_labels: Tensor | None = None,
        low_res: Tensor | None = None,
        aug_level: Tensor | None = None,
    ) -> Tensor:
        """As `Denoiser.__call__`; a learned variance is passed on."""
        made = self.denoiser(x_t, log_snr, class_labels, low_res, aug_level)
        prediction, variance = made[:, : x_t.shape[1]], made[:, x_t.shape[1] :]
        x0 = project(to_x0(prediction, self.prediction_type, x_t, log_snr), self.low_res)
        return torch.cat([from_x0(x0, self.prediction_type, x_t, log_snr), variance], dim=1)
