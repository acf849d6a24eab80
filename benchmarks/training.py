"""Training throughput of the emoji recipes beside diffusers' own way: `python benchmarks/training.py [--rounds 7]`.

Prints Markdown. Each recipe's last phase is trained step by step in turns with its peer, and with a plain convolution by which
the machine's rate is known (ABCABC...), so that a machine that others use is fair to all; the medians are compared.

The peer is written in the way of diffusers' unconditional training example: `UNet2DModel` with the widths of that example scaled
to the recipe's number of parameters, `DDPMScheduler.add_noise`, mean squared error of the noise, accelerate, AdamW, a cosine rate
with warm-up, `EMAModel`. It gets what makes it the same task: class embedding with dropped labels, the recipe's image size, batch
size and precision, flips, and for an SR3 stage the bicubically enlarged small image as three more channels. Both prepare their
batch from pictures in memory, within the time that is measured.

With one thread on a CPU the time is the process's own CPU time, which others on the machine can't lengthen by waiting.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from accelerate import Accelerator
from cascade.costs import operation_counter
from cascade.files import CONFIGS
from cascade.stages.training import Recipe
from cascade.stages.training.processes import this_process
from cascade.stages.training.recipe import PRECISIONS
from cascade.training.forecast import DTYPES, FORWARDS, convolution_rate, real_step, synchronize, training_cost
from cascade.training.recipes import load_recipe
from diffusers import DDPMScheduler, UNet2DModel
from diffusers.optimization import get_scheduler
from diffusers.training_utils import EMAModel

RECIPES = ("emoji/base64", "emoji/sr256")
NUM_CLASSES = 75
EXAMPLE_WIDTHS = (1, 1, 2, 2, 4, 4)
"""Of the example's network, in units of its 128 channels; its last level but one attends."""


@dataclass(frozen=True, slots=True)
class Side:
    """One of the two that are compared: parameters, mean multiply-adds of an image's evaluation, and what takes a step."""

    parameters: int
    multiply_adds: float
    step: Callable[[], None]


def ours(recipe: Recipe) -> Side:
    cost = training_cost(recipe, NUM_CLASSES)
    step = real_step(recipe, NUM_CLASSES, recipe.phases[-1], recipe.phases[-1].batch_size)
    return Side(cost.parameters, cost.image.multiply_adds, step)


Batches = Callable[[], tuple[torch.Tensor, torch.Tensor, torch.Tensor]]


def peer(recipe: Recipe, batch_of: Batches | None = None) -> Side:
    """The same task in the way of diffusers' example, on batches as `_Batches` gives them, which it does where none are given."""
    torch.manual_seed(recipe.seed)
    phase, o = recipe.phases[-1], recipe.optimization
    network = peer_network(recipe, training_cost(recipe, NUM_CLASSES).parameters)
    accelerator = Accelerator(mixed_precision=PRECISIONS[o.precision])
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-4, betas=(0.95, 0.999), weight_decay=1e-6, eps=1e-8)
    rates = get_scheduler("cosine", optimizer, num_warmup_steps=500, num_training_steps=10_000)
    ema = EMAModel(network.parameters(), decay=0.9999, use_ema_warmup=True, inv_gamma=1.0, power=0.75)
    model, optimizer, rates = accelerator.prepare(network, optimizer, rates)
    ema.to(accelerator.device)
    scheduler = DDPMScheduler(num_train_timesteps=1000, beta_schedule="linear", prediction_type="epsilon")
    batch_of = batch_of or _Batches(recipe)

    def step() -> None:
        clean, labels, low_res = (part.to(accelerator.device) for part in batch_of())
        noise = torch.randn(clean.shape, device=clean.device)
        timesteps = torch.randint(0, 1000, (len(clean),), device=clean.device)
        noisy = torch.cat([scheduler.add_noise(clean, noise, timesteps), low_res], dim=1)
        with accelerator.accumulate(model):
            predicted = model(noisy, timesteps, class_labels=labels).sample
            accelerator.backward(F.mse_loss(predicted.float(), noise.float()))
            accelerator.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            rates.step()
            optimizer.zero_grad()
        ema.step(network.parameters())
        synchronize(accelerator.device)

    return Side(network.num_parameters(), _multiply_adds(network, phase.size), step)


def peer_network(recipe: Recipe, parameters: int) -> UNet2DModel:
    """The example's network at the width at which it has the nearest number of parameters."""

    def at(width: int) -> UNet2DModel:
        levels = len(EXAMPLE_WIDTHS)
        attends = [level == levels - 2 for level in range(levels)]
        return UNet2DModel(
            sample_size=recipe.phases[-1].size,
            in_channels=6 if recipe.network.get("low_res_size") else 3,
            layers_per_block=2,
            block_out_channels=tuple(width * multiple for multiple in EXAMPLE_WIDTHS),
            down_block_types=tuple("AttnDownBlock2D" if one else "DownBlock2D" for one in attends),
            up_block_types=tuple("AttnUpBlock2D" if one else "UpBlock2D" for one in reversed(attends)),
            norm_num_groups=8,
            num_class_embeds=NUM_CLASSES + 1,
        )

    def distance(width: int) -> int:
        with torch.device("meta"):
            return abs(at(width).num_parameters() - parameters)

    return at(min(range(8, 256, 8), key=distance))


class _Batches:
    """Batches from pictures of noise in memory: clean images [B, 3, H, W] in [-1, 1], labels, enlarged small images or none."""

    def __init__(self, recipe: Recipe) -> None:
        self.recipe, self.phase = recipe, recipe.phases[-1]
        size, count = recipe.network["sample_size"], self.phase.batch_size
        self.random = np.random.default_rng(0)
        self.pictures = self.random.integers(0, 256, (count, size, size, 3), dtype=np.uint8)

    def __call__(self) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        size, low_res_size = self.phase.size, self.recipe.network.get("low_res_size")
        clean = torch.stack([self._image(picture) for picture in self.pictures])
        labels = torch.zeros(len(clean), dtype=torch.long)
        labels[torch.rand(len(clean)) < self.recipe.objective.label_dropout] = NUM_CLASSES
        if low_res_size is None:
            return clean, labels, clean[:, :0]
        small = F.interpolate(
            clean, size=size * low_res_size // self.recipe.network["sample_size"], mode="bicubic", antialias=True
        )
        return clean, labels, F.interpolate(small, size=size, mode="bicubic")

    def _image(self, picture: np.ndarray) -> torch.Tensor:
        top, left = self.random.integers(0, picture.shape[0] - self.phase.size + 1, 2)
        crop = picture[top : top + self.phase.size, left : left + self.phase.size]
        crop = crop[:, ::-1] if self.random.random() < 0.5 else crop
        return torch.from_numpy(np.ascontiguousarray(crop.transpose(2, 0, 1))).float() / 127.5 - 1


def _multiply_adds(network: UNet2DModel, size: int) -> float:
    x = torch.zeros(1, network.config["in_channels"], size, size)
    with operation_counter() as counter, torch.no_grad():
        network(x.to(network.device), 0, class_labels=torch.zeros(1, dtype=torch.long, device=network.device))
    return counter.get_total_flops() / 2


def clock() -> float:
    """Seconds: of this process's work where it has one thread on a CPU, else of the wall clock."""
    alone = this_process().device.type == "cpu" and torch.get_num_threads() == 1
    return time.process_time() if alone else time.perf_counter()


def seconds_of(call: Callable[[], object]) -> float:
    start = clock()
    call()
    return clock() - start


def compare(name: str, rounds: int, precision: str) -> None:
    """Rows of the table for one recipe."""
    recipe = _recipe(name, precision)
    images, device = recipe.phases[-1].batch_size, this_process().device
    sides = {"cascade": ours(recipe), "diffusers": peer(recipe)}
    seconds: dict[str, list[float]] = {key: [] for key in sides}
    rates = []
    for side in sides.values():
        side.step()  # not counted: the first step plans memory and kernels
    for _ in range(rounds):
        for key, side in sides.items():
            seconds[key].append(seconds_of(side.step))
        rates.append(convolution_rate(DTYPES[precision], device, clock))
    rate = statistics.median(rates)
    for key, side in sides.items():
        speed = images / statistics.median(seconds[key])
        share = 2 * FORWARDS * side.multiply_adds * speed / rate
        low, high = images / max(seconds[key]), images / min(seconds[key])
        cells = [
            f"`{name}`, {recipe.phases[-1].size} px",
            key,
            f"{side.parameters / 1e6:.1f} M",
            f"{side.multiply_adds / 1e9:.2f}",
        ]
        cells += [
            f"{speed:.2f} ({low:.2f} to {high:.2f})",
            f"{rate / 1e9:.0f}",
            f"{share:.0%}",
            f"{peak(name, key, precision):,.0f} MB",
        ]
        print(f"| {' | '.join(cells)} |", flush=True)
    ratio = statistics.median(b / a for a, b in zip(seconds["cascade"], seconds["diffusers"], strict=True))
    print(f"| | ratio | | | **{ratio:.2f}** | | | |", flush=True)


def peak(name: str, key: str, precision: str) -> float:
    """Memory that two steps add to a process that has imported everything, in MB, measured in one of its own."""
    words = [sys.executable, __file__, "--peak", name, key, "--precision", precision]
    return float(subprocess.run(words, check=True, capture_output=True, text=True).stdout.split()[-1])


def print_peak(name: str, key: str, precision: str) -> None:
    recipe = _recipe(name, precision)
    training_cost(recipe, NUM_CLASSES)  # loads what both need
    before = peak_of_process()
    side = (ours if key == "cascade" else peer)(recipe)
    side.step()
    side.step()
    if this_process().device.type == "cuda":
        print(torch.cuda.max_memory_allocated() / 1e6)
    else:
        print((peak_of_process() - before) / 1e6)


def peak_of_process() -> int:
    """Most bytes that this process ever held (Linux); `ru_maxrss` begins with those of the process that started it."""
    (line,) = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM:"))
    return 1024 * int(line.split()[1])


def _recipe(name: str, precision: str) -> Recipe:
    recipe = load_recipe(CONFIGS / f"{name}.yaml")
    return replace(recipe, optimization=replace(recipe.optimization, precision=precision))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7, help="steps of each side that count (default: 7)")
    parser.add_argument("--precision", choices=list(DTYPES), default="float32", help="of both sides (default: float32)")
    parser.add_argument("--peak", nargs=2, metavar=("RECIPE", "SIDE"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.peak:
        print_peak(*options.peak, options.precision)
        return
    print(f"{this_process().device.type}, {torch.get_num_threads()} threads, {options.precision}, torch {torch.__version__}\n")
    print(
        "| recipe | training with | parameters | GMAC per evaluation | images/s (range) | convolution, GFLOP/s | share | memory |"
    )
    print("| --- | --- | ---: | ---: | ---: | ---: | ---: | ---: |")
    for name in RECIPES:
        compare(name, options.rounds, options.precision)


if __name__ == "__main__":
    main()
