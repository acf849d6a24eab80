"""From a folder of pictures to a model: `fit` looks, plans, trains stage after stage, composes, measures, and writes a card."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from cascade.data.checking import cores
from cascade.data.looking import Look, absolute_source, look
from cascade.files import write_text
from cascade.folder import MANIFEST
from cascade.progress import OnProgress
from cascade.stages.saved import INDEX, read_json
from cascade.stages.training.meter import Report
from cascade.stages.training.processes import sole_training, this_process
from cascade.stages.training.validation import ValidationReport
from cascade.training.fit_plan import FitPlan, PlannedStage, check_pictures, plan_fit
from cascade.training.fit_result import FitFigures, finish
from cascade.training.recipes import load_recipe, recipe_to_yaml
from cascade.training.stage import train_stage

RECORD = "fit.json"
"""File in the folder of a fit's runs: what it is made of, how long it took so far, and what is done."""

HOUR = 3600.0
DEFAULT_SECONDS = 3 * HOUR
SECONDS_BETWEEN_RECORDS = 5.0
LEAST_OF_SHARE, LEAST_OF_START = 0.5, 0.1
"""Of its share of the time a stage has at least this much over all of its starts, and in each, even if what came before took
longer than planned."""


def _nothing(*_: Any) -> None:
    """Told of anything, does nothing."""


@dataclass(frozen=True, slots=True)
class FittedModel:
    """What a fit has ended in.

    folder: Of the model, as `CascadePipeline.from_pretrained` loads it; README.md in it is its card.
    runs: Folder of the training runs, a folder and a recipe for each stage. The model doesn't need it.
    sheet: The picture of samples.
    figures: What was measured on the pictures that were held out.
    seconds: That it took, over all of its starts.
    """

    folder: Path
    runs: Path
    sheet: Path
    figures: FitFigures
    seconds: float


def runs_folder(out: str | Path) -> Path:
    """Where the training runs of a fit lie: beside the model, with ".runs" after its name."""
    out = Path(out)
    return out.with_name(f"{out.absolute().name}.runs")


def fit(
    folder: str | Path,
    out: str | Path,
    *,
    time: float | None = None,
    start_from: str | Path | None = None,
    workers: int | None = None,
    on_plan: Callable[[FitPlan], None] = _nothing,
    on_progress: OnProgress = _nothing,
    on_report: Callable[[Report], None] = _nothing,
    on_validation: Callable[[ValidationReport], None] = _nothing,
    on_message: Callable[[str], None] = _nothing,
) -> FittedModel:
    """Make a model of a folder of pictures, or go on with a fit that was stopped; as `cascade fit`.

    It trains a base at 64 px and the refining stages that the pictures' sizes allow (256 or 128 px, then 1024 or 512), composes
    them, draws a sheet of samples, measures the model on pictures that were held out, and writes its card.

    Args:
        folder: Of class folders, of pictures without classes, or of the parts of a data set; or shards, as `Data.source`.
        out: New folder of the model. The training runs lie beside it, see `runs_folder`.
        time: Seconds that everything may take, shared by `fit_plan.SHARES`; None = DEFAULT_SECONDS, or those of the fit that goes
            on.
        start_from: A model whose stages the training starts from, as `CascadePipeline.from_pretrained` takes it; None = new ones.
        workers: Processes that read pictures; None = all cores for the look, and those that training leaves free then.
        on_plan: Called with the plan, before anything is trained.
        on_progress: Told of pictures that are looked at, of steps, and of what is measured.
        on_report, on_validation, on_message: As of `train_stage`.

    Raises:
        ValueError: if the pictures are too few or too small, the time is too short, or `out` holds something else.
        OSError: if something can't be written; what is trained is kept.
        KeyboardInterrupt: after Ctrl-C or SIGTERM, with a checkpoint written. The same call goes on.
    """
    if this_process().num_processes > 1:
        raise ValueError("a fit runs in one process; `cascade train` with the recipes that it writes down runs in several")
    beginning = None if start_from is None else str(start_from)
    work = _Fit.begin(str(folder), Path(out), time, beginning, workers)
    with sole_training(work.runs):
        return work.run(on_plan, on_progress, on_report, on_validation, on_message)


class _Fit:
    """A fit with its record, which counts the seconds over all of its starts."""

    def __init__(self, runs: Path, out: Path, record: dict[str, Any], workers: int | None) -> None:
        self.runs, self.out, self.record, self.workers = runs, out, record, workers
        self._before, self._begun, self._written = record["spent"], time.monotonic(), 0.0

    @classmethod
    def begin(cls, source: str, out: Path, seconds: float | None, start_from: str | None, workers: int | None) -> _Fit:
        """A new one, or that which is recorded; ValueError if that is another one, or the model's place is taken."""
        runs = runs_folder(out)
        given = {"source": absolute_source(source), "start_from": None if start_from is None else absolute_source(start_from)}
        if not (runs / RECORD).is_file():
            for place in (out, runs):
                if place.is_file() or (place.is_dir() and any(place.iterdir())):
                    what = "a model" if (place / MANIFEST).is_file() else "something else"
                    raise ValueError(f"{place} holds {what} already, so no fit is begun there; choose another folder")
            record = given | {"format": 1, "seconds": seconds or DEFAULT_SECONDS, "spent": 0.0, "planned": [], "trained": {}}
            runs.mkdir(parents=True, exist_ok=True)
            return cls(runs, out, record, workers)
        record = read_json(runs / RECORD)
        for key, words in (("source", "of the pictures in"), ("start_from", "that starts from")):
            if record[key] != given[key]:
                differ = f"{record[key] or 'nothing'}, not {given[key] or 'nothing'}"
                raise ValueError(f"{runs} holds a fit {words} {differ}; choose another folder")
        if seconds is not None and seconds != record["seconds"]:
            raise ValueError(
                f"{runs} holds a fit in {record['seconds']:.0f} s, not {seconds:.0f}; leave the time out to go on with it, or"
                " choose another folder"
            )
        return cls(runs, out, record, workers)

    @property
    def spent(self) -> float:
        """Seconds so far, over all starts."""
        return self._before + time.monotonic() - self._begun

    def write(self) -> None:
        self.record["spent"], self._written = round(self.spent, 1), time.monotonic()
        write_text(self.runs / RECORD, json.dumps(self.record, indent=1, ensure_ascii=False) + "\n")

    def run(
        self,
        on_plan: Callable[[FitPlan], None],
        on_progress: OnProgress,
        on_report: Callable[[Report], None],
        on_validation: Callable[[ValidationReport], None],
        on_message: Callable[[str], None],
    ) -> FittedModel:
        def told(title: str, done: int, total: int) -> None:
            if time.monotonic() - self._written > SECONDS_BETWEEN_RECORDS and self.record["planned"]:
                self.write()
            on_progress(title, done, total)

        try:
            found = look(self.record["source"], cores() if self.workers is None else self.workers, told)
            check_pictures(found)
            plan = self._planned(found)
        except BaseException:
            self._forget()
            raise
        on_plan(plan)
        if self._before:
            on_message(f"goes on: {self._before:.0f} of {plan.seconds:.0f} s are over")
        for stage in plan.stages:
            self._train(stage, plan, told, on_report, on_validation, on_message)
        figures, sheet = finish(self.runs, self.out, plan, self.record, told, on_message, lambda: self.spent)
        self.write()
        return FittedModel(self.out, self.runs, sheet, figures, self.spent)

    def _planned(self, found: Look) -> FitPlan:
        """A new plan, written down; or that which is written down, since a run that goes on needs the same network."""
        if self.record["planned"]:
            planned = self.record["planned"]
            stages = tuple(PlannedStage(**one, recipe=load_recipe(self.runs / f"{one['name']}.yaml")) for one in planned)
            facts = self.record["plan"]
            return FitPlan(found, stages, self.record["seconds"], facts["finish"], facts["device"], tuple(facts["remarks"]))
        plan = plan_fit(found, self.record["seconds"], self.record["start_from"], self.spent)
        for stage in plan.stages:
            write_text(self.runs / f"{stage.name}.yaml", recipe_to_yaml(stage.recipe))
        fields = ("name", "share", "network", "parameters", "images_per_second", "pictures")
        self.record["planned"] = [{name: getattr(stage, name) for name in fields} for stage in plan.stages]
        self.record["plan"] = {"finish": plan.finish, "device": plan.device, "remarks": list(plan.remarks)}
        self.write()
        return plan

    def _forget(self) -> None:
        """Leave no folder behind where nothing was begun."""
        if not self.record["planned"]:
            shutil.rmtree(self.runs, ignore_errors=True)

    def _train(
        self,
        stage: PlannedStage,
        plan: FitPlan,
        on_progress: OnProgress,
        on_report: Callable[[Report], None],
        on_validation: Callable[[ValidationReport], None],
        on_message: Callable[[str], None],
    ) -> None:
        run = self.runs / stage.name
        if stage.name in self.record["trained"] and (run / "stage" / INDEX).is_file():
            on_message(f"{stage.name} is trained already")
            return
        begun = self.record.setdefault("begun", {}).setdefault(stage.name, self.spent)
        training = plan.seconds - plan.finish
        end = training * sum(one.share for one in plan.stages[: plan.stages.index(stage) + 1])
        of_share = stage.share * training
        seconds = max(end - self.spent, LEAST_OF_SHARE * of_share - (self.spent - begun), LEAST_OF_START * of_share)

        def named(title: str, done: int, total: int) -> None:
            on_progress(f"training {stage.name}" if title == "training" else title, done, total)

        told: dict[str, Any] = {"on_progress": named, "on_report": on_report, "on_validation": on_validation}
        told |= {"on_message": on_message, "workers": self.workers, "refit": True}
        made = train_stage(replace(stage.recipe, name=stage.name), run, seconds=seconds, **told)
        took = round(self.spent - begun, 1)
        done = {"images": made.images_seen, "seconds": took, "loss": made.loss, "held_out_loss": made.validation_loss}
        self.record["trained"][stage.name] = done
        self.write()
