"""Class-balanced epochs: every class and every picture of a class has its share, whatever the sizes of the classes."""

from dataclasses import replace

import numpy as np
import pytest
import toy

from cascade.stages.training import Data, TrainingExamples
from cascade.stages.training.examples import PictureSet, balanced_order

SIZES = (1, 3, 10, 7)
LABELS = np.random.default_rng(0).permutation(np.repeat([2, 0, 5, 9], SIZES))  # numbers with gaps, in no order


def test_every_class_has_an_equal_share_of_every_epoch():
    for epoch in range(20):
        order = balanced_order(3, epoch, LABELS)
        assert len(order) == len(LABELS)
        shares = [int((LABELS[order] == label).sum()) for label in np.unique(LABELS)]
        assert max(shares) - min(shares) <= 1


def test_pictures_of_a_class_are_seen_equally_often_over_any_number_of_epochs():
    seen = np.zeros(len(LABELS), dtype=int)
    for epoch in range(25):
        np.add.at(seen, balanced_order(3, epoch, LABELS), 1)
        for label in np.unique(LABELS):
            mine = seen[label == LABELS]
            assert mine.max() - mine.min() <= 1
    assert seen.sum() == 25 * len(LABELS) and seen[LABELS == 5].max() < seen[LABELS == 2].min()


def test_an_order_is_a_function_of_seed_and_epoch():
    assert (balanced_order(3, 7, LABELS) == balanced_order(3, 7, LABELS)).all()
    assert (balanced_order(3, 7, LABELS) != balanced_order(3, 8, LABELS)).any()
    assert (balanced_order(3, 7, LABELS) != balanced_order(4, 7, LABELS)).any()


@pytest.mark.parametrize("balanced", [False, True])
def test_a_recipe_decides(balanced):
    """Eight pictures of one class and two of another: as they are, or half of the examples each."""
    labels = np.array([0] * 8 + [1] * 2)
    pictures = PictureSet(np.zeros((10, 8, 8, 3), np.uint8), labels, ("many", "few"), (True, True))
    recipe = replace(toy.recipe(), data=Data(source="toy", balanced=balanced))
    found = TrainingExamples(pictures, recipe, recipe.phases[0], 2)
    few = sum(int(labels[int(found[number]["index"])]) for number in range(100))
    assert few == (50 if balanced else 20)
    again = TrainingExamples(pictures, recipe, recipe.phases[0], 2)
    assert all(found[number]["index"] == again[number]["index"] for number in (63, 7))
