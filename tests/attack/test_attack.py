"""Attacks on every writer and every reader: a sample in the ordinary run, all of it by `pytest -m attack`.

The last line of the whole run says what was tried: hostile inputs, crashes, kills, power cuts, failures, seconds.
"""

import json
import os
import random
import shutil
import subprocess
import sys
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

HERE = Path(__file__).parent
SEED = int(os.environ.get("ATTACK_SEED", "1"))
MINUTES = float(os.environ.get("ATTACK_MINUTES", "110"))
TURNS, INPUTS = 10, 500
"""Rounds of the whole run, which crash every writer at each of its system calls once, and hostile inputs of each."""


def lines(script: str, *words: object, **environment: str) -> list[list]:
    """What one of the programs beside this file prints; what ended it before its end is a failure of its last line."""
    command = [sys.executable, str(HERE / script), *map(str, words)]
    known = {"PYTHONPATH": str(HERE.parents[1]), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=os.environ | known | environment, capture_output=True, text=True)
    found = [json.loads(line) for line in done.stdout.splitlines()]
    return found + ([["the program itself", 0, f"exit code {done.returncode}: {done.stderr[-500:]}"]] if done.returncode else [])


def hostile(folder: Path, seed: object, count: int) -> list[list]:
    return lines("hostile.py", folder, seed, count, XDG_CACHE_HOME=str(folder / "cache"))


@pytest.fixture(scope="session")
def shim(tmp_path_factory):
    """The library that kills a process at a system call."""
    compiler = shutil.which("gcc") or shutil.which("cc")
    if sys.platform != "linux" or compiler is None:
        pytest.skip("killing at a system call needs Linux and a C compiler")
    library = tmp_path_factory.mktemp("shim") / "shim.so"
    subprocess.run([compiler, "-shared", "-fPIC", "-O1", "-o", library, HERE / "shim.c", "-ldl"], check=True)
    return str(library)


def crashes(folder: Path, shim: str, seed: object, kinds: str, turn: int, turns: int, *names: str) -> list[list]:
    return lines("crashes.py", folder, seed, kinds, turn, turns, *names, LD_PRELOAD=shim, ATTACK_ROOT=str(folder))


def failures(found: list[list]) -> list[list]:
    return [line for line in found if line[-1] is not None]


def test_hostile_input_ends_in_a_sentence(tmp_path):
    found = hostile(tmp_path, SEED, 100)
    kinds = {kind for kind, *_ in found}
    assert failures(found) == [] and kinds >= {"model", "pickled", "archive", "yaml", "picture", "shard", "parquet"}


def test_a_writer_killed_anywhere_ends_in_the_same_bytes_at_the_second_try(tmp_path, shim):
    quick = ["sampling png", "sampling npz", "saving over a model", "converting", "rendering", "search", "training"]
    names = random.Random(SEED).sample(quick, 3)
    found = crashes(tmp_path, shim, SEED, "crash,power", 0, 40, *names)
    assert failures(found) == [] and {name for name, *_ in found} == set(names)


def test_the_oracle_sees_what_it_looks_for(tmp_path):
    script = """
import os, sys
sys.path.insert(0, sys.argv[1])
from hostile import Watch, judged
from pathlib import Path
from cascade.cli.errors import guarded
folder, watch = Path.cwd(), Watch()
def does(action): return judged(lambda: guarded("x", action), watch, folder) or ""
assert not does(lambda: None)
assert "it did" in does(lambda: os.system("true"))
assert "internal error" in does(lambda: {}["a"])
assert "raw" in does(lambda: print(chr(27)))
assert "writes /" in does(lambda: open("/var/tmp/attacked", "w"))
assert "executed" in does(lambda: Path("canary").touch())
"""
    environment = os.environ | {"PYTHONPATH": str(HERE.parents[1])}
    done = subprocess.run([sys.executable, "-c", script, HERE], cwd=tmp_path, env=environment, capture_output=True, text=True)
    Path("/var/tmp/attacked").unlink(missing_ok=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.attack
def test_all_of_it(tmp_path, shim, capsys):
    begun, rng = time.monotonic(), random.Random(SEED)
    found: list[list] = []
    tried: Counter[str] = Counter()

    def take(kind: str | None, made: list[list]) -> None:
        found.extend(made)
        with capsys.disabled():
            print(*failures(made), sep="\n", end="", flush=True)
        for line in made:
            tried[kind or line[1]] += 1

    for turn in range(TURNS):
        if time.monotonic() - begun > 60 * MINUTES:
            break
        kinds = "crash,kill,power" if turn % 2 else "crash,kill"
        with ThreadPoolExecutor(2) as side_by_side:
            inputs = side_by_side.submit(hostile, tmp_path / f"inputs-{turn}", rng.random(), INPUTS)
            ends = side_by_side.submit(crashes, tmp_path / "crashes", shim, rng.random(), kinds, turn, TURNS)
        take("inputs", inputs.result())
        take(None, ends.result())
        failed = Counter(line[0] for line in failures(found))
        parts = [f"{tried['inputs']:,} hostile inputs", f"{tried['crash']:,} crash points", f"{tried['kill']:,} random kills"]
        parts += [f"{tried['power']:,} power cuts", f"{sum(failed.values())} failures {dict(failed) if failed else ''}".strip()]
        with capsys.disabled():
            print(f"\n{', '.join(parts)}, {time.monotonic() - begun:,.0f} s", flush=True)
    assert failures(found)[:20] == []
