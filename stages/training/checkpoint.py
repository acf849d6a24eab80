"""Checkpoints of a training run: safetensors and JSON, written beside and renamed, verified when read. Nothing is pickled."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

PREFIX = "checkpoint-"


def save(
    run: Path, images_seen: int, tensors: Mapping[str, Mapping[str, Tensor]], state: Mapping[str, Any], keep: int = 2
) -> Path:
    """Write one checkpoint whole or not at all, then remove all but the `keep` newest.

    Args:
        run: The run's folder.
        images_seen: Names the checkpoint.
        tensors: Groups of named tensors, one file each.
        state: Plain values.
        keep: How many checkpoints remain.

    Returns:
        The checkpoint's folder.

    Raises:
        OSError: if it can't be written; older checkpoints are untouched then.
    """
    target = run / f"{PREFIX}{images_seen:012d}"
    partial = target.with_suffix(".partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        for group, values in tensors.items():
            save_file(
                {name: value.detach().cpu().contiguous() for name, value in values.items()}, partial / f"{group}.safetensors"
            )
        sums = {path.name: _sha256(path) for path in sorted(partial.iterdir())}
        (partial / "state.json").write_text(json.dumps({**state, "images_seen": images_seen, "sha256": sums}, indent=1))
        _flush(partial)
        shutil.rmtree(target, ignore_errors=True)
        partial.rename(target)
    except OSError:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    for old in folders(run)[keep:]:
        shutil.rmtree(old, ignore_errors=True)
    return target


def folders(run: Path) -> list[Path]:
    """The run's finished checkpoints, newest first."""
    return sorted((path for path in run.glob(f"{PREFIX}*") if path.suffix != ".partial"), reverse=True)


def load_newest(run: Path) -> tuple[dict[str, dict[str, Tensor]], dict[str, Any], list[str]] | None:
    """The newest checkpoint that is whole: its tensors by group, its state, and a line on every damaged one that was passed over.

    None where the run has none. A run whose every checkpoint is damaged raises ValueError, lest it silently start anew.
    """
    problems: list[str] = []
    for folder in folders(run):
        try:
            state = json.loads((folder / "state.json").read_text())
            for name, expected in state["sha256"].items():
                if _sha256(folder / name) != expected:
                    raise ValueError(f"{name} is not what was written")
            tensors = {Path(name).stem: load_file(folder / name) for name in state["sha256"]}
        except (OSError, ValueError, KeyError) as error:
            problems.append(f"{folder.name} is damaged and was passed over: {error}")
            continue
        return tensors, state, problems
    if problems:
        raise ValueError(f"no checkpoint in {run} can be read ({'; '.join(problems)}); remove the folder to train anew")
    return None


def optimizer_tensors(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """State of an optimizer as flat tensors, `number of the parameter.name of the value`."""
    state = optimizer.state_dict()["state"]
    return {f"{index}.{name}": torch.as_tensor(value) for index, values in state.items() for name, value in values.items()}


def restore_optimizer(optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor]) -> None:
    """Inverse of `optimizer_tensors`. Averages get the memory format of their parameter, which fused optimizers rely on."""
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    state: dict[int, dict[str, Tensor]] = {}
    for key, value in tensors.items():
        index, name = int(key.split(".")[0]), key.split(".")[1]
        parameter = parameters[index]
        same_shape = value.shape == parameter.shape
        state.setdefault(index, {})[name] = torch.empty_like(parameter, requires_grad=False).copy_(value) if same_shape else value
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def _flush(folder: Path) -> None:
    """Make sure that the folder's files are on the disk before it gets its final name."""
    for path in folder.iterdir():
        with path.open("rb") as file:
            os.fsync(file.fileno())
