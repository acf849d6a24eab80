"""Every picture of a set read once, by the rules of training: to count what is odd, or for the square pictures."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
from PIL import Image
from torch.utils.data import DataLoader, Dataset

from cascade.data.folder import Photos
from cascade.files import Progress
from cascade.stages.training.examples import PictureSource
from cascade.stages.training.odd_pictures import DamagedPicture, DamageLog, Oddity
from cascade.stages.training.workers import told_in_a_sentence


def check(pictures: PictureSource, workers: int, progress: Progress) -> DamageLog:
    """Read all pictures, in their order, by so many worker processes (0 = in this one); the log counts and names what is odd.

    Photos are not made square, which takes time and finds nothing.
    """
    if isinstance(pictures, Photos):
        pictures = replace(pictures, crop=uncropped)
    log = DamageLog(pictures, max_damaged=1.0)
    for _ in read_all(pictures, workers, log, progress):
        pass
    return log


def read_pixels(pictures: PictureSource, workers: int, log: DamageLog, progress: Progress) -> Iterator[np.ndarray]:
    """All usable pictures, in their order, uint8 [size, size, 3] each; what is odd is noted in `log`. Arguments as in `check`.

    Raises ValueError in the end if no picture is usable.
    """
    yield from (pixels for pixels in read_all(pictures, workers, log, progress) if pixels is not None)
    if log.skipped() == len(pictures):
        raise ValueError(
            f"none of the {len(pictures):,} pictures can be used at {pictures.size} px; `cascade data check` tells why"
        )


def cores() -> int:
    """How many processes can read side by side here."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def uncropped(image: Image.Image, size: int) -> np.ndarray:
    """Nothing of the picture: a crop rule for where only its file is of interest."""
    return np.empty((0, 0, 3), np.uint8)


def read_all(pictures: PictureSource, workers: int, log: DamageLog, progress: Progress) -> Iterator[np.ndarray | None]:
    """The pixels of each picture in turn, None of one that can't be used; what is odd is noted in `log`. Arguments as in `check`.
    """
    done = 0
    batches = iter(DataLoader(_Read(pictures), batch_size=16, num_workers=workers, collate_fn=list))
    while True:
        with told_in_a_sentence():
            batch = next(batches, None)
        if batch is None:
            return
        for pixels, oddities in batch:
            for oddity in oddities:
                log.note(done, oddity)
            done += 1
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
