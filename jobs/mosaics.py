"""Labelled pictures as a few mosaics in AVIF, about 1 KB for a photograph of 64 px, and back as a folder of class folders."""

from __future__ import annotations

import json
import math
import os
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image

from cascade.classes import imagenet
from cascade.stages.training.examples import PictureSource
from cascade.stages.training.odd_pictures import DamagedPicture

SIDE = 2560
"""Pixels: of a mosaic, at most."""


def pack(pictures: PictureSource, folder: Path, quality: int, most: int | None = None) -> int:
    """Write `mosaic-000.avif` ... and `labels.json`; returns the number of pictures, of which none is damaged.

    Args:
        pictures: Of any size.
        quality: Of AVIF, 0 to 100; 62 is about 33 dB.
        most: Pictures at most, as evenly from all classes as there are enough of them; None = all.

    Raises:
        ValueError: if a class has a name that no folder can have.
    """
    names = _folder_names(pictures.class_names)
    folder.mkdir(parents=True)
    columns = max(1, SIDE // pictures.size)
    found, labels = [], []
    for index in _chosen([pictures.label(index) for index in range(len(pictures))], most):
        try:
            found.append(pictures.read(index).pixels)
        except DamagedPicture:
            continue
        labels.append(pictures.label(index))
        if len(found) == columns**2:
            _write(found, columns, folder / f"mosaic-{len(labels) // columns**2 - 1:03d}.avif", quality)
            found = []
    if found:
        _write(found, columns, folder / f"mosaic-{len(labels) // columns**2:03d}.avif", quality)
    facts = {"size": pictures.size, "names": names, "labels": labels}
    (folder / "labels.json").write_text(json.dumps(facts))
    return len(labels)


def unpack(folder: Path, out: Path) -> int:
    """Write the pictures of a folder of mosaics as `out/CLASS/NUMBER.png`; returns their number."""
    facts = json.loads((folder / "labels.json").read_text())
    for label in set(facts["labels"]):
        (out / facts["names"][label]).mkdir(parents=True, exist_ok=True)
    with ProcessPoolExecutor() as pool:
        return sum(pool.map(partial(_read, facts=facts, out=out), sorted(folder.glob("mosaic-*.avif"))))


def _chosen(labels: Sequence[int], most: int | None) -> np.ndarray:
    """Places in a mixed order, first one of each class, then a second ...; so the first of them are the fairest."""
    order = np.random.default_rng(0).permutation(len(labels))
    met: Counter[int] = Counter()
    turns = np.empty(len(order), np.int64)
    for place, index in enumerate(order):
        turns[place] = met[labels[index]]
        met[labels[index]] += 1
    return order[np.argsort(turns, kind="stable")][:most]


def _folder_names(class_names: Sequence[str]) -> list[str]:
    known = imagenet()
    names = list(known.wordnet_ids if tuple(class_names) == known.names else class_names)
    if wrong := [name for name in names if Path(name).name != name or name.startswith(".")]:
        raise ValueError(f"a class is called {wrong[0]!r}, as which no folder can be; rename it")
    return names


def _write(pictures: Sequence[np.ndarray], columns: int, path: Path, quality: int) -> None:
    size, rows = pictures[0].shape[0], math.ceil(len(pictures) / columns)
    filled = np.zeros((rows * columns, size, size, 3), np.uint8)
    filled[: len(pictures)] = pictures
    mosaic = filled.reshape(rows, columns, size, size, 3).swapaxes(1, 2).reshape(rows * size, columns * size, 3)
    Image.fromarray(mosaic).save(path, format="AVIF", quality=quality, speed=6)


def _read(path: Path, facts: dict, out: Path) -> int:
    size = facts["size"]
    columns = max(1, SIDE // size)
    with Image.open(path, formats=["AVIF"]) as image:
        mosaic = np.asarray(image.convert("RGB"))
    cells = mosaic.reshape(-1, size, columns, size, 3).swapaxes(1, 2).reshape(-1, size, size, 3)
    first = int(path.stem.rpartition("-")[2]) * columns**2
    labels = facts["labels"][first : first + columns**2]
    for number, (label, pixels) in enumerate(zip(labels, cells, strict=False), start=first):
        target = out / facts["names"][label] / f"{number:06d}.png"
        partial_path = target.with_name(f".{number}.{os.getpid()}")
        Image.fromarray(pixels).save(partial_path, format="PNG", compress_level=1)
        partial_path.replace(target)
    return len(labels)
