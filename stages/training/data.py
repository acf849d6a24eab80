"""Training examples as a pure function of (seed, number): image, noise and every other draw.

Example `n` is the same whatever the batch size, the number of processes or workers and the moment of a resume: to resume is
to go on counting, and one process or many see the same sequence.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset, Sampler

from stages.conditioning import augment, gaussian_blur, resize
from stages.noise import resolution_shift
from stages.training.recipe import Phase, Recipe

GOLDEN_RATIO = 0.6180339887498949


@dataclass(frozen=True, slots=True)
class PictureSet:
    """Labelled square pictures of one size, in memory or mapped from a file.

    pictures: uint8 [N, S, S, 3].
    labels: int64 [N].
    class_names: The name of each label.
    may_flip: For each label, whether a mirrored picture is still of its class.
    """

    pictures: np.ndarray
    labels: np.ndarray
    class_names: tuple[str, ...]
    may_flip: tuple[bool, ...]

    @property
    def size(self) -> int:
        return int(self.pictures.shape[1])


class TrainingExamples(Dataset):
    """The endless sequence of training examples of one phase of a recipe.

    Indexing with the example's number gives a dictionary: `x0` [3, size, size] in [-1, 1], `eps` of its shape, `log_snr`,
    `label`, and for an SR3 stage `low_res` [3, h, h], augmented, and `aug_level`. `index` is its picture's place in the set.

    Args:
        pictures: The set, at least as large as the phase's images (SR3: exactly the stage's size, crops are taken from it).
        recipe: What is trained.
        phase: Which size.
        null_label: Replaces a dropped label.
    """

    def __init__(self, pictures: PictureSet, recipe: Recipe, phase: Phase, null_label: int) -> None:
        self.pictures, self.recipe, self.phase, self.null_label = pictures, recipe, phase, null_label
        self.sample_size, self.low_res_size = recipe.network["sample_size"], recipe.network.get("low_res_size")
        needed = self.sample_size if self.low_res_size else phase.size
        if pictures.size < needed or (self.low_res_size and pictures.size != needed):
            raise ValueError(
                f"the pictures are {pictures.size} px, and this stage trains on {needed} px; render them at that size"
            )
        self._epoch, self._order = -1, np.empty(0, dtype=np.int64)

    def picture_index(self, number: int) -> int:
        """Place of example `number`'s picture: every epoch goes once through the set in an order of its own."""
        epoch, place = divmod(number, len(self.pictures.labels))
        if epoch != self._epoch:
            self._epoch = epoch
            self._order = np.random.default_rng([self.recipe.seed, 1, epoch]).permutation(len(self.pictures.labels))
        return int(self._order[place])

    def __getitem__(self, number: int) -> dict[str, Tensor]:
        rng = np.random.default_rng([self.recipe.seed, 2, number])
        index = self.picture_index(number)
        label = int(self.pictures.labels[index])
        flip = rng.random() < 0.5 and self.recipe.flip and self.pictures.may_flip[label]
        dropped = rng.random() < self.recipe.objective.label_dropout
        example = self._images(np.asarray(self.pictures.pictures[index]), flip, rng)
        example["eps"] = _normal(rng, example["x0"].shape)
        example["log_snr"] = self._log_snr(number)
        example["label"] = torch.tensor(self.null_label if dropped else label)
        example["index"] = torch.tensor(index)
        return example

    def _log_snr(self, number: int) -> Tensor:
        """The law at the golden-ratio sequence: any stretch covers the noise levels evenly (VDM, arXiv:2107.00630, I.1)."""
        u = torch.tensor((number * GOLDEN_RATIO) % 1.0, dtype=torch.float64)
        log_snr = self.recipe.objective.law.log_snr(u)
        size = self.sample_size if self.low_res_size else self.phase.size
        return resolution_shift(log_snr, size, self.sample_size).float()

    def _images(self, picture: np.ndarray, flip: bool, rng: np.random.Generator) -> dict[str, Tensor]:
        if flip:
            picture = picture[:, ::-1]
        if not self.low_res_size:
            return {"x0": resize(_to_tensor(picture)[None], self.phase.size)[0]}
        factor = self.sample_size // self.low_res_size
        crop = self.phase.size
        top, left = (factor * int(rng.integers((self.sample_size - crop) // factor + 1)) for _ in range(2))
        x0 = _to_tensor(picture[top : top + crop, left : left + crop])[None]
        low_res = resize(x0, crop // factor)
        if self.recipe.augmentation.blur and rng.random() < 0.5:
            low_res = gaussian_blur(low_res, torch.tensor([rng.random() * self.recipe.augmentation.blur]))
        aug_level = torch.tensor([rng.random() * self.recipe.augmentation.noise], dtype=torch.float32)
        low_res = augment(low_res, aug_level, _normal(rng, low_res.shape))
        return {"x0": x0[0], "low_res": low_res[0], "aug_level": aug_level[0]}


class Numbers(Sampler[int]):
    """Numbers of the examples that one process of a run takes: its share of every global batch, from `start` to `stop`."""

    def __init__(self, start: int, stop: int, batch_size: int, rank: int, processes: int) -> None:
        self.start, self.stop, self.batch_size = start, stop, batch_size
        self.first, self.share = rank * batch_size // processes, batch_size // processes

    def __iter__(self):
        for batch in range(self.start, self.stop, self.batch_size):
            yield from range(batch + self.first, batch + self.first + self.share)

    def __len__(self) -> int:
        return -(-(self.stop - self.start) // self.batch_size) * self.share


def _to_tensor(picture: np.ndarray) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(picture.transpose(2, 0, 1))).float() / 127.5 - 1


def _normal(rng: np.random.Generator, shape: torch.Size) -> Tensor:
    return torch.from_numpy(rng.standard_normal(tuple(shape), dtype=np.float32))
