"""Everything that a rented accelerator is for, in one command and within a time: `python -m jobs.run --parts ... --out ...`.

Run in the folder into which the pack's code was unpacked (jobs/README.md). In this order: unpack, smoke test, tests marked `gpu`,
training with the time that is left, a sheet of samples, benchmark. Each is a process of its own with a limit of its own; what one
of them finished stays, whatever becomes of the others. What comes back is laid into the output folder after each: `job.log`,
`results.tar.gz`, and the trained stage in parts, which `python -m jobs.parts` joins: at most 8 files of at most 16 MiB.

Needs Python alone, until the pack's wheels are installed.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tarfile
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from jobs.parts import split

RESULTS, RUN, SITE, LOG = Path("results"), Path("run"), Path("site"), "job.log"
"""In the working folder: what comes back whole, the training run, and the packages that the pack brought."""
STAGE, MIDWAY = RUN / "stage", Path("midway")
"""Folders of the trained stage, and of the one as it stood after MIDWAY_AT of the training's time."""
MIDWAY_AT = 0.6
MOST_FILES, MOST_BYTES = 8, 64 * 2**20
"""That come back."""
GRACE, SHORTEST = 15, 5
"""Seconds that a step has to end after it was told to, and with fewer than which none is begun."""


class Job:
    """Runs the steps and writes what they do, as it goes. `out` is where everything ends up that comes back."""

    def __init__(self, out: Path, seconds: float) -> None:
        self.out, self.begun = out, time.monotonic()
        self.laid: Path | None = None
        self.end = self.begun + seconds
        out.mkdir(parents=True, exist_ok=True)
        RESULTS.mkdir(exist_ok=True)
        paths = [str(Path.cwd()), str(SITE.absolute()), os.environ.get("PYTHONPATH", "")]
        self.environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, paths)), "PYTHONUNBUFFERED": "1"}

    @property
    def left(self) -> float:
        """Seconds."""
        return self.end - time.monotonic()

    def log(self, text: str) -> None:
        line = f"{time.strftime('%H:%M:%S')} {time.monotonic() - self.begun:6.1f} s  {text}"
        print(line, flush=True)
        with (self.out / LOG).open("a", encoding="utf-8") as file:
            print(line, file=file)

    def start(self, words: Sequence[str]) -> subprocess.Popen[str]:
        """Begin a program; each line that it prints is logged."""
        given = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True, "errors": "replace"}
        process: subprocess.Popen[str] = subprocess.Popen([sys.executable, *words], env=self.environment, **given)  # type: ignore[call-overload]  # named as a whole

        def read() -> None:
            for line in process.stdout or ():
                self.log(f"    {line.rstrip()}")

        threading.Thread(target=read, daemon=True).start()
        return process

    def finish(self, name: str, process: subprocess.Popen[str], limit: float) -> bool:
        """Wait for a program, at most `limit` seconds; returns whether it succeeded."""
        try:
            code: int | str = process.wait(max(1.0, limit))
        except subprocess.TimeoutExpired:
            process.terminate()
            try:
                process.wait(min(GRACE, max(2.0, self.left)))
            except subprocess.TimeoutExpired:
                process.kill()
            code = f"not within {limit:.0f} s"
        self.log(f"{name}: {'done' if code == 0 else f'FAILED ({code})'}")
        return code == 0

    def step(self, name: str, words: Sequence[str], limit: float) -> bool:
        """Run a program to its end, or to its limit, and bring back what it made; returns whether it succeeded."""
        limit = min(limit, self.left)
        if limit < SHORTEST:
            self.log(f"{name}: left out, there is no time for it")
            return False
        self.log(f"{name}: begins, at most {limit:.0f} s")
        done = self.finish(name, self.start(words), limit)
        self.lay_out()
        return done

    def lay_out(self) -> None:
        """Lay everything that is to come back into the output folder: what is finished, the trained stage once it is there."""
        try:
            self._lay_out()
        except OSError as error:
            self.log(f"laying out FAILED: {error}")

    def _lay_out(self) -> None:
        kept = [RESULTS, *(path for path in (RUN / "recipe.yaml", RUN / "log.jsonl", RUN / "samples") if path.exists())]
        _archive(kept, self.out / "results.tar.gz", "w:gz")
        stage = next((folder for folder in (STAGE, MIDWAY) if folder.is_dir()), None)
        if stage is not None and stage != self.laid:
            for path in self.out.glob("stage.tar.*"):
                path.unlink()
            _archive([stage], Path("stage.tar"), "w")
            split(Path("stage.tar"), self.out)
            self.laid = stage
            self.log(f"{stage} is in {self.out / 'stage.tar.json'} and its parts")
        files = [path for path in self.out.iterdir() if not path.name.startswith(".")]
        size = sum(path.stat().st_size for path in files)
        if len(files) > MOST_FILES or size > MOST_BYTES:
            self.log(f"TOO MUCH to come back: {len(files)} files, {size / 2**20:.1f} MiB")


def unpack(parts: Sequence[Path], job: Job) -> None:
    """Unpack parts of a pack into the working folder, and install its wheels into a folder of their own."""
    for part in parts:
        for archive in sorted(part.glob("*.tar")):
            with tarfile.open(archive) as tar:
                tar.extractall(".", filter="data")
        if (part / "pictures").is_dir():
            for path in (part / "pictures").rglob("*.*"):
                target = Path("pictures") / path.relative_to(part / "pictures")
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(path, target)
        if wheels := sorted(map(str, part.glob("wheels/*.whl"))):
            options = ["--quiet", "--no-index", "--no-deps", "--no-compile", "--upgrade", "--target", str(SITE)]
            job.finish("wheels", job.start(["-m", "pip", "install", *options, *wheels]), 60)
    job.log(f"unpacked {len(parts)} part{'s' * (len(parts) != 1)}")


def _archive(paths: Sequence[Path], target: Path, mode: str) -> None:
    partial = target.with_name(f".{target.name}")
    with tarfile.open(partial, mode) as tar:  # type: ignore[call-overload]  # a mode of tarfile
        for path in paths:
            tar.add(path)
    partial.replace(target)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--out", type=Path, required=True, help="folder that comes back")
    add("--seconds", type=float, default=540, help="for everything (default: 540)")
    add("--parts", type=Path, nargs="*", default=[], help="folders of the pack that have arrived")
    add("--tests", type=float, default=100, help="seconds at most for the tests marked gpu (default: 100; 0 = none)")
    add("--grids", type=float, default=30, help="seconds kept for the sheet of samples (default: 30)")
    add("--benchmark", type=float, default=80, help="seconds kept for the benchmark (default: 80)")
    add("--only-unpack", action="store_true", help="unpack and smoke test: the other parts come with the next command")
    options = parser.parse_args()
    job = Job(options.out.absolute(), options.seconds)
    job.log(f"{options.seconds:.0f} s, Python {sys.version.split()[0]}, {os.cpu_count()} cores")
    unpack(options.parts, job)
    data = None if options.only_unpack else job.start(["-m", "jobs.steps", "data"])  # beside the tests, on other cores
    job.step("smoke test", ["-m", "jobs.steps", "smoke"], 90)
    if data is None:
        return
    if options.tests:
        job.step("gpu tests", ["-m", "pytest", "-m", "gpu", "-p", "no:cacheprovider", "tests/gpu"], options.tests)
    ending = 5 + options.grids + options.benchmark
    job.finish("data", data, (job.left - ending) / 2)
    left = job.left - ending
    job.log(f"training: begins, at most {left:.0f} s")
    training = job.start(["-m", "jobs.steps", "train", "--until", f"{time.time() + left:.1f}"])
    with suppress(subprocess.TimeoutExpired):
        training.wait(max(0.0, MIDWAY_AT * left))
    if training.poll() is None:
        job.step("the stage so far", ["-m", "jobs.steps", "export"], 0.35 * left)
    job.finish("training", training, job.left - ending + GRACE)
    job.lay_out()
    if STAGE.is_dir():
        job.step("samples", ["-m", "jobs.steps", "samples"], options.grids)
    if options.benchmark:
        words = ["--stage", "stage", "--json", str(RESULTS / "benchmark.json"), "--seconds", f"{job.left - 10:.0f}"]
        job.step("benchmark", ["benchmarks/accelerator.py", *words], job.left - 3)
    job.log(f"finished with {job.left:.0f} s left")
    for path in sorted(job.out.iterdir()):
        job.log(f"    {path.name} {path.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
