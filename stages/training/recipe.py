"""What is trained and how: the typed content of a recipe file. Everything here is checked before anything is computed."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from stages.noise import CosineLaw, NoiseLaw

LOSSES = ("l1", "l2")
WEIGHTINGS = ("none", "min_snr")
PRECISIONS = ("float32", "bfloat16")


@dataclass(frozen=True, kw_only=True, slots=True)
class Phase:
    """A stretch of training at one image size. Small sizes are cheap, and a convolutional network moves on unchanged.

    size: Side of the training images: whole ones, reduced by area average, for a base stage; random crops for an SR3 stage.
    images: Training images seen when the phase ends, counted from the start of training.
    batch_size: Images a step, over all processes.
    """

    size: int
    images: int
    batch_size: int = 32


@dataclass(frozen=True, kw_only=True, slots=True)
class Augmentation:
    """What is done to the low-resolution input of an SR3 stage in training, so that it forgives the flaws of the stage before.

    noise: Levels drawn uniformly from 0 to this (`conditioning.augment`), seen by the network; 0 = none (Ho et al. 2021, CDM).
    blur: Largest std of a Gaussian blur in low-resolution pixels, for half of the images; 0 = none (SR3, section 2.5; CDM).
    """

    noise: float = 0.0
    blur: float = 0.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Objective:
    """The loss. The target is the network's own `prediction_type`.

    law: How noise levels are drawn.
    loss: "l2" or "l1" (SR3 table 5 prefers l1).
    weighting: Of noise levels: "none" or "min_snr", see `objective.weight`.
    label_dropout: Share of images whose class is hidden, for classifier-free guidance.
    """

    law: NoiseLaw = field(default_factory=CosineLaw)
    loss: str = "l2"
    weighting: str = "none"
    label_dropout: float = 0.1


@dataclass(frozen=True, kw_only=True, slots=True)
class Optimization:
    """How the weights move.

    learning_rate: Of Adam, after the warm-up.
    warmup: Images over which the rate rises linearly from 0.
    cooldown: Share of the training, at its end, over which the rate falls linearly to 0; 0 = constant (SR3).
    weight_decay: Of AdamW; 0 = Adam.
    clip_norm: Largest gradient norm.
    ema_half_life: Images after which a weight's share in the moving average has halved.
    ema_ramp: The half-life is at most this share of the images seen, so that the average forgets the start.
    precision: "bfloat16" (autocast) or "float32".
    """

    learning_rate: float = 1e-4
    warmup: int = 10_000
    cooldown: float = 0.0
    weight_decay: float = 0.0
    clip_norm: float = 1.0
    ema_half_life: int = 500_000
    ema_ramp: float = 0.05
    precision: str = "bfloat16"


@dataclass(frozen=True, kw_only=True, slots=True)
class Recipe:
    """One stage's training.

    name: Names the run's folder.
    data: Name of the data set, resolved by the command line: "drawings", or a folder of class folders.
    network: Arguments of `stages.unet.UNet` but `num_classes`, which the data fixes.
    phases: At least one; sizes and images must rise.
    sampling: Default sampling settings written into the trained stage.
    flip: Mirror half of the images, where their class allows it.
    checkpoint_every: Images between two checkpoints.
    seed: Fixes initial weights, order, noise and every other random choice.
    """

    name: str
    data: str
    network: dict[str, Any]
    phases: tuple[Phase, ...]
    objective: Objective = field(default_factory=Objective)
    augmentation: Augmentation = field(default_factory=Augmentation)
    optimization: Optimization = field(default_factory=Optimization)
    sampling: dict[str, Any] = field(default_factory=dict)
    flip: bool = True
    checkpoint_every: int = 20_000
    seed: int = 0

    def __post_init__(self) -> None:
        ends = [phase.images for phase in self.phases]
        _require(bool(ends) and ends == sorted(set(ends)) and ends[0] > 0, f"phases must end at rising images, got {ends}")
        _require(all(p.batch_size > 0 and p.size > 0 for p in self.phases), "size and batch_size of a phase must be positive")
        _require(self.objective.loss in LOSSES, f"loss is {self.objective.loss!r}, expected one of {LOSSES}")
        weighting = self.objective.weighting
        _require(weighting in WEIGHTINGS, f"weighting is {weighting!r}, expected one of {WEIGHTINGS}")
        precision = self.optimization.precision
        _require(precision in PRECISIONS, f"precision is {precision!r}, expected one of {PRECISIONS}")
        _require(0 <= self.objective.label_dropout < 1, f"label_dropout must lie in [0, 1), got {self.objective.label_dropout}")
        _require(0 <= self.augmentation.noise <= 1, f"augmentation noise must lie in [0, 1], got {self.augmentation.noise}")
        _require(0 <= self.optimization.cooldown <= 1, f"cooldown must lie in [0, 1], got {self.optimization.cooldown}")
        _require(self.checkpoint_every > 0, f"checkpoint_every must be positive, got {self.checkpoint_every}")

    @property
    def total_images(self) -> int:
        return self.phases[-1].images

    def phase_at(self, images_seen: int) -> Phase:
        """The phase that the next image belongs to; the last one once training is over."""
        return next((phase for phase in self.phases if images_seen < phase.images), self.phases[-1])

    def learning_rate_at(self, images_seen: int) -> float:
        """Rate of the step that starts after `images_seen` images: linear warm-up, constant, linear cooldown."""
        o = self.optimization
        warm = min(1.0, (images_seen + 1) / o.warmup) if o.warmup else 1.0
        left = 1 - images_seen / self.total_images
        return o.learning_rate * warm * (min(1.0, left / o.cooldown) if o.cooldown else 1.0)


def _require(condition: bool, problem: str) -> None:
    if not condition:
        raise ValueError(f"this recipe can't be trained: {problem}")
