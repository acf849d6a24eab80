"""What `cascade sample` and `cascade benchmark` share: a sampling run in one or several processes, with its record."""

from __future__ import annotations

import multiprocessing
import os
from argparse import ArgumentParser, Namespace
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cascade.cli.arguments import positive
from cascade.cli.errors import DONE, Failure, guarded
from cascade.cli.progress import Progress
from cascade.cli.sampling import Request, load
from cascade.runs.run import Place, RunPlan, begin, check_folder, model_hash, read_record, record_of, sample_run

if TYPE_CHECKING:
    from cascade.pipeline import CascadePipeline

CPU_BATCH_SIZE, ACCELERATOR_BATCH_SIZE = 1, 8
MOST_PROCESSES = 8


def add_process_options(parser: ArgumentParser) -> None:
    """How a run is spread over a machine."""
    group = parser.add_argument_group("processes", "Under torchrun or accelerate, their processes share the run.")
    group.add_argument(
        "--processes",
        type=positive,
        metavar="N",
        help=f"started by this command (default: one for each core and at most {MOST_PROCESSES} on a CPU, else one)",
    )
    group.add_argument(
        "--threads",
        type=positive,
        default=1,
        metavar="N",
        help="of each process on a CPU; images differ in their last bits with it, so a run keeps its own (default 1)",
    )


def run_images(request: Request, out: Path, what: str = "sampling", **plan_options: Any) -> tuple[RunPlan, bool]:
    """Make the images of a run that do not exist yet.

    A resumed run costs no more than its missing images. Under torchrun, LOCAL_RANK chooses among several accelerators.

    Args:
        request: The model and its settings.
        out: Folder of the run.
        what: Title of the progress.
        plan_options: Of `RunPlan`, without those that follow from the model: `num_images`, `seed`, `labels`, `format`.

    Returns:
        The plan, and whether the run is complete; False while other processes are still at work.

    Raises:
        ValueError: if the folder holds another run, or the model can't do what is asked.
        Failure: if another process of the run failed.
    """
    import torch

    check_folder(out)
    place, args = Place.from_environment(), request.args
    _choose_device(args)
    before = torch.get_num_threads()
    cascade = load(request)
    on_cpu = next(iter(cascade.stages.values())).device.type == "cpu"
    batch_size = args.batch_size or (CPU_BATCH_SIZE if on_cpu else ACCELERATOR_BATCH_SIZE)
    plan = RunPlan(size=request.size, num_classes=cascade.num_classes, batch_size=batch_size, **plan_options)
    arguments = _begin(request, plan, out, cascade)
    count = args.processes or (min(os.cpu_count() or 1, MOST_PROCESSES) if on_cpu else 1)
    count = 1 if "WORLD_SIZE" in os.environ else min(count, len(plan.blocks()))
    with _others(request, plan, out, what, count):
        share = place if count == 1 else Place(0, count)
        ended = _share(cascade, plan, out, arguments, share, what)
    torch.set_num_threads(before)
    return plan, ended or count > 1


def _choose_device(args: Namespace) -> None:
    """The accelerator of this process, where torchrun starts one process for each."""
    local = os.environ.get("LOCAL_RANK")
    if args.device is None and local is not None:
        import torch

        accelerator = torch.accelerator.current_accelerator()
        if accelerator is not None and torch.accelerator.device_count() > 1:
            args.device = f"{accelerator.type}:{local}"


@contextmanager
def _others(request: Request, plan: RunPlan, out: Path, what: str, count: int) -> Iterator[None]:
    """Processes that make the other shares of a run, from 1 to count - 1; they end with this one."""
    context = multiprocessing.get_context("spawn")
    processes = [
        context.Process(target=_other, args=(request, plan, out, Place(rank, count), what, os.getpid()), daemon=True)
        for rank in range(1, count)
    ]
    for process in processes:
        process.start()
    yield
    for process in processes:
        process.join()
    if any(process.exitcode != DONE for process in processes):
        raise Failure("a process of this run failed; the same command goes on where the run stopped")


def _other(request: Request, plan: RunPlan, out: Path, place: Place, what: str, parent: int) -> None:
    def action() -> None:
        cascade = load(request)
        _share(cascade, plan, out, _begin(request, plan, out, cascade), place, what, parent)

    raise SystemExit(guarded("cascade", action))


def _share(
    cascade: CascadePipeline,
    plan: RunPlan,
    out: Path,
    arguments: dict[str, Any],
    place: Place,
    what: str,
    parent: int | None = None,
) -> bool:
    """The share of one process; `parent` is the process whose end ends this one."""
    title = what if place.world_size == 1 else f"{what}, process {place.rank + 1} of {place.world_size}"
    with Progress(title, "images", quiet=place.rank > 0) as progress:

        def on_progress(done: int, total: int) -> None:
            if parent is not None and os.getppid() != parent:
                raise Failure("the command that began this run has ended")
            progress.update(done, total)

        return sample_run(cascade, plan, out, arguments, place, on_progress)


def _begin(request: Request, plan: RunPlan, out: Path, cascade: CascadePipeline) -> dict[str, Any]:
    """Mark the folder with the run's record; the settings of the cascade's call."""
    import torch

    from cascade.costs import cost_of

    sizes = [stage.size for stage in request.manifest.stages]
    stages = [stage.name for stage in request.manifest.stages[: sizes.index(plan.size) + 1]]
    settings = request.described(cascade, stages)
    del settings["batch_size"]  # the plan's
    if settings["device"] == "cpu":
        torch.set_num_threads(request.args.threads)
        settings["threads"] = request.args.threads
    cascade.set_progress_bar_config(disable=True)
    arguments = request.arguments()
    before = read_record(out)
    cost = cost_of(cascade, plan.size, arguments) if before is None else before["cost"]
    begin(out, record_of(plan, request.manifest.name, model_hash(request.folder), settings, cost))
    return arguments
