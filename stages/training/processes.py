"""The processes of a training run: torchrun and accelerate start them, on one machine or several."""

from __future__ import annotations

import errno
import importlib.util
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from accelerate import Accelerator, PartialState
from accelerate.state import AcceleratorState

from cascade.stages.training.recipe import PRECISIONS


def this_process() -> PartialState:
    """This process among those of the training run: its rank, how many there are, its device. Joins them at the first call.

    accelerate joins processes on CPUs only if it is told that they are meant; left to itself it lets each train alone. Its own
    environment variable ACCELERATE_USE_CPU means them in spite of an accelerator.
    """
    wanted = os.environ.get("ACCELERATE_USE_CPU", "").lower() in ("1", "true", "yes")
    return PartialState(cpu=wanted or torch.accelerator.current_accelerator() is None)


@contextmanager
def sole_training(run: Path) -> Iterator[None]:
    """Hold the run's folder, so that no second process trains in it. The system lets go of it however this process ends.

    Where the file system or the system knows no such locks, nothing is held. Raises ValueError if another process holds it.
    """
    if importlib.util.find_spec("fcntl") is None:
        yield
        return
    import fcntl

    with (run / ".lock").open("a") as file:
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # unlike flock not inherited, so a data worker can't outlive it
        except OSError as error:
            if error.errno in (errno.EACCES, errno.EAGAIN):
                raise ValueError(f"another process is training in {run}; wait for it, or choose another folder") from error
        yield


def accelerator_at(precision: str) -> Accelerator:
    """What runs networks at this precision, a key of `PRECISIONS`, whatever earlier runs of the program had."""
    kind = PRECISIONS[precision]
    if AcceleratorState._shared_state and AcceleratorState().mixed_precision != kind:
        AcceleratorState._reset_state()  # it would hold every run of a program to the precision of the first
    return Accelerator(mixed_precision=kind)
