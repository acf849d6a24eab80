"""Large images piece by piece: each evaluation of a network is split into overlapping tiles, so that memory stays bounded."""

from __future__ import annotations

import math
from itertools import product

import torch
from torch import Tensor

from cascade.stages.denoiser import Denoiser, Wrapper

OVERLAP = 0.25
"""Share of a tile's side that it has in common with the next one, at the least."""


class Tiled(Wrapper):
    """A denoiser evaluated on overlapping square tiles, whose predictions are blended. Itself a `Denoiser`; guidance goes inside.

    The noisy image stays whole between evaluations, so neighbouring tiles agree at every step: MultiDiffusion (Bar-Tal et al.
    2023, arXiv:2302.08113, Eq. 5) with smooth weights. Each prediction fades in over the inner half of the overlap and counts
    nothing in the outer quarter, where the tile's border disturbs it. A denoiser that looks no farther than that quarter gives
    exactly what it gives untiled; one that does sees a tile as it saw crops in training.

    Args:
        denoiser: Runs at any size, as convolutional networks do.
        size: Side of a tile in pixels; an image no larger goes through whole.
        batch_size: Tiles, times images, that go through the denoiser at once.

    Raises:
        ValueError: if `size` or `batch_size` is less than 1.
    """

    def __init__(self, denoiser: Denoiser, size: int, batch_size: int = 1) -> None:
        if size < 1 or batch_size < 1:
            raise ValueError(f"size of a tile and batch_size must be at least 1, got {size} and {batch_size}")
        super().__init__(denoiser)
        self.size, self.batch_size = size, batch_size

    def __call__(
        self,
        x_t: Tensor,
        log_snr: Tensor,
        class_labels: Tensor | None = None,
        low_res: Tensor | None = None,
        aug_level: Tensor | None = None,
    ) -> Tensor:
        """As `Denoiser.__call__`; tiles begin at whole pixels of `low_res`.

        Raises:
            ValueError: if a tile is not a whole number of pixels in `low_res`.
        """
        side = x_t.shape[-1]
        if side <= self.size:
            return self.denoiser(x_t, log_snr, class_labels, low_res, aug_level)
        factor = 1 if low_res is None else side // low_res.shape[-1]
        starts = tile_starts(side, self.size, factor)
        weights = tile_weights(starts, side, self.size).to(x_t)
        tiles = list(product(range(len(starts)), range(len(starts)), range(len(x_t))))
        output: Tensor | None = None
        for first in range(0, len(tiles), self.batch_size):
            part = tiles[first : first + self.batch_size]
            images = [image for _, _, image in part]
            boxes = [(starts[row], starts[column]) for row, column, _ in part]
            small = None if low_res is None else _cut(low_res, images, boxes, self.size, factor)
            others = [None if value is None else value[images] for value in (class_labels, aug_level)]
            made = self.denoiser(_cut(x_t, images, boxes, self.size), log_snr[images], others[0], small, others[1])
            if output is None:
                output = torch.zeros(len(x_t), made.shape[1], side, side, dtype=made.dtype, device=made.device)
            for (row, column, image), (top, left), tile in zip(part, boxes, made, strict=True):
                weight = weights[row][:, None] * weights[column]
                output[image, :, top : top + self.size, left : left + self.size] += weight * tile
        assert output is not None
        return output


def tile_starts(side: int, size: int, factor: int = 1) -> list[int]:
    """Where tiles of `size` begin that cover `side` pixels: multiples of `factor`, evenly spread, overlapping by `OVERLAP`.

    Raises:
        ValueError: if `side` or `size` is not a multiple of `factor`, or such tiles can't overlap.
    """
    if side % factor or size % factor or size < 2 * factor:
        raise ValueError(
            f"tiles of {size} px can't cover an image of {side} px whose low-resolution pixels are {factor} px wide; choose a"
            f" multiple of {factor}, and at least {2 * factor}"
        )
    places, tile = side // factor, size // factor
    stride = tile - math.ceil(tile * OVERLAP)
    count = 1 + max(0, math.ceil((places - tile) / stride))
    return [factor * (i * (places - tile) // max(1, count - 1)) for i in range(count)]


def tile_weights(starts: list[int], side: int, size: int) -> Tensor:
    """Weight of every row of every tile, float64 [tiles, size]; over all tiles they add up to one in every row of the image.

    They rise as a smoothstep over the inner half of the least overlap, from zero in its outer quarter; tiles at an edge of the
    image keep their full weight there.
    """
    overlap = size * OVERLAP
    place = torch.arange(size, dtype=torch.float64) + 0.5
    rise = ((place - overlap / 4) / (overlap / 2)).clamp(0, 1)
    rise = rise**2 * (3 - 2 * rise)
    rows = []
    for start in starts:
        before = torch.ones_like(rise) if start == 0 else rise
        after = torch.ones_like(rise) if start + size == side else rise.flip(0)
        rows.append(before * after)
    total = torch.zeros(side, dtype=torch.float64)
    for start, row in zip(starts, rows, strict=True):
        total[start : start + size] += row
    return torch.stack([row / total[start : start + size] for start, row in zip(starts, rows, strict=True)])


def _cut(images: Tensor, places: list[int], boxes: list[tuple[int, int]], size: int, factor: int = 1) -> Tensor:
    """One tile [C, size / factor, size / factor] for every place in the batch and box (top, left), in pixels times `factor`."""
    side = size // factor
    return torch.stack(
        [
            images[place, :, top // factor : top // factor + side, left // factor : left // factor + side]
            for place, (top, left) in zip(places, boxes, strict=True)
        ]
    )
