"""Speed and memory of a cascade on this machine: `python benchmarks/speed.py [--model emoji] [--compile]`.

Prints Markdown. A stage's step is one evaluation of its guided denoiser for one image, timed alone: the median of several after a
warm-up. Its share is its multiply-adds over the time, divided by what a plain 3x3 convolution of 256 channels reaches on the same
machine, at the same precision (mixed: bfloat16) and in the same minute.
"""

from __future__ import annotations

import argparse
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from cascade import CascadePipeline
from cascade.folder import Manifest
from cascade.models import resolve
from cascade.stages.cpu_convolutions import packed_convolutions
from cascade.stages.denoiser import ClassifierFreeGuidance, Wrapper
from cascade.training.forecast import convolution_rate, median_seconds
from torch.utils.flop_counter import FlopCounterMode


def step_of(stage: Any, dtype: torch.dtype, compiled: bool, log_snr: float) -> tuple[Callable[[], Any], float]:
    """One guided evaluation for one image at a noise level, and its GFLOP."""
    unet = stage.unet.to(dtype).to(memory_format=torch.channels_last)  # as a pipeline runs it
    config = unet.config
    network = torch.compile(unet) if compiled else unet
    joint = _Joint(network, unet)
    denoiser = ClassifierFreeGuidance(joint, stage.config["guidance_scale"])
    size, small = config.sample_size, config.low_res_size
    inputs = {
        "x_t": torch.randn(1, 3, size, size),
        "log_snr": torch.full((1,), log_snr),
        "class_labels": torch.zeros(1, dtype=torch.long),
        "low_res": None if small is None else torch.randn(1, 3, small, small),
        "aug_level": torch.zeros(1) if config.aug_level else None,
    }

    @torch.no_grad()
    def step() -> torch.Tensor:
        return denoiser(**inputs)

    with FlopCounterMode(display=False) as counter:
        ClassifierFreeGuidance(_Joint(unet, unet), stage.config["guidance_scale"])(**inputs)
    return step, counter.get_total_flops() / 1e9


class _Joint(Wrapper):
    """A compiled network with the facts of the plain one."""

    def __init__(self, network: Any, unet: Any) -> None:
        super().__init__(unet)
        self.network = network

    def __call__(self, *args: torch.Tensor | None) -> torch.Tensor:
        return self.network(*args)


def steps_table(model: str, compile_too: bool) -> None:
    print("| stage | log-SNR | precision | mode | GMAC per step | ms per step | GFLOP/s | plain convolution | share |")
    print("| --- | ---: | --- | --- | ---: | ---: | ---: | ---: | ---: |")
    pipeline = CascadePipeline.from_pretrained(model)
    for name, stage in pipeline.stages.items():
        levels = (4.0,) if stage.unet.config.coarse_below is None else (4.0, -4.0)  # the latter is denoised at half size
        modes = [(level, compiled) for level in levels for compiled in ((False, True) if compile_too else (False,))]
        for precision, dtype in (("float32", torch.float32), ("mixed", torch.float32), ("bfloat16", torch.bfloat16)):
            mixed = precision == "mixed"
            for level, compiled in modes:
                step, gflop = step_of(stage, dtype, compiled, level)
                with packed_convolutions(stage.unet, mixed=mixed) if not compiled else nullcontext():  # as a pipeline runs it
                    seconds = median_seconds(step)
                rate = convolution_rate(torch.bfloat16 if mixed else dtype, torch.device("cpu")) / 1e9
                cells = [
                    name,
                    f"{level:g}",
                    precision,
                    "compiled" if compiled else "eager",
                    f"{gflop / 2:.2f}",
                ]
                cells += [f"{seconds * 1e3:.0f}", f"{gflop / seconds:.0f}", f"{rate:.0f}", f"{gflop / seconds / rate:.0%}"]
                print(f"| {' | '.join(cells)} |", flush=True)


def whole_process_table(model: str, repeats: int = 3) -> None:
    largest = str(Manifest.read(resolve(model)).stages[-1].size)
    print("\n| command, whole process | seconds (median) | peak memory |")
    print("| --- | ---: | ---: |")
    with tempfile.TemporaryDirectory() as folder:
        out = str(Path(folder) / "out")
        run = [str(Path(sys.executable).parent / "generate")]
        for words in (
            ["--help"],
            ["--class", "cat", "--model", model, "--out", out],
            ["--class", "cat", "--model", model, "-n", "4", "--out", out],
            ["--class", "cat", "--model", model, "--size", largest, "--seed", "7", "--out", out],
        ):
            seconds, memory = [], 0
            for _ in range(repeats):
                start = time.perf_counter()
                subprocess.run([*run, *words], check=True, capture_output=True)
                seconds.append(time.perf_counter() - start)
                memory = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss // 1024
            shown = " ".join(word for word in words if word not in ("--out", out, "--model", model))
            peak = "" if words == ["--help"] else f"{memory} MB"  # a short process is shown with this one's memory
            print(f"| `generate {shown}` | {statistics.median(seconds):.2f} | {peak} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="emoji", help="model to measure (default: the shipped one)")
    parser.add_argument("--compile", action="store_true", help="also measure torch.compile, which takes minutes to warm up")
    options = parser.parse_args()
    print(f"{platform.processor() or platform.machine()}, {torch.get_num_threads()} threads, torch {torch.__version__}\n")
    whole_process_table(options.model)
    print()
    steps_table(options.model, options.compile)


if __name__ == "__main__":
    main()
