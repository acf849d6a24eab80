"""What is trained and how: the typed content of a recipe file. Everything here is checked before anything is computed."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

from cascade.stages.noise import CosineLaw, NoiseLaw
from cascade.stages.training.ema import MAX_STD

DIFFUSION, REGRESSION = "diffusion", "regression"
PRECISIONS = {"float32": "no", "bfloat16": "bf16", "float16": "fp16"}  # and accelerate's names of them
MIXTURE = "mixture"
REDUCTIONS = ("area", "bilinear", MIXTURE)
_COUNTS = (
    "size", "images", "batch_size", "accumulate", "every", "count", "steps", "levels", "checkpoint_every", "keep_checkpoints"
)  # fmt: skip
MOST_IMAGES = 10**12 - 1
"""Of a training run: twelve digits name its checkpoints."""

_MOST = {"size": 2**14, "batch_size": 2**20, "count": 2**12, "steps": 10_000, "levels": 10_000}


@dataclass(frozen=True, kw_only=True, slots=True)
class Phase:
    """A stretch of training at one image size. Small sizes are cheap, and a convolutional network moves on unchanged.

    size: Side of the training images: whole ones, reduced by area average, for a base stage; random crops for an SR3 stage.
    images: Training images seen when the phase ends, counted from the start of training.
    batch_size: Images per step, over all processes.
    """

    size: int
    images: int
    batch_size: int = 32


@dataclass(frozen=True, kw_only=True, slots=True)
class Data:
    """The pictures that are learned, resolved by `cascade.data`.

    source: "drawings"; a folder of class folders; shards, as "set/train-*.parquet" or "set/train-*.tar"; or shards of a data set
        on the Hub, as "hub:owner/name/data/train-*.parquet", with "hub:owner/name@revision/..." those of one commit.
    crop: How a photo becomes a square of the size that is trained: "adm" or "area", see `cascade.data.crops`.
    label: Column of the class in parquet shards; None = the only one that can be it.
    classes: How many classes the pictures have; another number is an error, but where folders are named by WordNet ids, 1000 are
        all of ImageNet's, also if only some are there. None = as many as are found, 0 = their classes are not looked at, and the
        network gets none (SR3's stages).
    every: Only every n-th of the drawings, in the order of their classes; 1 = all. At 1024 px all of them fill 27 GB.
    flip: Mirror half of the images, where their class allows it.
    balanced: Show every class equally often, however few pictures it has.
    hold_out: Share of each class's photos that are not trained on, chosen by their names; they are for the validation. 0 = none.
    max_damaged: Largest share of the pictures met that may be unusable; above it the run stops.
    """

    source: str
    crop: str = "adm"
    label: str | None = None
    classes: int | None = None
    every: int = 1
    flip: bool = True
    balanced: bool = False
    hold_out: float = 0.0
    max_damaged: float = 0.1


@dataclass(frozen=True, kw_only=True, slots=True)
class Augmentation:
    """What is done to the low-resolution input of an SR3 stage in training, so that it forgives the flaws of the stage before.

    noise: Levels drawn uniformly from 0 to this (`conditioning.augment`), seen by the network; 0 = none (Ho et al. 2021, CDM).
    clean: Share of the images whose level is exactly 0: what `upscale` uses for real images, and a uniform level never is.
    blur: Largest std of a Gaussian blur in low-resolution pixels, for half of the images; 0 = none (SR3, section 2.5; CDM).
    reduction: How the small image is made of the large one: "area", "bilinear" without antialiasing (`conditioning.resize`), or
        "mixture", each for half of the images. It must be what the stage before has learned: Tiny ImageNet is aliased.
    """

    noise: float = 0.0
    clean: float = 0.0
    blur: float = 0.0
    reduction: str = "area"


@dataclass(frozen=True, kw_only=True, slots=True)
class Objective:
    """The loss. The target is the network's own `prediction_type`.

    kind: "diffusion", or "regression": SR3's baseline, whose network sees the small image only (`RegressionPipeline`). It has no
        noise levels, so that `law` and `weighting` say nothing.
    law: How noise levels are drawn.
    loss: "l2" or "l1" (SR3 table 5 prefers l1). For a regression, the least l2 is the best PSNR (of the mean error).
    l1_above: Log-SNR above which an l2 loss becomes the plain l1 one: where little is hidden, the median leaves flat areas flat
        and the mean smears them; where much is, the mean keeps what the median drops. None = nowhere.
    weighting: Of noise levels: "none", "min_snr" or "sigmoid", see `objective.weight`.
    sigmoid_bias: Of the sigmoid weighting: the log-SNR above which errors of the noise lose their weight.
    label_dropout: Share of images whose class is hidden, for classifier-free guidance.
    """

    kind: str = DIFFUSION
    law: NoiseLaw = field(default_factory=CosineLaw)
    loss: str = "l2"
    l1_above: float | None = None
    weighting: str = "none"
    sigmoid_bias: float = 0.0
    label_dropout: float = 0.1


@dataclass(frozen=True, kw_only=True, slots=True)
class Optimization:
    """How the weights move.

    optimizer: "adam", or "muon" for the hidden matrices beside Adam for the rest (`muon.Muon`; 1e-3 is a good rate for both).
    learning_rate: After the warm-up.
    warmup: Images over which the rate rises linearly from 0.
    cooldown: Share of the training, at its end, over which the rate falls linearly to 0; 0 = constant (SR3).
    betas: Of Adam: how much of the averages of gradient and squared gradient a step keeps (torch's default: 0.9, 0.999).
    weight_decay: Of AdamW, and of Muon; 0 = Adam.
    clip_norm: Largest gradient norm.
    ema_half_life: Images after which a weight's share in the moving average has halved.
    ema_ramp: The half-life is at most this share of the images seen, so that the average forgets the start.
    precision: "float32", "bfloat16" (autocast) or "float16" (autocast with a scaled loss; not on a CPU).
    accumulate: Parts that a process's share of a batch is divided into, one after the other; more of them need less memory, and
        the step stays that of the whole batch.
    gradient_checkpointing: Compute each block's inner values again in the backward pass instead of keeping them: about a third
        more work for much less memory.
    compile: Whether torch.compile translates the network's blocks first, which takes a minute or more and pays on accelerators.
    """

    optimizer: str = "adam"
    learning_rate: float = 1e-4
    warmup: int = 10_000
    cooldown: float = 0.0
    betas: tuple[float, ...] = (0.9, 0.99)
    weight_decay: float = 0.0
    clip_norm: float = 1.0
    ema_half_life: int = 500_000
    ema_ramp: float = 0.05
    precision: str = "bfloat16"
    accumulate: int = 1
    gradient_checkpointing: bool = False
    compile: bool = False


@dataclass(frozen=True, kw_only=True, slots=True)
class Samples:
    """Pictures that show how far a run has come, made with the averaged weights from seeds that stay the same.

    every: Training images between two grids.
    count: Pictures in a grid, of classes spread evenly over all.
    steps: Of the stage's sampler.
    """

    every: int = 20_000
    count: int = 16
    steps: int = 20


@dataclass(frozen=True, kw_only=True, slots=True)
class Snapshots:
    """Averages of the weights that are stored along the way; from them one of any width can be made later (`post_hoc`).

    stds: Relative widths of the averages that are tracked (EDM2, arXiv:2312.02696, section 3.2). Each takes the memory of the
        weights once more.
    every: Images between two snapshots. 16 of them are enough for an error below that of float16; all are kept.
    """

    stds: tuple[float, ...] = (0.05, 0.10)
    every: int = 100_000


@dataclass(frozen=True, kw_only=True, slots=True)
class Validation:
    """The loss on pictures that are not trained on: with the averaged weights, each time at the same noise levels and noise.

    source: The pictures, as `Data.source`; None = those that the training's own source holds out: the drawings, a folder with
        the parts of a data set, or any with `Data.hold_out`.
    images: How many of them; all, if there are fewer.
    levels: Noise levels, spread evenly over the training's law; each meets every image.
    every: Images between two validations, a divisor of `checkpoint_every`; None = one with every checkpoint.
    """

    source: str | None = None
    images: int = 256
    levels: int = 8
    every: int | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Recipe:
    """One stage's training.

    name: Names the run's folder.
    data: The pictures.
    network: Arguments of `cascade.stages.unet.UNet` but `num_classes`, which the data fixes.
    phases: At least one; sizes and images must rise.
    objective: The loss, and how noise levels are drawn for it.
    augmentation: What an SR3 stage's small images go through.
    optimization: How the weights move, at what precision, and how they are averaged.
    sampling: Default sampling settings written into the trained stage.
    samples: How often samples are made in training.
    start_from: Folder of a saved stage whose weights the training begins with; None = random ones.
    snapshots: Averages of the weights that are stored along the way; None = none but the one that the stage is made of.
    validation: The loss on held-out pictures; None = it is not measured.
    checkpoint_every: Images between two checkpoints.
    keep_checkpoints: How many of the newest checkpoints stay. With validation the one of the least loss stays beside them.
    result: Whose averaged weights become the stage: those at the end ("last") or those of the least validation loss ("best").
    seed: Fixes initial weights, order, noise and every other random choice.
    """

    name: str
    data: Data
    network: dict[str, Any]
    phases: tuple[Phase, ...]
    objective: Objective = field(default_factory=Objective)
    augmentation: Augmentation = field(default_factory=Augmentation)
    optimization: Optimization = field(default_factory=Optimization)
    sampling: dict[str, Any] = field(default_factory=dict)
    samples: Samples = field(default_factory=Samples)
    start_from: str | None = None
    snapshots: Snapshots | None = None
    validation: Validation | None = None
    checkpoint_every: int = 20_000
    keep_checkpoints: int = 2
    result: str = "last"
    seed: int = 0

    def __post_init__(self) -> None:
        for part in self.name.split("/"):
            problem = f"name is {self.name!r}, expected words with / between them: it is a folder in runs/"
            _require(part.isprintable() and part.strip() not in ("", ".", "..") and "\\" not in part, problem)
        parts: dict[str, Any] = {"": self, "optimization.": self.optimization, "samples.": self.samples}
        parts |= {"snapshots.": self.snapshots, "validation.": self.validation}
        parts |= {f"phases.{place}.": phase for place, phase in enumerate(self.phases)}
        for above, part in parts.items():
            for name in _COUNTS:
                count, most = getattr(part, name, None), _MOST.get(name, MOST_IMAGES)
                _require(count is None or count > 0, f"{above}{name} must be at least 1, got {count}")
                _require(count is None or count <= most, f"{above}{name} must be at most {most:,}, got {count}")
        ends, betas = [phase.images for phase in self.phases], list(self.optimization.betas)
        _require(bool(ends) and ends == sorted(set(ends)), f"phases must end at rising images, got {ends}")
        shares = {"augmentation noise": self.augmentation.noise, "augmentation clean": self.augmentation.clean}
        for name, share in (shares | {"cooldown": self.optimization.cooldown, "max_damaged": self.data.max_damaged}).items():
            _require(0 <= share <= 1, f"{name} must lie in [0, 1], got {share}")
        _require(0 <= self.data.hold_out < 1, f"data.hold_out must lie in [0, 1), got {self.data.hold_out}")
        classes = self.data.classes
        _require(classes is None or classes >= 0, f"data.classes must be 0, for none, or their number, got {classes}")
        _require(len(betas) == 2 and all(0 <= b < 1 for b in betas), f"betas must be two numbers in [0, 1), got {betas}")
        if self.snapshots is not None:
            stds = list(self.snapshots.stds)
            _require(0 < len(set(stds)) == len(stds), f"stds of snapshots must name different widths, got {stds}")
            _require(all(0 < std <= MAX_STD for std in stds), f"stds of snapshots must lie in (0, {MAX_STD:.4f}], got {stds}")
        accumulate, every, v = self.optimization.accumulate, self.checkpoint_every, self.validation
        for phase in self.phases:
            problem = f"accumulate {accumulate} must divide the batch_size, which is {phase.batch_size} at {phase.size} px"
            _require(phase.batch_size % accumulate == 0, problem)
        _require(self.result != "best" or v is not None, "result is 'best', which needs a validation")
        divides = v is None or v.every is None or every % v.every == 0
        _require(divides, f"validation.every must divide checkpoint_every {every}, got {v and v.every}")
        self._check_values()
        self._check_choices()

    def _check_values(self) -> None:
        """Numbers with which no training can be right."""
        o, a, j = self.optimization, self.augmentation, self.objective
        above_0 = {"learning_rate": o.learning_rate, "clip_norm": o.clip_norm, "ema_ramp": o.ema_ramp}
        from_0 = {"warmup": o.warmup, "weight_decay": o.weight_decay}
        for name, value in above_0.items():
            _require(0 < value < math.inf, f"optimization.{name} must be above 0, got {value}")
        for name, value in from_0.items():
            _require(0 <= value < math.inf, f"optimization.{name} must be at least 0, got {value}")
        _require(o.ema_half_life >= 1, f"optimization.ema_half_life must be at least 1, got {o.ema_half_life}")
        _require(0 <= a.blur < math.inf, f"augmentation.blur must be at least 0, got {a.blur}")
        _require(0 <= self.seed < 2**63, f"seed must lie in [0, 2^63), got {self.seed}")
        for name, number in {"sigmoid_bias": j.sigmoid_bias, "l1_above": j.l1_above or 0.0}.items():
            _require(math.isfinite(number), f"objective.{name} must be a number, got {number}")

    def _check_choices(self) -> None:
        o = self.objective
        choices = {"weighting": (o.weighting, ("none", "min_snr", "sigmoid")), "loss": (o.loss, ("l1", "l2"))}
        choices |= {"kind of the objective": (o.kind, (DIFFUSION, REGRESSION)), "result": (self.result, ("last", "best"))}
        choices |= {"augmentation.reduction": (self.augmentation.reduction, REDUCTIONS)}
        choices |= {"optimizer": (self.optimization.optimizer, ("adam", "muon"))}
        choices |= {"precision": (self.optimization.precision, tuple(PRECISIONS))}
        for name, (chosen, known) in choices.items():
            _require(chosen in known, f"{name} is {chosen!r}, expected one of {known}")
        _require(o.l1_above is None or o.loss == "l2", "l1_above changes an l2 loss, and loss is l1 already")
        _require(o.weighting == "sigmoid" or not o.sigmoid_bias, f"sigmoid_bias belongs to weighting sigmoid, not {o.weighting}")
        _require(0 <= o.label_dropout < 1, f"label_dropout must lie in [0, 1), got {o.label_dropout}")
        if o.kind == REGRESSION:
            _require(self.network.get("prediction_type") == "sample", "a regression needs network.prediction_type 'sample'")
            _require(self.network.get("low_res_size") is not None, "a regression enlarges images and needs network.low_res_size")
            levels = 1 if self.validation is None else self.validation.levels
            _require(o.weighting == "none", f"a regression has no noise levels: weighting must be none, got {o.weighting}")
            _require(levels == 1, f"a regression has no noise levels: validation.levels must be 1, got {levels}")
            _require(o.l1_above is None, f"a regression has no noise levels: l1_above must be left out, got {o.l1_above}")

    @property
    def total_images(self) -> int:
        return self.phases[-1].images

    @property
    def picture_size(self) -> int:
        """Side of the pictures that it is trained on: an SR3 stage makes its crops and small images from whole ones."""
        whole: int = self.network["sample_size"]
        return whole if self.network.get("low_res_size") else max(phase.size for phase in self.phases)

    def num_classes(self, found: int) -> int | None:
        """Classes that the network learns where the pictures have `found`; None = none. ValueError if it expects others."""
        expected = self.data.classes
        if expected and expected != found:
            raise ValueError(f"data.source {self.data.source!r} has {found} classes, and data.classes says {expected}")
        return None if expected == 0 else found

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
