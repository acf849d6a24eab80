"""Training examples as a pure function of (seed, number): image, noise and every other draw.

Example `n` is the same whatever the batch size, the number of processes or workers and the moment of a resume: to resume is
to go on counting, and one process or many see the same sequence. A damaged picture is replaced by the next usable one in the
order of its epoch, which is the same picture each time.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from cascade.stages.conditioning import augment, gaussian_blur, resize
from cascade.stages.noise import MAX_LOG_SNR, resolution_shift
from cascade.stages.training.odd_pictures import TRIES, DamagedPicture, Oddity, mask_of
from cascade.stages.training.recipe import REGRESSION, Phase, Recipe

GOLDEN_RATIO = 0.6180339887498949


class Picture(NamedTuple):
    """A picture as it was read: uint8 [S, S, 3], and what was odd about it."""

    pixels: np.ndarray
    oddities: tuple[Oddity, ...] = ()


class PictureSource(Protocol):
    """Labelled square pictures of one size, read one by one; data workers get a copy of it each.

    `size` is the side in pixels, `class_names` has the name of each label, `may_flip` whether a mirrored picture is still of it.
    """

    @property
    def size(self) -> int: ...
    @property
    def class_names(self) -> tuple[str, ...]: ...
    @property
    def may_flip(self) -> tuple[bool, ...]: ...

    def __len__(self) -> int: ...

    def read(self, index: int) -> Picture:
        """The picture in this place. Raises DamagedPicture if it can't be used."""

    def label(self, index: int) -> int:
        """Its class."""

    def name(self, index: int) -> str:
        """What a person finds it by, as its path."""

    def order(self, seed: int, epoch: int) -> np.ndarray:
        """The places in the order of an epoch: a permutation, a function of the arguments alone, int64 [N]."""


def epoch_order(seed: int, epoch: int, count: int) -> np.ndarray:
    """All of `count` places in an order of the epoch's own, int64 [count]."""
    return np.random.default_rng([seed, 1, epoch]).permutation(count)


def balanced_order(seed: int, epoch: int, labels: np.ndarray) -> np.ndarray:
    """Places of an epoch in which every class has an equal share, int64 [N] as the labels, in an order of the epoch's own.

    A class goes through its own pictures in turns, each in an order of its own, and an epoch goes on where the last one stopped:
    pictures of a class are seen equally often, up to one. Which classes have one picture more, where N is not a multiple of their
    number, changes from epoch to epoch.
    """
    known, numbered = np.unique(labels, return_inverse=True)
    count, classes = len(labels), len(known)
    turn = np.arange(epoch * count, (epoch + 1) * count)  # a count over all epochs, dealt to the classes one after the other
    places = np.empty(count, dtype=np.int64)
    for label in range(classes):
        mine = np.flatnonzero(numbered == label)
        dealt = turn % classes == label
        rounds, within = np.divmod(turn[dealt] // classes, len(mine))
        orders = {number: np.random.default_rng([seed, 4, label, number]).permutation(mine) for number in np.unique(rounds)}
        places[dealt] = [orders[number][place] for number, place in zip(rounds, within, strict=True)]
    return places[epoch_order(seed, epoch, count)]


@dataclass(frozen=True, slots=True)
class PictureSet:
    """A `PictureSource` in memory, or mapped from a file: pictures uint8 [N, S, S, 3], labels int64 [N]."""

    pictures: np.ndarray
    labels: np.ndarray
    class_names: tuple[str, ...]
    may_flip: tuple[bool, ...]

    @property
    def size(self) -> int:
        return int(self.pictures.shape[1])

    def __len__(self) -> int:
        return len(self.labels)

    def read(self, index: int) -> Picture:
        return Picture(np.asarray(self.pictures[index]))

    def label(self, index: int) -> int:
        return int(self.labels[index])

    def name(self, index: int) -> str:
        return f"picture {index}"

    def order(self, seed: int, epoch: int) -> np.ndarray:
        return epoch_order(seed, epoch, len(self))


class TrainingExamples(Dataset):
    """The endless sequence of training examples of one phase of a recipe.

    Indexing with the example's number gives a dictionary: `x0` [3, size, size] in [-1, 1], `eps` of its shape, `log_snr`,
    `label`, and for an SR3 stage `low_res` [3, h, h], augmented, and `aug_level`. `index` is its picture's place in the set.

    What `DamageLog` counts: `oddities`, a bit for each kind that the picture is of, and `damaged` [TRIES, 2], place and kind of
    each damaged picture that was passed over, filled up with -1. If none of TRIES pictures is usable, `damaged` is full and the
    example is black: the log then raises the error, in the main process, where it stays one sentence.

    The pictures' size is at least that of the phase's images; for an SR3 stage it is the stage's, crops are taken from it.
    `null_label` replaces a dropped label; None = the network knows none. Raises ValueError for pictures of another size.
    """

    def __init__(self, pictures: PictureSource, recipe: Recipe, phase: Phase, null_label: int | None) -> None:
        self.pictures, self.recipe, self.phase, self.null_label = pictures, recipe, phase, null_label
        self.sample_size, self.low_res_size = recipe.network["sample_size"], recipe.network.get("low_res_size")
        needed = recipe.picture_size
        if pictures.size < needed or (self.low_res_size and pictures.size != needed):
            raise ValueError(f"the pictures are {pictures.size} px, but this stage is trained on {needed} px; open them so")
        self._epoch, self._order = -1, np.empty(0, dtype=np.int64)

    def picture_index(self, number: int, further: int = 0) -> int:
        """Place of example `number`'s picture: an epoch goes once through the set, or the balanced one, in its own order.

        `further` pictures on in that order is the one that replaces it.
        """
        epoch, place = divmod(number, len(self.pictures))
        if epoch != self._epoch:
            seed, own = self.recipe.seed, not self.recipe.data.balanced
            self._order = self.pictures.order(seed, epoch) if own else balanced_order(seed, epoch, self._labels)
            self._epoch = epoch
        return int(self._order[(place + further) % len(self._order)])

    @cached_property
    def _labels(self) -> np.ndarray:
        return np.array([self.pictures.label(place) for place in range(len(self.pictures))])

    def __getitem__(self, number: int) -> dict[str, Tensor]:
        rng = np.random.default_rng([self.recipe.seed, 2, number])
        index, picture, damaged = self._usable(number)
        label = self.pictures.label(index)
        flip = rng.random() < 0.5 and self.recipe.data.flip and self.pictures.may_flip[label]
        dropped = rng.random() < self.recipe.objective.label_dropout
        example = self._images(picture.pixels, flip, rng)
        example["eps"] = _normal(rng, example["x0"].shape)
        # the golden-ratio sequence: any stretch covers the noise levels evenly (VDM, arXiv:2107.00630, I.1)
        example["log_snr"] = self.log_snr(torch.tensor((number * GOLDEN_RATIO) % 1.0, dtype=torch.float64)).float()
        example["label"] = torch.tensor((self.null_label or 0) if dropped else label)
        example["index"] = torch.tensor(index)
        example["oddities"] = torch.tensor(mask_of(picture.oddities))
        example["damaged"] = torch.tensor(damaged + [(-1, -1)] * (TRIES - len(damaged)))
        return example

    def _usable(self, number: int) -> tuple[int, Picture, list[tuple[int, int]]]:
        """The first usable picture from the example's own place on: its place, itself, and those before it with their kinds."""
        damaged: list[tuple[int, int]] = []
        while len(damaged) < TRIES:
            index = self.picture_index(number, len(damaged))
            try:
                return index, self.pictures.read(index), damaged
            except DamagedPicture as error:
                damaged.append((index, error.oddity.code))
        return index, Picture(np.zeros((self.pictures.size, self.pictures.size, 3), np.uint8)), damaged

    def log_snr(self, u: Tensor) -> Tensor:
        """Log-SNR at shares `u` in [0, 1] of the recipe's law, shifted to the phase's size; shape of `u`, float64."""
        size = self.sample_size if self.low_res_size else self.phase.size
        if self.recipe.objective.kind == REGRESSION:
            return torch.full_like(u, -MAX_LOG_SNR)
        return resolution_shift(self.recipe.objective.law.log_snr(u), size, self.sample_size)

    def _images(self, picture: np.ndarray, flip: bool, rng: np.random.Generator) -> dict[str, Tensor]:
        if flip:
            picture = picture[:, ::-1]
        if not self.low_res_size:
            return {"x0": resize(_to_tensor(picture)[None], self.phase.size)[0]}
        factor, crop, augmentation = self.sample_size // self.low_res_size, self.phase.size, self.recipe.augmentation
        top, left = (factor * int(rng.integers((self.sample_size - crop) // factor + 1)) for _ in range(2))
        x0 = _to_tensor(picture[top : top + crop, left : left + crop])[None]
        reduction = augmentation.reduction
        if reduction == "mixture":
            reduction = "area" if rng.random() < 0.5 else "bilinear"
        low_res = resize(x0, crop // factor, reduction)  # type: ignore[arg-type]  # the recipe has checked it
        if augmentation.blur and rng.random() < 0.5:
            low_res = gaussian_blur(low_res, torch.tensor([rng.random() * augmentation.blur]))
        u, clean = rng.random(), augmentation.clean  # level 0 for the first `clean` of u, then rising evenly to `noise`
        aug_level = torch.tensor([0.0 if u < clean else augmentation.noise * (u - clean) / (1 - clean)], dtype=torch.float32)
        low_res = augment(low_res, aug_level, _normal(rng, low_res.shape))
        return {"x0": x0[0], "low_res": low_res[0], "aug_level": aug_level[0]}


def numbers(start: int, stop: int, batch_size: int, rank: int, processes: int) -> Iterator[int]:
    """Numbers of the examples that one process of a run takes: its share of every global batch, from `start` to `stop`."""
    share = batch_size // processes
    for batch in range(start + rank * share, stop + rank * share, batch_size):
        yield from range(batch, batch + share)


def _to_tensor(picture: np.ndarray) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(picture.transpose(2, 0, 1))).float() / 127.5 - 1


def _normal(rng: np.random.Generator, shape: torch.Size) -> Tensor:
    return torch.from_numpy(rng.standard_normal(tuple(shape), dtype=np.float32))
