"""The classifier of drawings: it learns, is reproducible, is stored safely, and the shipped one recognises classes."""

import json

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from cascade.eval.classifier import (
    SHIPPED_WEIGHTS,
    ClassifierConfig,
    DrawingClassifier,
    TrainingSettings,
    _augment,
    class_agreement,
    class_probabilities,
    load_classifier,
    save_classifier,
    train_classifier,
)

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
    assert class_agreement(class_probabilities(model, images), labels).top1 > 0.9
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
    got = _augment(
        image.expand(300, -1, -1, -1), torch.zeros(300, dtype=torch.bool), settings, torch.Generator().manual_seed(0)
    )
    edges = (got[:, 0, 32] > 0).sum(dim=1)
    assert edges.min() >= 32 - 7 and edges.max() <= 32 + 7 and edges.float().std() > 2


def test_agreement_counts_first_and_first_five():
    probabilities = np.tile(np.arange(8.0), (8, 1))         # class 7 is the most probable, then 6, ...
    got = class_agreement(probabilities, np.arange(8))
    assert (got.top1, got.top5, got.num_images) == (1 / 8, 5 / 8, 8)
    assert got.top1_of_class == {label: float(label == 7) for label in range(8)}


def test_a_classifier_that_says_nothing_agrees_with_nothing():
    assert class_agreement(np.full((10, 10), 0.1), np.arange(10)).top5 == 0


def test_larger_images_are_averaged_down():
    model, (images, _) = DrawingClassifier(CONFIG).eval(), shapes(6)
    enlarged = images.repeat(4, axis=1).repeat(4, axis=2)
    np.testing.assert_allclose(class_probabilities(model, enlarged), class_probabilities(model, images), rtol=1e-6)


def test_weights_come_back_in_half_precision_with_their_facts(tmp_path):
    model, (images, _) = trained(), shapes(30, seed=2)
    path = tmp_path / "new" / "classifier.safetensors"
    save_classifier(model, path, {"heldout_top1": "0.5"})
    loaded, facts = load_classifier(path)
    assert facts == {"heldout_top1": "0.5"} and loaded.config == CONFIG
    np.testing.assert_allclose(class_probabilities(loaded, images), class_probabilities(model, images), atol=2e-2)
    assert [p.name for p in path.parent.iterdir()] == [path.name]


def test_files_that_are_no_classifier_are_refused(tmp_path):
    with pytest.raises(ValueError, match="no classifier weights at"):
        load_classifier(tmp_path / "none.safetensors")
    path = tmp_path / "classifier.safetensors"
    path.write_bytes(b"\x80\x04hello")
    with pytest.raises(ValueError, match="is not a classifier"):
        load_classifier(path)
    save_file({"head.weight": torch.zeros(2)}, path, metadata={"config": '{"num_classes": 3}'})
    with pytest.raises(ValueError, match="is not a classifier"):
        load_classifier(path)


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


def test_the_shipped_classifier_is_small_and_states_its_accuracy():
    model, facts = load_classifier()
    assert SHIPPED_WEIGHTS.stat().st_size < 5e6
    assert len(json.loads(facts["class_names"])) == model.config.num_classes
    assert 0.32 < float(facts["heldout_top1"]) < 1       # 0.32 is what a nearest neighbour in pixels reaches
