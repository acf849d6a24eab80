"""The images of a run that one process makes, and the files that they end in; a stopped share goes on where it was.

Every file gets its name when it is complete and on the disk; images do so together, at least once a second. What an earlier
process left is looked through before it is taken for done.
"""

from __future__ import annotations

import os
import tarfile
import zipfile
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cascade.files import Batch, Progress, complete
from cascade.png import is_whole
from cascade.runs.formats import write_npz, write_shard
from cascade.runs.plan import Place, RunPlan

if TYPE_CHECKING:
    from PIL.Image import Image

    from cascade.pipeline import CascadePipeline
    from cascade.stage_sampling import Sampling

PARTS = ".images"  # where the images of a run lie until they are packed
SHARD_SIZE = 1000  # images


def make_share(
    cascade: CascadePipeline, plan: RunPlan, out: Path, sampling: Sampling, place: Place, on_progress: Progress
) -> bool:
    """Make the images of `place` that do not exist yet, in a folder that `record.begin` has marked; the last process to end packs
    them where that is asked for. Progress is that of this process. Returns whether the run is complete."""
    if _is_packed(out, plan):
        _clean(out, plan)
        return True
    folder = out if plan.format == "png" else out / PARTS
    folder.mkdir(exist_ok=True)
    blocks = plan.blocks()[place.rank :: place.world_size]
    mine = {i for block in blocks for i in block}
    present = _present(out, plan) & mine
    broken = {i for i in present if (path := folder / image_name(i)).exists() and not is_whole(path, plan.size)}
    present -= broken
    done, total = len(present), len(mine)
    on_progress(done, total)
    with cascade.prepared(), Batch() as batch, ThreadPoolExecutor(1) as writer:
        written: Future[int] | None = None
        for block in blocks:
            missing = [i for i in block if i not in present]
            if not missing:
                continue
            images = pictures_of(cascade, plan, block, sampling)
            if written is not None:
                done += written.result()
                on_progress(done, total)
            wanted = {folder / image_name(i): images[i - block.start] for i in missing}
            written = writer.submit(_write, batch, wanted)  # while the next ones are made
        if written is not None:
            on_progress(done + written.result(), total)
    if len(_present(out, plan)) < plan.num_images:
        return False
    _pack(out, plan)
    return True


def pictures_of(cascade: CascadePipeline, plan: RunPlan, block: range, sampling: Sampling) -> list[Image]:
    """The images of a plan with these consecutive numbers, `plan.batch_size` at once."""
    labels, seeds = [plan.label(i) for i in block], [plan.seed + i for i in block]
    classes: Any = {"num_images_per_class": len(block)} if labels[0] is None else {"class_labels": labels}
    made: Any = cascade(**classes, seeds=seeds, size=plan.size, sampling=sampling, batch_size=plan.batch_size).images
    return made


def _write(batch: Batch, images: Mapping[Path, Image]) -> int:
    """Write images as PNG files of a batch; returns how many."""
    for path, image in images.items():
        with batch.file(path) as file:
            image.save(file, format="PNG")
    return len(images)


def image_name(index: int) -> str:
    """Name of an image's file."""
    return f"{index:06d}.png"


def files_of(out: Path, plan: RunPlan) -> list[Path]:
    """The files in which a complete run ends, in the order of their images."""
    if plan.format == "png":
        return [out / image_name(i) for i in range(plan.num_images)]
    if plan.format == "shards":
        return list(_shards(out, plan))
    return [out / f"samples_{plan.num_images}x{plan.size}x{plan.size}x3.npz"]  # as OpenAI's programs call theirs


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


def _present(out: Path, plan: RunPlan) -> set[int]:
    """The images that exist, alone or in a shard."""
    folder = out if plan.format == "png" else out / PARTS
    names = set(os.listdir(folder)) if folder.is_dir() else set()
    packed = [images for shard, images in _shards(out, plan).items() if _holds(shard, images)]
    return {i for i in range(plan.num_images) if image_name(i) in names}.union(*packed)


def _shards(out: Path, plan: RunPlan) -> dict[Path, range]:
    """Each shard and its images; none in another format."""
    count = plan.num_images if plan.format == "shards" else 0
    blocks = [range(start, min(start + SHARD_SIZE, count)) for start in range(0, count, SHARD_SIZE)]
    return {out / f"shard-{number:06d}.tar": block for number, block in enumerate(blocks)}


def _is_packed(out: Path, plan: RunPlan) -> bool:
    if plan.format == "shards":
        return all(_holds(shard, images) for shard, images in _shards(out, plan).items())
    return plan.format == "npz" and _is_whole_npz(files_of(out, plan)[0], plan)


def _holds(shard: Path, images: range) -> bool:
    """Whether a shard has these images, each with all its bytes."""
    try:
        with tarfile.open(shard, "r:") as tar:
            names = [member.name for member in tar]
    except (OSError, tarfile.TarError, EOFError):
        return False
    return [name for name in names if name.endswith(".png")] == [image_name(i) for i in images]


def _is_whole_npz(path: Path, plan: RunPlan) -> bool:
    try:
        with zipfile.ZipFile(path) as archive:
            sizes = {member.filename: member.file_size for member in archive.infolist()}
    except (OSError, zipfile.BadZipFile):
        return False
    return sizes.get("arr_0.npy", 0) > plan.num_images * plan.size**2 * 3


def _pack(out: Path, plan: RunPlan) -> None:
    """Put the images into their files. Two processes that end together may both do it: they write the same bytes."""
    images = [out / PARTS / image_name(i) for i in range(plan.num_images)]
    try:
        for shard, indices in _shards(out, plan).items():
            if not _holds(shard, indices):
                with complete(shard) as file:
                    write_shard(file, [(images[i], plan.label(i)) for i in indices])
        if plan.format == "npz":
            labels = None if plan.num_classes is None else [plan.label(i) or 0 for i in range(plan.num_images)]
            with complete(files_of(out, plan)[0]) as file:
                write_npz(file, images, plan.size, labels)
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
