"""The classifier behind the classification accuracy score: it learns from samples alone, and is tested on real pictures.

Ravuri & Vinyals 2019, arXiv:1905.10887, with a ResNet-50. The training is that of Goyal et al. for this network
(arXiv:1706.02677, section 5.1): SGD with momentum on random crops, its rate in three steps down after a warm-up.
"""

import math
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn
from torch.nn import functional as F

from cascade.eval.classifier import ClassifierConfig, DrawingClassifier
from cascade.eval.dinov2 import IMAGENET_MEAN, IMAGENET_STD
from cascade.eval.files import complete
from cascade.eval.images import Images
from cascade.eval.resnet import torchvision_models

NETWORKS = ("resnet50", "small")
RATE, RATE_BATCH = 0.1, 256  # the highest rate, for batches of this many pictures; in proportion for others
MOMENTUM, WEIGHT_DECAY = 0.9, 1e-4
WARM_UP = 5 / 90  # share of the training over which the rate rises from 0
STEPS_DOWN = (30 / 90, 60 / 90, 80 / 90)  # where it falls to a tenth
LEAST_AREA, MOST_RATIO = 0.08, 4 / 3  # of random crops
SEEN = 7 / 8  # side of what the network sees, of the pictures'; 224 of 256

Batch = tuple[Images, NDArray[np.int64]]
"""Pictures [n, S, S, 3] and their classes [n]."""


class LabelledPictures(Protocol):
    """Square pictures of one size with their classes, by their places."""

    @property
    def size(self) -> int:
        """Side in pixels."""
        ...

    def __len__(self) -> int: ...

    def read(self, places: NDArray[np.integer]) -> Batch:
        """The pictures at these places that can be used."""
        ...


@dataclass(frozen=True, kw_only=True)
class Training:
    """How a classifier learns.

    network: "resnet50", torchvision's, or "small", the architecture of the drawings' classifier.
    epochs: Passes over the samples.
    batch_size: Samples in a step.
    seed: Of weights, order and crops.
    """

    network: str = "resnet50"
    epochs: int = 90
    batch_size: int = 256
    seed: int = 0

    def __post_init__(self) -> None:
        if self.network not in NETWORKS:
            raise ValueError(f"network is {self.network!r}, expected one of {', '.join(NETWORKS)}")
        for key in ("epochs", "batch_size"):
            if getattr(self, key) < 1:
                raise ValueError(f"{key} must be at least 1, got {getattr(self, key)}")


class Learner:
    """A classifier in training. After each pass it can be kept and gone on with, with the same result on the same machine."""

    def __init__(self, training: Training, num_classes: int, device: str = "cpu", workers: int = 1):
        """`workers` threads read pictures. Raises ValueError if torchvision, which the network needs, is not installed."""
        self.training, self.epochs_done = training, 0
        self._device, self._workers = torch.device(device), workers
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(training.seed)
            self.model = _network(training.network, num_classes)
        self.model.to(self._device, memory_format=torch.channels_last)  # type: ignore[call-overload]  # torch's stubs lack it alone
        self._optimizer = torch.optim.SGD(self.model.parameters(), lr=0.0, momentum=MOMENTUM, weight_decay=WEIGHT_DECAY)

    def learn_epoch(self, samples: LabelledPictures, on_batch: Callable[[int, int], None] = lambda done, total: None) -> float:
        """One pass over all samples in an order of its own, but for those that fill no batch; gives the mean loss in nats.

        `on_batch` is told of the samples. Raises ValueError if fewer than 2 can be used, RuntimeError if the training diverged.
        """
        training, size = self.training, seen_size(samples.size)
        rng = np.random.default_rng([training.seed, self.epochs_done])
        generator = torch.Generator().manual_seed(int(rng.integers(2**63)))
        order, losses = rng.permutation(len(samples)), []
        steps = max(1, len(order) // training.batch_size)
        parts = [order[step * training.batch_size : (step + 1) * training.batch_size] for step in range(steps)]
        self.model.train()
        for step, (images, labels) in enumerate(_read_ahead(samples, parts, self._workers)):
            if len(images) > 1:  # one alone can't be normalised over its batch
                share = (self.epochs_done + (step + 1) / steps) / training.epochs
                crops = random_crops(self._pixels(images), size, generator)
                losses.append(self._step(crops, torch.from_numpy(labels).to(self._device), share))
            on_batch((step + 1) * len(parts[0]), steps * len(parts[0]))
        if not losses:
            raise ValueError(f"at least 2 usable samples are needed to learn from, got {len(samples):,} pictures")
        if not math.isfinite(loss := float(torch.stack(losses).mean())):
            raise RuntimeError(f"the classifier's loss is {loss} in pass {self.epochs_done + 1}; its last kept state is sound")
        self.epochs_done += 1
        return loss

    @torch.inference_mode()
    def probabilities(self, pictures: LabelledPictures) -> Iterator[tuple[NDArray[np.float64], NDArray[np.int64]]]:
        """Probabilities of the classes [n, C] and the true ones [n], batch by batch, of the middle of each picture."""
        self.model.eval()
        size = seen_size(pictures.size)
        margin = (pictures.size - size) // 2
        parts = np.split(np.arange(len(pictures)), range(self.training.batch_size, len(pictures), self.training.batch_size))
        for images, labels in _read_ahead(pictures, parts, self._workers):
            middle = self._pixels(images[:, margin : margin + size, margin : margin + size])
            yield self._logits(middle).double().softmax(dim=1).cpu().numpy(), labels

    def keep(self, path: Path) -> None:
        """Write weights, momentum and the number of passes, whole or not at all."""
        tensors = {f"model.{name}": value for name, value in self.model.state_dict().items()}
        for name, value in self.model.named_parameters():
            tensors[f"momentum.{name}"] = self._optimizer.state[value]["momentum_buffer"]
        with complete(path) as file:
            file.write(save({name: one.cpu().contiguous() for name, one in tensors.items()}, {"epochs": str(self.epochs_done)}))

    def go_on(self, path: Path) -> None:
        """Take over what `keep` wrote. Raises ValueError if the file is another one or damaged."""
        try:
            with safe_open(path, framework="pt") as file:
                done = int((file.metadata() or {})["epochs"])
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
            of_model = {name.removeprefix("model."): one for name, one in tensors.items() if name.startswith("model.")}
            self.model.load_state_dict(of_model)
            for name, value in self.model.named_parameters():
                self._optimizer.state[value]["momentum_buffer"] = tensors[f"momentum.{name}"].to(value)
        except (OSError, KeyError, ValueError, RuntimeError, SafetensorError) as error:
            raise ValueError(f"{path} does not hold this classifier in training, or is damaged: {error}") from error
        self.epochs_done = done

    def _step(self, images: Tensor, labels: Tensor, share: float) -> Tensor:
        rate = RATE * self.training.batch_size / RATE_BATCH * rate_at(share)
        for group in self._optimizer.param_groups:
            group["lr"] = rate
        loss = F.cross_entropy(self._logits(images), labels)
        self._optimizer.zero_grad()
        loss.backward()
        self._optimizer.step()
        return loss.detach()

    def _logits(self, images: Tensor) -> Tensor:
        with torch.autocast(self._device.type, torch.bfloat16, enabled=self._device.type == "cuda"):
            return self.model(images.contiguous(memory_format=torch.channels_last)).float()

    def _pixels(self, images: Images) -> Tensor:
        """uint8 [B, S, S, 3] to float [B, 3, S, S] of ImageNet's mean 0 and variance 1."""
        pixels = torch.tensor(images, device=self._device).permute(0, 3, 1, 2).float() / 255
        mean, std = (torch.tensor(v, device=self._device).view(3, 1, 1) for v in (IMAGENET_MEAN, IMAGENET_STD))
        return (pixels - mean) / std


def seen_size(size: int) -> int:
    """Side of what the network sees of pictures of `size` pixels."""
    return max(1, round(SEEN * size))


def rate_at(share: float) -> float:
    """The learning rate after this share of the training, in (0, 1], as a share of the highest."""
    return min(1.0, share / WARM_UP) * 0.1 ** sum(share > step for step in STEPS_DOWN)


def random_crops(images: Tensor, size: int, generator: torch.Generator) -> Tensor:
    """A random part of each image, made `size` pixels wide and half the time mirrored: [B, 3, S, S] to [B, 3, size, size].

    Its area is 8 to 100 % of the image's, its sides are as 3 to 4 up to 4 to 3, but no longer than the image's; bilinear.
    """
    share, ratio, x, y, side = torch.rand(5, len(images), generator=generator).to(images.device)
    area = LEAST_AREA + (1 - LEAST_AREA) * share
    stretch = torch.exp((2 * ratio - 1) * math.log(MOST_RATIO))
    width, height = (area * stretch).sqrt().clamp(max=1), (area / stretch).sqrt().clamp(max=1)
    mirror = torch.where(side < 0.5, -1.0, 1.0)
    none = torch.zeros_like(width)
    rows = ([width * mirror, none, (1 - width) * (2 * x - 1)], [none, height, (1 - height) * (2 * y - 1)])
    grid = F.affine_grid(torch.stack([torch.stack(row, 1) for row in rows], 1), [len(images), 3, size, size], align_corners=False)
    return F.grid_sample(images, grid, padding_mode="border", align_corners=False)


def _network(name: str, num_classes: int) -> nn.Module:
    if name == "small":
        return DrawingClassifier(ClassifierConfig(num_classes=num_classes))
    return torchvision_models().resnet50(weights=None, num_classes=num_classes)


def _read_ahead(pictures: LabelledPictures, parts: Iterable[NDArray[np.integer]], workers: int) -> Iterator[Batch]:
    """The pictures of each part in turn, while threads read the next two."""
    with ThreadPoolExecutor(workers) as pool:
        coming: deque[list[Future[Batch]]] = deque()
        for part in parts:
            coming.append([pool.submit(pictures.read, some) for some in np.array_split(part, min(workers, len(part)))])
            if len(coming) > 2:
                yield _joined(coming.popleft())
        while coming:
            yield _joined(coming.popleft())


def _joined(pieces: list[Any]) -> Batch:
    images, labels = zip(*(piece.result() for piece in pieces), strict=True)
    return np.concatenate(images), np.concatenate(labels)
