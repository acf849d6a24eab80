"""What a sampling run makes: how many images, of which classes and seeds, and which process makes which."""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass
from typing import Literal, get_args

LabelRule = Literal["balanced", "random"]
FileFormat = Literal["png", "shards", "npz"]

MOST_IMAGES = 10_000_000
MOST_PROCESSES = 8  # that share a run on a CPU where nobody says how many


@dataclass(frozen=True, kw_only=True)
class RunPlan:
    """What a run makes.

    num_images: How many images.
    size: Side of the images in pixels, of the last stage that runs.
    num_classes: Classes of the model; None = it knows none.
    seed: Image i has seed `seed + i`.
    labels: "balanced": image i has class i mod num_classes. "random": a class drawn from SHA-256 of "seed/label/i". A list: the
        class of every image; its entries go round if there are more images.
    format: "png": files 000000.png ...; "shards": tar files of 1,000 images in WebDataset's layout; "npz": one file as OpenAI's
        evaluator reads it, `arr_0` uint8 [N, S, S, 3] and the classes as `arr_1`.
    batch_size: Images that go through a network at once.
    """

    num_images: int
    size: int
    num_classes: int | None
    seed: int = 0
    labels: LabelRule | tuple[int, ...] = "balanced"
    format: FileFormat = "png"
    batch_size: int = 1

    def __post_init__(self) -> None:
        for name in ("num_images", "batch_size"):
            if not 1 <= getattr(self, name) <= MOST_IMAGES:
                raise ValueError(f"{name} must be at least 1 and at most {MOST_IMAGES:,} in a run, got {getattr(self, name)}")
        if self.format not in get_args(FileFormat):
            raise ValueError(f"format is {self.format!r}, expected one of {', '.join(get_args(FileFormat))}")
        if isinstance(self.labels, str) and self.labels not in get_args(LabelRule):
            raise ValueError(f"labels is {self.labels!r}, expected one of {', '.join(get_args(LabelRule))}")
        classes = set(range(self.num_classes or 0))
        if not isinstance(self.labels, str) and not (self.labels and classes.issuperset(self.labels)):
            raise ValueError(f"labels must be classes in 0 to {(self.num_classes or 0) - 1}, at least one")

    def label(self, index: int) -> int | None:
        """Class of an image; None for a model without classes."""
        if self.num_classes is None:
            return None
        if not isinstance(self.labels, str):
            return self.labels[index % len(self.labels)]
        if self.labels == "balanced":
            return index % self.num_classes
        digest = hashlib.sha256(f"{self.seed}/label/{index}".encode()).digest()
        return int.from_bytes(digest[:8], "big") % self.num_classes

    def blocks(self) -> list[range]:
        """Images that are made together."""
        starts = range(0, self.num_images, self.batch_size)
        return [range(start, min(start + self.batch_size, self.num_images)) for start in starts]


@dataclass(frozen=True)
class Place:
    """Which of how many processes this is; blocks with `block mod world_size == rank` are its own."""

    rank: int = 0
    world_size: int = 1

    @classmethod
    def from_environment(cls) -> Place:
        """As torchrun and accelerate say it in RANK and WORLD_SIZE, alone without them; ValueError if it can't be."""
        rank, world_size = os.environ.get("RANK", "0"), os.environ.get("WORLD_SIZE", "1")
        if not (rank.isdecimal() and world_size.isdecimal() and int(rank) < int(world_size)):
            raise ValueError(
                f"the environment has RANK={rank} and WORLD_SIZE={world_size}, expected numbers with RANK below WORLD_SIZE, as"
                " torchrun and accelerate set them"
            )
        return cls(int(rank), int(world_size))
