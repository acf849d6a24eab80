"""Training of the classifier of drawings: it learns, is reproducible, and mirrors and moves pictures only as it may."""

import numpy as np
import pytest
import torch

from benchmarks.drawings_classifier import TrainingSettings, _augment, train_classifier
from cascade.eval.classifier import ClassifierConfig, DrawingClassifier, class_probabilities, errors

CONFIG = ClassifierConfig(num_classes=3, image_size=16, widths=(8, 16), blocks=(1, 1))
SETTINGS = TrainingSettings(epochs=6, batch_size=16, learning_rate=1e-2)
MAY_FLIP = np.array([True, False, False])


def shapes(count: int = 96, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Three classes on a white ground: a bar at the top, a bar at the left, a bar at the right."""
    rng = np.random.default_rng(seed)
    images, labels = np.full((count, 16, 16, 3), 255, np.uint8), np.arange(count) % 3
    for image, label, colour in zip(images, labels, rng.integers(0, 200, (count, 3)), strict=True):
        region = [(slice(1, 5), slice(2, 14)), (slice(2, 14), slice(1, 5)), (slice(2, 14), slice(11, 15))][label]
        image[region] = colour
    return images, labels


def trained() -> DrawingClassifier:
    return train_classifier(*shapes(), config=CONFIG, may_flip=MAY_FLIP, settings=SETTINGS)


def test_training_learns_and_is_reproducible():
    losses = []
    model = train_classifier(
        *shapes(),
        config=CONFIG,
        may_flip=MAY_FLIP,
        settings=SETTINGS,
        on_epoch=lambda report: losses.append(report.loss),
    )
    images, labels = shapes(seed=1)
    assert errors(class_probabilities(model, images), labels)[0].mean() < 0.1
    assert len(losses) == 6 and losses[-1] < losses[0]
    for one, other in zip(model.state_dict().values(), trained().state_dict().values(), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=0)


def test_training_leaves_the_global_random_state_alone():
    torch.manual_seed(5)
    before = torch.get_rng_state()
    trained()
    torch.testing.assert_close(torch.get_rng_state(), before, rtol=0, atol=0)


def test_only_permitted_classes_are_mirrored_and_nothing_else_changes_without_strength():
    still = TrainingSettings(max_shift=0.0, max_scale=0.0, max_rotation=0.0)
    images = torch.rand(200, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    permitted = torch.arange(200) < 100
    got = _augment(images, permitted, still, torch.Generator().manual_seed(1))
    same = (got - images).abs().amax(dim=(1, 2, 3)) < 1e-5
    mirrored = (got - images.flip(3)).abs().amax(dim=(1, 2, 3)) < 1e-5
    assert same[100:].all() and (same ^ mirrored)[:100].all()
    assert 30 < mirrored[:100].sum() < 70


def test_a_shift_moves_by_at_most_the_stated_share():
    image = torch.ones(1, 3, 64, 64)
    image[:, :, :, 32:] = -1
    settings = TrainingSettings(max_shift=0.1, max_scale=0.0, max_rotation=0.0)
    got = _augment(image.expand(300, -1, -1, -1), torch.zeros(300, dtype=torch.bool), settings, torch.Generator().manual_seed(0))
    edges = (got[:, 0, 32] > 0).sum(dim=1)
    assert edges.min() >= 32 - 7 and edges.max() <= 32 + 7 and edges.float().std() > 2


@pytest.mark.parametrize(
    ("images", "labels", "message"),
    [
        (np.zeros((2, 20, 20, 3), np.uint8), np.zeros(2, int), "multiple of 16"),
        (np.zeros((2, 16, 16, 3)), np.zeros(2, int), "expected uint8"),
        (np.zeros((2, 16, 16, 3), np.uint8), np.zeros(3, int), "one for each of the 2 images"),
        (np.zeros((2, 16, 16, 3), np.uint8), np.array([0, 3]), r"0 \.\.\. 2"),
    ],
)
def test_unfitting_training_data_are_refused(images, labels, message):
    with pytest.raises(ValueError, match=message):
        train_classifier(images, labels, config=CONFIG, may_flip=MAY_FLIP)
