"""Pictures in shards: tar files as WebDataset lays them out, and parquet files as on the Hub, beside the machine or on the Hub.

What each shard holds is found out once and kept in the user's cache; pictures are then read by their place in the shard.
"""

from __future__ import annotations

import hashlib
import os
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np

from cascade.data.numbering import labelled
from cascade.files import Progress, cache_folder, complete
from cascade.stages.training.examples import epoch_order

WINDOW = 16
"""Shards that are mixed with one another at any moment of an epoch."""


@dataclass(frozen=True)
class Contents:
    """What a shard holds, in its order.

    classes: int64 or text, [N], as the shard writes them.
    keys: text [N], by which a person finds each picture in the shard.
    offsets, lengths: int64 [N], where the encoded pictures lie in the file; empty where they must be unpacked first.
    class_names: What the shard calls its numbers; empty = it doesn't say.
    """

    classes: np.ndarray
    keys: np.ndarray
    offsets: np.ndarray
    lengths: np.ndarray
    class_names: np.ndarray

    FIELDS = ("classes", "keys", "offsets", "lengths", "class_names")


class Shard(Protocol):
    """One file of a set."""

    @property
    def name(self) -> str: ...

    def identity(self) -> str:
        """A text that changes when the file does."""

    def contents(self) -> Contents:
        """Looked up in the file; slow. Raises ValueError if it is damaged or no such shard."""

    def encoded(self, contents: Contents, index: int) -> bytes:
        """The bytes of one picture; the file is fetched or unpacked first where it must be."""


class ShardSet:
    """All shards of a set as one listing (`cascade.data.folder.Listing`).

    Args:
        shards: In their order.
        name: Of the set, for errors.
        progress: Called with (shards looked through, all).

    Raises:
        ValueError: if a shard is damaged, the set is empty, or the shards disagree on their classes.
    """

    def __init__(self, shards: Sequence[Shard], name: str, progress: Progress) -> None:
        self.shards, self.contents = tuple(shards), []
        for done, shard in enumerate(shards, start=1):
            self.contents.append(_kept_contents(shard))
            progress(done, len(shards))
        kinds = {c.classes.dtype.kind for c in self.contents if len(c.classes)}
        if len(kinds) != 1 or len({tuple(c.class_names) for c in self.contents}) != 1:
            problem = "no pictures" if not kinds else "shards that write their classes in different ways"
            raise ValueError(f"{name} holds {problem}; expected shards of one labelled data set")
        given = self.contents[0].class_names.tolist()
        classes = np.concatenate([c.classes for c in self.contents if len(c.classes)])
        self.class_names, self.labels = labelled(classes, given, name)
        self.firsts = np.cumsum([0] + [len(c.classes) for c in self.contents])

    def encoded(self, index: int) -> bytes:
        shard, place = self._place(index)
        return self.shards[shard].encoded(self.contents[shard], place)

    def name(self, index: int) -> str:
        shard, place = self._place(index)
        return f"{self.shards[shard].name}: {self.contents[shard].keys[place]}"

    def order(self, seed: int, epoch: int) -> np.ndarray:
        """A shuffle of all pictures, drawn towards a shuffle of the shards.

        Pictures of at most WINDOW shards are mixed at any moment, and new shards are first needed one at a time, at an even pace,
        so that an epoch begins while shards arrive. A single shard is shuffled as a folder is.
        """
        shuffled = epoch_order(seed, epoch, len(self.labels))
        turns = np.random.default_rng([seed, 3, epoch]).permutation(len(self.shards))
        shard = np.searchsorted(self.firsts, shuffled, side="right") - 1
        when = turns[shard] + np.arange(len(shuffled)) * (WINDOW / len(shuffled))
        return shuffled[np.argsort(when, kind="stable")]

    def _place(self, index: int) -> tuple[int, int]:
        shard = int(np.searchsorted(self.firsts, index, side="right")) - 1
        return shard, index - int(self.firsts[shard])


def kept(shard: Shard, ending: str) -> Path:
    """The file in the user's cache for what is made from a shard."""
    return cache_folder() / "datasets" / f"{hashlib.sha256(shard.identity().encode()).hexdigest()[:32]}{ending}"


def read_at(path: Path, offset: int, length: int) -> bytes:
    """A stretch of a file. Nothing stays open, so that data workers share nothing."""
    with path.open("rb", buffering=0) as file:
        return os.pread(file.fileno(), length, offset)


def _kept_contents(shard: Shard) -> Contents:
    """What the shard holds, from the cache, or looked up and put there."""
    path = kept(shard, ".npz")
    try:
        with np.load(path, allow_pickle=False) as arrays:
            return Contents(*(arrays[field] for field in Contents.FIELDS))
    except (FileNotFoundError, ValueError, KeyError, EOFError, zipfile.BadZipFile):  # none, or a damaged one
        contents = shard.contents()
    with complete(path) as file:
        np.savez(file, **{field: getattr(contents, field) for field in Contents.FIELDS})
    return contents
