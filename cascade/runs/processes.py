"""Processes that make shares of a run beside the one that began it.

Each is a Python of its own that plain values tell what to do. It imports nothing of the program that began the run, so that a
script needs no `if __name__ == "__main__"`, and a notebook can begin one.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from pathlib import Path
from tempfile import TemporaryFile
from typing import TYPE_CHECKING, Any

from cascade.runs.plan import Place
from cascade.runs.record import difference, plan_of, read_record, settings_of
from cascade.runs.share import make_share, without_bars
from cascade.schedulers import SCHEDULERS
from cascade.stage_sampling import Sampling, StageSampling

if TYPE_CHECKING:
    from cascade.pipeline import CascadePipeline

_PROGRAM = """
import json, sys
job = json.loads(sys.argv[1])
sys.path[:] = job.pop("path")
from cascade.runs.processes import share_of
share_of(**job)
"""


@contextmanager
def others(cascade: CascadePipeline, out: Path, sampling: Sampling, count: int) -> Iterator[Callable[[], None]]:
    """Processes that make the shares 1 to count - 1 of the run in `out`; they are awaited at the end, and end with this one.

    Gives what raises RuntimeError if one of them has failed, as the end does. ValueError if a scheduler can't be told to them.
    """
    if count == 1:
        yield lambda: None
        return
    job = {
        "model": str(Path(cascade.folder or "").absolute()),
        "out": str(out),
        "device": str(cascade.device),
        "dtype": str(cascade.dtype),
        "mixed": {name: stage.mixed_precision for name, stage in cascade.stages.items() if hasattr(stage, "mixed_precision")},
        "sampling": {name: _plain(one) for name, one in sampling.items()},
        "count": count,
        "parent": os.getpid(),
        "path": sys.path,
    }
    with ExitStack() as stack:
        said = [stack.enter_context(TemporaryFile()) for _ in range(1, count)]
        started: list[subprocess.Popen[bytes]] = []

        def check() -> None:
            for process, file in zip(started, said, strict=True):
                if process.poll():
                    file.seek(0)
                    reason = ["it was killed", *file.read().decode(errors="replace").strip().splitlines()][-1]
                    raise RuntimeError(f"a process of this run failed ({reason}); the same call goes on where the run stopped")

        try:
            for rank, file in enumerate(said, 1):
                words = [sys.executable, "-P", "-c", _PROGRAM, json.dumps(job | {"rank": rank})]
                started.append(subprocess.Popen(words, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=file))
            yield check
            for process in started:
                process.wait()
            check()
        finally:
            for process in started:
                process.terminate()
                process.wait()


def share_of(
    model: str,
    out: str,
    device: str,
    dtype: str,
    mixed: Mapping[str, bool | None],
    sampling: Mapping[str, Any],
    count: int,
    parent: int,
    rank: int,
) -> None:
    """Make the share of process `rank` of a run that process `parent` has begun; how, its record and these plain values say."""
    import torch

    from cascade.pipeline import CascadePipeline

    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # as an exception, after which nothing half-written is left
    record = read_record(Path(out)) or {}
    plan = plan_of(record)
    torch.set_num_threads(record["settings"].get("threads", 1))
    cascade = CascadePipeline.from_pretrained(model, dtype=dtype, device=device, size=plan.size)
    for name in mixed.keys() & cascade.stages.keys():
        cascade.stages[name].mixed_precision = mixed[name]
    chosen = {name: _sampling(**values) for name, values in sampling.items() if name in cascade.stages}
    if changed := difference(record["settings"], settings_of(cascade, plan.size, chosen)):
        raise ValueError(f"the cascade was changed since it was loaded, {changed} as in {model}; save it, or use one process")

    def told(done: int, total: int) -> None:
        if os.getppid() != parent:
            raise RuntimeError("the process that began this run has ended")

    with without_bars(cascade):
        make_share(cascade, plan, Path(out), chosen, Place(rank, count), told)


def _plain(sampling: StageSampling) -> dict[str, Any]:
    """As JSON can hold it, a scheduler by its name."""
    import diffusers

    kind = sampling.scheduler
    if isinstance(kind, type) and getattr(diffusers, kind.__name__, None) is not kind:
        raise ValueError(f"scheduler is {kind.__name__}, a class of your own, which other processes can't make; use one process")
    return asdict(sampling) | {"scheduler": kind.__name__ if isinstance(kind, type) else kind}


def _sampling(scheduler: str | None, guidance_interval: list[float] | None, **values: Any) -> StageSampling:
    """What `_plain` has told."""
    import diffusers

    kind = scheduler if scheduler is None or scheduler in SCHEDULERS else getattr(diffusers, scheduler)
    interval = None if guidance_interval is None else (guidance_interval[0], guidance_interval[1])
    return StageSampling(scheduler=kind, guidance_interval=interval, **values)
