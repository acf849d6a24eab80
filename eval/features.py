"""The narrow interface of a feature network, and the walk of a set of images through one."""

from collections.abc import Iterator
from typing import NamedTuple, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from cascade.eval.images import HashedWalk, Images, ImageSet, ImageStream
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


class Walk:
    """One walk of a set of images through a network; when it has ended, it knows where the features came from.

    Batch by batch it gives the features of images, [n, D]; of an `ADMExtractor` with spatial features and class probabilities.
    """

    def __init__(self, images: ImageSet | ImageStream, extractor: FeatureExtractor, crop_rule: str | None):
        """`crop_rule` as `Provenance` has it."""
        self._images, self._extractor, self._crop_rule = HashedWalk(images), extractor, crop_rule
        self._size = images.size

    def __iter__(self) -> Iterator[tuple[NDArray[np.float32], ...]]:
        extractor = self._extractor
        for batch in self._images:
            yield extractor.all_outputs(batch) if isinstance(extractor, ADMExtractor) else (extractor(batch),)

    @property
    def provenance(self) -> Provenance:
        return provenance(self._extractor, self._size, self._crop_rule, self._images.source_hash)


def provenance(extractor: FeatureExtractor, size: int, crop_rule: str | None, source_hash: str) -> Provenance:
    """What is on record of features by this extractor of images of `size` pixels."""
    return Provenance(
        extractor=extractor.name,
        weights_hash=extractor.weights_hash,
        resize_mode=extractor.resize_mode,
        image_size=size,
        crop_rule=crop_rule,
        source_hash=source_hash,
    )
