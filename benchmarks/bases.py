"""Ways to train a base, tried at equal compute: `python benchmarks/bases.py [--only ARM ...] [--sets drawings ...] [--tables]`.

Trains every arm on drawings and on Tiny ImageNet's photographs at 32 px, with the recipe of the shipped base and its settings,
until it has taken BUDGET multiply-adds (about 15 minutes of one core), and measures its samples beside held-out pictures. What
lies in runs/bases/ is not done again; a stopped training run goes on. Arms of one seed see the same pictures in the same order.
Prints a table for each set in Markdown: means over seeds, in brackets the lowest and highest, and after a value of an arm in how
many of its seeds it is better than the reference.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from cascade import CascadePipeline, train_stage
from cascade.classes import EMOJI, Vocabulary
from cascade.data import open_pictures
from cascade.eval.classifier import errors
from cascade.eval.images import Images, ImageSet, image_array
from cascade.eval.memorisation import nearest_in_pixels
from cascade.eval.scoring import feature_set, score
from cascade.files import write_text
from cascade.folder import StageEntry, load_stage
from cascade.measure.named import DRAWINGS_CROP_RULE, classifier_of, extractor_of
from cascade.stages.training import Data, Recipe
from cascade.training.forecast import FORWARDS, training_cost
from cascade.training.recipes import load_recipe

RUNS, RESULT = Path("runs/bases"), "result.json"
SIZE, BUDGET, BATCH_SIZE, IMAGES = 32, 60e12, 64, 600
"""Side in pixels; multiply-adds of a training run; batch size of training unless an arm says another; samples measured."""
MEMORISATION_SIZE, CLOSE = 16, 5.0
"""A sample is close to a training picture if it is nearer, at this size, than all but so many percent of held-out ones."""
REFERENCE, REAL = "reference", "training pictures"
BETTER = {
    "held-out loss": -1,
    "distance": -1,
    "kernel distance": -1,
    "precision": 1,
    "recall": 1,
    "top-1": 1,
    "top-5": 1,
    "close to training": -1,
}
"""What is measured, and whether more of it is better (1) or less (-1)."""

NETWORK: Mapping[str, Any] = {
    "network.sample_size": SIZE,
    "network.channels": [64, 128, 192],
    "network.blocks": [1, 2, 2],
    "network.attention_sizes": [8],
    "network.dropout": 0.0,
}
ADAM: Mapping[str, Any] = {"optimization.optimizer": "adam", "optimization.learning_rate": 5e-4}


@dataclass(frozen=True, slots=True)
class Arm:
    """A way to train: settings of a recipe that replace those of the reference.

    as_images: Whether it sees as many images as the reference rather than taking as many multiply-adds.
    """

    settings: Mapping[str, Any] = field(default_factory=dict)
    as_images: bool = False


ARMS = {
    REFERENCE: Arm(),
    "muon": Arm({"optimization.optimizer": "muon", "optimization.learning_rate": 1e-3}),
    "batch 16": Arm({"phases.0.batch_size": 16}),
    "batch 256": Arm({"phases.0.batch_size": 256}),
    "rate x 2": Arm({"optimization.learning_rate": 1e-3}),
    "all at 32 px": Arm({"network.coarse_below": None}),
    "v": Arm({"network.coarse_below": None, "network.prediction_type": "v_prediction"}),
    "l2 throughout": Arm({"objective.l1_above": None}),
    "dropout": Arm({"network.dropout": 0.1}),
    "more noise": Arm({"objective.law": {"kind": "cosine", "size": 128}}),
    "less noise": Arm({"objective.law": {"kind": "cosine", "size": 32}}),
    "no class dropped": Arm({"objective.label_dropout": 0.0}),
    "larger, as many images": Arm({"network.channels": [96, 192, 288], "network.head_channels": 96}, as_images=True),
}


class Pictures:
    """A data set at SIZE: what is trained on, and how samples of it are measured. Everything is made once, when asked for.

    Args:
        recipe: Of the base that ships.
        classes: Of the pictures.
        train: Source of the training pictures.
        heldout: Source of the others.
        settings: That replace the recipe's in all arms.
        crop_rule: Of the pictures, as features are kept by it.
    """

    def __init__(
        self, recipe: str, classes: Vocabulary, train: str, heldout: str, settings: Mapping[str, Any], crop_rule: str
    ) -> None:
        self.recipe, self.classes, self.crop_rule = recipe, classes, crop_rule
        self._train, self._heldout, self._settings = train, heldout, settings

    def recipe_of(self, arm: str, seed: int) -> Recipe:
        """What an arm trains, with as many images as the budget allows."""
        own = ARMS[arm]
        values = {**NETWORK, **ADAM, **self._settings, "seed": seed, "data.source": self._train} | dict(own.settings)
        batch = values.pop("phases.0.batch_size", BATCH_SIZE)

        def of_length(images: int) -> Recipe:
            phases = [{"size": SIZE, "images": images, "batch_size": batch}]
            return load_recipe(self.recipe, values | {"phases": phases, "checkpoint_every": images, "samples.every": 10**9})

        if own.as_images:
            return of_length(self.recipe_of(REFERENCE, seed).total_images // batch * batch)
        cost = training_cost(of_length(batch), len(self.classes))
        return of_length(int(BUDGET / (FORWARDS * cost.image.multiply_adds)) // batch * batch)

    @cached_property
    def labels(self) -> np.ndarray:
        """Classes that are sampled: as evenly as IMAGES allows, int64 [IMAGES]."""
        return np.arange(IMAGES) % len(self.classes)

    @cached_property
    def heldout(self) -> ImageSet:
        """As many pictures that are not trained on, evenly spread over the set."""
        return image_array(_read(self._heldout, IMAGES))

    @cached_property
    def training(self) -> Images:
        """Up to 10,000 training pictures, evenly spread."""
        return _read(self._train, 10_000)

    @cached_property
    def _extractor(self) -> Any:
        return extractor_of("efficientnet-lite0")

    @cached_property
    def _features(self) -> Any:
        return feature_set(self.heldout, self._extractor, crop_rule=self.crop_rule)

    @cached_property
    def _close(self) -> float:
        """The distance below which a picture is close to a training picture."""
        near = nearest_in_pixels(self.heldout.array(), self.training, MEMORISATION_SIZE)
        return float(np.percentile(near.distance, CLOSE))

    def real(self) -> dict[str, float]:
        """What as many training pictures score."""
        found = open_pictures(Data(source=self._train), SIZE)
        places = np.linspace(0, len(found) - 1, IMAGES).astype(int)
        images = np.stack([found.read(int(place)).pixels for place in places])
        return self.measured(images, np.array([found.label(int(place)) for place in places]))

    def measured(self, images: Images, labels: np.ndarray) -> dict[str, float]:
        """What images of these classes score, uint8 [N, SIZE, SIZE, 3]; shares in percent."""
        found = score(feature_set(image_array(images), self._extractor, crop_rule=self.crop_rule), self._features, resamples=0)
        named = {name: float(getattr(value, "value", value)) for name, value in found.values().items()}
        judge = classifier_of(self.classes)
        assert judge is not None
        wrong = errors(judge[1](images), labels)
        near = nearest_in_pixels(images, self.training, MEMORISATION_SIZE)
        return {
            "distance": named[found.distance_name],
            "kernel distance": named[found.kernel_name],
            "precision": named["precision"],
            "recall": named["recall"],
            "top-1": 100 * float(1 - wrong[0].mean()),
            "top-5": 100 * float(1 - wrong[1].mean()),
            "close to training": 100 * float((near.distance < self._close).mean()),
        }


def _read(source: str, count: int) -> Images:
    """Up to `count` pictures of a source, evenly spread over it, uint8 [N, SIZE, SIZE, 3]."""
    found = open_pictures(Data(source=source), SIZE)
    places = np.linspace(0, len(found) - 1, min(count, len(found))).astype(int)
    return np.stack([found.read(int(place)).pixels for place in places])


def drawings() -> Pictures:
    settings = {"validation": {"source": "drawings:heldout", "images": IMAGES, "levels": 10}}
    return Pictures("emoji/base64", EMOJI, "drawings", "drawings:heldout", settings, DRAWINGS_CROP_RULE)


def photographs(folder: Path) -> Pictures:
    """Tiny ImageNet's, as its zip unpacks."""
    classes = Vocabulary.from_names(sorted(path.name for path in (folder / "train").iterdir()))
    settings = {"validation.source": str(folder / "val"), "validation.images": IMAGES}
    return Pictures("tiny-imagenet/base64", classes, str(folder / "train"), str(folder / "val"), settings, "adm")


def folder_of(pictures: str, arm: str, seed: int) -> Path:
    return RUNS / pictures / f"{arm.replace(' ', '-')}-{seed}"


def run(name: str, pictures: Pictures, arm: str, seed: int) -> None:
    """Train and measure an arm, and keep the result."""
    folder, recipe = folder_of(name, arm, seed), pictures.recipe_of(arm, seed)
    if (folder / RESULT).is_file():
        return
    print(f"{name}, {arm}, seed {seed}: {recipe.total_images:,} images", flush=True)
    began = time.process_time()
    made = train_stage(recipe, folder, workers=0)
    seconds = time.process_time() - began
    entry = StageEntry("base", "stage", "BasePipeline", SIZE, None)
    stage: Any = load_stage(folder, entry, torch.float32)
    stage.set_progress_bar_config(disable=True)
    samples: Any = CascadePipeline({"base": stage})([*map(int, pictures.labels)], seeds=range(IMAGES), batch_size=20)
    images = np.stack([np.asarray(image) for image in samples.images])
    facts = {"images": recipe.total_images, "seconds": seconds, "held-out loss": made.validation_loss}
    write_text(folder / RESULT, json.dumps(facts | pictures.measured(images, pictures.labels), indent=1) + "\n")


def results(name: str, arm: str) -> dict[int, dict[str, float]]:
    """Of all seeds of an arm that were measured."""
    paths = (RUNS / name).glob(f"{arm.replace(' ', '-')}-[0-9]*/{RESULT}")
    found = {path.parent.name.rpartition("-"): path for path in paths}
    return {int(seed): json.loads(path.read_text("utf-8")) for (_, _, seed), path in sorted(found.items())}


def table(name: str) -> str:
    """What was measured on a set, as Markdown."""
    reference = results(name, REFERENCE)
    columns = list(BETTER)
    lines = [["", "seeds", "images", "seconds", *columns], ["---", *["---:"] * (len(columns) + 3)]]
    for arm in (*ARMS, REAL):
        found = results(name, arm)
        if not found:
            continue
        if arm == REAL:
            lines.append([arm, "", "", "", *(_cell(column, found, {}) for column in columns)])
            continue
        seconds = float(np.mean([one["seconds"] for one in found.values()]))
        images = next(iter(found.values()))["images"]
        lines.append(
            [arm, str(len(found)), f"{images:,.0f}", f"{seconds:,.0f}", *(_cell(column, found, reference) for column in columns)]
        )
    return "\n".join([f"### {name}\n", *(f"| {' | '.join(line)} |" for line in lines)])


def _cell(column: str, found: Mapping[int, Mapping[str, float]], reference: Mapping[int, Mapping[str, float]]) -> str:
    """Mean over seeds, their range, and how many of them beat the reference of the same seed."""
    values = [one[column] for one in found.values() if column in one]
    if not values:
        return ""
    shown = f"{np.mean(values):.4g}"
    if len(values) > 1:
        shown += f" [{min(values):.4g}, {max(values):.4g}]"
    shared = [seed for seed in found if seed in reference]
    if found == reference or not shared:
        return shown
    better = sum(BETTER[column] * (found[seed][column] - reference[seed][column]) > 0 for seed in shared)
    return f"{shown}, {better} of {len(shared)}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=list(ARMS), metavar="ARM", help=f"arms (default: all): {', '.join(ARMS)}")
    parser.add_argument("--sets", nargs="+", choices=("drawings", "photographs"), help="of pictures (default: both)")
    parser.add_argument(
        "--photographs", type=Path, default=Path("data/tiny-imagenet-200"), help="Tiny ImageNet, as its zip unpacks"
    )
    parser.add_argument(
        "--seeds", nargs="+", type=int, default=[0, 1, 2], metavar="S", help="of the training runs (default: 0 1 2)"
    )
    parser.add_argument("--tables", action="store_true", help="train nothing; print the tables of what was measured")
    options = parser.parse_args()
    torch.set_num_threads(1)
    made = {"drawings": drawings, "photographs": lambda: photographs(options.photographs)}
    for name in options.sets or made:
        if not options.tables:
            pictures = made[name]()
            if not (folder_of(name, REAL, 0) / RESULT).is_file():
                write_text(folder_of(name, REAL, 0) / RESULT, json.dumps(pictures.real(), indent=1) + "\n")
            for seed in options.seeds:
                for arm in dict.fromkeys((REFERENCE, *(options.only or ARMS))):
                    run(name, pictures, arm, seed)
        print(table(name), flush=True)


if __name__ == "__main__":
    main()
