"""What a data set holds, without the pictures themselves: names, classes, and where the bytes of each picture lie."""

from __future__ import annotations

import hashlib
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from cascade.classes import WORDNET_ID
from cascade.data.crops import Crop
from cascade.data.decoding import decode, read_file
from cascade.data.numbering import numbered
from cascade.eval.pictures import ENDINGS
from cascade.stages.training.examples import Picture, epoch_order

ANNOTATIONS, IMAGES = "val_annotations.txt", "images"
"""File and folder of Tiny ImageNet's validation pictures."""

FEWEST_TO_HOLD_OUT = 5
"""Pictures of a class from which one is held out."""

SPLITS = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "val", "dev", "heldout"),
    "test": ("test", "testing", "eval", "evaluation"),
}
"""Parts of a data set, and the names of their folders: those that Hugging Face's `datasets` knows, and the drawings' own."""


class Listing(Protocol):
    """Encoded pictures by their place. `labels` are int64 [N], indices into `class_names`."""

    @property
    def class_names(self) -> tuple[str, ...]: ...
    @property
    def labels(self) -> np.ndarray: ...

    def encoded(self, index: int) -> bytes:
        """The bytes of one picture. Raises DamagedPicture if they can't be had."""

    def name(self, index: int) -> str: ...
    def order(self, seed: int, epoch: int) -> np.ndarray: ...


@dataclass(frozen=True)
class Photos:
    """A listing as a source of square pictures (a `PictureSource`): each is read and decoded when asked for.

    listing: Where the photos are.
    size: Side of the pictures in pixels; smaller photos are skipped.
    crop: How a photo becomes square.
    """

    listing: Listing
    size: int
    crop: Crop

    @property
    def class_names(self) -> tuple[str, ...]:
        return self.listing.class_names

    @property
    def may_flip(self) -> tuple[bool, ...]:
        return (True,) * len(self.class_names)

    def __len__(self) -> int:
        return len(self.listing.labels)

    def read(self, index: int) -> Picture:
        return decode(self.listing.encoded(index), self.size, self.crop, self.name(index))

    def label(self, index: int) -> int:
        return int(self.listing.labels[index])

    def name(self, index: int) -> str:
        return self.listing.name(index)

    def order(self, seed: int, epoch: int) -> np.ndarray:
        return self.listing.order(seed, epoch)


def renumbered(listing: Any, names: tuple[str, ...]) -> Listing:
    """The whole listing, not a part, with labels that are places in `names`, which hold all of its own."""
    if listing.class_names != names:
        places = {name: index for index, name in enumerate(names)}
        listing.labels = np.array([places[name] for name in listing.class_names], np.int64)[listing.labels]
        listing.class_names = names
    found: Listing = listing
    return found


@dataclass(frozen=True)
class Part:
    """Some of the pictures of a listing (itself a `Listing`), with all of its classes.

    whole: The listing.
    places: Of the pictures in it, int64 [N], rising.
    """

    whole: Listing
    places: np.ndarray

    @property
    def class_names(self) -> tuple[str, ...]:
        return self.whole.class_names

    @property
    def labels(self) -> np.ndarray:
        return self.whole.labels[self.places]

    def encoded(self, index: int) -> bytes:
        return self.whole.encoded(int(self.places[index]))

    def name(self, index: int) -> str:
        return self.whole.name(int(self.places[index]))

    def order(self, seed: int, epoch: int) -> np.ndarray:
        """That of the whole listing, which keeps neighbours in a shard together."""
        own = np.full(len(self.whole.labels), -1)
        own[self.places] = np.arange(len(self.places))
        order = own[self.whole.order(seed, epoch)]
        return order[order >= 0]


def held_out_places(listing: Listing, share: float) -> np.ndarray:
    """Places of the pictures that are held out of a set: this share of each class, rounded, at least one.

    Which ones depends on their names alone, by a hash. A class of fewer than `FEWEST_TO_HOLD_OUT` pictures keeps all of its own.
    """
    names = (os.fsencode(Path(listing.name(i)).name) for i in range(len(listing.labels)))
    marks = np.array([int.from_bytes(hashlib.sha256(name).digest()[:7]) for name in names], np.int64)
    chosen: list[int] = []
    for label in np.unique(listing.labels):
        places = np.flatnonzero(listing.labels == label)
        if len(places) >= FEWEST_TO_HOLD_OUT:
            chosen += places[np.argsort(marks[places], kind="stable")][: max(1, round(share * len(places)))].tolist()
    return np.array(sorted(chosen), np.int64)


class Folder:
    """A folder of class folders, as ILSVRC's `train`, or Tiny ImageNet's `val`, whose classes a file tells; pictures may lie in
    folders within. Files whose ending is not a picture's, and names that begin with a dot, are passed over.

    Args:
        root: The folder.
        labelled: Whether classes matter. If not, pictures may lie in `root` itself, as one class "".

    Raises:
        ValueError: if there are no class folders, no pictures in them, or Tiny ImageNet's file is missing or damaged.
    """

    def __init__(self, root: Path, labelled: bool = True) -> None:
        self.root = root
        if (root / ANNOTATIONS).is_file():
            pictures = annotated_pictures(root)
        else:
            folders = class_folders(root, labelled)
            pictures = {folder: sorted(_pictures(root / folder, folder or ".", set())) for folder in folders}
        self.class_names, numbers = numbered(list(pictures))
        paths = [os.fsencode(path) for found in pictures.values() for path in found]
        if not paths:
            raise ValueError(f"the folders in {root} hold no pictures, expected files ending in {', '.join(ENDINGS)}")
        self.paths = np.array(paths)  # one array: a million of them are cheap to hold and to hand to data workers
        self.labels = np.repeat(numbers, [len(found) for found in pictures.values()])

    def encoded(self, index: int) -> bytes:
        return read_file(Path(self.name(index)))

    def name(self, index: int) -> str:
        return str(self.root / os.fsdecode(self.paths[index]))

    def order(self, seed: int, epoch: int) -> np.ndarray:
        return epoch_order(seed, epoch, len(self.labels))


def splits(root: Path) -> dict[str, Path]:
    """The folders of a data set's parts, by "train", "validation" and "test": an image folder of Hugging Face's `datasets`, or
    ILSVRC's. Empty where a folder has any other name, so that its folders are classes.

    Raises ValueError if there are parts but none to train on, or two folders of one part.
    """
    names = {path.name: path for path in root.iterdir() if path.is_dir() and not path.name.startswith(".")}
    parts = {part: [names[word] for word in words if word in names] for part, words in SPLITS.items()}
    found = {part: folders for part, folders in parts.items() if folders}
    if not names or sum(map(len, found.values())) < len(names):
        return {}
    if twice := next((folders for folders in found.values() if len(folders) > 1), None):
        both = f"{twice[0].name} and {twice[1].name}"
        raise ValueError(f"{root} holds both {both}, two folders of one part of a data set; name the one that is meant")
    if "train" not in found:
        parts_found = " and ".join(sorted(names))
        raise ValueError(f"{root} holds {parts_found}, parts of a data set but none to train on; name the one that is meant")
    return {part: folders[0] for part, folders in found.items()}


def folder_classes(root: Path, labelled: bool = True) -> tuple[str, ...]:
    """Names of the classes of a `Folder`, without a look at its pictures; arguments and errors as there."""
    found = annotated_pictures(root) if (root / ANNOTATIONS).is_file() else class_folders(root, labelled)
    return numbered(list(found))[0]


def class_folders(root: Path, labelled: bool = True) -> list[str]:
    """Names of the class folders in a folder, sorted; "" for the folder itself where there is none and no class matters.

    Raises ValueError if there is none, or the only one is that of Tiny ImageNet's pictures without their classes.
    """
    names = sorted(path.name for path in root.iterdir() if path.is_dir() and not path.name.startswith("."))
    if not labelled:
        return names or [""]
    if not names:
        raise ValueError(f"{root} holds no folders, expected one folder of pictures for each class")
    if names == [IMAGES]:
        raise ValueError(
            f"{root} holds no folder but {IMAGES!r}, and no {ANNOTATIONS}, which says what Tiny ImageNet's validation pictures"
            " show; unpack that file too, or give a folder with one folder of pictures for each class"
        )
    return names


def pictures_in(folder: Path) -> int:
    """How many files in the folder itself are named as pictures."""
    return sum(not p.name.startswith(".") and p.suffix.lower() in ENDINGS and not p.is_dir() for p in folder.iterdir())


def annotated_pictures(root: Path) -> dict[str, list[str]]:
    """Pictures of Tiny ImageNet's `val`, as paths from it, by the WordNet ids in its file, sorted.

    Its lines are name, WordNet id and the corners of a box, with tabs between them. Raises ValueError if one is not.
    """
    found: dict[str, list[str]] = {}
    try:
        lines = (root / ANNOTATIONS).read_text("utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"{root / ANNOTATIONS} can't be read: {error}") from error
    for number, line in enumerate(lines, start=1):
        match line.split("\t"):
            case [name, wordnet_id, *_] if re.fullmatch(WORDNET_ID, wordnet_id) and Path(name).name == name:
                found.setdefault(wordnet_id, []).append(f"{IMAGES}/{name}")
            case _:
                raise ValueError(
                    f"line {number} of {root / ANNOTATIONS} is {line[:60]!r}, expected a picture's name and a WordNet id, with a"
                    " tab between them, as in Tiny ImageNet"
                )
    return {wordnet_id: sorted(found[wordnet_id]) for wordnet_id in sorted(found)}


def _pictures(folder: Path, relative: str, above: set[tuple[int, int]]) -> list[str]:
    """Paths, from the root, of everything named as a picture; a folder that is inside itself by a link is not entered again."""
    status = folder.stat()
    here = (status.st_dev, status.st_ino)
    if here in above:
        return []
    found = []
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.name.startswith("."):
                continue
            if os.path.splitext(entry.name)[1].lower() in ENDINGS:
                found.append(f"{relative}/{entry.name}")  # also what is not a file, or can't be read: reading it tells
            elif entry.is_dir():
                found += _pictures(folder / entry.name, f"{relative}/{entry.name}", above | {here})
    return found
