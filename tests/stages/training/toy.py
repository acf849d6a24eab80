"""A training of toy size, for the tests of this folder. As a program it is one process of such a training."""

import json
import multiprocessing
import os
import sys
from pathlib import Path

import numpy as np
import torch

from cascade.stages.training import Data, Objective, Optimization, Phase, PictureSet, Recipe, train
from cascade.stages.training import meter as report_module

NETWORK = {
    "sample_size": 8,
    "channels": [16],
    "blocks": [1],
    "attention_sizes": [],
    "head_channels": 16,
    "layout": "efficient",
    "dropout": 0.1,
}


def pictures() -> PictureSet:
    """Two classes: black and white."""
    values = np.array([0, 255] * 8, dtype=np.uint8)
    return PictureSet(
        np.broadcast_to(values[:, None, None, None], (16, 8, 8, 3)).copy(), np.array([0, 1] * 8), ("black", "white"), (True, True)
    )


def optimization(**changes) -> Optimization:
    return Optimization(**{"learning_rate": 3e-3, "warmup": 40, "cooldown": 0.2, "precision": "float32", **changes})


def recipe(images: int = 240, **changes) -> Recipe:
    settings = {
        "name": "toy",
        "data": Data(source="toy"),
        "network": NETWORK,
        "phases": (Phase(size=4, images=images // 2, batch_size=8), Phase(size=8, images=images, batch_size=8)),
        "optimization": optimization(),
        "objective": Objective(label_dropout=0.1),
        "checkpoint_every": 56,
    }
    return Recipe(**{**settings, **changes})


def weights(network: torch.nn.Module) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in network.parameters()])


def run(
    folder: Path,
    images: int = 240,
    dropout: float = 0.1,
    accumulate: int = 1,
    workers: int = 0,
    optimizer: str = "adam",
    resident: bool = False,
) -> None:
    """Train in this process, which may be one of several, and note how many there were; every step is reported."""
    torch.set_num_threads(1)
    report_module.LOG_EVERY = 1
    processes = int(os.environ.get("WORLD_SIZE", "1"))
    how = optimization(accumulate=accumulate, optimizer=optimizer)
    changes = {"network": {**NETWORK, "dropout": dropout}, "optimization": how}
    main = os.environ.get("RANK", "0") == "0"

    def say(message: str) -> None:
        if main:
            with (folder / "messages").open("a") as file:
                file.write(f"{processes}: {message}\n")

    train(recipe(images, **changes), pictures(), folder, on_message=say, workers=workers, resident=resident)


def process(environment: dict[str, str], folder: Path, settings: dict) -> None:
    """What one of several processes does that a test starts."""
    multiprocessing.set_start_method("fork", force=True)  # a test's own way of starting processes is not for data workers
    os.environ.update(environment)
    run(folder, **settings)


if __name__ == "__main__":
    run(Path(sys.argv[1]), **json.loads(sys.argv[2]))
