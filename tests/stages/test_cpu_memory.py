"""Memory for feature maps: kept within the context, however often it is entered, and given back after it."""

import subprocess
import sys

import pytest

from cascade.stages import cpu_memory

pytestmark = pytest.mark.skipif(cpu_memory._glibc() is None, reason="the C library is not glibc")

FAULTS = """
import resource, sys, torch
from contextlib import nullcontext
from cascade.stages.cpu_memory import kept_memory

with kept_memory() if sys.argv[1] == "kept" else nullcontext():
    for i in range(30):
        if i == 10:  # until then, glibc looks for a place
            before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        torch.ones(2**23 + 2**22)  # 48 MiB
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def test_maps_come_from_memory_that_is_there():
    kept, anew = (
        int(subprocess.run([sys.executable, "-c", FAULTS, which], capture_output=True, check=True).stdout)
        for which in ("kept", "anew")
    )
    assert 3 * kept < anew


def test_only_the_first_to_enter_and_the_last_to_leave_change_anything(monkeypatch):
    calls = []

    class Library:
        def mallopt(self, name, value):
            calls.append((name, value))

        def malloc_trim(self, kept):
            calls.append(kept)

    monkeypatch.setattr(cpu_memory, "_glibc", Library)
    with cpu_memory.kept_memory():
        entered = list(calls)
        with pytest.raises(KeyError), cpu_memory.kept_memory():
            raise KeyError
        assert calls == entered == list(cpu_memory._WITHIN.items())
    assert calls == entered + list(cpu_memory._AFTERWARDS.items()) + [0]
    monkeypatch.setattr(cpu_memory, "_glibc", lambda: None)
    with cpu_memory.kept_memory():
        assert len(calls) == 5
