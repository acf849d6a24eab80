"""The steps of a job that need the project, each a process of its own: `python -m jobs.steps data | smoke | train | export |
samples`.

They run in the working folder of `jobs.run`, where the pack left `recipe.yaml`, `stage/` and `smoke.npz`.
"""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from cascade import load_recipe, train_stage
from cascade.data import open_held_out, open_pictures
from cascade.files import write_text
from cascade.stages.stage import StagePipeline, low_res_size_of
from cascade.stages.training import checkpoint
from cascade.stages.training.meter import Report
from cascade.stages.training.processes import this_process
from cascade.stages.unet import UNet
from cascade.training.export import export_stage
from cascade.training.sample_grids import grid_maker
from jobs.mosaics import unpack
from jobs.run import MIDWAY, RESULTS, RUN, STAGE

RECIPE, SMOKE, PACKED = Path("recipe.yaml"), Path("smoke.npz"), Path("stage")
MEAN, MOST = 0.5, 16
"""Of 255: how far a picture may be from the same one made on a CPU, in the mean and anywhere. Measured on an H100: 0.05 and 2."""
SHOWN = 64
"""Pictures of the sheet of samples."""
SAID_EVERY = 10
"""Seconds between two reports of a training run."""


def smoke_pictures(stage: Path, device: torch.device) -> np.ndarray:
    """Two pictures of a stage, uint8 [2, S, S, 3], of its first and last class and with seeds of their own."""
    pipeline: Any = StagePipeline.from_pretrained(stage).to(device)
    pipeline.set_progress_bar_config(disable=True)
    small, classes = low_res_size_of(pipeline.unet), pipeline.unet.num_classes
    ramp = np.linspace(0, 255, small or 1).round().astype(np.uint8)
    rising = np.stack(np.broadcast_arrays(ramp[:, None], ramp[None, :], ramp[::-1, None]), axis=-1)
    given = [] if small is None else [np.stack([rising, 255 - rising])]
    arguments: dict[str, Any] = {} if classes is None else {"class_labels": [0, classes - 1]}
    if pipeline.scheduler is not None:
        arguments["generator"] = [torch.Generator().manual_seed(seed) for seed in (0, 1)]
    if small is None:
        arguments["num_images"] = 2
    return np.stack([np.asarray(image) for image in pipeline(*given, **arguments).images])


def smoke() -> None:
    """Make two pictures and compare them with those that were made on a CPU when the job was packed."""
    device = this_process().device
    print(f"torch {torch.__version__}, {torch.cuda.get_device_name() if device.type == 'cuda' else device}", flush=True)
    with np.load(SMOKE, allow_pickle=False) as file:
        expected = file["pictures"]
    begun = time.perf_counter()
    made = smoke_pictures(PACKED, device)
    seconds, apart = time.perf_counter() - begun, np.abs(made.astype(int) - expected)
    print(f"two pictures in {seconds:.1f} s, from the CPU's {apart.mean():.3f} in the mean, {apart.max()} at most")
    Image.fromarray(np.vstack([np.hstack(list(made)), np.hstack(list(expected))])).save(RESULTS / "smoke.png")
    facts = {"device": str(device), "mean": float(apart.mean()), "most": int(apart.max())}
    write_text(RESULTS / "smoke.json", json.dumps(facts) + "\n")
    if apart.mean() > MEAN or apart.max() > MOST:
        raise SystemExit(f"expected at most {MEAN} in the mean and {MOST} anywhere, of 255")


def data() -> None:
    """Make the pictures ready: unpack mosaics, or draw the drawings into the cache."""
    for mosaics in sorted(Path("pictures").glob("*/labels.json")):
        print(f"{unpack(mosaics.parent, Path('data') / mosaics.parent.name)} pictures of {mosaics.parent.name}", flush=True)
    recipe = load_recipe(RECIPE)
    pictures = open_pictures(recipe.data, recipe.picture_size)
    if recipe.validation is not None:
        open_held_out(recipe.data, recipe.validation.source, pictures)
    print(f"{len(pictures)} pictures of {recipe.picture_size} px")


def train(until: float) -> None:
    """Train until a moment, in seconds of `time.time()`; where that fails, export the newest checkpoint."""
    said = 0.0

    def report(now: Report) -> None:
        nonlocal said
        if time.monotonic() > said + SAID_EVERY:
            said = time.monotonic()
            facts = f"loss {now.loss:.5f}, {now.images_per_second:,.0f} images/s, {now.memory_gib:.1f} GiB"
            print(f"{now.images_seen:,} of {now.total_images:,} images, {facts}, rate {now.learning_rate:.1e}", flush=True)

    told: dict[str, Any] = {"on_report": report, "on_message": lambda message: print(message, flush=True)}
    told["on_validation"] = lambda found: print(f"{found.images_seen:,} images, held-out loss {found.loss:.5f}", flush=True)
    try:
        made = train_stage(RECIPE, RUN, STAGE, seconds=until - time.time(), trackers=(), **told)
    except BaseException:
        export_newest(STAGE)
        raise
    print(f"trained {made.images_seen:,} images, loss {made.loss}, held-out loss {made.validation_loss}")


def export_newest(folder: Path = MIDWAY) -> None:
    """Make a stage of the averaged weights of the newest whole checkpoint, if there is one."""
    found = checkpoint.load_newest(RUN)
    if found is None:
        return
    tensors, facts, _ = found
    network = UNet(**facts["network"])
    network.load_state_dict(tensors["ema"])
    names = RUN / "classes.json"
    export_stage(network.eval(), load_recipe(RECIPE), folder, json.loads(names.read_text("utf-8")) if names.is_file() else None)
    print(f"exported the checkpoint of {facts['images_seen']:,} images", flush=True)


def samples() -> None:
    """A sheet of samples of the trained stage, at the recipe's own steps."""
    device, recipe = this_process().device, load_recipe(RECIPE)
    steps = recipe.sampling.get("num_inference_steps", recipe.samples.steps)
    count = SHOWN if device.type == "cuda" else recipe.samples.count
    recipe = replace(recipe, samples=replace(recipe.samples, count=count, steps=steps))
    network = StagePipeline.from_pretrained(STAGE).unet.to(device)
    begun = time.perf_counter()
    sheet = grid_maker(recipe, open_pictures(recipe.data, recipe.picture_size), print)(network, 0)
    if sheet is None:
        raise SystemExit("the stage makes no pictures")
    print(f"{count} pictures in {time.perf_counter() - begun:.1f} s")
    sheet.save(RESULTS / "samples.png")


STEPS = {"data": data, "smoke": smoke, "export": export_newest, "samples": samples}

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("step", choices=["train", *STEPS])
    parser.add_argument("--until", type=float, help="moment at which the training ends, in seconds since 1970")
    options = parser.parse_args()
    train(options.until) if options.step == "train" else STEPS[options.step]()
