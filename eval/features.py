"""The narrow interface of a feature network, and the walk of a set of images through one."""

from collections.abc import Iterator
from typing import NamedTuple, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from cascade.eval.images import Images, ImageSet
from cascade.eval.statistics import Provenance


class FeatureExtractor(Protocol):
    """A network that describes each image by a vector; its attributes are as `Provenance` has them.

    `name` (network and layer) is what a distance between its features is called after.
    """

    name: str
    resize_mode: str
    weights_hash: str

    def __call__(self, images: Images) -> NDArray[np.float32]:
        """uint8 RGB, [N, S, S, 3] of any size S, to features, [N, D]."""
        ...


class ADMFeatures(NamedTuple):
    """What ADM's evaluator takes from each image: for FID, precision and recall; for sFID; for the Inception Score."""

    pooled: NDArray[np.float32]  # [N, 2048]
    spatial: NDArray[np.float32]  # [N, 2023]
    probabilities: NDArray[np.float32]  # [N, 1008]


@runtime_checkable
class ADMExtractor(FeatureExtractor, Protocol):
    """A feature network that also gives what ADM's evaluator measures beside FID, in one pass."""

    def all_outputs(self, images: Images) -> ADMFeatures:
        """uint8 RGB, [N, S, S, 3], to all three."""
        ...


def outputs(images: ImageSet, extractor: FeatureExtractor) -> Iterator[tuple[NDArray[np.float32], ...]]:
    """Batch by batch the features of images, [n, D]; of an `ADMExtractor` with spatial features and class probabilities."""
    for batch in images.batches():
        yield extractor.all_outputs(batch) if isinstance(extractor, ADMExtractor) else (extractor(batch),)


def provenance(images: ImageSet, extractor: FeatureExtractor, crop_rule: str | None) -> Provenance:
    """What is on record of features of these images by this extractor; `crop_rule` as `Provenance` has it."""
    return Provenance(
        extractor=extractor.name,
        weights_hash=extractor.weights_hash,
        resize_mode=extractor.resize_mode,
        image_size=images.size,
        crop_rule=crop_rule,
        source_hash=images.source_hash(),
    )
