"""How the classes of a data set get their numbers."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from cascade.classes import imagenet


def numbered(found: Sequence[str]) -> tuple[tuple[str, ...], np.ndarray]:
    """Class names and the label of each name that was found, in order.

    WordNet ids of ImageNet's 1000 classes get their standard indices, also where only some of the classes are there; other names
    are numbered in alphabetical order.

    Args:
        found: Different names, such as those of folders.

    Returns:
        The name of every label, and the label of each of `found`, int64.
    """
    ids = imagenet().wordnet_ids
    places = {name: index for index, name in enumerate(ids)}
    if found and all(name in places for name in found):
        return imagenet().names, np.array([places[name] for name in found], np.int64)
    names = tuple(sorted(found))
    places = {name: index for index, name in enumerate(names)}
    return names, np.array([places[name] for name in found], np.int64)


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
