"""Large sampling runs: shared by processes, resumed after a stop, the same files to the bit either way.

Image i of a run depends on the model, its class, the seed `seed + i` and the settings, and on nothing else. Images are made in
blocks of `batch_size` consecutive ones, so that the batches are the same however often a run is stopped; block b belongs to
process b mod the number of processes.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypedDict

from cascade.files import held
from cascade.progress import OnProgress, part
from cascade.runs.plan import MOST_PROCESSES, FileFormat, LabelRule, Place, RunPlan
from cascade.runs.processes import others
from cascade.runs.record import begin, check_folder, model_hash, record_of, settings_of
from cascade.runs.share import files_of, make_share, pictures_of, without_bars
from cascade.runs.trial import FEWEST, SIZES, fastest_batch_size

if TYPE_CHECKING:
    from cascade.pipeline import CascadePipeline
    from cascade.stage_sampling import Sampling


@dataclass(frozen=True)
class SampleRun:
    """A sampling run, as it is when this process has made its share: what it makes, and `record`, as `run.json` in the folder has
    it. `complete` is False while processes that torchrun started are still at work."""

    folder: Path
    plan: RunPlan
    complete: bool
    record: Mapping[str, Any]

    @property
    def files(self) -> list[Path]:
        """The files of the complete run: one per image, shards, or one .npz."""
        return files_of(self.folder, self.plan)

    @property
    def labels(self) -> list[int | None]:
        """Class of every image; None for a model without classes."""
        return [self.plan.label(i) for i in range(self.plan.num_images)]


class RunOptions(TypedDict, total=False):
    """How any run is made, as arguments of `sample_run`."""

    sampling: Sampling | None
    batch_size: int | None
    processes: int | None
    threads: int
    on_progress: OnProgress | None


def sample_run(
    cascade: CascadePipeline,
    out: str | Path,
    *,
    num_images: int,
    size: int | None = None,
    seed: int = 0,
    labels: LabelRule | Sequence[int] = "balanced",
    format: FileFormat = "png",
    sampling: Sampling | None = None,
    batch_size: int | None = None,
    processes: int | None = None,
    threads: int = 1,
    on_progress: OnProgress | None = None,
) -> SampleRun:
    """Make many images in a run that can be stopped at any time: the same call makes those that are missing.

    Under torchrun or accelerate, their processes share the run. Otherwise this process starts others, which load the model from
    `cascade.folder`; so weights must not have been changed since.

    Args:
        cascade: Makes the images.
        out: A new folder, or that of the run to go on with.
        num_images, seed, labels, format: As `RunPlan` has them; `labels` may be any sequence of classes.
        size: Side of the images; None = the cascade's `default_size`.
        sampling: How each stage is sampled, as `cascade.sampling(...)` gives it.
        batch_size: Images that go through a network at once; None = as the run has it that goes on. Of a new one on a CPU that is
            1, or for 256 images and more what a short trial finds fastest (images differ in their last bits with it; `run.json`
            has it); elsewhere it goes by the memory.
        processes: How many share the run; None = one for each core that this one may use and at most 8 on a CPU, else one, as for
            a cascade that was composed and never saved.
        threads: Of each process on a CPU; images differ in their last bits with it, so a run keeps its own.
        on_progress: Told of the share of this process; of several that torchrun started, of the first.

    Raises:
        ValueError: if the folder holds another run, another process is making it, or the cascade can't do what is asked.
        RuntimeError: if a network makes something that is not a number, or another process failed.
        OSError: if a file can't be written.
    """
    import torch

    from cascade.costs import cost_of
    from cascade.stages.stage import default_batch_size

    out = Path(out)
    before = check_folder(out)
    place, on_cpu = Place.from_environment(), cascade.device.type == "cpu"
    side = cascade.sizes[cascade.stages_to(size)[-1]]
    plan = RunPlan(
        num_images=num_images,
        size=side,
        num_classes=cascade.num_classes,
        seed=seed,
        labels=labels if isinstance(labels, str) else tuple(labels),
        format=format,
        batch_size=batch_size or (before["plan"]["batch_size"] if before else default_batch_size(cascade.device, side)),
    )
    tries = batch_size is None and before is None and on_cpu and "WORLD_SIZE" not in os.environ and num_images >= FEWEST
    count = _count(cascade, plan, processes, on_cpu)
    chosen = cascade.sampling(sampling)
    with ExitStack() as stack:
        stack.enter_context(without_bars(cascade))
        if on_cpu:
            stack.callback(torch.set_num_threads, torch.get_num_threads())
            torch.set_num_threads(threads)
        if tries:
            plan = replace(plan, batch_size=_found_by_trial(cascade, plan, chosen, count, on_progress))
            count = _count(cascade, plan, processes, on_cpu)
        place = place if count == 1 else Place(0, count)
        title = "sampling images" + f", process {place.rank + 1} of {place.world_size}" * (place.world_size > 1)
        cost = cost_of(cascade, plan.size, chosen) if before is None else before["cost"]
        settings = settings_of(cascade, plan.size, chosen)
        record = record_of(plan, cascade.name, model_hash(cascade), settings, cost)
        out.mkdir(parents=True, exist_ok=True)
        problem = f"another process is making the images of {out}; wait for it, or choose another folder"
        stack.enter_context(held(out / f".lock-{place.rank}", problem))
        begin(out, record)
        check = stack.enter_context(others(cascade, out, chosen, count))

        def told(done: int, total: int) -> None:
            check()
            if on_progress is not None and not place.rank:
                on_progress(title, done, total)

        ended = make_share(cascade, plan, out, chosen, place, told)
    return SampleRun(out, plan, ended or count > 1, record)


def _found_by_trial(
    cascade: CascadePipeline, plan: RunPlan, sampling: Sampling, count: int, on_progress: OnProgress | None
) -> int:
    """Batch size with which `count` processes make the images of a plan fastest."""
    done, total = 0, 1 + sum(SIZES)

    def make(size: int) -> None:
        nonlocal done
        pictures_of(cascade, replace(plan, batch_size=size), range(size), sampling)
        done += size
        told(done, total)

    told = part(on_progress, "trying batch sizes")
    found = fastest_batch_size(make, count)
    told(total, total)
    return found


def _count(cascade: CascadePipeline, plan: RunPlan, processes: int | None, on_cpu: bool) -> int:
    """How many processes share the run, this one and those that it starts."""
    from cascade.data.checking import cores

    if "WORLD_SIZE" in os.environ:
        return 1
    if cascade.folder is None and (processes or 1) > 1:
        problem = f"processes is {processes}, but the cascade was composed here and other processes can't load it"
        raise ValueError(f"{problem}; save it first, or give processes=1")
    by_default = min(cores(), MOST_PROCESSES) if on_cpu and cascade.folder is not None else 1
    return min(processes or by_default, len(plan.blocks()))
