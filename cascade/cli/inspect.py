"""`cascade inspect`: what a model, a stage or a generated picture is, read from its files without loading any weights."""

from __future__ import annotations

import json
import math
from argparse import ArgumentParser, Namespace
from collections import Counter
from pathlib import Path
from typing import Any

from cascade.cli.terminal import put
from cascade.folder import MANIFEST, Manifest
from cascade.models import resolve
from cascade.png import read_chunks
from cascade.stages.saved import INDEX, read_json

NAME = "inspect"
HELP = "Show what a model or a stage consists of, or what a generated picture says of itself."


def add_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("what", metavar="MODEL_OR_STAGE_OR_PICTURE", help="an installed model, a folder, a Hub id, or a picture")


def run(args: Namespace) -> None:
    path = Path(args.what).expanduser()
    if path.exists() and not path.is_dir():
        chunks = _picture(path)
        width = max(map(len, chunks))
        put(*(f"{key:<{width}}  {text}" for key, text in chunks.items()))
        for line in _differs_here(chunks):
            put(line)
        return
    folder = resolve(args.what)
    if (folder / INDEX).is_file() and not (folder / MANIFEST).is_file():
        put(*_stage(folder, folder.name, ""))
        return
    manifest = Manifest.read(folder)
    known = "classes known by index" if manifest.classes is None else f"{len(manifest.classes)} classes"
    sizes = " -> ".join(str(stage.size) for stage in manifest.stages)
    put(f"{manifest.name}: {known}, {sizes} px, {_files(folder)} in {folder}")
    for stage in manifest.stages:
        size = f"{stage.low_res_size} -> {stage.size} px" if stage.low_res_size else f"{stage.size} px"
        put(*_stage(folder / stage.folder, stage.name, f", {size}"))


def _picture(path: Path) -> dict[str, str]:
    """Where a picture is, as a link, and its text chunks."""
    chunks = read_chunks(path)
    if not chunks:
        raise ValueError(f"{path} carries no description of itself; only pictures that this program wrote do")
    return {"File": path.absolute().as_uri()} | chunks


def _differs_here(chunks: dict[str, str]) -> list[str]:
    """What of this machine may change last bits when a picture's command makes it again."""
    try:
        settings = json.loads(chunks.get("Settings", "{}"))
        threads, mixed = settings.get("threads"), any("mixed_precision" in stage for stage in settings["stages"].values())
    except (ValueError, RecursionError, KeyError, TypeError, AttributeError):  # of another program, or changed
        return []
    import torch

    from cascade.stages.cpu_convolutions import multiplies_bfloat16

    said, here = [], torch.get_num_threads()
    if type(threads) is int and threads != here:
        said.append(f"made by {threads} threads, and here are {here}: OMP_NUM_THREADS={threads} takes as many")
    if mixed and not multiplies_bfloat16():
        said.append("made in mixed precision, for which this CPU has no instructions")
    return [f"here the same command may make other last bits: {'; '.join(said)}"] if said else []


def _stage(folder: Path, name: str, sizes: str) -> list[str]:
    """A stage in some lines: pipeline, sampling defaults, and its networks."""
    index = read_json(folder / INDEX)
    defaults = {
        key: value
        for key, value in index.items()
        if not key.startswith("_") and not isinstance(value, list | dict) and value is not None
    }
    settings = ", ".join(f"{key} {value}" for key, value in defaults.items())
    lines = [f"{name}: {index.get('_class_name')}{sizes}, {_files(folder)}"] + [f"  defaults: {settings}"] * bool(settings)
    for part in sorted(path.parent for path in folder.glob("*/*config.json")):
        config_path = next(iter(sorted(part.glob("*config.json"))))
        config = read_json(config_path)
        lines.append(f"  {part.name}: {config.get('_class_name')}{_described(config)}{_parameters(part)}")
    return lines


def _described(config: dict[str, Any]) -> str:
    """The settings of a network or scheduler that tell most."""
    facts = {
        "low_res_size": "sees {} px",
        "sample_size": "makes {} px",
        "num_classes": "{} classes",
        "prediction_type": "predicts {}",
    }
    return "".join(", " + text.format(config[key]) for key, text in facts.items() if config.get(key) is not None)


def _parameters(folder: Path) -> str:
    """Parameters of a network and their number types, from the heads of its files."""
    from safetensors import SafetensorError, safe_open

    counts: Counter[str] = Counter()
    for path in sorted(path for path in folder.glob("*.safetensors") if path.is_file()):
        try:
            with safe_open(path, framework="numpy") as weights:
                for key in weights.keys():  # noqa: SIM118, it is no mapping
                    tensor = weights.get_slice(key)
                    counts[tensor.get_dtype()] += math.prod(tensor.get_shape())
        except (SafetensorError, OSError, ValueError) as error:
            raise ValueError(f"{path} is damaged ({error}); get the model again") from error
    return f", {sum(counts.values()):,} parameters in {' and '.join(sorted(counts))}" if counts else ""


def _files(folder: Path) -> str:
    """Number and bytes of the files in a folder."""
    sizes = [path.stat().st_size for path in folder.rglob("*") if path.is_file()]
    return f"{len(sizes)} files, {sum(sizes):,} bytes"
