"""Memory for feature maps on a CPU, kept from one map to the next."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from threading import Lock
from typing import Any

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # of mallopt(3)
_WITHIN = {_MMAP_THRESHOLD: 2**30, _TRIM_THRESHOLD: 2**31 - 1}
_AFTERWARDS = {_MMAP_THRESHOLD: 2**25, _TRIM_THRESHOLD: 2**26}  # as high as glibc itself lets them rise
_lock, _users = Lock(), 0


@contextmanager
def kept_memory() -> Iterator[None]:
    """Within it, memory that is freed stays with the process and is used again; at the end it goes back to the system.

    Otherwise every map of more than 32 MiB, such as 128 channels of 256 px, comes from the system, and a first write into its
    pages takes several times as long as what is computed. It is so for the whole process meanwhile; with other C libraries than
    glibc it does nothing.
    """
    library = _glibc()
    if library is None:
        yield
        return
    _enter(library, 1, _WITHIN)
    try:
        yield
    finally:
        if _enter(library, -1, _AFTERWARDS):
            library.malloc_trim(0)


def _enter(library: Any, change: int, thresholds: Mapping[int, int]) -> bool:
    """One user more or less; the first and the last set the thresholds, and whether this is one of them."""
    global _users
    with _lock:
        alone = (_users, _users + change) in ((0, 1), (1, 0))
        _users += change
        for name, value in thresholds.items() if alone else ():
            library.mallopt(name, value)
    return alone


@cache
def _glibc() -> Any:
    """The C library of this process, if it is glibc; else None."""
    try:
        library = ctypes.CDLL(None)
        return library if hasattr(library, "gnu_get_libc_version") else None
    except (OSError, TypeError):  # Windows takes no None
        return None
