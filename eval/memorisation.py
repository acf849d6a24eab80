"""Whether samples repeat training images: the nearest training neighbour of each."""

from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray

from cascade.eval.images import Images, area_downsample

BLOCK = 256  # queries whose distances to all training images are held at a time


@dataclass(frozen=True)
class Neighbours:
    """The nearest training image of each of N queries."""

    distance: NDArray[np.float64]
    index: NDArray[np.int64]  # position among the training images


def nearest_in_pixels(images: Images, training: Images, size: int) -> Neighbours:
    """By mean absolute difference of pixels, 0 ... 255, after averaging both sets down to `size` pixels a side.

    Raises ValueError if a set is empty or can't be averaged down (`area_downsample`).
    """
    queries, corpus = (area_downsample(each, size).reshape(len(each), -1) for each in (images, training))
    found = _nearest(queries, corpus, norm=1)
    return Neighbours(found.distance / queries.shape[1], found.index)


def nearest_in_features(features: NDArray[np.floating], training: NDArray[np.floating]) -> Neighbours:
    """By Euclidean distance of features, [N, D] and [M, D]. Raises ValueError if a set is empty or D differs."""
    return _nearest(features.astype(np.float32), training.astype(np.float32), norm=2)


def _nearest(queries: NDArray[np.float32], corpus: NDArray[np.float32], norm: Literal[1, 2]) -> Neighbours:
    if len(queries) == 0 or len(corpus) == 0 or queries.shape[1] != corpus.shape[1]:
        raise ValueError(f"cannot look for neighbours of shape {queries.shape} in shape {corpus.shape}")
    mode = "donot_use_mm_for_euclid_dist"  # exact for near-identical pairs, the ones that matter here
    found = [
        torch.cdist(block, torch.from_numpy(corpus), p=norm, compute_mode=mode).min(dim=1)
        for block in torch.from_numpy(queries).split(BLOCK)
    ]
    distance, index = (torch.cat(parts) for parts in zip(*found, strict=True))
    return Neighbours(distance.double().numpy(), index.numpy())
