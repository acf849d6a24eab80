"""What an accelerator does with this project: `python benchmarks/accelerator.py [--json FILE] [--seconds N]`.

Prints Markdown, row by row, and writes the same as JSON after each. Images a second in training and in sampling; the share is of
the rate of a large bfloat16 matrix product, measured here: twice the multiply-adds (of a training image three times those of an
evaluation) over the time. "Ready" is from the network's making to the end of the warm-up: what recording or compiling costs.

Beside it, as many pictures of the same size: diffusers' `UNet2DModel` of about as many parameters, in the loop of diffusers'
unconditional example (`benchmarks/training.py`) with pictures that are in the accelerator's memory already; and a network of
the shapes of ADM's for ImageNet 64x64 (Dhariwal & Nichol 2021), random weights, both in plain eager code under bfloat16
autocast. They sample by as many guided steps as ours. On a CPU the same is run in small, which shows that it runs.
"""

from __future__ import annotations

import argparse
import gc
import json
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from functools import cache, partial
from itertools import count
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from accelerate import Accelerator
from cascade import load_recipe
from cascade.costs import operation_counter
from cascade.files import write_text
from cascade.stages.base import BasePipeline
from cascade.stages.published.openai_unet import Architecture
from cascade.stages.published.openai_unet import UNet as OpenAIUNet
from cascade.stages.training import PictureSet, Recipe, TrainingExamples
from cascade.stages.training.examples import ResidentPictures, as_read, numbers
from cascade.stages.training.processes import this_process
from cascade.stages.training.state import TrainingState
from cascade.stages.training.step import Stepper
from cascade.training.forecast import FORWARDS, median_seconds, synchronize, training_cost
from diffusers import DDPMScheduler
from torch.utils.data import DataLoader

from training import NUM_CLASSES, peak_of_process, peer, peer_network

DEVICE = this_process().device
ON_CUDA = DEVICE.type == "cuda"
TRAINED = (512, 64, 2048, 128, 1024, 256) if ON_CUDA else (2, 4)
SAMPLED = (256, 1, 64, 4, 16) if ON_CUDA else (1, 2)
PEER_BATCH, ADM_BATCH = (256, 64) if ON_CUDA else (2, 2)
"""Batches, those that matter most first: time may run out."""
WARM_UP, BLOCKS, STEPS = (12, 3, 5) if ON_CUDA else (1, 1, 1)
"""Steps of training that don't count: each split of a batch by noise is run twice, then recorded. Then so many times so many."""
SAMPLING_STEPS = 30 if ON_CUDA else 2
PICTURES = 4096 if ON_CUDA else 16
COMPILING = 60
"""Seconds without which compiling is not begun; it can't be broken off."""
SHIPPED = Path(__file__).parents[1] / "cascade/assets/emoji/base"


@dataclass(frozen=True, slots=True)
class Work:
    """What is timed: `step` makes or trains `images`, each for so many multiply-adds, and waits for nothing."""

    images: int
    multiply_adds: float
    step: Callable[[], object]


@dataclass(frozen=True, slots=True)
class Row:
    """What was measured; share is of the matrix rate, memory the peak in GiB, of the process on a CPU, ready in seconds."""

    what: str
    batch: int
    images_per_second: float
    giga_multiply_adds: float
    share: float
    memory: float
    ready: float


def matrix_rate() -> float:
    """Floating-point operations a second of a large bfloat16 matrix product."""
    side = 8192 if ON_CUDA else 512
    a, b = (torch.randn(side, side, device=DEVICE, dtype=torch.bfloat16) for _ in range(2))

    def ten() -> None:
        for _ in range(10):
            a @ b
        synchronize(DEVICE)

    return 10 * 2 * side**3 / median_seconds(ten, repeats=5)


def trained(recipe: Recipe, batch: int, compiled: bool = False) -> Work:
    """This project's step: resident pictures, recorded as a graph on CUDA, with optimizers and averages."""
    o = replace(recipe.optimization, accumulate=1, gradient_checkpointing=False, precision="bfloat16", compile=compiled)
    phase = replace(recipe.phases[-1], batch_size=batch, images=10**9)
    recipe = replace(recipe, optimization=o, phases=(phase,), start_from=None, snapshots=None)
    with TemporaryDirectory() as folder:
        state = TrainingState.begin(recipe, NUM_CLASSES, Path(folder), Accelerator(mixed_precision="bf16"), print)
    pixels = np.random.default_rng(0).integers(0, 256, (PICTURES, *[recipe.picture_size] * 2, 3), dtype=np.uint8)
    kinds = tuple(map(str, range(NUM_CLASSES))), (True,) * NUM_CLASSES
    pictures = ResidentPictures(PictureSet(pixels, np.arange(PICTURES) % NUM_CLASSES, *kinds), DEVICE)
    examples = TrainingExamples(pictures, recipe, phase, state.network.null_label)
    sampler: Any = numbers(0, phase.images, batch, 0, 1)
    batches = iter(DataLoader(examples, batch, sampler=sampler, collate_fn=as_read, pin_memory=ON_CUDA))
    stepper = Stepper(state, print)

    def step() -> None:
        before = state.images_seen
        stepper([next(batches)], examples)
        state.images_seen += batch
        state.average(before)

    return Work(batch, FORWARDS * training_cost(recipe, NUM_CLASSES).image.multiply_adds, step)


def trained_by_diffusers(recipe: Recipe, batch: int) -> Work:
    clean, _, labels = _inputs(batch)
    recipe = replace(recipe, optimization=replace(recipe.optimization, precision="bfloat16"))
    side = peer(recipe, lambda: (clean, labels, clean[:, :0]))
    return Work(batch, FORWARDS * side.multiply_adds, side.step)


def adm_network() -> OpenAIUNet:
    """The shapes of ADM's network for ImageNet 64x64; on a CPU a sixth as wide, and shallow."""
    width, blocks = (192, 3) if ON_CUDA else (32, 1)
    shape = {"width": width, "first_width": width, "widths": [width * multiple for multiple in (1, 2, 3, 4)], "blocks": blocks}
    heads = {"heads": 4, "decoder_heads": 4, "head_channels": min(64, width), "attention_order": "new"}
    kind = {"num_classes": 1000, "scale_shift": True, "resblock_updown": True, "attention_factors": frozenset({2, 4, 8})}
    return OpenAIUNet(Architecture(in_channels=3, out_channels=6, **shape, **heads, **kind)).to(DEVICE)


def _evaluation(network: Any) -> float:
    """Multiply-adds of one image of 64 px."""
    with operation_counter() as counter, torch.no_grad():
        network(*_inputs(1))
    return counter.get_total_flops() / 2


def trained_adm(batch: int) -> Work:
    network = adm_network()
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-4)
    x, t, y = _inputs(batch)

    def step() -> None:
        with torch.autocast(DEVICE.type, torch.bfloat16):
            predicted = network(x, t, y)[:, :3]
        F.mse_loss(predicted.float(), torch.randn_like(x)).backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()

    return Work(batch, FORWARDS * _evaluation(network), step)


def _inputs(batch: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    x = torch.randn(batch, 3, 64, 64, device=DEVICE)
    return x, torch.full((batch,), 500.0, device=DEVICE), torch.arange(batch, device=DEVICE) % NUM_CLASSES


def sampled(stage: Path, batch: int, dtype: torch.dtype) -> Work:
    """Pictures of a base stage through its own pipeline, guided as it is set; captured graphs on CUDA."""
    multiply_adds, seeds = _picture(stage), count()
    pipeline = BasePipeline.from_pretrained(stage, torch_dtype=dtype).to(DEVICE)
    given = _arguments(pipeline)

    def make() -> None:
        generators = [torch.Generator().manual_seed(next(seeds)) for _ in range(batch)]
        pipeline(**given, num_images=batch, generator=generators, batch_size=batch, output_type="pt")

    return Work(batch, multiply_adds, make)


@cache
def _picture(stage: Path) -> float:
    """Multiply-adds of a picture, counted while it is made on the CPU."""
    pipeline = BasePipeline.from_pretrained(stage)
    with operation_counter() as counter:
        pipeline(**_arguments(pipeline), num_images=1, generator=torch.Generator().manual_seed(0))
    return counter.get_total_flops() / 2


def _arguments(pipeline: Any) -> dict[str, Any]:
    pipeline.set_progress_bar_config(disable=True)
    steps = {"num_inference_steps": None if ON_CUDA else SAMPLING_STEPS}
    return steps if pipeline.unet.num_classes is None else steps | {"class_labels": 0}


def sampled_eagerly(network: Any, batch: int) -> Work:
    """As many pictures by guided steps of diffusers' DDPM scheduler, in plain code."""
    scheduler = DDPMScheduler()
    scheduler.set_timesteps(SAMPLING_STEPS)
    _, _, y = _inputs(2 * batch)

    @torch.no_grad()
    def make() -> None:
        x = torch.randn(batch, 3, 64, 64, device=DEVICE)
        for t in scheduler.timesteps:
            with torch.autocast(DEVICE.type, torch.bfloat16):
                output = network(torch.cat([x, x]), t.to(DEVICE).expand(2 * batch), y)
            mine, free = getattr(output, "sample", output)[:, :3].float().chunk(2)
            x = scheduler.step(free + 2 * (mine - free), t, x).prev_sample

    return Work(batch, 2 * SAMPLING_STEPS * _evaluation(network), make)


def sampled_by_diffusers(recipe: Recipe, batch: int) -> Work:
    network = peer_network(recipe, training_cost(recipe, NUM_CLASSES).parameters)
    return sampled_eagerly(network.to(DEVICE), batch)


def measured(what: str, make: Callable[[], Work], rate: float, warm_up: int, steps: int) -> Row:
    """Make the work, warm up, and time it."""
    gc.collect()
    if ON_CUDA:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    begun = time.perf_counter()
    work = make()
    for _ in range(warm_up):
        work.step()
    synchronize(DEVICE)
    ready, times = time.perf_counter() - begun, []
    for _ in range(BLOCKS):
        begun = time.perf_counter()
        for _ in range(steps):
            work.step()
        synchronize(DEVICE)
        times.append(time.perf_counter() - begun)
    speed = steps * work.images / statistics.median(times)
    memory = torch.cuda.max_memory_allocated() if ON_CUDA else peak_of_process()
    cost = work.multiply_adds
    return Row(what, work.images, speed, cost / 1e9, 2 * cost * speed / rate, memory / 2**30, ready)


def rows(recipe: Recipe, stage: Path) -> list[tuple[str, Callable[[], Work]]]:
    """What is measured, and what makes it."""
    found: list[tuple[str, Callable[[], Work]]] = [("training", partial(trained, recipe, batch)) for batch in TRAINED]
    found += [("sampling, bfloat16", partial(sampled, stage, batch, torch.bfloat16)) for batch in SAMPLED]
    found += [("sampling, float32", partial(sampled, stage, SAMPLED[0], torch.float32))]
    found += [("training, diffusers", partial(trained_by_diffusers, recipe, PEER_BATCH))]
    found += [("training, ADM-64", partial(trained_adm, ADM_BATCH))]
    found += [("sampling, diffusers", partial(sampled_by_diffusers, recipe, ADM_BATCH))]
    found += [("sampling, ADM-64", lambda: sampled_eagerly(adm_network(), ADM_BATCH))]
    return found + [("training, compiled", partial(trained, recipe, TRAINED[0], True))]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipe", default="emoji/base64", help="of a base for 64 px, what is trained (default: emoji/base64)")
    parser.add_argument("--stage", type=Path, default=SHIPPED, help="base stage that samples (default: the shipped one)")
    parser.add_argument("--json", type=Path, help="file to write")
    parser.add_argument("--seconds", type=float, default=300, help="no row is begun later (default: 300)")
    options = parser.parse_args()
    end, rate = time.monotonic() + options.seconds, matrix_rate()
    name = torch.cuda.get_device_name() if ON_CUDA else "cpu"
    facts: dict[str, Any] = {"device": name, "torch": torch.__version__, "matrix_rate": rate, "rows": []}
    print(f"{name}, torch {torch.__version__}, matrix product {rate / 1e12:.2f} TFLOP/s\n")
    print("| what | batch | images/s | GMAC per image | share | memory, GiB | ready, s |")
    print("| --- | ---: | ---: | ---: | ---: | ---: | ---: |", flush=True)
    for what, make in rows(load_recipe(options.recipe), options.stage):
        if time.monotonic() + (COMPILING if "compiled" in what else 0) > end:
            print(f"| {what} | no time left | | | | | |", flush=True)
            continue
        training = what.startswith("training")
        try:
            row = measured(what, make, rate, WARM_UP if training else 1, STEPS if training else 1)
        except (RuntimeError, ValueError, OSError) as error:  # out of memory, mostly: the other rows stand
            print(f"| {what} | {' '.join(str(error).split())[:200]} | | | | | |", flush=True)
            continue
        cells = [row.what, f"{row.batch}", f"{row.images_per_second:,.1f}", f"{row.giga_multiply_adds:,.2f}", f"{row.share:.1%}"]
        print(f"| {' | '.join([*cells, f'{row.memory:.1f}', f'{row.ready:.1f}'])} |", flush=True)
        facts["rows"].append(asdict(row))
        if options.json is not None:
            write_text(options.json, json.dumps(facts, indent=1) + "\n")


if __name__ == "__main__":
    main()
