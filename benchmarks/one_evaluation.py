"""pMF-B/16 at full size on this machine: `python benchmarks/one_evaluation.py [--repeats 5]`.

Makes a file of random weights as the authors publish theirs, puts it where the presets look for it (in a cache folder of its
own), and times whole processes: the first use of the preset, which converts it, then pictures of 256 and 1024 pixels. Then one
evaluation of the network alone on one core, as GFLOP/s beside a plain convolution and a plain matrix product of the same minute,
by the core's own time. Prints Markdown; the least and the median of the repeats, since other work only ever adds time.
"""

from __future__ import annotations

import argparse
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from cascade import presets
from cascade.costs import operation_counter
from cascade.stages import published
from cascade.stages.published.families import family_of
from cascade.stages.published.pixel_transformer import rotation
from torch import Tensor, nn

FILE = "pMF-B-16.pt"


def random_file(path: Path) -> None:
    """Weights of the published names and shapes, drawn so that signals keep their size; with the table that files hold too."""
    record = family_of("pmf")
    known = record.known(FILE)
    assert known is not None
    network, generator = record.build(known.config), torch.Generator().manual_seed(0)
    wrapped = {nn.Linear: "._flax_linear", nn.Embedding: "._flax_embedding"}
    kinds = {name: wrapped.get(type(module), "") for name, module in network.named_modules()}
    tensors: dict[str, Tensor] = {"net.rope_freqs": torch.complex(*rotation(16, 0, 64, torch.device("cpu")))}
    for key, value in network.state_dict().items():
        module, _, last = key.rpartition(".")
        std = value[0].numel() ** -0.5 if value.ndim > 1 else 0.1
        drawn = torch.randn(value.shape, generator=generator) * std + (1.0 if "norm" in key else 0.0)
        tensors[".".join(["net", *([module + kinds[module]] if module else []), last])] = drawn
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save(tensors, path)


def timed(words: Sequence[str], environment: Mapping[str, str]) -> tuple[float, float]:
    """Seconds that a command took, and seconds of the processor's cores that it used."""
    before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    subprocess.run(list(words), check=True, capture_output=True, env=dict(environment))
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return time.perf_counter() - start, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def peak_megabytes(words: Sequence[str], environment: Mapping[str, str]) -> int:
    """Peak memory of a command, measured in a process that has no other child."""
    code = (
        "import resource, subprocess, sys; subprocess.run(sys.argv[1:], check=True, stdout=subprocess.DEVNULL);"
        " print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss // 1024)"
    )
    run = subprocess.run([sys.executable, "-c", code, *words], check=True, capture_output=True, text=True, env=dict(environment))
    return int(run.stdout.split()[-1])


def whole_processes(folder: Path, repeats: int) -> None:
    environment = {**os.environ, "XDG_CACHE_HOME": str(folder)}
    generate = [sys.executable, "-m", "cascade", "generate", "--class", "281", "--out", str(folder / "cat.png")]
    commands = {
        "imports alone (`import cascade.pipeline`)": [sys.executable, "-c", "import cascade.pipeline"],
        "`generate --class 281 --model pmf-b-256`": [*generate, "--model", "pmf-b-256"],
        "`generate --class 281 --model pmf-b-1024`": [*generate, "--model", "pmf-b-1024"],
    }
    print("| command, whole process | seconds, least | median | core seconds, least | peak memory |")
    print("| --- | ---: | ---: | ---: | ---: |")
    for name, words in commands.items():
        if "--model" in words:
            print(f"| the same, first use, which converts | {timed(words, environment)[0]:.1f} | | | |")
        seconds, cores = zip(*(timed(words, environment) for _ in range(repeats)), strict=True)
        cells = [name, f"{min(seconds):.1f}", f"{statistics.median(seconds):.1f}", f"{min(cores):.1f}"]
        print(f"| {' | '.join(cells)} | {peak_megabytes(words, environment)} MB |", flush=True)


def core_seconds(work: Callable[[], Any], repeats: int = 5) -> float:
    """Time of the core that a piece of work takes, the least of several after a warm-up."""
    times = []
    for _ in range(repeats + 1):
        start = time.process_time()
        work()
        times.append(time.process_time() - start)
    return min(times[1:])


@torch.no_grad()
def one_evaluation(path: Path) -> None:
    """The stage's guided evaluation, as a pipeline runs it, on one core."""
    torch.set_num_threads(1)
    pipeline = published.stage("pmf", path)
    guided, x = pipeline.guided(None, None), torch.randn(1, 3, 256, 256)
    step = partial(guided, x, torch.full((1,), -20.0), torch.tensor([281]))
    with operation_counter() as counter:
        step()
    seconds, gflop = core_seconds(step), counter.get_total_flops() / 1e9
    convolution, picture = nn.Conv2d(256, 256, 3, padding=1), torch.randn(1, 256, 32, 32)
    convolution, picture = (one.to(memory_format=torch.channels_last) for one in (convolution, picture))
    layer, tokens = nn.Linear(768, 2048, bias=False), torch.randn(276, 768)
    rates = [
        2 * 256 * 256 * 9 * 32**2 * 10 / 1e9 / core_seconds(lambda: [convolution(picture) for _ in range(10)]),
        2 * 276 * 768 * 2048 * 20 / 1e9 / core_seconds(lambda: [layer(tokens) for _ in range(20)]),
    ]
    print("\n| GMAC | ms on one core | GFLOP/s | plain convolution | share | plain matrix product | share |")
    print("| ---: | ---: | ---: | ---: | ---: | ---: | ---: |")
    shares = " | ".join(f"{rate:.0f} | {gflop / seconds / rate:.0%}" for rate in rates)
    print(f"| {gflop / 2:.1f} | {seconds * 1e3:.0f} | {gflop / seconds:.0f} | {shares} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5, help="runs of each command (default 5)")
    options = parser.parse_args()
    print(f"{torch.get_num_threads()} threads, torch {torch.__version__}\n")
    with tempfile.TemporaryDirectory() as name:
        os.environ["XDG_CACHE_HOME"] = name
        path = presets.named("pmf-b-256").stages["base"].path
        random_file(path)
        print(f"{path.name}: {path.stat().st_size / 1e6:.0f} MB\n")
        whole_processes(Path(name), options.repeats)
        one_evaluation(path)


if __name__ == "__main__":
    main()
