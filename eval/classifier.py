"""A small classifier of labelled drawings, which tells whether a picture shows the class it was asked for."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn
from torch.nn import functional as F

from cascade.eval.files import complete
from cascade.eval.images import BATCH, Images, area_downsample

SHIPPED_WEIGHTS = Path(__file__).parent / "weights" / "drawings_classifier.safetensors"


@dataclass(frozen=True, kw_only=True)
class ClassifierConfig:
    """What is needed to build the network again; stored in the weights file."""

    num_classes: int
    image_size: int = 64  # side of the square input in pixels
    widths: tuple[int, ...] = (32, 64, 128, 256)  # channels of each level, the first at half the image size
    blocks: tuple[int, ...] = (1, 2, 2, 1)  # residual blocks of each level


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
        x = F.avg_pool2d(x, self.stride, ceil_mode=True) if self.stride > 1 else x
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


@torch.inference_mode()
def class_probabilities(model: DrawingClassifier, images: Images) -> NDArray[np.float64]:
    """Probability that the classifier gives to each class, [N, num_classes]; images and errors as of `network_input`."""
    device = next(model.parameters()).device
    batches = network_input(images, model.config.image_size).split(BATCH)
    return np.concatenate([model(batch.to(device)).double().softmax(dim=1).cpu().numpy() for batch in batches])


def errors(probabilities: NDArray[np.float64], asked: NDArray[np.int64]) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """For each image whether the asked class is not the most probable one, and whether it is not one of the five most probable.

    A class that ties with the asked one counts against it, so a classifier that says nothing agrees with nothing. Takes
    [N, num_classes] and [N], gives two arrays [N], whose means are the top-1 and the top-5 error; errors as of `checked_labels`.
    """
    labels = checked_labels(asked, len(probabilities), probabilities.shape[1]).numpy()
    of_asked = probabilities[np.arange(len(labels)), labels]
    rank = (probabilities >= of_asked[:, None]).sum(axis=1)  # 1 = the asked class alone is the most probable
    return rank > 1, rank > 5


def save_classifier(model: DrawingClassifier, path: Path, facts: dict[str, str]) -> None:
    """Write float16 weights as safetensors, whole or not at all, with the network's config and `facts` (accuracy) as metadata."""
    state = {name: value.half() if value.is_floating_point() else value for name, value in model.state_dict().items()}
    metadata = {**facts, "config": json.dumps(asdict(model.config))}
    with complete(path) as file:
        file.write(save({name: value.contiguous() for name, value in state.items()}, metadata=metadata))


def load_classifier(path: Path = SHIPPED_WEIGHTS) -> tuple[DrawingClassifier, dict[str, str]]:
    """A classifier in eval mode, float32 on the CPU, and the file's metadata, the shipped one's held-out accuracy among them.

    Raises ValueError if the file is missing, or does not hold the weights of a classifier.
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
        model.load_state_dict(tensors)  # copied into float32
    except (OSError, KeyError, TypeError, RuntimeError, json.JSONDecodeError, SafetensorError) as error:
        raise ValueError(f"{path} is not a classifier written by `save_classifier`, or is damaged: {error}") from error
    return model.eval(), facts


def network_input(images: Images, size: int) -> Tensor:
    """uint8 RGB [N, S, S, 3], S a multiple of `size`, area-averaged to float [N, 3, size, size] in [-1, 1]; else ValueError."""
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[3] != 3 or len(images) == 0:
        raise ValueError(f"images are {images.dtype} of shape {images.shape}, expected uint8 [N, S, S, 3] with N > 0")
    return (torch.from_numpy(area_downsample(images, size)) / 127.5 - 1).permute(0, 3, 1, 2).contiguous()


def checked_labels(labels: NDArray[np.int64], num_images: int, num_classes: int) -> Tensor:
    """The labels, int64 [num_images]. Raises ValueError unless there is one in [0, num_classes) per image."""
    if labels.shape != (num_images,) or num_images == 0:
        raise ValueError(f"labels have shape {labels.shape}, expected one for each of the {num_images} images")
    if labels.min() < 0 or labels.max() >= num_classes:
        raise ValueError(f"labels must lie in 0 ... {num_classes - 1}, got {labels.min()} ... {labels.max()}")
    return torch.from_numpy(labels.astype(np.int64))
