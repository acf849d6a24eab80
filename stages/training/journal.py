"""Where the curves of a run are kept: `log.jsonl` in its folder, and the same numbers in trackers such as TensorBoard."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from accelerate import Accelerator
from accelerate.tracking import LOGGER_TYPE_TO_CLASS, TensorBoardTracker, get_available_trackers
from PIL import Image

from cascade.stages.files import complete

LOG, SAMPLES, TENSORBOARD = "log.jsonl", "samples", "tensorboard"
"""Log, and folders of samples and of the default tracker, in the run's folder; the last is the tracker's name too."""

TAKE_IMAGES = (TENSORBOARD, "wandb", "swanlab", "clearml")
"""Trackers to which accelerate gives a list of images."""


class Journal:
    """Takes down what a run measures: one line of `log.jsonl` per record, the same numbers in every tracker, images as the step.

    It continues where the run stands: what an interrupted run wrote of later images is cut from the log and from TensorBoard's
    curves, for it is going to be written again. Only the main process writes. The names of trackers are accelerate's, see
    `check_trackers`.
    """

    def __init__(self, run: Path, images_seen: int, accelerator: Accelerator, trackers: Sequence[str] = ()) -> None:
        self.run, self.begun_at, self.accelerator, self.trackers = run, images_seen, accelerator, list(trackers)
        self._started = False
        if accelerator.is_main_process:
            cut(run / LOG, images_seen)

    def write(self, images_seen: int, values: Mapping[str, Any]) -> None:
        """Take down numbers, or groups of named numbers, measured after so many images. No number (NaN) is null in the log."""
        if not self.accelerator.is_main_process:
            return
        line = _plain({"images_seen": images_seen, **values})
        with (self.run / LOG).open("a") as file:
            file.write(json.dumps(line, allow_nan=False) + "\n")
        self._start()
        self.accelerator.log(scalars(line), step=images_seen)

    def samples(self, images_seen: int, grid: Image.Image) -> None:
        """Keep a grid of samples made after so many images: a PNG in the run's folder, and in trackers that take images."""
        if not self.accelerator.is_main_process:
            return
        with complete(self.run / SAMPLES / f"{images_seen:012d}.png") as file:
            grid.save(file, "PNG")
        self._start()
        pixels = np.asarray(grid.convert("RGB"))[None]
        for tracker in self.accelerator.trackers:
            if tracker.name in TAKE_IMAGES:
                layout = {"dataformats": "NHWC"} if tracker.name == TENSORBOARD else {}
                tracker.log_images({SAMPLES: pixels}, step=images_seen, **layout)

    def __enter__(self) -> Journal:
        return self

    def __exit__(self, *error: object) -> None:
        """End the trackers."""
        for tracker in self.accelerator.trackers if self._started else ():
            tracker.finish()

    def _start(self) -> None:
        """Start the trackers, at the first record: a run that is over already leaves no empty ones."""
        if self._started:
            return
        self._started = True
        tensorboard = TensorBoardTracker(TENSORBOARD, self.run, purge_step=self.begun_at + 1)
        self.accelerator.project_configuration.set_directories(str(self.run))
        self.accelerator.log_with = [tensorboard if name == TENSORBOARD else name for name in self.trackers]
        self.accelerator.init_trackers("cascade")


def check_trackers(names: Sequence[str]) -> None:
    """Raise ValueError unless accelerate knows these trackers and finds their packages."""
    known, installed = sorted(map(str, LOGGER_TYPE_TO_CLASS)), [str(name) for name in get_available_trackers()]
    for name in names:
        if name not in known:
            raise ValueError(f"{name!r} is not a tracker; known are {', '.join(known)}")
        if name not in installed:
            raise ValueError(f"the tracker {name} is not installed; install its package, or leave it out")


def scalars(record: Mapping[str, Any]) -> dict[str, float]:
    """The numbers of a line of the log by the names that trackers show them under, `group/name` for those of a group."""
    flat: dict[str, float | None] = {}
    for name, value in record.items():
        flat |= {f"{name}/{key}": inner for key, inner in value.items()} if isinstance(value, Mapping) else {name: value}
    return {key: n for key, n in flat.items() if n is not None and key not in ("images_seen", "total_images")}


def read_log(path: Path) -> list[dict[str, Any]]:
    """The lines of a run's log, in order. One that was cut off as the run was killed is left out; no log is an empty one.

    Raises ValueError if it is not a log.
    """
    *lines, _ = path.read_bytes().split(b"\n") if path.is_file() else [b""]
    records = []
    for number, line in enumerate(lines, start=1):
        try:
            record = json.loads(line)
            record["images_seen"] + 0
        except (ValueError, TypeError, KeyError) as error:
            raise ValueError(f"line {number} of {path} is not a line of a training run's log; repair or remove it") from error
        records.append(record)
    return records


def cut(path: Path, images_seen: int) -> None:
    """Remove from a log what was written after so many images."""
    if path.is_file():
        kept = [record for record in read_log(path) if record["images_seen"] <= images_seen]
        with complete(path) as file:
            file.write("".join(json.dumps(record) + "\n" for record in kept).encode())


def _plain(value: Any) -> Any:
    """The value as JSON has it."""
    if isinstance(value, Mapping):
        return {name: _plain(inner) for name, inner in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value
