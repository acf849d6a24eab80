"""Whether samples repeat training images: their nearest training neighbours, beside those of held-out images."""

from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray

from cascade.eval.images import Images, area_downsample

BLOCK = 256     # queries whose distances to all training images are held at a time


@dataclass(frozen=True)
class Neighbours:
    """The nearest training image of each query.

    Attributes:
        distance: [N].
        index: position among the training images, [N].
    """

    distance: NDArray[np.float64]
    index: NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class Memorisation:
    """Distances of samples to training images beside the same for held-out images, which no model has seen."""

    median: float
    percentile5: float
    heldout_median: float
    heldout_percentile5: float
    share_closer: float     # samples nearer than the held-out images' 5th percentile; 0.05 is what held-out images have


def nearest_in_pixels(images: Images, training: Images, size: int = 64) -> Neighbours:
    """By mean absolute difference of pixels, 0 ... 255, after averaging both sets down to `size` pixels a side.

    Args:
        images: uint8 RGB, [N, S, S, 3], S a multiple of `size`.
        training: uint8 RGB, [M, T, T, 3], T a multiple of `size`.

    Raises:
        ValueError: if a set is empty or cannot be averaged down.
    """
    queries, corpus = (area_downsample(each, size).reshape(len(each), -1) for each in (images, training))
    found = _nearest(queries, corpus, norm=1)
    return Neighbours(found.distance / queries.shape[1], found.index)


def nearest_in_features(features: NDArray[np.floating], training: NDArray[np.floating]) -> Neighbours:
    """By Euclidean distance of features, [N, D] and [M, D]. Raises ValueError if a set is empty or D differs."""
    return _nearest(features.astype(np.float32), training.astype(np.float32), norm=2)


def memorisation(samples: Neighbours, heldout: Neighbours) -> Memorisation:
    """Summary of both sets' distances to the same training images."""
    threshold = float(np.percentile(heldout.distance, 5))
    return Memorisation(
        median=float(np.median(samples.distance)),
        percentile5=float(np.percentile(samples.distance, 5)),
        heldout_median=float(np.median(heldout.distance)),
        heldout_percentile5=threshold,
        share_closer=float((samples.distance < threshold).mean()),
    )


def picture_of_closest(images: Images, training: Images, neighbours: Neighbours, count: int = 12) -> Images:
    """The closest pairs side by side, samples in the upper row, their training images below: [2 S, count S, 3], uint8.

    Raises:
        ValueError: if the two sets' images differ in size.
    """
    if images.shape[1:] != training.shape[1:]:
        raise ValueError(f"samples are {images.shape[1:]}, training images {training.shape[1:]}; expected equal sizes")
    closest = np.argsort(neighbours.distance, kind="stable")[:count]
    rows = [np.concatenate(list(images[closest]), axis=1)]
    rows.append(np.concatenate(list(training[neighbours.index[closest]]), axis=1))
    return np.concatenate(rows)


def _nearest(queries: NDArray[np.float32], corpus: NDArray[np.float32], norm: Literal[1, 2]) -> Neighbours:
    if len(queries) == 0 or len(corpus) == 0 or queries.shape[1] != corpus.shape[1]:
        raise ValueError(f"cannot look for neighbours of shape {queries.shape} in shape {corpus.shape}")
    mode = "donot_use_mm_for_euclid_dist"       # exact for near-identical pairs, the ones that matter here
    found = [
        torch.cdist(block, torch.from_numpy(corpus), p=norm, compute_mode=mode).min(dim=1)
        for block in torch.from_numpy(queries).split(BLOCK)
    ]
    distance, index = (torch.cat(parts) for parts in zip(*found, strict=True))
    return Neighbours(distance.double().numpy(), index.numpy())
