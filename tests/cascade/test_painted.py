"""Models saved by version 0.1, the shipped one among them, paint today what they painted then."""

from pathlib import Path

import numpy as np
import torch

from cascade import CascadePipeline
from cascade.eval.classifier import class_probabilities, load_classifier

TINY = Path(__file__).parents[1] / "stages" / "saved" / "tiny"
SHIPPED = Path(__file__).with_name("shipped.npz")
"""The shipped base's cat, smiling-face and heart of seed 1, uint8 [3, 64, 64, 3], by commit 99331d7."""


def test_a_cascade_of_version_0_1_paints_the_same_pictures():
    cascade = CascadePipeline.from_pretrained(TINY)
    cascade.set_progress_bar_config(disable=True)
    assert cascade.classes.names == ("cat", "hot dog", "Crêpe")
    made = cascade(["cat", "Crêpe"], seeds=[3, 4], output_type="pt")
    for name, stage in made.stages.items():
        torch.testing.assert_close(
            stage.images, torch.from_numpy(np.load(TINY.with_suffix(".npz"))[f"pictures_{name}"]), rtol=0, atol=1e-4
        )


def test_the_shipped_cascade_paints_what_it_is_asked_for():
    """Near the stored pictures (to the byte on the machine that made them), and as the drawings' classifier sees classes."""
    cascade = CascadePipeline.from_pretrained("emoji")
    cascade.set_progress_bar_config(disable=True)
    made = cascade(["cat", "smiling-face", "heart", "clock", "flag"], seeds=[1] * 5, size=64, output_type="np")
    pictures = (255 * made.images).round().astype(np.uint8)
    differences = np.abs(pictures[:3].astype(float) - np.load(SHIPPED)["images"])
    assert differences.mean() < 1, f"pictures differ from the stored ones by {differences.mean():.2f} of 255 on average"
    named = class_probabilities(load_classifier()[0], pictures).argmax(axis=1)
    assert (named == np.array(made.labels)).sum() >= 4, f"asked for classes {made.labels}, painted {named.tolist()}"
