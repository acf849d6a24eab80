"""Training examples as a pure function of (seed, number): image, noise and every other draw.

Example `n` is the same whatever the batch size, the number of processes or workers, the device and the moment of a resume: to
resume is to go on counting, and one process or many see the same sequence. A damaged picture is replaced by the next usable one
in the order of its epoch, which is the same picture each time.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from cascade.stages.conditioning import augment, gaussian_blur, resize
from cascade.stages.noise import MAX_LOG_SNR, resolution_shift
from cascade.stages.training import draws
from cascade.stages.training.odd_pictures import TRIES, DamagedPicture, Oddity, mask_of
from cascade.stages.training.recipe import MIXTURE, REGRESSION, Phase, Recipe
from cascade.stages.training.workers import told_in_a_sentence

GOLDEN_RATIO = 0.6180339887498949

Batch = dict[str, Tensor]
"""Values of examples by name, each [B, ...]."""


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


class ResidentPictures:
    """A `PictureSource` whose pictures are in the memory of the device that trains, where `cut` takes their squares.

    `read` gives a picture without pixels, or raises as that of the source would.

    Args:
        source: Where the pictures come from; each is read once, now.
        device: Where they stay, as uint8.
        workers: Processes that read them; 0 = this one.
    """

    def __init__(self, source: PictureSource, device: torch.device, workers: int = 0) -> None:
        self.source, self.size, self.may_flip = source, source.size, source.may_flip
        self.class_names, self.name, self.order = source.class_names, source.name, source.order
        self._labels = [source.label(index) for index in range(len(source))]
        self.pixels = torch.empty((len(source), source.size, source.size, 3), dtype=torch.uint8, device=device)
        self._states: list[Picture | DamagedPicture] = []
        with told_in_a_sentence():
            for pixels, states in DataLoader(_Reading(source), 64, num_workers=workers, collate_fn=as_read):
                self.pixels[len(self._states) :][: len(states)] = pixels.to(device)
                self._states += states

    @staticmethod
    def fit(source: PictureSource, device: torch.device) -> bool:
        """Whether the pictures take at most a third of what the accelerator has free: the rest is the training's."""
        return 3 * len(source) * source.size**2 * 3 <= torch.cuda.mem_get_info(device)[0]

    def __len__(self) -> int:
        return len(self._labels)

    def label(self, index: int) -> int:
        return self._labels[index]

    def read(self, index: int) -> Picture:
        state = self._states[index]
        if isinstance(state, DamagedPicture):
            raise state
        return state

    def cut(self, batch: Batch, side: int) -> Tensor:
        """The squares of `side` pixels that a batch of `TrainingExamples` names, cropped and mirrored: uint8 [B, s, s, 3]."""
        place = torch.arange(side, device=self.pixels.device)
        rows = batch["top"][:, None] + place
        columns = batch["left"][:, None] + torch.where(batch["flip"][:, None], side - 1 - place, place)
        return self.pixels[batch["index"][:, None, None], rows[:, :, None], columns[:, None, :]]


class _Reading(Dataset):
    """Reads pictures as a DataLoader's workers ask for them: pixels uint8 [B, S, S, 3], and what else is known of each."""

    def __init__(self, source: PictureSource) -> None:
        self.source = source

    def __len__(self) -> int:
        return len(self.source)

    def __getitems__(self, indices: Sequence[int]) -> tuple[Tensor, list[Picture | DamagedPicture]]:
        pixels = np.zeros((len(indices), self.source.size, self.source.size, 3), np.uint8)
        states: list[Picture | DamagedPicture] = []
        for place, index in enumerate(indices):
            try:
                picture = self.source.read(index)
            except DamagedPicture as error:
                states.append(error)
            else:
                pixels[place] = picture.pixels
                states.append(Picture(_NO_PIXELS, picture.oddities))
        return torch.from_numpy(pixels), states


def as_read(batch: Any) -> Any:
    """Leaves nothing to collate: `__getitems__` reads a batch at a time."""
    return batch


_NO_PIXELS = np.empty((0, 0, 3), np.uint8)


class TrainingExamples(Dataset):
    """The endless sequence of training examples of one phase of a recipe.

    An example is made in two parts. `read` takes pictures and small draws, on the host and by data workers: `pixels` uint8
    [S, S, 3], cropped and mirrored, `label`, `log_snr`, for an SR3 stage `aug_level`, `blur` and whether its small image is
    `aliased`, its `number`, and `index`, its picture's place in the set. `complete` makes the rest of them where the network is:
    `x0` [3, size, size] in [-1, 1], `eps` of its shape, and for an SR3 stage `low_res` [3, h, h], augmented. Of pictures that are
    in the network's memory already (`ResidentPictures`), `read` gives places in place of pixels. Indexing with a number gives a
    whole example, on the host.

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
        self.side = phase.size if self.low_res_size else pictures.size
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

    def __getitem__(self, number: int) -> Batch:
        return {name: value[0] for name, value in self.complete(self.read([number])).items()}

    def __getitems__(self, numbers: Sequence[int]) -> Batch:
        """A whole batch at once, which is how a DataLoader asks."""
        return self.read(numbers)

    def read(self, numbers: Sequence[int]) -> Batch:
        """The part of these examples that is made on the host, each value [B, ...]."""
        number = torch.tensor(numbers)
        found = [self._usable(each) for each in numbers]
        label = torch.tensor([self.pictures.label(index) for index, _, _ in found])
        may_flip = torch.tensor([self.recipe.data.flip and self.pictures.may_flip[each] for each in label.tolist()])
        flip, dropped, *others = draws.uniform(draws.streams(self.recipe.seed, _CHOICES, number), len(_DRAWS)).T
        drawn = dict(zip(_DRAWS, (flip, dropped, *others), strict=True))
        # the golden-ratio sequence: any stretch covers the noise levels evenly (VDM, arXiv:2107.00630, I.1)
        batch = {"number": number, "log_snr": self.log_snr((number.double() * GOLDEN_RATIO) % 1.0).float()}
        batch["label"] = label.where(dropped >= self.recipe.objective.label_dropout, self.null_label or 0)
        batch |= self._small_image(drawn)
        batch |= self._pixels([picture for _, picture, _ in found], (flip < 0.5) & may_flip, drawn)
        batch["index"] = torch.tensor([index for index, _, _ in found])
        batch["oddities"] = torch.tensor([mask_of(picture.oddities) for _, picture, _ in found])
        tries = [damaged + [(-1, -1)] * (TRIES - len(damaged)) for _, _, damaged in found]
        return batch | {"damaged": torch.tensor(tries)}

    def complete(self, batch: Batch) -> Batch:
        """What `read` gave, with the images that the network sees, made on the batch's own device, which nothing waits for."""
        pixels = self.pictures.cut(batch, self.side) if isinstance(self.pictures, ResidentPictures) else batch["pixels"]
        x0 = pixels.permute(0, 3, 1, 2).float() / 127.5 - 1
        made = {"x0": x0 if self.low_res_size else resize(x0, self.phase.size)}
        made["eps"] = self._noise(_NOISE, batch["number"], made["x0"].shape)
        if self.low_res_size:
            low_res = self._reduced(batch, x0, self.phase.size * self.low_res_size // self.sample_size)
            if blur := self.recipe.augmentation.blur:
                low_res = gaussian_blur(low_res, batch["blur"], blur)
            noise = self._noise(_LOW_RES_NOISE, batch["number"], low_res.shape)
            made["low_res"] = augment(low_res, batch["aug_level"], noise)
        return batch | made

    def _noise(self, purpose: int, numbers: Tensor, shape: torch.Size) -> Tensor:
        return draws.normal(draws.streams(self.recipe.seed, purpose, numbers), math.prod(shape[1:])).view(shape)

    def log_snr(self, u: Tensor) -> Tensor:
        """Log-SNR at shares `u` in [0, 1] of the recipe's law, shifted to the phase's size; shape of `u`, float64."""
        size = self.sample_size if self.low_res_size else self.phase.size
        if self.recipe.objective.kind == REGRESSION:
            return torch.full_like(u, -MAX_LOG_SNR)
        return resolution_shift(self.recipe.objective.law.log_snr(u), size, self.sample_size)

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

    def _pixels(self, pictures: Sequence[Picture], flip: Tensor, drawn: Batch) -> Batch:
        """The pictures' squares that are trained on, or where they lie in pictures that are resident."""
        factor = self.sample_size // self.low_res_size if self.low_res_size else 1
        places = (self.pictures.size - self.side) // factor + 1
        top, left = ((drawn[name] * places).long() * factor for name in ("top", "left"))
        if isinstance(self.pictures, ResidentPictures):
            return {"top": top, "left": left, "flip": flip}
        squares = []
        for picture, mirrored, y, x in zip(pictures, flip.tolist(), top.tolist(), left.tolist(), strict=True):
            square = picture.pixels[y : y + self.side, x : x + self.side]
            squares.append(square[:, ::-1] if mirrored else square)
        return {"pixels": torch.from_numpy(np.stack(squares))}

    def _small_image(self, drawn: Batch) -> Batch:
        """How an SR3 stage's small images are augmented."""
        if not self.low_res_size:
            return {}
        augmentation, u = self.recipe.augmentation, drawn["level"]
        clean = augmentation.clean  # level 0 for the first `clean` of u, then rising evenly to `noise`
        level = augmentation.noise * (u - clean) / max(1 - clean, 1e-9)
        made = {"aug_level": level.where(u >= clean, 0.0).float()}
        if augmentation.blur:
            made["blur"] = (augmentation.blur * drawn["width"]).where(drawn["blurred"] < 0.5, 0.0).float()
        if augmentation.reduction == MIXTURE:
            made["aliased"] = drawn["reduction"] < 0.5
        return made

    def _reduced(self, batch: Batch, x0: Tensor, size: int) -> Tensor:
        """The images made small as the recipe says."""
        reduction = self.recipe.augmentation.reduction
        area, bilinear = resize(x0, size), resize(x0, size, "bilinear")
        if reduction == MIXTURE:
            return bilinear.where(batch["aliased"][:, None, None, None], area)
        return bilinear if reduction == "bilinear" else area


_CHOICES, _NOISE, _LOW_RES_NOISE = 2, 3, 4
"""Purposes of an example's draws, see `draws.streams`."""
_DRAWS = ("flip", "dropped", "top", "left", "blurred", "width", "level", "reduction")
"""What each of an example's small draws decides, in their order: a new one comes last, so that the others stay."""


def numbers(start: int, stop: int, batch_size: int, rank: int, processes: int) -> Iterator[int]:
    """Numbers of the examples that one process of a run takes: its share of every global batch, from `start` to `stop`."""
    share = batch_size // processes
    for batch in range(start + rank * share, stop + rank * share, batch_size):
        yield from range(batch, batch + share)
