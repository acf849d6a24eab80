"""The classifier of drawings: it is stored safely, the shipped one recognises classes, and agreement is counted right."""

import json

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from cascade.eval.classifier import (
    SHIPPED_WEIGHTS,
    ClassifierConfig,
    DrawingClassifier,
    class_probabilities,
    errors,
    load_classifier,
    save_classifier,
)

CONFIG = ClassifierConfig(num_classes=3, image_size=16, widths=(8, 16), blocks=(1, 1))


def pictures(count: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (count, 16, 16, 3), dtype=np.uint8)


def test_agreement_counts_first_and_first_five():
    probabilities = np.tile(np.arange(8.0), (8, 1))  # class 7 is the most probable, then 6, ...
    top1, top5 = errors(probabilities, np.arange(8))
    assert top1.tolist() == [label != 7 for label in range(8)] and top5.tolist() == [label < 3 for label in range(8)]


def test_a_classifier_that_says_nothing_agrees_with_nothing():
    assert errors(np.full((10, 10), 0.1), np.arange(10))[1].all()


def test_larger_images_are_averaged_down():
    model, images = DrawingClassifier(CONFIG).eval(), pictures(6)
    enlarged = images.repeat(4, axis=1).repeat(4, axis=2)
    np.testing.assert_allclose(class_probabilities(model, enlarged), class_probabilities(model, images), rtol=1e-6)


def test_weights_come_back_in_half_precision_with_their_facts(tmp_path):
    torch.manual_seed(0)
    model, images = DrawingClassifier(CONFIG).eval(), pictures(30)
    path = tmp_path / "new" / "classifier.safetensors"
    save_classifier(model, path, {"heldout_top1": "0.5"})
    loaded, facts = load_classifier(path)
    assert facts == {"heldout_top1": "0.5"} and loaded.config == CONFIG
    for name, value in model.state_dict().items():
        torch.testing.assert_close(loaded.state_dict()[name], value, rtol=1e-3, atol=1e-6)
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


def test_the_shipped_classifier_is_small_and_states_its_accuracy():
    model, facts = load_classifier()
    assert SHIPPED_WEIGHTS.stat().st_size < 5e6
    assert len(json.loads(facts["class_names"])) == model.config.num_classes
    assert 0.32 < float(facts["heldout_top1"]) < 1  # 0.32 is what a nearest neighbour in pixels reaches
