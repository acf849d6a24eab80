"""Classification accuracy score: what a classifier that saw only samples knows about real images."""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from cascade.eval.classifier import (
    ClassAgreement,
    ClassifierConfig,
    EpochReport,
    TrainingSettings,
    class_agreement,
    class_probabilities,
    train_classifier,
)
from cascade.eval.images import Images


def classification_accuracy_score(
    samples: Images,
    sample_labels: NDArray[np.int64],
    real: Images,
    real_labels: NDArray[np.int64],
    *,
    config: ClassifierConfig,
    may_flip: NDArray[np.bool_],
    settings: TrainingSettings | None = None,
    on_epoch: Callable[[EpochReport], None] | None = None,
) -> ClassAgreement:
    """Train a classifier on samples alone and test it on real held-out images.

    To be read beside the same score of real training images, as many of each class, with the same settings. The papers'
    figures are of a ResNet-50 on ImageNet; a figure of this small classifier stands beside none of them.

    Args:
        samples: uint8 RGB, [N, S, S, 3]; labels [N]: the class that each was asked to show.
        real: uint8 RGB, [M, T, T, 3]; labels [M].
        config, may_flip, settings, on_epoch: as in `train_classifier`.

    Returns:
        Shares of real images whose class is named first, or among the first five.

    Raises:
        ValueError: if images, labels and config don't fit together.

    Source: Ravuri & Vinyals 2019 (arXiv:1905.10887).
    """
    model = train_classifier(
        samples, sample_labels, config=config, may_flip=may_flip, settings=settings, on_epoch=on_epoch
    )
    return class_agreement(class_probabilities(model, real), real_labels)
