"""The classification accuracy score tells good samples from samples whose labels say nothing."""

import numpy as np

from cascade.eval.accuracy_score import classification_accuracy_score
from cascade.eval.classifier import ClassifierConfig, TrainingSettings


def test_good_samples_teach_and_mislabelled_ones_do_not():
    rng = np.random.default_rng(0)
    labels = np.arange(80) % 2
    images = rng.integers(0, 60, (80, 16, 16, 3), dtype=np.uint8)
    images[labels == 1, 4:12] += 150        # class 1 has a bright bar
    settings = {
        "config": ClassifierConfig(num_classes=2, image_size=16, widths=(8, 16), blocks=(1, 1)),
        "may_flip": np.array([True, True]),
        "settings": TrainingSettings(epochs=5, batch_size=8, learning_rate=1e-2),
    }
    good = classification_accuracy_score(images[:40], labels[:40], images[40:], labels[40:], **settings)
    swapped = classification_accuracy_score(images[:40], 1 - labels[:40], images[40:], labels[40:], **settings)
    assert good.top1 > 0.9 and swapped.top1 < 0.1 and good.num_images == 40
