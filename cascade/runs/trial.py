"""How many pictures of a long run go through a network at once on a CPU: as many as it is found to make fastest."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable

SIZES = (1, 2, 4, 8)  # that are tried, one after another
FEWEST = 256  # pictures of a run that is worth a trial of sixteen
GAIN = 1.05  # of pictures a second, for which a batch is made twice as large
SHARE = 0.5  # of the machine's memory that all processes may take


def fastest_batch_size(make: Callable[[int], None], processes: int) -> int:
    """The largest of `SIZES` up to which each is at least `GAIN` times as fast, per picture, as the one before.

    Args:
        make: Makes so many pictures at once.
        processes: How many share the run; what this one needs, each will.
    """
    make(1)  # what the first call alone has to do
    best, before = 1, float("inf")
    for size in SIZES:
        if not _has_room(processes):
            break
        begun = time.perf_counter()
        make(size)
        seconds = (time.perf_counter() - begun) / size
        if seconds * GAIN > before:
            break
        best, before = size, seconds
    return best


def _has_room(processes: int) -> bool:
    """Whether the machine has memory for twice what this process has needed at most, in each process."""
    try:
        import resource
    except ModuleNotFoundError:  # Windows
        return False
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    return 2 * peak * processes <= SHARE * os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
