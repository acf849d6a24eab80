"""The images of a run that one process makes, and the files that they end in; a stopped share goes on where it was.

Every file is written under another name and renamed when it is complete.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cascade.files import Progress, complete
from cascade.runs.formats import SHARD_SIZE, npz_name, shard_name, write_npz, write_shard
from cascade.runs.plan import Place, RunPlan

if TYPE_CHECKING:
    from PIL.Image import Image

    from cascade.pipeline import CascadePipeline
    from cascade.stage_sampling import Sampling

PARTS = ".images"  # where the images of a run lie until they are packed


def make_share(
    cascade: CascadePipeline, plan: RunPlan, out: Path, sampling: Sampling, place: Place, on_progress: Progress
) -> bool:
    """Make the images of this process that do not exist yet; the last process to end packs them where that is asked for.

    Args:
        cascade, plan, sampling: What is made, and how.
        out: Folder that `record.begin` has marked.
        place: Which blocks are made here.
        on_progress: Called before every block and at the end, with images of this process.

    Returns:
        Whether the run is complete; False while other processes are still at work.
    """
    if _is_packed(out, plan):
        _clean(out, plan)
        return True
    folder = out if plan.format == "png" else out / PARTS
    folder.mkdir(exist_ok=True)
    present = _present(out, plan)
    blocks = plan.blocks()[place.rank :: place.world_size]
    done, total = sum(i in present for block in blocks for i in block), sum(map(len, blocks))
    _remove_partial(folder, {i for block in blocks for i in block})
    for block in blocks:
        on_progress(done, total)
        missing = [i for i in block if i not in present]
        if not missing:
            continue
        images = _make(cascade, plan, block, sampling)
        for i in missing:
            write_png(folder / image_name(i), images[i - block.start])
        done += len(missing)
    on_progress(done, total)
    if len(_present(out, plan)) < plan.num_images:
        return False
    _pack(out, plan)
    return True


def image_name(index: int) -> str:
    """Name of an image's file."""
    return f"{index:06d}.png"


def write_png(path: Path, image: Image) -> None:
    """Write an image, whole or not at all."""
    with complete(path) as file:
        image.save(file, format="PNG")


def files_of(out: Path, plan: RunPlan) -> list[Path]:
    """The files in which a complete run ends, in the order of their images."""
    if plan.format == "png":
        return [out / image_name(i) for i in range(plan.num_images)]
    if plan.format == "shards":
        return [out / shard_name(shard.start) for shard in _shards(plan)]
    return [out / npz_name(plan.num_images, plan.size)]


@contextmanager
def without_bars(cascade: CascadePipeline) -> Iterator[None]:
    """The cascade without bars for a while, where a bar for every image would say too much."""
    before = {name: dict(getattr(stage, "_progress_bar_config", {})) for name, stage in cascade.stages.items()}
    cascade.set_progress_bar_config(disable=True)
    try:
        yield
    finally:
        for name, options in before.items():
            cascade.stages[name].set_progress_bar_config(**options)


def _make(cascade: CascadePipeline, plan: RunPlan, block: range, sampling: Sampling) -> Sequence[Image]:
    labels = [plan.label(i) for i in block]
    out: Any = cascade(
        class_labels=None if labels[0] is None else labels,  # type: ignore[arg-type]  # all or none are None
        num_images_per_class=len(block) if labels[0] is None else 1,
        seeds=[plan.seed + i for i in block],
        size=plan.size,
        sampling=sampling,
        batch_size=plan.batch_size,
    )
    return out.images


def _present(out: Path, plan: RunPlan) -> set[int]:
    """The images that exist, alone or in a shard."""
    folder = out if plan.format == "png" else out / PARTS
    names = set(os.listdir(folder)) if folder.is_dir() else set()
    shards = [k for k in _shards(plan) if (out / shard_name(k.start)).is_file()] if plan.format == "shards" else []
    return {i for i in range(plan.num_images) if image_name(i) in names} | {i for shard in shards for i in shard}


def _shards(plan: RunPlan) -> list[range]:
    return [range(start, min(start + SHARD_SIZE, plan.num_images)) for start in range(0, plan.num_images, SHARD_SIZE)]


def _is_packed(out: Path, plan: RunPlan) -> bool:
    return plan.format != "png" and all(path.is_file() for path in files_of(out, plan))


def _pack(out: Path, plan: RunPlan) -> None:
    """Put the images into their files. Two processes that end together may both do it: they write the same bytes."""
    try:
        for shard in _shards(plan) if plan.format == "shards" else []:
            if not (out / shard_name(shard.start)).is_file():
                with complete(out / shard_name(shard.start)) as file:
                    write_shard(file, [(out / PARTS / image_name(i), plan.label(i)) for i in shard])
        if plan.format == "npz":
            labels = None if plan.num_classes is None else [plan.label(i) or 0 for i in range(plan.num_images)]
            with complete(out / npz_name(plan.num_images, plan.size)) as file:
                write_npz(file, [out / PARTS / image_name(i) for i in range(plan.num_images)], plan.size, labels)
    except FileNotFoundError:
        if not _is_packed(out, plan):  # or another process was faster and has cleaned up
            raise
    _clean(out, plan)


def _clean(out: Path, plan: RunPlan) -> None:
    """Remove the images that are packed."""
    folder = out / PARTS
    if plan.format != "png" and folder.is_dir():
        for path in folder.iterdir():
            path.unlink(missing_ok=True)
        folder.rmdir()


def _remove_partial(folder: Path, indices: set[int]) -> None:
    """Remove what a killed run has half-written of these images."""
    for path in folder.glob(".*.png.*"):
        number = path.name[1:].partition(".")[0]
        if number.isdecimal() and int(number) in indices:
            path.unlink(missing_ok=True)
