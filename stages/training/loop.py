"""The training loop of one stage."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from PIL import Image
from torch.utils.data import DataLoader

from cascade.stages.training.examples import Batch, PictureSource, ResidentPictures, TrainingExamples, as_read, numbers
from cascade.stages.training.journal import Journal
from cascade.stages.training.meter import Meter, Report
from cascade.stages.training.odd_pictures import DamageLog
from cascade.stages.training.processes import accelerator_at, sole_training, this_process
from cascade.stages.training.recipe import Recipe
from cascade.stages.training.signals import StopSignals, leave_signals_to_the_trainer
from cascade.stages.training.state import Say, TrainingState
from cascade.stages.training.step import Outcome, Stepper
from cascade.stages.training.time_box import TimeBox, fitted
from cascade.stages.training.validation import ValidationReport, Validator
from cascade.stages.training.workers import told_in_a_sentence
from cascade.stages.unet import UNet

SampleGrid = Callable[[UNet, int], Image.Image | None]


def train(
    recipe: Recipe,
    pictures: PictureSource,
    run: Path,
    *,
    held_out: PictureSource | None = None,
    on_step: Callable[[int], None] = lambda images_seen: None,
    on_report: Callable[[Report], None] = lambda report: None,
    on_validation: Callable[[ValidationReport], None] = lambda validation: None,
    on_message: Say = lambda message: None,
    sample_grid: SampleGrid | None = None,
    trackers: Sequence[str] = (),
    workers: int = 0,
    resident: bool | None = None,
    time_box: TimeBox | None = None,
    on_recipe: Callable[[Recipe], None] = lambda recipe: None,
    on_held: Callable[[], None] = lambda: None,
) -> UNet:
    """Train a stage, or continue where its newest whole checkpoint left it: a network with averaged weights in evaluation mode.

    Every random choice is a function of the recipe's seed and the number of images seen, so a run that was stopped at any moment
    and started again ends with the weights of an uninterrupted one: to the bit on CPUs, in one process or two. Three or more sum
    their gradients in an order of their own, so that rounding may differ.

    Args:
        recipe: What is trained.
        pictures: The data, of the size that `TrainingExamples` asks for.
        run: The run's folder; made if missing. Holds checkpoints and `log.jsonl`.
        held_out: The pictures for the recipe's validation, if it has one: of the same size and classes.
        on_step: Called after every step with the number of images seen.
        on_report, on_validation: Called every few steps, and after every validation.
        on_message: Called with a sentence on anything out of the ordinary.
        sample_grid: Makes a picture of what the network makes after so many images, as often as `recipe.samples` says; the
            weights that it meets are the averaged ones. None = no samples.
        trackers: Where the curves are shown beside `log.jsonl`, by accelerate's names; see `journal.check_trackers`.
        workers: Processes that read the pictures; 0 = this one.
        resident: Whether the pictures are read once and stay in the memory of the device that trains, which changes no example;
            None = on a CUDA device that has room for them.
        time_box: Makes the recipe, which it was made with, as long as its time; `recipe` is that recipe as first fitted to it.
        on_recipe: Called with the recipe whenever it is fitted anew.
        on_held: Called by the main process once no other can train in the run's folder, before anything in it is changed.

    Raises:
        ValueError: if recipe, data and run folder don't belong together, another process is training there, or too many pictures
            are damaged.
        FloatingPointError: if several steps in a row have a loss that is not a number.
        OSError: if a checkpoint can't be written, as on a full disk. As with the other errors, the last one is whole then.
        KeyboardInterrupt: after Ctrl-C or SIGTERM, once the step is finished and a checkpoint written; a second one acts at once.
    """
    if (held_out is None) != (recipe.validation is None):
        raise ValueError("held_out pictures and the recipe's validation go together; one of the two is missing")
    run.mkdir(parents=True, exist_ok=True)
    accelerator = _accelerator(recipe.optimization.precision, on_message)
    with ExitStack() as held:
        if accelerator.is_main_process:
            held.enter_context(sole_training(run))
            on_held()
        state = TrainingState.begin(recipe, len(pictures.class_names), run, accelerator, on_message)
        device = accelerator.device
        if resident is None:
            resident = device.type == "cuda" and ResidentPictures.fit(pictures, device)
        if resident:
            pictures = ResidentPictures(pictures, device, workers)
        meter = Meter(recipe, state.images_seen, lambda values: accelerator.gather(values[None]))
        validate = Validator(recipe, held_out, state.network.null_label) if held_out is not None else None
        journal = held.enter_context(Journal(run, state.images_seen, accelerator, trackers))
        held.enter_context(_deterministic(accelerator.device))
        signals, stepper = held.enter_context(StopSignals()), Stepper(state, on_message)
        for before, outcome in _steps(state, pictures, stepper, workers, on_message):
            meter.observe(outcome.losses, outcome.log_snr, outcome.damaged)
            on_step(state.images_seen)
            factor = None if time_box is None else time_box.after_step(state.images_seen, meter.pauses)
            stopping, factor = _agreed(signals, factor, accelerator)
            if factor is not None and time_box is not None:
                time_box.factor = factor
                state.refit(fitted(time_box.recipe, factor))
                meter.recipe = state.recipe
                on_recipe(state.recipe)
            recipe = state.recipe
            save = stopping or _due(recipe.checkpoint_every, before, state)
            if report := meter.step(outcome.gradient_norm, state.images_seen, recipe.phase_at(before), close=save):
                on_report(report)
                journal.write(state.images_seen, asdict(report))
            with meter.paused():
                if sample_grid is not None and _due(recipe.samples.every, before, state):
                    _sample(state, sample_grid, journal)
                validation = validate(state) if validate is not None and _due(_validated(recipe), before, state) else None
                if validation is not None:
                    on_validation(validation)
                    journal.write(state.images_seen, validation.as_record())
                if recipe.snapshots is not None and _due(recipe.snapshots.every, before, state):
                    state.snapshot()
                if save:
                    stepper.look(pictures.name)
                    state.save(None if validation is None else validation.loss)
            if stopping:
                raise KeyboardInterrupt(f"stopped after {state.images_seen} images, with a checkpoint")
        return state.finish(on_message)


def _due(every: int, before: int, state: TrainingState) -> bool:
    """Whether what is due every so many images, and at the end, is due after the step that began at `before`."""
    return before // every < state.images_seen // every or state.images_seen == state.recipe.total_images


@contextmanager
def _deterministic(device: torch.device) -> Iterator[None]:
    """Let a CUDA device add up in one order, so that a run that was stopped ends with the bits of a whole one; CPUs do anyway."""
    if device.type != "cuda":
        yield
        return
    before = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    settings: Any = torch.utils.deterministic  # whose setting is a property that types don't know
    filled, settings.fill_uninitialized_memory = settings.fill_uninitialized_memory, False
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # what torch asks for; read when the library is first used
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before[0], warn_only=before[1])
        settings.fill_uninitialized_memory = filled


def _validated(recipe: Recipe) -> int:
    """Images between two validations."""
    assert recipe.validation is not None
    return recipe.validation.every or recipe.checkpoint_every


def _accelerator(precision: str, on_message: Say) -> Accelerator:
    """What runs the network at this precision here. Raises ValueError for float16 on a CPU."""
    on_cpu = this_process().device.type == "cpu"
    if on_cpu and precision == "float16":
        raise ValueError("optimization.precision is float16, in which CPUs can't train; use float32 or bfloat16")
    if on_cpu and precision == "bfloat16" and not torch.ops.mkldnn._is_mkldnn_bf16_supported():
        on_message("this CPU has no instructions for bfloat16; optimization.precision=float32 is faster here")
    return accelerator_at(precision)


def _steps(
    state: TrainingState, pictures: PictureSource, stepper: Stepper, workers: int, on_message: Say
) -> Iterator[tuple[int, Outcome]]:
    """Train to the end of the recipe, step by step: the images seen before each, and what it was like."""
    damage = DamageLog(pictures, state.recipe.data.max_damaged)
    while state.images_seen < state.recipe.total_images:
        recipe = state.recipe
        phase = recipe.phase_at(state.images_seen)
        examples = TrainingExamples(pictures, recipe, phase, state.network.null_label)
        for parts in _batches(examples, state, workers):
            for sentence in damage.add(_of_all(parts, state.accelerator)):
                on_message(sentence)
            before = state.images_seen
            outcome = stepper(parts, examples)
            state.images_seen = min(before + phase.batch_size, phase.images)
            state.average(before)
            yield before, outcome
            if state.recipe is not recipe:  # it has been fitted to the time that is left
                break
    if table := damage.table():
        on_message(f"odd pictures of {damage.met:,} met\n{table}")


def _batches(examples: TrainingExamples, state: TrainingState, workers: int) -> Iterator[list[Batch]]:
    """This process's share of every global batch left in the phase, in parts to be taken one after the other."""
    accelerator, phase = state.accelerator, examples.phase
    processes, accumulate, whole = accelerator.num_processes, state.recipe.optimization.accumulate, phase.batch_size
    workers = 0 if isinstance(examples.pictures, ResidentPictures) else workers
    if whole % (processes * accumulate):
        raise ValueError(
            f"batch_size {whole} can't be shared evenly by {processes} processes with optimization.accumulate {accumulate};"
            f" it must be a multiple of {processes * accumulate}"
        )
    loader: DataLoader = DataLoader(
        examples,
        batch_size=whole // processes // accumulate,
        collate_fn=as_read,
        sampler=numbers(state.images_seen, phase.images, whole, accelerator.process_index, processes),
        num_workers=workers,
        worker_init_fn=leave_signals_to_the_trainer,
        pin_memory=accelerator.device.type == "cuda",
    )
    batches = iter(loader)
    try:
        while True:
            with told_in_a_sentence():
                parts = list(islice(batches, accumulate))
            if not parts:
                return
            yield parts
    finally:
        if workers:  # they heed no signal: none may outlive an error here
            batches._shutdown_workers()  # type: ignore[attr-defined]  # private, and the only way to end them


def _of_all(parts: list[Batch], accelerator: Accelerator) -> Batch:
    """What the log of damage looks at in a global batch, the same for every process."""
    batch = {key: torch.cat([part[key] for part in parts]) for key in DamageLog.KEYS}
    if accelerator.num_processes == 1:  # stays where it was made, so that no device is waited for
        return batch
    return {key: accelerator.gather(value.to(accelerator.device)) for key, value in batch.items()}


def _agreed(signals: StopSignals, factor: float | None, accelerator: Accelerator) -> tuple[bool, float | None]:
    """Whether any process was asked to stop, and how long the main one finds the recipe: all do the same after the same step."""
    if accelerator.num_processes == 1:
        return signals.asked, factor
    mine = [float(signals.asked), (factor or 0.0) * accelerator.is_main_process]
    asked, agreed = accelerator.reduce(torch.tensor(mine, dtype=torch.float64, device=accelerator.device), "sum").tolist()
    return bool(asked), agreed or None


def _sample(state: TrainingState, sample_grid: SampleGrid, journal: Journal) -> None:
    """Let the main process make samples; the others wait for it."""
    if state.accelerator.is_main_process:
        with state.averaged() as averaged:
            grid = sample_grid(averaged, state.images_seen)
        if grid is not None:
            journal.samples(state.images_seen, grid)
    state.accelerator.wait_for_everyone()
