"""What `run.json` says of a run: all that its images depend on, and what an image costs; nothing of when and where."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from cascade.files import read_text, sha256, write_text
from cascade.runs.plan import RunPlan

if TYPE_CHECKING:
    from cascade.pipeline import CascadePipeline
    from cascade.stage_sampling import Sampling

FORMAT = 1
RECORD = "run.json"


def model_hash(model: CascadePipeline | Path) -> str:
    """SHA-256 over names and contents of a model's json and safetensors files, in the order of their names.

    Of a cascade that was loaded or saved these are the files in its folder, of another those that it would be saved as.
    """
    if isinstance(model, Path):
        paths = sorted(path for path in model.rglob("*") if path.suffix in (".json", ".safetensors"))
        lines = [f"{path.relative_to(model).as_posix()} {sha256(path)}\n" for path in paths]
        return hashlib.sha256("".join(lines).encode()).hexdigest()
    if model.folder is not None:
        return model_hash(model.folder)
    with TemporaryDirectory() as folder:
        model.save_pretrained(Path(folder) / "model")
        model.folder = None  # that one goes again
        return model_hash(Path(folder) / "model")


def settings_of(cascade: CascadePipeline, size: int, sampling: Sampling) -> dict[str, Any]:
    """All that the images of a run depend on beside model and plan, of `CascadePipeline.described`."""
    settings = cascade.described(cascade.stages_to(size), sampling)
    del settings["batch_size"]  # the plan's
    return settings


def record_of(plan: RunPlan, model: str, sha256: str, settings: Mapping[str, Any], cost: Mapping[str, Any]) -> dict[str, Any]:
    """The record of a run of the model of this name and `model_hash`; settings are of `settings_of`, and `cascade.costs.cost_of`
    gives the cost."""
    import diffusers
    import torch

    return {
        "format": FORMAT,
        "model": {"name": model, "sha256": sha256},
        "plan": asdict(plan) | {"labels": plan.labels if isinstance(plan.labels, str) else list(plan.labels)},
        "settings": dict(settings),
        "software": {"torch": torch.__version__, "diffusers": diffusers.__version__},
        "cost": dict(cost),
    }


def read_record(out: Path) -> dict[str, Any] | None:
    """The record of the run in a folder; None where there is none. Raises ValueError if it is damaged."""
    path = out / RECORD
    if not path.is_file():
        return None
    try:
        record = json.loads(read_text(path))
        if record["format"] != FORMAT:
            raise ValueError(f"its format is {record['format']}, expected {FORMAT}")
        return record
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} is not the record of a sampling run, or is damaged ({error})") from error


def plan_of(record: Mapping[str, Any]) -> RunPlan:
    """The plan in a record."""
    values = dict(record["plan"])
    return RunPlan(**values | {"labels": values["labels"] if isinstance(values["labels"], str) else tuple(values["labels"])})


def labels_of_run(out: Path) -> list[int | None]:
    """Class of every image of a run, in order. Raises ValueError if the folder holds no run."""
    record = read_record(out)
    if record is None:
        raise ValueError(f"{out} holds no {RECORD}, so the classes of its images are not known; make them by `cascade sample`")
    if "plan" not in record:
        raise ValueError(f"{out / RECORD} is of another command: {out} holds no sampling run; make one by `cascade sample`")
    plan = plan_of(record)
    return [plan.label(i) for i in range(plan.num_images)]


def check_folder(out: Path) -> dict[str, Any] | None:
    """The record of the run to go on with in a folder, None = a new one; ValueError for a file, or if it holds something else."""
    if out.exists() and not out.is_dir():
        raise ValueError(f"{out} is a file, expected a folder for the run")
    record = read_record(out)
    if record is None and out.is_dir() and any(not path.name.startswith(".") for path in out.iterdir()):
        raise ValueError(f"{out} is not empty and holds no sampling run; choose another folder")
    return record


def begin(out: Path, record: Mapping[str, Any]) -> None:
    """Mark a folder as that of this run, or see that it is; ValueError if it holds another run or something else."""
    before = check_folder(out)
    if before is None:
        write_text(out / RECORD, json.dumps(record, indent=2) + "\n")
    elif changed := difference(before, record):
        raise ValueError(f"{out} holds a run with {changed}; give the same options, or another folder")


def difference(before: Mapping[str, Any], now: Mapping[str, Any], key: str = "") -> str | None:
    """The first value in which two records differ, in words; what an image costs follows from the rest."""
    for name in [name for name in {**before, **now} if name != "cost"]:
        old, new = before.get(name), now.get(name)
        if isinstance(old, Mapping) and isinstance(new, Mapping):
            if found := difference(old, new, f"{key}{name}."):
                return found
        elif old != json.loads(json.dumps(new)):
            return f"{key}{name} {old}, not {new}"
    return None
