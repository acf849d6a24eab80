"""A first look at a set of pictures: how many there are, of which classes, how large, and what is odd about them."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from PIL import Image

from cascade.data import held_out_source, open_pictures, source_folder
from cascade.data.checking import read_all
from cascade.data.decoding import ENDINGS
from cascade.data.drawings import DRAWINGS
from cascade.data.folder import Part, Photos, class_folders, pictures_in
from cascade.progress import OnProgress, part
from cascade.stages.training import Data
from cascade.stages.training.odd_pictures import DamageLog

MOST_READ = 20_000
"""Pictures that are read; of more, so many, evenly spread."""


@dataclass(frozen=True)
class Look:
    """What a set of pictures holds.

    source: As `Data.source`, a path absolute.
    held_out: What the source itself holds out, as a source; None = nothing.
    labelled: Whether the pictures lie in class folders, or shards that tell classes; if not, they are one class without a name.
    class_names: In the order of their labels; of pictures that are not labelled ("",) or folders that mean nothing.
    counts: Pictures of each class.
    sides: Shorter side in pixels of each picture that was read, int64 [M]; 0 = it can't be used.
    odd: A table of what is odd about them, "" = nothing.
    stray: Pictures beside the class folders, which are passed over.
    """

    source: str
    held_out: str | None
    labelled: bool
    class_names: tuple[str, ...]
    counts: tuple[int, ...]
    sides: np.ndarray
    odd: str
    stray: int

    @property
    def total(self) -> int:
        return sum(self.counts)

    def share(self, size: int) -> float:
        """Of the pictures that were read, those that can be used at `size` pixels."""
        return float((self.sides >= size).mean())


def look(source: str | Path, workers: int = 0, on_progress: OnProgress | None = None) -> Look:
    """Read the pictures of a folder or of shards by the rules of training.

    Args:
        source: A folder of class folders, of pictures without classes, or of the parts of a data set; or shards, as
            `Data.source`.
        workers: Processes that read; 0 = this one.
        on_progress: Told of the shards and of the pictures.

    Raises:
        ValueError: if there are no such pictures.
    """
    source = absolute_source(str(source))
    folder = source_folder(source)
    if source in DRAWINGS:
        raise ValueError(f"{source} is not a folder of pictures; `cascade data emoji --out FOLDER` writes the drawings as one")
    labelled, stray = True, 0
    if folder is not None:
        loose = pictures_in(folder)
        labelled = any(path.is_dir() and not path.name.startswith(".") for path in folder.iterdir())
        if not labelled and not loose:
            expected = f"files ending in {', '.join(ENDINGS)}, or one folder of them for each class"
            raise ValueError(f"{folder} holds no pictures, expected {expected}")
        stray = loose if labelled else 0
        if labelled:
            class_folders(folder)
    data = Data(source=source, classes=None if labelled else 0)
    opened = open_pictures(data, 1, part(on_progress, "data"))
    assert isinstance(opened, Photos)
    read = replace(opened, crop=shorter_side)
    if len(read) > MOST_READ:
        read = replace(read, listing=Part(read.listing, np.linspace(0, len(read) - 1, MOST_READ).astype(np.int64)))
    log = DamageLog(read, max_damaged=1.0)
    found = read_all(read, workers, log, part(on_progress, "looking at the pictures"))
    sides = np.array([0 if pixels is None else int(pixels[0]) for pixels in found], np.int64)
    counts = np.bincount(opened.listing.labels, minlength=len(opened.class_names))
    return Look(
        source, held_out_source(source), labelled, opened.class_names, tuple(counts.tolist()), sides, log.table(), stray
    )


def absolute_source(source: str) -> str:
    """A source as it is known from any folder: a path that exists absolute, even one that is named as the drawings are; anything
    else as it is."""
    path = Path(source).expanduser()
    return str(path.absolute()) if path.exists() else source


def shorter_side(image: Image.Image, size: int) -> np.ndarray:
    """In place of a crop rule: the shorter side in pixels, int64 [1]."""
    return np.array([min(image.size)], np.int64)
