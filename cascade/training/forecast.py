"""What a training run will cost, told before it begins: multiply-adds, memory and speed on this machine."""

from __future__ import annotations

import math
import statistics
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import psutil
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from cascade.costs import operation_counter
from cascade.data import class_names
from cascade.stages.graphs import EAGER_CALLS
from cascade.stages.training import Phase, PictureSet, Recipe, TrainingExamples
from cascade.stages.training.processes import accelerator_at, this_process
from cascade.stages.training.state import TrainingState
from cascade.stages.training.step import Stepper
from cascade.stages.unet import UNet

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
Clock = Callable[[], float]

FORWARDS = 3
"""Multiply-adds of a training step in forward passes: the backward pass takes two, for the gradients of features and weights."""

WORKING_MAPS = 10
"""Feature maps of the largest size that the backward pass needs beside what is kept for it: measured (docs/benchmarks.md)."""

TYPICAL_SHARE = 0.5
"""Of the machine's convolution rate that training reaches: measured, rounded (docs/benchmarks.md)."""

STEP_SECONDS = 2.0
CPU_BYTES = 2**30
RATE_SECONDS = 2.0
"""Longest step and, on a CPU, largest memory with which a speed is measured rather than estimated; time for the estimate."""


@dataclass(frozen=True, slots=True)
class ImageCost:
    """What one image costs: multiply-adds of one evaluation, and bytes.

    activations: What is kept for the backward pass.
    checkpointed: The same with gradient checkpointing: inputs of all blocks, and what one block keeps while it is run again.
    working: What the backward pass needs beside them.
    """

    multiply_adds: float
    activations: float
    checkpointed: float
    working: float

    def mixed(self, other: ImageCost, share: float) -> ImageCost:
        """The mean cost if a share of the images costs `other`."""
        pairs = ((getattr(self, name), getattr(other, name)) for name in self.__slots__)
        return ImageCost(*(mine + share * (its - mine) for mine, its in pairs))


@dataclass(frozen=True, slots=True)
class TrainingCost:
    """What a step of a recipe costs on one process.

    parameters: Of the network.
    evaluation: Multiply-adds of one evaluation for a whole image, as in sampling; with `coarse_below`, of a costly one.
    phase: The costliest phase, which the further figures are of.
    image: Mean cost of one of its training images.
    fixed: Bytes whatever the batch size, by what they are for.
    """

    parameters: int
    evaluation: float
    phase: Phase
    image: ImageCost
    fixed: dict[str, float]

    def memory(self, images: int, checkpointing: bool) -> float:
        """Peak bytes of a step of so many images at once, beside what the program itself takes."""
        return sum(self.fixed.values()) + images * self._bytes_of_image(checkpointing)

    def images_within(self, available: float, checkpointing: bool) -> int:
        """The largest number of images at once that this much memory allows; 0 if not even one fits."""
        return max(0, math.floor((available - sum(self.fixed.values())) / self._bytes_of_image(checkpointing)))

    def _bytes_of_image(self, checkpointing: bool) -> float:
        return (self.image.checkpointed if checkpointing else self.image.activations) + self.image.working


def training_cost(recipe: Recipe, num_classes: int | None) -> TrainingCost:
    """Count what the recipe's costliest phase needs, without running or allocating anything; None = its data has no classes.

    Multiply-adds and activations are those of torch's own operators for a CPU at the recipe's precision, run on tensors that
    have no content; accelerators keep nearly the same. Raises ValueError if the network's settings don't describe one.
    """
    dtype = DTYPES[recipe.optimization.precision]
    phase = max(recipe.phases, key=lambda phase: (phase.size, phase.batch_size))
    share = coarse_share(recipe, phase)
    with FakeTensorMode():
        network = UNet(**{**recipe.network, "coarse_below": None}, num_classes=num_classes)
        for weight in network.parameters():
            if weight.ndim == 4:  # as it is trained; the layout decides between kernels
                weight.data = weight.data.to(memory_format=torch.channels_last)
        size = network.config.sample_size
        whole = _image_cost(network, size, dtype)
        image = whole if phase.size == size else _image_cost(network, phase.size, dtype)
        if share:
            image = image.mixed(_image_cost(network, phase.size // 2, dtype), share)
        layers = [module for module in network.modules() if isinstance(module, (nn.Conv2d, nn.Linear))]
        parameters, cast = network.num_parameters(), sum(layer.weight.numel() for layer in layers) * dtype.itemsize
    averages = 1 + (0 if recipe.snapshots is None else len(recipe.snapshots.stds))
    fixed = {"weights": 4.0, "gradients": 4.0, "optimizer": 8.0, "averages": 4.0 * averages}
    fixed = {name: each * parameters for name, each in fixed.items()}
    if dtype is not torch.float32:
        fixed["casts"] = float(cast)  # copies of weights, which autocast keeps during a step
    return TrainingCost(parameters, whole.multiply_adds, phase, image, fixed)


def coarse_share(recipe: Recipe, phase: Phase) -> float:
    """Share of the phase's images that a network with `coarse_below` denoises at half their size."""
    below = recipe.network.get("coarse_below")
    if below is None or phase.size != recipe.network["sample_size"]:
        return 0.0
    u = (torch.arange(10_000, dtype=torch.float64) + 0.5) / 10_000
    return (recipe.objective.law.log_snr(u) < below).double().mean().item()


def _image_cost(network: Any, size: int, dtype: torch.dtype) -> ImageCost:
    """One image of this size through a network of fake tensors."""
    low_res_size = network.config.low_res_size
    low_res = None if low_res_size is None else torch.empty(1, 3, *[size * low_res_size // network.config.sample_size] * 2)
    labels = None if network.num_classes is None else torch.zeros(1, dtype=torch.long)
    inputs = (torch.empty(1, 3, size, size), torch.empty(1), labels, low_res)
    with operation_counter() as counter, torch.autocast("cpu", dtype, enabled=dtype is not torch.float32):
        kept, checkpointed, largest = _kept(network, inputs)
    return ImageCost(counter.get_total_flops() / 2, kept, checkpointed, WORKING_MAPS * largest)


def _kept(network: Any, inputs: tuple[Tensor | None, ...]) -> tuple[int, int, int]:
    """Bytes that autograd keeps of a forward pass; the same with gradient checkpointing; and those of the largest storage.

    With checkpointing, blocks keep their inputs only, and each in turn the rest.
    """
    alive: list[torch.UntypedStorage] = []  # an address names a storage only as long as that lives
    given: dict[int, int] = {}
    kept: dict[int, tuple[int, nn.Module | None]] = {}
    running: nn.Module | None = None

    def address_and_size(tensor: Tensor) -> tuple[int, int]:
        alive.append(tensor.untyped_storage())
        return int(alive[-1]._cdata), alive[-1].nbytes()

    def pack(tensor: Tensor) -> Tensor:
        address, size = address_and_size(tensor)
        if address not in weights and tensor.shape not in shapes:  # nor a weight in a narrower number type
            kept.setdefault(address, (size, running))
        return tensor

    def run(block: nn.Module, *tensors: Tensor) -> Any:
        nonlocal running
        given.update(map(address_and_size, tensors))
        running = block
        output = block(*tensors)
        running = None
        return output

    weights, shapes = dict(map(address_and_size, network.parameters())), {weight.shape for weight in network.parameters()}
    network.enable_gradient_checkpointing(run)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        network(*inputs)
    within: Counter[nn.Module | None] = Counter()
    for address, (size, block) in kept.items():
        within[block] += 0 if address in given else size
    between, sizes = sum(given.values()) + within.pop(None, 0), [size for size, _ in kept.values()]
    return sum(sizes), between + max(within.values(), default=0), max(sizes, default=0)


@dataclass(frozen=True, slots=True)
class Forecast:
    """What a recipe's training run will cost on this machine.

    num_classes: That its network will tell apart; None = it takes no class.
    missing: Why the pictures, which tell how many classes there are, can't be looked at; None = they can.
    cost: Of a step.
    device: Where it would run: "cpu", "cuda" ...
    memory: Bytes that the device has in all.
    speed: Of one process.
    seconds: Of the whole run in one process.
    """

    num_classes: int | None
    missing: str | None
    cost: TrainingCost
    device: str
    memory: float
    speed: Speed
    seconds: float


def forecast(recipe: Recipe) -> Forecast:
    """What `cascade train --dry-run` tells; takes seconds, and nothing is trained or written.

    Pictures that are not on this machine are not a mistake: the number of classes is the recipe's then. Raises ValueError if the
    recipe contradicts its pictures, or its network can't be built.
    """
    try:
        found, missing = len(class_names(recipe.data)), None
    except (ValueError, OSError) as error:
        num_classes, missing = recipe.data.classes or None, str(error)
    else:
        num_classes = recipe.num_classes(found)
    cost, device = training_cost(recipe, num_classes), this_process().device
    speed = training_speed(recipe, num_classes, cost)
    seconds = recipe.total_images / speed.images_per_second
    return Forecast(num_classes, missing, cost, device.type, _memory(device)[1], speed, seconds)


def fitting_accumulate(batch_size: int, accumulate: int, images: int) -> int | None:
    """The least `optimization.accumulate`, from the present one on, whose parts of a batch have at most so many images."""
    parts = range(accumulate, batch_size + 1)
    return next((n for n in parts if batch_size % n == 0 and batch_size // n <= images), None)


@dataclass(frozen=True, slots=True)
class Speed:
    """How fast one process of this machine trains.

    images_per_second: Data preparation included where it was measured, reading pictures never.
    measured_with: Images of the steps that were timed; None = estimated from the convolution rate.
    convolution_rate: What a plain convolution reaches at the recipe's precision, floating-point operations per second.
    """

    images_per_second: float
    measured_with: int | None
    convolution_rate: float


def training_speed(recipe: Recipe, num_classes: int | None, cost: TrainingCost) -> Speed:
    """Time a few steps of the real network where that takes seconds, else estimate it from the machine's convolution rate."""
    o, device = recipe.optimization, this_process().device
    rate = convolution_rate(DTYPES[o.precision], device)
    passes = FORWARDS + o.gradient_checkpointing
    seconds = 2 * passes * cost.image.multiply_adds / (rate * TYPICAL_SHARE)
    limit = CPU_BYTES if device.type == "cpu" else _memory(device)[0] / 2
    share = cost.phase.batch_size // o.accumulate
    images = min(share, math.floor(STEP_SECONDS / seconds), cost.images_within(limit, o.gradient_checkpointing))
    if images < 1 or (device.type == "cpu" and o.precision == "float16"):
        return Speed(1 / seconds, None, rate)
    seconds = median_seconds(real_step(recipe, num_classes, cost.phase, images), repeats=3, limit=4 * STEP_SECONDS)
    return Speed(images / seconds, images, rate)


def seconds_per_image(recipe: Recipe, num_classes: int | None, phase: Phase) -> float:
    """What an image of a phase takes this process in training, data preparation included, from a few real steps."""
    images = phase.batch_size // this_process().num_processes // recipe.optimization.accumulate
    one = real_step(recipe, num_classes, phase, images)
    for _ in range(EAGER_CALLS if this_process().device.type == "cuda" else 0):
        one()  # before steps are recorded
    return median_seconds(one, repeats=3, limit=STEP_SECONDS) / (images * this_process().num_processes)


def real_step(recipe: Recipe, num_classes: int | None, phase: Phase, images: int) -> Callable[[], None]:
    """What takes one step of the recipe on so many pictures of noise: data preparation, optimizer and averages included."""
    optimization = replace(recipe.optimization, accumulate=1, compile=False)
    recipe = replace(recipe, optimization=optimization, phases=(replace(phase, batch_size=images),), start_from=None)
    recipe = replace(recipe, snapshots=None, validation=None, result="last")
    pixels = np.random.default_rng(0).integers(0, 256, (images, *[recipe.network["sample_size"]] * 2, 3), dtype=np.uint8)
    accelerator = accelerator_at(recipe.optimization.precision)
    with TemporaryDirectory() as folder:
        state = TrainingState.begin(recipe, num_classes or 1, Path(folder), accelerator, lambda message: None)
    pictures = PictureSet(pixels, np.zeros(images, np.int64), ("noise",), (True,))
    examples = TrainingExamples(pictures, recipe, recipe.phases[0], state.network.null_label)

    stepper = Stepper(state, lambda message: None)

    def one() -> None:
        stepper([examples.read(range(state.images_seen, state.images_seen + images))], examples)
        state.images_seen += images
        state.ema.update(state.network, state.images_seen, images)
        synchronize(accelerator.device)

    return one


def median_seconds(call: Callable[[], Any], repeats: int = 9, limit: float = math.inf, clock: Clock = time.perf_counter) -> float:
    """Median time of so many calls, or of those that begin within `limit` seconds, after one that is not counted."""
    end = clock() + limit
    call()
    times: list[float] = []
    while not times or (len(times) < repeats and clock() < end):
        start = clock()
        call()
        times.append(clock() - start)
    return statistics.median(times)


def convolution_rate(dtype: torch.dtype, device: torch.device, clock: Clock = time.perf_counter) -> float:
    """Floating-point operations per second of a plain convolution: 256 channels, 3x3, maps of 32x32, channels_last.

    A batch of 4 on a CPU, of 256 elsewhere.
    """
    images = 4 if device.type == "cpu" else 256
    x = torch.randn(images, 256, 32, 32, dtype=dtype, device=device).to(memory_format=torch.channels_last)
    weight = torch.randn(256, 256, 3, 3, dtype=dtype, device=device).to(memory_format=torch.channels_last)

    @torch.no_grad()
    def convolve() -> None:
        F.conv2d(x, weight, padding=1)
        synchronize(device)

    return 2 * 9 * 256 * 256 * images * 32 * 32 / median_seconds(convolve, limit=RATE_SECONDS, clock=clock)


def synchronize(device: torch.device) -> None:
    """Wait for the work of an accelerator."""
    if device.type != "cpu":
        torch.accelerator.synchronize(device)


def _memory(device: torch.device) -> tuple[int, int]:
    """Bytes of the accelerator, or of the machine for a CPU: those that nothing uses at the moment, and all."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)
    memory = psutil.virtual_memory()
    return memory.available, memory.total
