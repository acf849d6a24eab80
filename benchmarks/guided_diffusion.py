"""ADM's networks beside the code that they were published with, same weights and inputs, evaluations alternated.

    git clone https://github.com/openai/guided-diffusion
    python benchmarks/guided_diffusion.py guided-diffusion [--rounds 3] [--only ADM-U]

Random weights at full size; nothing is downloaded. Theirs in bfloat16 is their own half precision (`convert_to_fp16`:
convolutions of half type, norms in float32) with bfloat16 in its place. Ours runs as a pipeline runs it, with the memory that it
keeps from step to step: in float32, in mixed precision, and in bfloat16. Prints Markdown: the median of the rounds, the ratio to
theirs, which is in bfloat16 where ours is mixed or bfloat16, and the largest difference from theirs in float32 in units of its
standard deviation.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch
from cascade.stages.cpu_convolutions import packed_convolutions
from cascade.stages.cpu_memory import kept_memory
from cascade.stages.published import guided_diffusion
from torch import Tensor, nn

NETWORKS = {"ADM-64": ("64x64_diffusion.pt", guided_diffusion.BASE), "ADM-U": ("64_256_upsampler.pt", guided_diffusion.UPSAMPLER)}


def theirs_of(flags: dict[str, Any]) -> Any:
    """Their network in float32, with weights drawn for what they start at zero."""
    from guided_diffusion import script_util

    torch.manual_seed(0)
    refines = "large_size" in flags
    defaults = script_util.sr_model_and_diffusion_defaults() if refines else script_util.model_and_diffusion_defaults()
    make = script_util.sr_create_model if refines else script_util.create_model
    takes = make.__code__.co_varnames[: make.__code__.co_argcount]
    network = make(**{name: value for name, value in {**defaults, **flags}.items() if name in takes}).eval()
    for parameter in network.parameters():
        if not parameter.any():
            nn.init.normal_(parameter, std=0.5 * parameter[0].numel() ** -0.5 if parameter.ndim > 1 else 0.1)
    return network


def in_bfloat16(network: Any) -> Any:
    """Their half precision, with bfloat16 in its place."""
    for part in (network.input_blocks, network.middle_block, network.output_blocks):
        for module in part.modules():
            if isinstance(module, nn.Conv1d | nn.Conv2d):
                module.to(torch.bfloat16)
    network.dtype = torch.bfloat16
    return network


def seconds_of(call: Callable[[], Tensor], context: AbstractContextManager[None]) -> tuple[float, Tensor]:
    """Seconds of the processor's cores, which other work on the machine changes least, and the output; of the second of two."""
    with context:
        call()
        begun = time.process_time()
        made = call()
        return time.process_time() - begun, made


@torch.no_grad()
def compare(name: str, rounds: int, batch: int) -> None:
    file, family = NETWORKS[name]
    known = family.known(file)
    assert known is not None
    config: Any = known.config
    flags = config["flags"]
    size, small = flags.get("large_size") or flags["image_size"], flags.get("small_size")
    generator = torch.Generator().manual_seed(1)
    x, t = torch.randn(batch, 3, size, size, generator=generator), torch.full((batch,), 500.0)
    y = torch.randint(1000, (batch,), generator=generator)
    low_res = None if small is None else torch.randn(batch, 3, small, small, generator=generator).clamp(-1, 1)
    theirs = theirs_of(flags)
    ours = family.build(config).eval()
    ours.load_state_dict(theirs.state_dict())
    ours.to(memory_format=torch.channels_last)

    def original() -> Tensor:
        made: Tensor = theirs(x, t, y=y) if low_res is None else theirs(x, t, low_res=low_res, y=y)
        return made.float()

    def cascade() -> Tensor:
        made: Tensor = ours(x, t, y) if low_res is None else ours(x, t, low_res, y)
        return made.float()

    exact = original()
    for precision in ("float32", "mixed", "bfloat16"):
        if precision == "mixed":
            in_bfloat16(theirs)
        if precision == "bfloat16":
            ours.to(torch.bfloat16)
        with packed_convolutions(ours, mixed=precision == "mixed"):
            pairs = [(seconds_of(original, nullcontext()), seconds_of(cascade, kept_memory())) for _ in range(rounds)]
        before, after = (statistics.median(pair[i][0] for pair in pairs) for i in (0, 1))
        apart = [((pairs[0][i][1] - exact).abs().max() / exact.std()).item() for i in (0, 1)]
        cells = [name, precision, f"{before:.2f}", f"{after:.2f}", f"{before / after:.2f}", f"{apart[0]:.1e}", f"{apart[1]:.1e}"]
        print(f"| {' | '.join(cells)} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("repository", type=Path, help="a checkout of openai/guided-diffusion")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--only", choices=tuple(NETWORKS), help="one of the two networks")
    options = parser.parse_args()
    sys.path.insert(0, str(options.repository))
    print(f"{torch.get_num_threads()} threads, torch {torch.__version__}, batches of {options.batch}\n")
    print("| network | ours in | theirs, core s | ours, core s | ratio | largest difference, theirs | ours |")
    print("| --- | --- | ---: | ---: | ---: | ---: | ---: |")
    for name in NETWORKS:
        if options.only in (None, name):
            compare(name, options.rounds, options.batch)


if __name__ == "__main__":
    main()
