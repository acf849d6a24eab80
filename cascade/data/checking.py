"""Every picture of a set read once, by the rules of training: to count what is odd, or to keep the square pictures."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
from PIL import Image
from torch.utils.data import DataLoader, Dataset

from cascade.data.folder import Photos
from cascade.files import Progress
from cascade.stages.training.examples import PictureSource
from cascade.stages.training.odd_pictures import DamagedPicture, DamageLog, Oddity


def check(pictures: PictureSource, workers: int, progress: Progress) -> DamageLog:
    """Read all pictures, in their order, by so many worker processes (0 = in this one); the log counts and names what is odd.

    Photos are not made square, which takes time and finds nothing.
    """
    if isinstance(pictures, Photos):
        pictures = replace(pictures, crop=uncropped)
    log = DamageLog(pictures, max_damaged=1.0)
    for _ in _read_all(pictures, workers, log, progress):
        pass
    return log


def keep_pixels(pictures: PictureSource, path: Path, workers: int, progress: Progress) -> tuple[np.memmap, DamageLog]:
    """Write all usable pictures, in their order, into a file. Arguments as in `check`.

    Returns:
        The file as an array, uint8 [N, size, size, 3], read-only; and the log of what is odd.

    Raises:
        ValueError: if no picture is usable.
        OSError: if the file can't be written or the disk has no room.
    """
    log, size = DamageLog(pictures, max_damaged=1.0), pictures.size
    needed, free = len(pictures) * size * size * 3, shutil.disk_usage(path.parent).free
    if needed > free:
        raise OSError(
            f"{len(pictures):,} pictures of {size} px take {needed / 1e9:.1f} GB, but {path.parent} has {free / 1e9:.1f}"
        )
    with path.open("wb") as file:
        for pixels in _read_all(pictures, workers, log, progress):
            file.write(pixels.tobytes())
    count = len(pictures) - log.skipped()
    if not count:
        raise ValueError(f"none of the {len(pictures):,} pictures can be used at {size} px; `cascade data check` tells why")
    return np.memmap(path, np.uint8, "r", shape=(count, size, size, 3)), log


def cores() -> int:
    """How many processes can read side by side here."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def uncropped(image: Image.Image, size: int) -> np.ndarray:
    """Nothing of the picture: a crop rule for where only its file is of interest."""
    return np.empty((0, 0, 3), np.uint8)


def _read_all(pictures: PictureSource, workers: int, log: DamageLog, progress: Progress) -> Iterator[np.ndarray]:
    """The pixels of each usable picture in turn; what is odd is noted in the log."""
    done = 0
    for batch in DataLoader(_Read(pictures), batch_size=16, num_workers=workers, collate_fn=list):
        for pixels, oddities in batch:
            for oddity in oddities:
                log.note(done, oddity)
            done += 1
            if pixels is not None:
                yield pixels
        progress(done, len(pictures))


class _Read(Dataset):
    """Each picture's pixels, or None, and what is odd about it."""

    def __init__(self, pictures: PictureSource) -> None:
        self.pictures = pictures

    def __len__(self) -> int:
        return len(self.pictures)

    def __getitem__(self, index: int) -> tuple[np.ndarray | None, tuple[Oddity, ...]]:
        try:
            picture = self.pictures.read(index)
            return picture.pixels, picture.oddities
        except DamagedPicture as error:
            return None, (error.oddity,)
