"""Everything that writes files, each as a small piece of work that can be killed anywhere and done again."""

import json
import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path

import measuring
import numpy as np
import pytest
import torch
from accelerate.state import AcceleratorState
from PIL import Image
from tiny import base, cascade, network
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from cascade.data import drawings
from cascade.eval.report import Report, Row
from cascade.eval.report_files import write_report
from cascade.eval.statistics import Measurement, Provenance, save_measurement
from cascade.files import write_text
from cascade.measure.evaluation import evaluate
from cascade.measure.schedule_search import search_schedule
from cascade.onnx_export import export_onnx
from cascade.runs import share
from cascade.runs.run import sample_run
from cascade.stages.published import convert
from cascade.stages.training import Data, Optimization, Phase, PictureSet, Recipe, train
from cascade.stages.training.processes import this_process
from cascade.stages.training.recipe import Samples, Snapshots
from cascade.training.export import export_stage
from cascade.training.recipes import recipe_to_yaml

REFERENCE = Path(__file__).parents[1] / "stages" / "published" / "reference" / "sr3"
SIZE = {"sample_size": 8, "channels": (8,), "blocks": (1,), "attention_sizes": (), "head_channels": 8}
TINY = cascade(base=base())
RECIPE = Recipe(
    name="attack",
    data=Data(source="none"),
    network=SIZE,
    phases=(Phase(size=8, images=32, batch_size=4),),
    optimization=Optimization(precision="float32", warmup=0),
    samples=Samples(every=1000),
    snapshots=Snapshots(stds=(0.1,), every=16),
    checkpoint_every=8,
)
KILLED = 137
"""Exit code of a process that died at a system call, or was killed."""

SVG = '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 9 9"><circle cx="4" cy="4" r="{}"/></svg>'


def training(folder: Path) -> None:
    rng = np.random.default_rng(0)
    pictures = PictureSet(rng.integers(0, 256, (6, 8, 8, 3), dtype=np.uint8), np.arange(6) % 2, ("a", "b"), (True, True))
    run = folder / "run"
    keep = lambda: write_text(run / "recipe.yaml", recipe_to_yaml(RECIPE))  # noqa: E731
    trained = train(RECIPE, pictures, run, on_held=keep)
    if this_process().is_main_process:
        export_stage(trained, RECIPE, folder / "stage", ("a", "b"))
        (run / "log.jsonl").unlink(missing_ok=True)  # it holds speeds, which are no one's to repeat


def training_by_two(folder: Path) -> None:
    """The same under torchrun, whose processes are forked here, so that they needn't import anything."""
    options = {"rdzv_backend": "c10d", "rdzv_endpoint": "localhost:0", "run_id": folder.name, "start_method": "fork"}
    launched = elastic_launch(LaunchConfig(1, 1, 2, max_restarts=0, monitor_interval=0.02, **options), _rank)  # type: ignore[arg-type]
    try:
        launched(folder)
    except ChildFailedError as error:
        killed = any(one.exitcode in (KILLED, -signal.SIGKILL) for one in error.failures.values())
        raise SystemExit(KILLED if killed else str(error)) from error


def _rank(folder: Path) -> None:
    AcceleratorState._reset_state(reset_partial_state=True)  # what the process that was forked knows of itself
    os.environ["ACCELERATE_USE_CPU"] = "true"
    training(folder)


def sampled(form: str) -> Callable[[Path], None]:
    def run(folder: Path) -> None:
        share.SHARD_SIZE = 3
        sample_run(TINY, folder / "run", num_images=5, size=8, format=form, batch_size=2, processes=1)

    return run


def saving_over_a_model(folder: Path) -> None:
    if not (folder / "model").exists():  # what lies there before: another model
        raise RuntimeError("there is no model")
    TINY.save_pretrained(folder / "model")


def converting(folder: Path) -> None:
    if not (folder / "stage").exists():
        convert("sr3", REFERENCE / "I1000_E1_gen.pth", json.loads((REFERENCE / "config.json").read_text()), folder / "stage")


def rendering(folder: Path) -> None:
    items = [drawings.Drawing("train", "cat", f"set__{n}__cat", SVG.format(n)) for n in (1, 2, 3)]
    before = drawings.drawings, drawings._in_processes
    drawings.drawings = lambda split: items  # type: ignore[assignment]
    drawings._in_processes = lambda function, parts, chunksize=1: map(function, parts)  # type: ignore[assignment]
    try:
        drawings.write_image_folder(folder / "drawings", 16, "train")
    finally:
        drawings.drawings, drawings._in_processes = before


def reference(folder: Path) -> None:
    provenance = Provenance(extractor="none", weights_hash=None, resize_mode=None)
    save_measurement(folder / "reference.npz", Measurement(mean=np.zeros(4), cov=np.eye(4), count=9, provenance=provenance))


def exporting(folder: Path) -> None:
    export_onnx(TINY, folder / "onnx")


def evaluating(folder: Path) -> None:
    with pytest.MonkeyPatch.context() as patch:
        measuring.quick(patch, folder)
        scores = evaluate(folder / "samples", folder / "real", resamples=2, device="cpu")
    write_text(folder / "scores.json", json.dumps(scores.values(), default=str))


def searching(folder: Path) -> None:
    with pytest.MonkeyPatch.context() as patch:
        measuring.quick(patch, folder)
        search_schedule(TINY, folder / "search", steps=(2, 3), num_images=4, processes=1)


def reporting(folder: Path) -> None:
    write_report(Report(title="A", facts={"b": "c"}, columns=("d",), rows=(Row(name="e", values={"d": 1.0}),)), folder / "report")


WRITERS: dict[str, Callable[[Path], None]] = {
    "sampling png": sampled("png"),
    "sampling shards": sampled("shards"),
    "sampling npz": sampled("npz"),
    "saving over a model": saving_over_a_model,
    "converting": converting,
    "rendering": rendering,
    "reference": reference,
    "report": reporting,
    "export": exporting,
    "evaluation": evaluating,
    "search": searching,
    "training": training,
    "training by two processes": training_by_two,
}
KILLS_ALONE = {"training by two processes"}
"""Of these the first process makes the very calls of another writer; so they are killed at random moments alone."""


def prepare(name: str, folder: Path) -> None:
    """What is there before a writer begins."""
    folder.mkdir(parents=True)
    if name == "saving over a model":
        torch.manual_seed(1)
        other = cascade(base=type(TINY.stages["base"])(network(seed=1), TINY.stages["base"].scheduler))
        other.save_pretrained(folder / "model")
    if name == "evaluation":
        rng = np.random.default_rng(0)
        for path in (folder / kind / f"{number}.png" for kind in ("samples", "real") for number in range(5)):
            path.parent.mkdir(exist_ok=True)
            Image.fromarray(rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)).save(path)


def contents(folder: Path) -> dict[str, bytes]:
    """All files, hidden ones too, but the lock of a run and the curves, which carry times."""
    paths = [
        path for path in sorted(folder.rglob("*")) if path.is_file() and path.name != ".lock" and "tensorboard" not in path.parts
    ]
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths}


def fresh(folder: Path) -> Path:
    shutil.rmtree(folder, ignore_errors=True)
    return folder
