"""How the classes of a data set get their numbers."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from cascade.classes import imagenet

MOST_CLASSES = 1_000_000


def numbered(found: Sequence[str]) -> tuple[tuple[str, ...], np.ndarray]:
    """Class names in alphabetical order, and the label of each name that was found; WordNet ids are in ImageNet's order then.

    Args:
        found: Different names, such as those of folders.

    Returns:
        The name of every label, and the label of each of `found`, int64.

    Raises:
        ValueError: if most names are WordNet ids of ImageNet's classes, and others are not.
    """
    if odd := next((name for name in found if not name.isprintable()), None):
        raise ValueError(f"the class {odd!r} has a name that can't be shown, in which some character is no letter; rename it")
    ids = set(imagenet().wordnet_ids)
    others = [name for name in found if name not in ids]
    if others and len(found) > 2 * len(others):
        raise ValueError(
            f"class {others[0]!r} is no WordNet id of ImageNet's classes, as {len(found) - len(others)} others are; rename it, or"
            " move it away"
        )
    names = tuple(sorted(found))
    places = {name: index for index, name in enumerate(names)}
    return names, np.array([places[name] for name in found], np.int64)


def all_classes(names: tuple[str, ...], classes: int | None) -> tuple[str, ...]:
    """Names of the classes that data has: those found, or all of ImageNet's where a recipe says 1,000 and some of them are."""
    ids = imagenet().wordnet_ids
    return ids if classes == len(ids) and set(names) <= set(ids) else names


def labelled(values: np.ndarray, given: Sequence[str], where: str) -> tuple[tuple[str, ...], np.ndarray]:
    """Class names and labels of pictures whose classes are written as numbers or as names.

    Args:
        values: int64 or text, [N].
        given: What the set calls its numbers, in order; empty = it doesn't say.
        where: The set, for errors.

    Returns:
        The name of every label, and the label of each picture, int64 [N].

    Raises:
        ValueError: if a number is negative, as data sets write "unknown", or has no name.
    """
    if values.dtype.kind == "U":
        found, places = np.unique(values, return_inverse=True)
        names, labels = numbered(found.tolist())
        return names, labels[places]
    lowest, highest = (int(values.min()), int(values.max())) if len(values) else (0, -1)
    if highest >= MOST_CLASSES:
        raise ValueError(f"{where} has pictures of class {highest}, expected fewer than {MOST_CLASSES:,} classes, from 0 on")
    if lowest < 0 or (given and highest >= len(given)):
        wrong = lowest if lowest < 0 else highest
        raise ValueError(
            f"{where} has pictures of class {wrong}, expected classes from 0 on, each with a name where it names them"
        )
    if not given:
        return tuple(str(label) for label in range(highest + 1)), values
    if len(set(given)) == len(given) and set(given) <= set(imagenet().wordnet_ids):
        names, labels = numbered(given)
        return names, labels[values]
    return tuple(given), values
