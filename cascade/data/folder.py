"""What a data set holds, without the pictures themselves: names, classes, and where the bytes of each picture lie."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np

from cascade.data.crops import Crop
from cascade.data.decoding import ENDINGS, decode, read_file
from cascade.data.numbering import numbered
from cascade.stages.training.examples import Picture, epoch_order


class Listing(Protocol):
    """Encoded pictures by their place. `labels` are int64 [N], indices into `class_names`."""

    class_names: tuple[str, ...]
    labels: np.ndarray

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


class Folder:
    """A folder of class folders, as ILSVRC's `train`; pictures may lie in folders within. Files whose ending is not a picture's,
    and names that begin with a dot, are passed over.

    Raises:
        ValueError: if there are no class folders, or no pictures in them.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        folders = class_folders(root)
        self.class_names, numbers = numbered(folders)
        paths: list[bytes] = []
        counts = []
        for folder in folders:
            found = sorted(_pictures(root / folder, folder, set()))
            paths += map(os.fsencode, found)
            counts.append(len(found))
        if not paths:
            raise ValueError(f"the folders in {root} hold no pictures, expected files ending in {', '.join(ENDINGS)}")
        self.paths = np.array(paths)  # one array: a million of them are cheap to hold and to hand to data workers
        self.labels = np.repeat(numbers, counts)

    def encoded(self, index: int) -> bytes:
        return read_file(Path(self.name(index)))

    def name(self, index: int) -> str:
        return str(self.root / os.fsdecode(self.paths[index]))

    def order(self, seed: int, epoch: int) -> np.ndarray:
        return epoch_order(seed, epoch, len(self.labels))


def class_folders(root: Path) -> list[str]:
    """Names of the class folders in a folder, sorted. Raises ValueError if there is none."""
    names = sorted(path.name for path in root.iterdir() if path.is_dir() and not path.name.startswith("."))
    if not names:
        raise ValueError(f"{root} holds no folders, expected one folder of pictures for each class")
    return names


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
