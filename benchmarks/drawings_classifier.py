"""Train the classifier of drawings (`cascade.eval.classifier`) and test it on held-out ones.

    python benchmarks/drawings_classifier.py [--samples RUN] [--out FILE.safetensors] [--epochs N] [--seed S]

Trained on samples alone and tested on real held-out images it gives the classification accuracy score (Ravuri & Vinyals 2019,
arXiv:1905.10887). It is to be read beside the same score of real training images, as many of each class, with the same settings.
The papers' figures are of a ResNet-50 on ImageNet and not comparable with those of this small classifier.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from cascade.classes import EMOJI
from cascade.data.drawings import MAY_FLIP
from cascade.eval.classifier import (
    ClassifierConfig,
    DrawingClassifier,
    checked_labels,
    class_probabilities,
    errors,
    network_input,
    save_classifier,
)
from cascade.eval.images import Images
from cascade.measure.named import image_source
from cascade.runs.record import labels_of_run
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F


@dataclass(frozen=True, kw_only=True)
class TrainingSettings:
    """How the classifier is trained: AdamW under one cosine with a linear warm-up over the first twentieth.

    max_shift: Share of the image side, both ways.
    max_scale: Enlarged or shrunk by at most this share.
    max_rotation: Degrees, both ways.
    """

    epochs: int = 20
    batch_size: int = 64
    learning_rate: float = 2e-3
    weight_decay: float = 0.05
    label_smoothing: float = 0.1
    max_shift: float = 0.10
    max_scale: float = 0.15
    max_rotation: float = 10.0
    seed: int = 0


@dataclass(frozen=True, kw_only=True)
class ClassAgreement:
    """Share of images for which the classifier names the asked class first, or among its first five."""

    top1: float
    top5: float
    num_images: int


@dataclass(frozen=True, kw_only=True)
class EpochReport:
    """What `train_classifier` tells after each epoch.

    epoch: 1 ... epochs.
    loss: Mean smoothed cross-entropy of the epoch, in nats.
    """

    epoch: int
    epochs: int
    loss: float


def train_classifier(
    images: Images,
    labels: NDArray[np.int64],
    *,
    config: ClassifierConfig,
    may_flip: NDArray[np.bool_],
    settings: TrainingSettings | None = None,
    on_epoch: Callable[[EpochReport], None] | None = None,
) -> DrawingClassifier:
    """Train a classifier from scratch on labelled images.

    Images are turned, scaled, shifted and, where their class permits it, mirrored at random; borders continue the edge pixels.
    Runs on the CPU in bfloat16 autocast. The same seed gives the same weights on the same machine and thread count.

    Args:
        images: uint8 RGB, [N, S, S, 3], S = `config.image_size` or a multiple of it (area-averaged down).
        labels: Class of each image in [0, num_classes), [N].
        config: What network to build.
        may_flip: Per class, whether a mirrored image still shows that class, [num_classes].
        settings: How to train; None = the defaults.
        on_epoch: Called after each epoch.

    Returns:
        The trained network in eval mode, in float32.

    Raises:
        ValueError: if images, labels and config don't fit together.
    """
    settings = settings or TrainingSettings()
    small = network_input(images, config.image_size)
    targets = checked_labels(labels, len(images), config.num_classes)
    if may_flip.shape != (config.num_classes,):
        raise ValueError(f"may_flip has shape {may_flip.shape}, expected ({config.num_classes},), one flag per class")
    flips = torch.from_numpy(may_flip.astype(bool))[targets]

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(settings.seed)
        model = DrawingClassifier(config).train()
    model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # torch's stubs lack it alone
    generator = torch.Generator().manual_seed(settings.seed)
    steps_per_epoch = math.ceil(len(small) / settings.batch_size)
    optimizer, schedule = _optimizer(model, settings, settings.epochs * steps_per_epoch)
    for epoch in range(1, settings.epochs + 1):
        total = 0.0
        for index in torch.randperm(len(small), generator=generator).split(settings.batch_size):
            batch = _augment(small[index], flips[index], settings, generator)
            with torch.autocast("cpu", torch.bfloat16):
                logits = model(batch.to(memory_format=torch.channels_last))
            loss = F.cross_entropy(logits.float(), targets[index], label_smoothing=settings.label_smoothing)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            total += loss.item() * len(index)
        if on_epoch:
            on_epoch(EpochReport(epoch=epoch, epochs=settings.epochs, loss=total / len(small)))
    return model.eval()


def _optimizer(
    model: nn.Module, settings: TrainingSettings, num_steps: int
) -> tuple[torch.optim.Optimizer, torch.optim.lr_scheduler.LRScheduler]:
    """AdamW whose rate warms up linearly and falls along a cosine to 0; one-dimensional parameters don't decay."""
    matrices = [p for p in model.parameters() if p.ndim > 1]
    vectors = [p for p in model.parameters() if p.ndim <= 1]
    groups: list[dict[str, Any]] = [{"params": matrices}, {"params": vectors, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=settings.learning_rate, weight_decay=settings.weight_decay)
    warm_up = max(1, num_steps // 20)

    def rate(step: int) -> float:
        return min((step + 1) / warm_up, (1 + math.cos(math.pi * step / num_steps)) / 2)

    return optimizer, torch.optim.lr_scheduler.LambdaLR(optimizer, rate)


def _augment(images: Tensor, may_flip: Tensor, settings: TrainingSettings, generator: torch.Generator) -> Tensor:
    """One random affine map per image, [B, 3, S, S]; bilinear, edge pixels continued."""

    def uniform(limit: float) -> Tensor:
        return (torch.rand(len(images), generator=generator) * 2 - 1) * limit

    angle = uniform(math.radians(settings.max_rotation))
    scale = torch.exp(uniform(math.log1p(settings.max_scale)))
    mirror = torch.where((torch.rand(len(images), generator=generator) < 0.5) & may_flip, -1.0, 1.0)
    shift_x, shift_y = uniform(2 * settings.max_shift), uniform(2 * settings.max_shift)  # the grid spans [-1, 1]
    cos, sin = scale * angle.cos(), scale * angle.sin()
    rows = [torch.stack([cos * mirror, -sin, shift_x], dim=1), torch.stack([sin * mirror, cos, shift_y], dim=1)]
    grid = F.affine_grid(torch.stack(rows, dim=1), list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, padding_mode="border", align_corners=False)


def measure(
    samples: Path | None = None,
    out: Path | None = None,
    *,
    epochs: int = 20,
    seed: int = 0,
    on_epoch: Callable[[EpochReport], None] | None = None,
) -> tuple[ClassAgreement, int]:
    """Train a classifier of the drawings' classes and test it on held-out drawings.

    Args:
        samples: Folder of a complete sampling run of PNG files, which alone is trained on: the classification accuracy score of
            arXiv:1905.10887; None = the training drawings.
        out: File that keeps the weights; None = they are not kept.
        epochs: Passes over the pictures.
        seed: Of weights and order.
        on_epoch: Called after each pass.

    Returns:
        What it gets right, and on how many pictures it was trained.

    Raises:
        ValueError: if the folder holds no such run.
    """
    config = ClassifierConfig(num_classes=len(EMOJI))
    if samples is None:
        images, labels = image_source("drawings:train", size=config.image_size)
    else:
        given = labels_of_run(samples)
        images, _ = image_source(str(samples))
        if any(label is None or label >= len(EMOJI) for label in given) or len(given) != len(images):
            raise ValueError(f"{samples} holds no complete run of the {len(EMOJI)} classes of drawings as PNG files")
        labels = np.array(given, np.int64)
    heldout, asked = image_source("drawings:heldout", size=config.image_size)
    assert labels is not None and asked is not None  # those of drawings are known
    model = train_classifier(
        images.array(),
        labels,
        config=config,
        may_flip=np.array(MAY_FLIP),
        settings=TrainingSettings(epochs=epochs, seed=seed),
        on_epoch=on_epoch,
    )
    top1, top5 = errors(class_probabilities(model, heldout.array()), asked)
    found = ClassAgreement(top1=float((~top1).mean()), top5=float((~top5).mean()), num_images=len(asked))
    if out is not None:
        save_classifier(model, out, {"heldout_top1": f"{found.top1:.4f}", "heldout_top5": f"{found.top5:.4f}"})
    return found, len(images)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=Path, help="train on the pictures of a sampling run alone")
    parser.add_argument("--out", type=Path, help="keep the weights in this .safetensors file")
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    options = vars(parser.parse_args())
    found, count = measure(**options, on_epoch=lambda e: print(f"epoch {e.epoch} of {e.epochs}: loss {e.loss:.3f}", flush=True))
    print(f"trained on {count:,}: top-1 {found.top1:.4f}, top-5 {found.top5:.4f} of {found.num_images} held-out drawings")


if __name__ == "__main__":
    main()
