"""A small classifier of labelled drawings, which tells whether a picture shows the class it was asked for."""

import json
import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn
from torch.nn import functional as F

from cascade.eval.images import area_downsample

SHIPPED_WEIGHTS = Path(__file__).parent / "weights" / "drawings_classifier.safetensors"


@dataclass(frozen=True, kw_only=True)
class ClassifierConfig:
    """What is needed to build the network again; stored in the weights file."""

    num_classes: int
    image_size: int = 64                                # side of the square input in pixels
    widths: tuple[int, ...] = (32, 64, 128, 256)        # channels of each level, the first at half the image size
    blocks: tuple[int, ...] = (1, 2, 2, 1)              # residual blocks of each level


@dataclass(frozen=True, kw_only=True)
class TrainingSettings:
    """How the classifier is trained: AdamW under one cosine with a linear warm-up over the first twentieth."""

    epochs: int = 20
    batch_size: int = 64
    learning_rate: float = 2e-3
    weight_decay: float = 0.05
    label_smoothing: float = 0.1
    max_shift: float = 0.10                             # share of the image side, both ways
    max_scale: float = 0.15                             # enlarged or shrunk by at most this share
    max_rotation: float = 10.0                          # degrees, both ways
    seed: int = 0


@dataclass(frozen=True, kw_only=True)
class ClassAgreement:
    """Share of images for which the classifier names the asked class first, or among its first five."""

    top1: float
    top5: float
    num_images: int
    top1_of_class: dict[int, float]                     # top-1 share of each class that was asked for


@dataclass(frozen=True, kw_only=True)
class EpochReport:
    """What `train_classifier` tells after each epoch."""

    epoch: int                                          # 1 ... epochs
    epochs: int
    loss: float                                         # mean smoothed cross-entropy of the epoch, in nats


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions with batch normalisation and a skip; the first may halve the size and change the width."""

    def __init__(self, width_in: int, width_out: int, stride: int):
        super().__init__()
        self.conv1 = nn.Conv2d(width_in, width_out, 3, stride, 1, bias=False)
        self.norm1 = nn.BatchNorm2d(width_out)
        self.conv2 = nn.Conv2d(width_out, width_out, 3, 1, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(width_out)
        changes = stride != 1 or width_in != width_out
        self.skip = nn.Conv2d(width_in, width_out, 1, bias=False) if changes else nn.Identity()
        self.stride = stride

    def forward(self, x: Tensor) -> Tensor:
        h = self.norm2(self.conv2(F.relu(self.norm1(self.conv1(x)))))
        x = F.avg_pool2d(x, self.stride) if self.stride > 1 else x
        return F.relu(h + self.skip(x))


class DrawingClassifier(nn.Module):
    """A residual network of a million or so parameters for square images.

    Takes float images in [-1, 1], [B, 3, image_size, image_size]; gives logits, [B, num_classes].
    """

    def __init__(self, config: ClassifierConfig):
        super().__init__()
        self.config = config
        self.stem = nn.Conv2d(3, config.widths[0], 5, 2, 2, bias=False)
        self.norm = nn.BatchNorm2d(config.widths[0])
        layers: list[nn.Module] = []
        width = config.widths[0]
        for level, (next_width, blocks) in enumerate(zip(config.widths, config.blocks, strict=True)):
            for block in range(blocks):
                layers.append(ResidualBlock(width, next_width, stride=2 if level and block == 0 else 1))
                width = next_width
        self.layers = nn.Sequential(*layers)
        self.head = nn.Linear(width, config.num_classes)

    def forward(self, x: Tensor) -> Tensor:
        h = self.layers(F.relu(self.norm(self.stem(x))))
        return self.head(h.mean(dim=(2, 3)))


def train_classifier(
    images: NDArray[np.uint8],
    labels: NDArray[np.int64],
    *,
    config: ClassifierConfig,
    may_flip: NDArray[np.bool_],
    settings: TrainingSettings | None = None,
    device: str = "cpu",
    on_epoch: Callable[[EpochReport], None] | None = None,
) -> DrawingClassifier:
    """Train a classifier from nothing on labelled images.

    Images are turned, scaled, shifted and, where their class permits it, mirrored at random; borders continue the edge
    pixels. Runs in bfloat16 autocast. The same seed gives the same weights on the same machine and thread count.

    Args:
        images: uint8 RGB, [N, S, S, 3], S = `config.image_size` or a multiple of it (area-averaged down).
        labels: class of each image in [0, num_classes), [N].
        config: what network to build.
        may_flip: per class, whether a mirrored image still shows that class, [num_classes].
        settings: how to train; None means the defaults of `TrainingSettings`.
        device: where to train, as torch names it.
        on_epoch: called after each epoch with an `EpochReport`; None means silence.

    Returns:
        The trained network in eval mode, on the CPU, in float32.

    Raises:
        ValueError: if images, labels and config don't fit together.
    """
    settings = settings or TrainingSettings()
    small = _network_input(images, config.image_size)
    targets = _checked_labels(labels, len(images), config.num_classes)
    if may_flip.shape != (config.num_classes,):
        raise ValueError(f"may_flip has shape {may_flip.shape}, expected ({config.num_classes},), one flag per class")
    flips = torch.from_numpy(may_flip.astype(bool))[targets]

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(settings.seed)
        model = DrawingClassifier(config).train()
    model.to(device=device, memory_format=torch.channels_last)  # type: ignore[call-overload]  # torch's stubs lack this pair
    generator = torch.Generator().manual_seed(settings.seed)
    steps_per_epoch = math.ceil(len(small) / settings.batch_size)
    optimizer, schedule = _optimizer(model, settings, settings.epochs * steps_per_epoch)
    for epoch in range(1, settings.epochs + 1):
        total = 0.0
        for index in torch.randperm(len(small), generator=generator).split(settings.batch_size):
            batch = _augment(small[index], flips[index], settings, generator)
            with torch.autocast(torch.device(device).type, torch.bfloat16):
                logits = model(batch.to(device, memory_format=torch.channels_last))
            loss = F.cross_entropy(logits.float(), targets[index].to(device), label_smoothing=settings.label_smoothing)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            total += loss.item() * len(index)
        if on_epoch:
            on_epoch(EpochReport(epoch=epoch, epochs=settings.epochs, loss=total / len(small)))
    return model.cpu().eval()


@torch.inference_mode()
def class_probabilities(
    model: DrawingClassifier, images: NDArray[np.uint8], batch_size: int = 64
) -> NDArray[np.float64]:
    """Probability that the classifier gives to each class.

    Args:
        model: a trained classifier.
        images: uint8 RGB, [N, S, S, 3], S = the model's image size or a multiple of it (area-averaged down).
        batch_size: images per network evaluation; does not change the result beyond rounding.

    Returns:
        Probabilities that sum to 1 over classes, [N, num_classes].

    Raises:
        ValueError: if the images have another shape or type.
    """
    device = next(model.parameters()).device
    batches = _network_input(images, model.config.image_size).split(batch_size)
    return np.concatenate([model(batch.to(device)).double().softmax(dim=1).cpu().numpy() for batch in batches])


def errors(probabilities: NDArray[np.float64], asked: NDArray[np.int64]) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """For each image whether the asked class is not the most probable one, and whether not one of the five most probable.

    A class that ties with the asked one counts against it, so a classifier that says nothing agrees with nothing.

    Args:
        probabilities: of each class for each image, [N, num_classes].
        asked: the class that each image was meant to show, [N].

    Returns:
        Two arrays [N]; their means are the top-1 and the top-5 error.

    Raises:
        ValueError: if there is no image, or asked labels don't fit the probabilities.
    """
    labels = _checked_labels(asked, len(probabilities), probabilities.shape[1]).numpy()
    of_asked = probabilities[np.arange(len(labels)), labels]
    rank = (probabilities >= of_asked[:, None]).sum(axis=1)     # 1 = the asked class alone is the most probable
    return rank > 1, rank > 5


def class_agreement(probabilities: NDArray[np.float64], asked: NDArray[np.int64]) -> ClassAgreement:
    """How often the asked class is the most probable one, or one of the five most probable: 1 less the mean `errors`.

    Arguments and errors as of `errors`.
    """
    wrong1, wrong5 = errors(probabilities, asked)
    return ClassAgreement(
        top1=float((~wrong1).mean()),
        top5=float((~wrong5).mean()),
        num_images=len(asked),
        top1_of_class={int(label): float((~wrong1[asked == label]).mean()) for label in np.unique(asked)},
    )


def save_classifier(model: DrawingClassifier, path: Path, facts: dict[str, str]) -> None:
    """Write float16 weights as safetensors, with the network's config and `facts` (accuracy, training) as metadata.

    The file is written beside its place first and moved there, so that `path` is never half-written.
    """
    tensors = {
        name: (value.half() if value.is_floating_point() else value).contiguous()
        for name, value in model.state_dict().items()
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    partial.write_bytes(save(tensors, metadata={**facts, "config": json.dumps(asdict(model.config))}))
    partial.replace(path)


def load_classifier(path: Path = SHIPPED_WEIGHTS) -> tuple[DrawingClassifier, dict[str, str]]:
    """Read a classifier and the facts stored with it.

    Returns:
        The network in eval mode, float32 on the CPU, and the file's metadata; for the shipped one, `heldout_top1` and
        `heldout_top5` among them.

    Raises:
        ValueError: if the file is missing, or is not the weights of a classifier.
    """
    if not path.is_file():
        raise ValueError(f"no classifier weights at {path}; give the path of a file written by `save_classifier`")
    try:
        with safe_open(path, framework="pt") as file:
            facts = dict(file.metadata() or {})
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
        stored = json.loads(facts.pop("config"))
        stored |= {name: tuple(stored[name]) for name in ("widths", "blocks")}
        model = DrawingClassifier(ClassifierConfig(**stored))
        model.load_state_dict({name: v.float() if v.is_floating_point() else v for name, v in tensors.items()})
    except (OSError, KeyError, TypeError, RuntimeError, json.JSONDecodeError, SafetensorError) as error:
        raise ValueError(f"{path} is not a classifier written by `save_classifier`, or is damaged: {error}") from error
    return model.eval(), facts


def _network_input(images: NDArray[np.uint8], size: int) -> Tensor:
    """uint8 [N, S, S, 3] -> float [N, 3, size, size] in [-1, 1], area-averaged if S is a multiple of size."""
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[3] != 3 or len(images) == 0:
        raise ValueError(f"images are {images.dtype} of shape {images.shape}, expected uint8 [N, S, S, 3] with N > 0")
    side = images.shape[1]
    if images.shape[2] != side or side % size:
        raise ValueError(
            f"images are {images.shape[2]}x{side}, but this classifier looks at {size}x{size}"
            f" and needs squares whose side is a multiple of {size}"
        )
    return (torch.from_numpy(area_downsample(images, size)) / 127.5 - 1).permute(0, 3, 1, 2).contiguous()


def _checked_labels(labels: NDArray[np.int64], num_images: int, num_classes: int) -> Tensor:
    if labels.shape != (num_images,) or num_images == 0:
        raise ValueError(f"labels have shape {labels.shape}, expected one for each of the {num_images} images")
    if labels.min() < 0 or labels.max() >= num_classes:
        raise ValueError(f"labels must lie in 0 ... {num_classes - 1}, got {labels.min()} ... {labels.max()}")
    return torch.from_numpy(labels.astype(np.int64))


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
    shift_x, shift_y = uniform(2 * settings.max_shift), uniform(2 * settings.max_shift)     # the grid spans [-1, 1]
    cos, sin = scale * angle.cos(), scale * angle.sin()
    rows = [torch.stack([cos * mirror, -sin, shift_x], dim=1), torch.stack([sin * mirror, cos, shift_y], dim=1)]
    grid = F.affine_grid(torch.stack(rows, dim=1), list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, padding_mode="border", align_corners=False)
