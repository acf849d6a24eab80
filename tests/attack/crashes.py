"""A writer killed at a chosen moment, in a process of its own, with or without the loss of what was not flushed.

Runs as a program, `crashes.py ROOT SEED KINDS TURN TURNS [WRITER ...]`, which prints a line of JSON a crash: writer, kind, place,
failure or null. All turns together crash every writer at each of its system calls once.
The library built from shim.c must be loaded before libc (LD_PRELOAD).
"""

import ctypes
import importlib
import json
import os
import random
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil

for folder in (Path(__file__).parent, Path(__file__).parents[1] / "cascade"):
    sys.path.insert(0, str(folder))

importlib.import_module("cascade")  # first: it makes torchvision importable beside a CPU torch

from writers import KILLED, KILLS_ALONE, WRITERS, contents, fresh, prepare  # noqa: E402

SHIM = ctypes.CDLL(os.environ["LD_PRELOAD"])
PATIENCE = 240  # seconds for a writer, on a busy machine


def forked(action, kill_after: float | None = None) -> int:  # type: ignore[no-untyped-def]
    """The exit code of a child that runs `action`; KILLED if it was killed, with whatever it had started."""
    child = os.fork()
    if child == 0:
        os.setsid()
        try:
            action()
        except SystemExit as ended:
            os._exit(ended.code if isinstance(ended.code, int) else 1)
        except BaseException as error:  # noqa: BLE001  (told by the exit code)
            os.write(2, f"{type(error).__name__}: {error}\n".encode())
            os._exit(1)
        os._exit(0)
    end = time.monotonic() + (PATIENCE if kill_after is None else kill_after)
    while time.monotonic() < end:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.002)
    ranks = psutil.Process(child).children()
    if kill_after is None or not ranks or random.random() < 0.5:
        try:
            os.killpg(child, signal.SIGKILL)
        except ProcessLookupError:  # it had not come to lead a session yet, and so had started nothing
            os.kill(child, signal.SIGKILL)
    else:  # one of those that torchrun looks after
        ranks[random.randrange(len(ranks))].kill()
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    return -1 if kill_after is None else KILLED if code == -signal.SIGKILL else code


def lose(folder: Path) -> None:
    """What a disk may do to a file that was written and not flushed: its name is there, and nothing in it."""
    buffer = (ctypes.c_uint64 * 65536)()
    lost = set(buffer[: SHIM.unflushed(buffer, 65536)])
    for path in folder.rglob("*"):
        if path.is_file() and not path.is_symlink() and path.stat().st_ino in lost:
            os.truncate(path, 0)


def crash(name: str, root: Path, whole: dict[str, bytes], kind: str, place: float) -> str | None:
    """What is wrong after a crash and a second try; None = nothing. `place`: the number of a system call, or seconds."""
    write, folder = WRITERS[name], fresh(root / "work")
    prepare(name, folder)
    SHIM.arm(0 if kind == "kill" else int(place))
    code = forked(lambda: write(folder), place if kind == "kill" else None)
    if code not in (0, KILLED):
        return f"exit code {code} before it was killed"
    if kind == "power":
        lose(folder)
    if name == "saving over a model" and not (folder / "model" / "cascade.json").is_file():
        return "there is no model"
    SHIM.arm(0)
    if (code := forked(lambda: write(folder))) != 0:
        return f"exit code {code} of the second try"
    found = contents(folder)
    if left := sorted(found.keys() - whole.keys()):
        return f"left over: {', '.join(left[:3])}"
    if missing := sorted(whole.keys() - found.keys()):
        return f"missing: {', '.join(missing[:3])}"
    differs = [path for path in whole if whole[path] != found[path]]
    return f"other bytes: {', '.join(differs[:3])}" if differs else None


def crashes(
    root: Path, kinds: list[str], turn: int, turns: int, names: list[str]
) -> Iterator[tuple[str, str, float, str | None]]:
    """Crashes of writers: at every `turns`-th of their system calls, others each turn, and as many kills at random moments."""
    for name in names or WRITERS:
        write = WRITERS[name]
        folder = fresh(root / "work")
        prepare(name, folder)
        write(folder)  # here first, so that no child has to import anything
        prepare(name, fresh(folder))
        SHIM.arm(0)
        begun = time.monotonic()
        if (code := forked(lambda write=write, folder=folder: write(folder))) != 0:
            yield name, "whole", 0, f"exit code {code}"
            continue
        seconds, calls, whole = time.monotonic() - begun, SHIM.counted(), contents(folder)
        alone = name in KILLS_ALONE
        for kind in kinds if not alone else {"kill"} & {*kinds}:
            for place in range(1 + (turn + len(name)) % turns, calls + 1, turns * (3 if alone else 1)):
                where = random.random() * seconds if kind == "kill" else place
                yield name, kind, where, crash(name, root, whole, kind, where)


if __name__ == "__main__":
    base, seed, kinds, turn, turns, *names = sys.argv[1:]
    random.seed(seed)
    for name, kind, place, failure in crashes(Path(base).absolute(), kinds.split(","), int(turn), int(turns), names):
        print(json.dumps([name, kind, place, failure]), flush=True)
