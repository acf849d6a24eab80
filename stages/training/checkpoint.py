"""Checkpoints of a training run: safetensors and JSON, written whole or not at all, verified when read. Nothing is pickled."""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from cascade.stages.files import OLD, PARTIAL, complete_folder, read_text, remove_folder, sha256

PREFIX, STATE = "checkpoint-", "state.json"
"""Names in a run's folder."""

LOSS, SEAL = "validation_loss", "sha256_of_state"
"""Keys of a checkpoint's state: that by which the best is known, absent or None = not measured; and the hash of all others."""

DAMAGED = (OSError, ValueError, KeyError, TypeError, AttributeError, SafetensorError)
"""What reading a damaged checkpoint raises."""

Tensors = dict[str, dict[str, Tensor]]
State = dict[str, Any]


def save(run: Path, images_seen: int, tensors: Mapping[str, Mapping[str, Tensor]], state: Mapping[str, Any], keep: int) -> Path:
    """Write one checkpoint as `write` does, then `prune`.

    Returns its folder, which `images_seen` names. Raises OSError if it can't be written; older checkpoints are untouched then.
    """
    target = run / f"{PREFIX}{images_seen:012d}"
    try:
        write(target, tensors, {**state, "images_seen": images_seen})
    except OSError as error:
        older = next(iter(folders(run)), None)
        kept = f"{older.name} is whole" if older else "there is none before it"
        raise OSError(
            f"the checkpoint of {images_seen} images could not be written to {run} ({error}), and {kept};"
            " make room, then run the same command again"
        ) from error
    prune(run, keep)
    return target


def prune(run: Path, keep: int) -> None:
    """Remove all checkpoints but the `keep` newest and the one of the least validation loss."""
    best = best_folder(run)
    for old in folders(run)[keep:]:
        if old != best:
            remove_folder(old)


def write(target: Path, tensors: Mapping[str, Mapping[str, Tensor]], state: Mapping[str, Any]) -> None:
    """Write groups of named tensors, a file each, and plain values as a folder that `load` reads: whole or not at all.

    One that is there already, a damaged one or one of the same content, is replaced. An OSError's message is the reason alone.
    """
    try:
        with complete_folder(target) as partial:
            for group, values in tensors.items():
                on_cpu = {name: value.detach().cpu().contiguous() for name, value in values.items()}
                save_file(on_cpu, partial / f"{group}.safetensors")
            sums = {path.name: sha256(path) for path in sorted(partial.iterdir())}
            facts = json.loads(json.dumps({**state, "sha256": sums}))
            (partial / STATE).write_text(json.dumps(facts | {SEAL: _seal(facts)}, indent=1))
    except OSError as error:
        raise OSError(error.strerror or str(error)) from error


def folders(run: Path) -> list[Path]:
    """The run's finished checkpoints, newest first: folders of the very names that `save` gives, whatever else lies there.

    Raises ValueError for a link of such a name, which may lead to what isn't the run's own.
    """
    return named_folders(run, PREFIX)[::-1]


def named_folders(home: Path, prefix: str = "") -> list[Path]:
    """Folders that are called `prefix` and twelve digits, in their order. Raises ValueError for a link of such a name."""
    found = sorted(path for path in home.glob(f"{prefix}*") if re.fullmatch(rf"{prefix}[0-9]{{12}}", path.name))
    if linked := next((path for path in found if path.is_symlink()), None):
        raise ValueError(f"{linked} is a link, and a run's own folders are none; remove it, or put the folder in its place")
    return [path for path in found if path.is_dir()]


def best_folder(run: Path) -> Path | None:
    """The checkpoint of the least validation loss, the newer of two equal ones; None where none was measured."""
    losses: dict[Path, float] = {}
    for folder in folders(run):
        with contextlib.suppress(*DAMAGED):
            loss = read_state(folder).get(LOSS)
            if loss is not None:
                losses[folder] = loss
    return min(losses, key=lambda folder: losses[folder], default=None)


def clean(home: Path, prefix: str = PREFIX) -> None:
    """Remove what a killed run left of `named_folders` that it was writing or removing."""
    for path in home.glob(f".{prefix}*"):
        if re.fullmatch(rf"\.{prefix}[0-9]{{12}}(\{PARTIAL}|\{OLD})", path.name):
            shutil.rmtree(path, ignore_errors=True)


def load(folder: Path) -> tuple[Tensors, State]:
    """A checkpoint's tensors by group and its state. Raises one of DAMAGED if it is not what was written."""
    state = read_state(folder)
    for name, expected in state["sha256"].items():
        if Path(name).name != name or sha256(folder / name) != expected:
            raise ValueError(f"{name} is not what was written")
    return {Path(name).stem: load_file(folder / name) for name in state["sha256"]}, state


def read_state(folder: Path) -> State:
    """The plain values of what `write` wrote. Raises one of DAMAGED if they are not what was written."""
    state = json.loads(read_text(folder / STATE))
    seal = state.pop(SEAL, None)
    if seal is not None and seal != _seal(state):  # older runs have none
        raise ValueError(f"{STATE} is not what was written")
    return state


def load_newest(run: Path) -> tuple[Tensors, State, list[str]] | None:
    """The newest checkpoint that is whole, and a line on every damaged one that was passed over; None where the run has none.

    A run whose every checkpoint is damaged raises ValueError, lest it silently start anew.
    """
    problems: list[str] = []
    for folder in folders(run):
        try:
            return *load(folder), problems
        except DAMAGED as error:
            problems.append(f"{folder.name} is damaged and was passed over: {error}")
    if problems:
        raise ValueError(f"no checkpoint in {run} can be read ({'; '.join(problems)}); remove the folder to train anew")
    return None


def optimizer_tensors(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """State of an optimizer as flat tensors, `number of the parameter.name of the value`."""
    states = optimizer.state_dict()["state"].items()
    return {f"{index}.{name}": torch.as_tensor(value) for index, values in states for name, value in values.items()}


def restore_optimizer(optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor]) -> None:
    """Inverse of `optimizer_tensors`. Averages get the memory format of their parameter, which fused optimizers rely on."""
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    state: dict[int, dict[str, Tensor]] = {}
    for key, value in tensors.items():
        index, name = key.split(".")
        own = parameters[int(index)]
        laid_out = torch.empty_like(own, requires_grad=False).copy_(value) if value.shape == own.shape else value
        state.setdefault(int(index), {})[name] = laid_out
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})


def _seal(state: Mapping[str, Any]) -> str:
    """SHA-256 of plain values, whatever the order of their names."""
    return hashlib.sha256(json.dumps(state, sort_keys=True).encode()).hexdigest()
