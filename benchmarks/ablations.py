"""The papers' comparisons on the drawings: `python benchmarks/ablations.py [--only NAME ...] [--seeds 0 1] [--tables]`.

Trains every arm by `cascade train` with a recipe of configs/emoji/ablations and settings, measures it, and prints the tables
behind docs/ablations.md. An arm and seed whose runs/ablations/ARM-SEED/result.json exists is not done again; a stopped training
run goes on. Arms of one comparison see the same pictures in the same order with the same noise.

Measured are SR stages on real inputs (held-out drawings made small) and on samples of the base `base16`, seed 0, as a cascade.
All are sampled with the schedule of SR3's law (T = 2000), so that arms differ in their weights alone, without guidance.
"""

from __future__ import annotations

import argparse
import json
import shlex
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from cascade.classes import EMOJI
from cascade.cli.main import main as cascade_command
from cascade.eval.images import Images, image_array
from cascade.eval.report import Value
from cascade.eval.scoring import FeatureSet, feature_set, score
from cascade.files import CONFIGS, write_text
from cascade.folder import StageEntry, load_stage
from cascade.measure.comparisons import kept_features
from cascade.measure.named import DRAWINGS_CROP_RULE, classifier_of, extractor_of, image_source
from cascade.measure.super_resolution import bicubic, error_values, low_resolution, paired_values
from cascade.pipeline import CascadePipeline
from cascade.stages.sr3 import SR3Pipeline
from cascade.training.forecast import training_cost
from cascade.training.recipes import load_recipe, pipeline_class

RUNS = Path("runs/ablations")
RESULT = "result.json"
BASE, SINGLE, REFERENCE = "base16", "base64", "sr3"
SR_STAGE = "sr64"
SIZE, SMALL, IMAGES, BATCH_SIZE, RESAMPLES = 64, 16, 200, 32, 100
LEVELS = (0.0, 0.1, 0.2, 0.4)
"""Augmentation levels at sampling, of arms that were trained with noise."""
COARSE = "kind: sr3, beta_start: 2e-4, beta_end: 0.9, num_steps: 10"
"""Ten levels over the range of SR3's 2000."""
KEPT = ("EfficientNet-Lite Frechet distance", "kernel distance x 1000", "precision", "recall")
"""Of all that `cascade.eval.scoring.score` gives; the other shares say the same here."""
SHORT = {KEPT[0]: "distance", KEPT[1]: "kernel distance"}
"""What tables call them."""


@dataclass(frozen=True, slots=True)
class Arm:
    """What is trained: a recipe of configs/emoji/ablations, and settings that replace some of its values."""

    recipe: str
    settings: tuple[str, ...] = ()

    def words(self, name: str, seed: int) -> list[str]:
        """Of the `cascade` command that trains it."""
        recipe = CONFIGS / "emoji" / "ablations" / f"{self.recipe}.yaml"
        return ["train", str(recipe), *self.settings, f"seed={seed}", "--run", str(RUNS / f"{name}-{seed}")]


ARMS = {
    BASE: Arm("base16"),
    REFERENCE: Arm("sr64"),
    "noise": Arm("sr64", ("augmentation.noise=0.5",)),
    "regression": Arm("sr64-regression"),
    SINGLE: Arm("base64"),
    "blur": Arm("sr64", ("augmentation.blur=1",)),
    "l2": Arm("sr64", ("objective.loss=l2",)),
    "no-class": Arm("sr64", ("data.classes=0",)),
    "discrete": Arm("sr64", ("objective.law.discrete=true",)),
    "noise-wide": Arm("sr64", ("augmentation.noise=1",)),
    "coarse": Arm("sr64", (f"objective.law={{{COARSE}}}",)),
    "coarse-discrete": Arm("sr64", (f"objective.law={{{COARSE}, discrete: true}}",)),
}


class Measuring:
    """What all arms are measured against, and how; everything is made once, when it is first asked for."""

    @cached_property
    def chosen(self) -> np.ndarray:
        """Places of the held-out drawings that inputs and classes of samples are taken from."""
        return np.sort(np.random.default_rng(0).permutation(len(self._heldout[1]))[:IMAGES])

    @cached_property
    def _heldout(self) -> tuple[Any, np.ndarray]:
        images, labels = image_source("drawings:heldout", size=SIZE)
        assert labels is not None
        return images, labels

    @cached_property
    def originals(self) -> Images:
        return self._heldout[0].take(self.chosen).array()

    @cached_property
    def labels(self) -> list[int]:
        return [int(label) for label in self._heldout[1][self.chosen]]

    @cached_property
    def low_res(self) -> Images:
        return low_resolution(self.originals, SMALL)

    @cached_property
    def extractor(self) -> Any:
        return extractor_of("efficientnet-lite0")

    @cached_property
    def every(self) -> FeatureSet:
        """Of all held-out drawings: what samples are compared with."""
        return kept_features(self._heldout[0], self.extractor, DRAWINGS_CROP_RULE)

    @cached_property
    def base_images(self) -> torch.Tensor:
        """Samples of the base for the classes of `labels`, [IMAGES, 3, 16, 16] in [-1, 1]; image i has seed i."""
        base = CascadePipeline({"base": load(BASE, 0)})
        made: Any = base(self.labels, seeds=range(IMAGES), output_type="pt", batch_size=BATCH_SIZE)
        return made.images

    def on_real(self, images: Images) -> dict[str, Value]:
        """Of images made from `low_res`."""
        paired = paired_values(*map(image_array, (images, self.originals, self.low_res)), RESAMPLES)
        return paired | self._shares(images, replace(self.every, features=self.every.features[self.chosen]))

    def on_samples(self, images: Images) -> dict[str, Value]:
        """Of samples of the classes `labels`."""
        return self._shares(images, self.every)

    def _shares(self, images: Images, reference: FeatureSet) -> dict[str, Value]:
        features = feature_set(image_array(images), self.extractor, crop_rule=DRAWINGS_CROP_RULE)
        found = score(features, reference, resamples=RESAMPLES).values()
        return {name: found[name] for name in KEPT} | self.errors(images)

    def errors(self, images: Images) -> dict[str, Value]:
        """Of the shipped classifier of drawings."""
        classifier = classifier_of(EMOJI)
        assert classifier is not None
        return error_values(image_array(images), self.labels, classifier[1], RESAMPLES)


def load(name: str, seed: int) -> Any:
    """The stage of a trained arm; an SR stage with the schedule of the reference."""
    folder = RUNS / f"{name}-{seed}"
    recipe = load_recipe(folder / "recipe.yaml")
    kind, network = pipeline_class(recipe.network, recipe.objective), recipe.network
    entry = StageEntry(name, "stage", kind.__name__, network["sample_size"], network.get("low_res_size"))
    stage: Any = load_stage(folder, entry, torch.float32)
    stage.set_progress_bar_config(disable=True)
    if kind is SR3Pipeline and name != REFERENCE:
        stage.scheduler = load(REFERENCE, 0).scheduler
    return stage


def measured(name: str, seed: int, how: Measuring) -> dict[str, dict[str, dict[str, Value]]]:
    """What an arm scores: "real" and "samples", each by augmentation level."""
    if name == BASE:
        return {}
    if name == SINGLE:
        made: Any = CascadePipeline({"base": load(name, seed)})(how.labels, seeds=range(IMAGES), batch_size=BATCH_SIZE)
        return {"samples": {"0": how.on_samples(_pixels(made))}}
    cascade = CascadePipeline({"base": load(BASE, 0), SR_STAGE: load(name, seed)})

    def enlarged(small: Any, level: float) -> Images:
        options: Any = {"aug_level": level, "seeds": range(IMAGES), "batch_size": BATCH_SIZE}
        return _pixels(cascade.upscale(small, how.labels, SR_STAGE, **options))

    levels = LEVELS if name.startswith("noise") else (0.0,)
    return {
        "real": {"0": how.on_real(enlarged(how.low_res, 0.0))},
        "samples": {f"{level:g}": how.on_samples(enlarged(how.base_images, level)) for level in levels},
    }


def _pixels(made: Any) -> Images:
    return np.stack([np.asarray(image) for image in made.images])


def run(name: str, seed: int, how: Measuring) -> None:
    """Train and measure an arm, and keep the result."""
    folder, words = RUNS / f"{name}-{seed}", ARMS[name].words(name, seed)
    if (folder / RESULT).is_file():
        return
    print("cascade", shlex.join(words), flush=True)
    if not (folder / "stage").is_dir() and cascade_command(words):
        raise SystemExit(f"{name}, seed {seed}: the training run failed")
    recipe = load_recipe(folder / "recipe.yaml")
    cost = training_cost(recipe, recipe.num_classes(len(EMOJI)))
    facts = {
        "command": f"cascade {shlex.join(words)}",
        "images": recipe.total_images,
        "parameters": cost.parameters,
        "multiply_adds": cost.image.multiply_adds,
    }
    _keep(folder, facts | measured(name, seed, how))


def run_known(how: Measuring) -> None:
    """What needs no training: bicubic interpolation, of real inputs and of the base's samples; and drawings themselves."""
    if not (RUNS / "bicubic" / RESULT).is_file():
        small = ((how.base_images + 1) * 127.5).round().clamp(0, 255).byte().permute(0, 2, 3, 1).numpy()
        real, samples = how.on_real(bicubic(how.low_res, SIZE)), how.on_samples(bicubic(small, SIZE))
        _keep(RUNS / "bicubic", {"real": {"0": real}, "samples": {"0": samples}})
    if not (RUNS / "drawings" / RESULT).is_file():
        train, labels = image_source("drawings:train", size=SIZE)
        assert labels is not None
        rng = np.random.default_rng(0)
        alike = train.take(np.array([rng.choice(np.flatnonzero(labels == label)) for label in how.labels])).array()
        _keep(RUNS / "drawings", {"real": {"0": how.errors(how.originals)}, "samples": {"0": how.on_samples(alike)}})


def _keep(folder: Path, result: Mapping[str, Any]) -> None:
    write_text(folder / RESULT, json.dumps(result, indent=1, default=asdict) + "\n")


@dataclass(frozen=True, slots=True)
class Table:
    """A comparison: a title, what the arms are given ("real" inputs or "samples" of the base), and (arm, level) of each row."""

    title: str
    given: str
    rows: tuple[tuple[str, str], ...]


_PLAIN = (("bicubic", "0"), ("drawings", "0"))
_SWEEP = tuple((name, f"{level:g}") for name in ("noise", "noise-wide") for level in LEVELS)
TABLES = (
    Table("SR3, regression, bicubic: real inputs", "real", ((REFERENCE, "0"), ("regression", "0"), *_PLAIN)),
    Table("SR3, regression, bicubic: samples of the base", "samples", ((REFERENCE, "0"), ("regression", "0"), *_PLAIN)),
    Table("Augmentation: samples of the cascade", "samples", ((REFERENCE, "0"), ("blur", "0"), *_SWEEP)),
    Table("Augmentation: real inputs", "real", ((REFERENCE, "0"), ("blur", "0"), ("noise", "0"), ("noise-wide", "0"))),
    *(
        Table(f"{title}: {kind}", given, tuple((name, "0") for name in names))
        for title, names in (
            ("L1 or L2", (REFERENCE, "l2")),
            ("Law of noise levels", (REFERENCE, "discrete", "coarse", "coarse-discrete")),
            ("Class in the SR stage", (REFERENCE, "no-class")),
        )
        for given, kind in (("real", "real inputs"), ("samples", "samples of the cascade"))
    ),
    Table("One model or a cascade", "samples", ((REFERENCE, "0"), ("noise", "0.2"), (SINGLE, "0"), ("drawings", "0"))),
)


def results(name: str) -> list[dict[str, Any]]:
    """Of all seeds of an arm that were measured."""
    seeds = sorted(path for path in RUNS.glob(f"{name}-[0-9]*/{RESULT}") if path.parent.name.rpartition("-")[0] == name)
    known = RUNS / name / RESULT
    return [json.loads(path.read_text("utf-8")) for path in seeds or ([known] if known.is_file() else [])]


def shown(table: Table) -> str:
    """The table as Markdown, of the rows that were measured: means over seeds with their range, or of a single seed with the
    interval of its images."""
    every = {row: [one[table.given][row[1]] for one in results(row[0]) if table.given in one] for row in table.rows}
    found = {row: values for row, values in every.items() if values}
    columns = list(dict.fromkeys(key for values in found.values() for one in values for key in one))
    heads = [SHORT.get(column, column) for column in columns]
    lines = [["", "level", "seeds", *heads], ["---", *["---:"] * (len(columns) + 2)]]
    for (name, level), values in found.items():
        cells = [_cell([one[column] for one in values if column in one]) for column in columns]
        lines.append([name, level, str(len(values)), *cells])
    return "\n".join([f"### {table.title}\n", *(f"| {' | '.join(line)} |" for line in lines)])


def _cell(values: list[Any]) -> str:
    """Values of several seeds, or the value of one with its interval."""
    if not values:
        return "-"
    numbers = [value["estimate"] if isinstance(value, dict) else value for value in values]
    mean = float(np.mean(numbers))
    low, high = min(numbers), max(numbers)
    if len(values) == 1 and isinstance(values[0], dict):
        low, high = values[0]["low"], values[0]["high"]
    return f"{mean:.3g}" if low == high else f"{mean:.3g} [{low:.3g}, {high:.3g}]"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=list(ARMS), metavar="NAME", help=f"arms (default: all): {', '.join(ARMS)}")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0], metavar="S", help="of the training runs (default: 0)")
    parser.add_argument("--tables", action="store_true", help="train nothing; print the tables of what was measured")
    options = parser.parse_args()
    if not options.tables:
        torch.set_num_threads(1)
        how = Measuring()
        for name in dict.fromkeys((BASE, REFERENCE)):
            run(name, 0, how)
        run_known(how)
        for seed in options.seeds:
            for name in options.only or ARMS:
                run(name, seed, how)
    print("\n\n".join(shown(table) for table in TABLES))


if __name__ == "__main__":
    main()
