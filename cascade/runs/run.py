"""Large sampling runs: sharded over processes, resumed after a stop, the same files to the bit either way.

Image i of a run depends on the model, its class, the seed `seed + i` and the settings, and on nothing else. Images are made in
blocks of `batch_size` consecutive ones, so that the batches are the same however often a run is stopped; block b belongs to
process b mod the number of processes. Every file is written under another name and renamed when it is complete.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Literal, get_args

from cascade.runs.formats import SHARD_SIZE, npz_name, shard_name, write_npz, write_shard

if TYPE_CHECKING:
    from PIL.Image import Image

    from cascade.pipeline import CascadePipeline

FORMAT = 1
RECORD = "run.json"
PARTS = ".images"  # where the images of a run lie until they are packed

LabelRule = Literal["balanced", "random"]
FileFormat = Literal["png", "shards", "npz"]
RunProgress = Callable[[int, int], None]
"""Called with (images of this process that exist, images of this process in all)."""


@dataclass(frozen=True, kw_only=True)
class RunPlan:
    """What a run makes.

    num_images: How many images.
    size: Side of the images in pixels, of the last stage that runs.
    num_classes: Classes of the model; None = it knows none.
    seed: Image i has seed `seed + i`.
    labels: "balanced": image i has class i mod num_classes. "random": a class drawn from SHA-256 of "seed/label/i". A list: the
        class of every image; its entries go round if there are more images.
    format: "png": files 000000.png ...; "shards": tar files of 1,000 images in WebDataset's layout; "npz": one file as OpenAI's
        evaluator reads it, `arr_0` uint8 [N, S, S, 3] and the classes as `arr_1`.
    batch_size: Images that go through a network at once.
    """

    num_images: int
    size: int
    num_classes: int | None
    seed: int = 0
    labels: LabelRule | tuple[int, ...] = "balanced"
    format: FileFormat = "png"
    batch_size: int = 1

    def __post_init__(self) -> None:
        for name in ("num_images", "batch_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.format not in get_args(FileFormat):
            raise ValueError(f"format is {self.format!r}, expected one of {', '.join(get_args(FileFormat))}")
        if isinstance(self.labels, str) and self.labels not in get_args(LabelRule):
            raise ValueError(f"labels is {self.labels!r}, expected one of {', '.join(get_args(LabelRule))}")
        if not isinstance(self.labels, str) and not (
            self.labels and self.num_classes and all(0 <= label < self.num_classes for label in self.labels)
        ):
            raise ValueError(f"labels must be classes in 0 to {(self.num_classes or 0) - 1}, at least one")

    def label(self, index: int) -> int | None:
        """Class of an image; None for a model without classes."""
        if self.num_classes is None:
            return None
        if not isinstance(self.labels, str):
            return self.labels[index % len(self.labels)]
        if self.labels == "balanced":
            return index % self.num_classes
        digest = hashlib.sha256(f"{self.seed}/label/{index}".encode()).digest()
        return int.from_bytes(digest[:8], "big") % self.num_classes

    def blocks(self) -> list[range]:
        """Images that are made together."""
        starts = range(0, self.num_images, self.batch_size)
        return [range(start, min(start + self.batch_size, self.num_images)) for start in starts]


@dataclass(frozen=True)
class Place:
    """Which of how many processes this is; blocks with `block mod world_size == rank` are its own."""

    rank: int = 0
    world_size: int = 1

    @classmethod
    def from_environment(cls) -> Place:
        """As torchrun and accelerate say it in RANK and WORLD_SIZE; alone without them.

        Raises:
            ValueError: if they say something that can't be.
        """
        rank, world_size = os.environ.get("RANK", "0"), os.environ.get("WORLD_SIZE", "1")
        if not (rank.isdecimal() and world_size.isdecimal() and int(rank) < int(world_size)):
            raise ValueError(
                f"the environment has RANK={rank} and WORLD_SIZE={world_size}, expected numbers with RANK below WORLD_SIZE, as"
                " torchrun and accelerate set them"
            )
        return cls(int(rank), int(world_size))


def model_hash(folder: Path) -> str:
    """SHA-256 over names and contents of a model's json and safetensors files, in the order of their names."""
    digest = hashlib.sha256()
    for path in sorted(p for p in folder.rglob("*") if p.suffix in (".json", ".safetensors")):
        content = hashlib.sha256()
        with open(path, "rb") as file:
            while chunk := file.read(1 << 20):
                content.update(chunk)
        digest.update(f"{path.relative_to(folder).as_posix()} {content.hexdigest()}\n".encode())
    return digest.hexdigest()


def record_of(plan: RunPlan, model: str, sha256: str, settings: Mapping[str, Any], cost: Mapping[str, Any]) -> dict[str, Any]:
    """What `run.json` says of a run: all that its images depend on, and what an image costs; nothing of when and where.

    Args:
        plan: What is made.
        model: Name of the model.
        sha256: `model_hash` of it.
        settings: Of every stage, defaults written out.
        cost: As `cascade.costs.cost_of` gives it.
    """
    import diffusers
    import torch

    described = asdict(plan) | {"labels": plan.labels if isinstance(plan.labels, str) else list(plan.labels)}
    software = {"torch": torch.__version__, "diffusers": diffusers.__version__}
    model_facts = {"name": model, "sha256": sha256}
    return {
        "format": FORMAT,
        "model": model_facts,
        "plan": described,
        "settings": dict(settings),
        "software": software,
        "cost": dict(cost),
    }


def read_record(out: Path) -> dict[str, Any] | None:
    """The record of the run in a folder; None where there is none.

    Raises:
        ValueError: if it is damaged.
    """
    path = out / RECORD
    if not path.is_file():
        return None
    try:
        record = json.loads(path.read_text("utf-8"))
        if record["format"] != FORMAT:
            raise ValueError(f"its format is {record['format']}, expected {FORMAT}")
        return record
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} is no record of a sampling run, or is damaged ({error})") from error


def plan_of(record: Mapping[str, Any]) -> RunPlan:
    """The plan in a record."""
    values = dict(record["plan"])
    return RunPlan(**values | {"labels": values["labels"] if isinstance(values["labels"], str) else tuple(values["labels"])})


def check_folder(out: Path) -> None:
    """Whether a run may be begun or resumed in a folder. Raises ValueError if it is a file or holds something else."""
    if out.exists() and not out.is_dir():
        raise ValueError(f"{out} is a file, expected a folder for the run")
    if out.is_dir() and read_record(out) is None and any(not path.name.startswith(".") for path in out.iterdir()):
        raise ValueError(f"{out} is not empty and holds no sampling run; choose another folder")


def begin(out: Path, record: Mapping[str, Any]) -> None:
    """Mark a folder as that of this run, or see that it is.

    Raises:
        ValueError: if the folder holds another run or something else.
        OSError: if it can't be written.
    """
    check_folder(out)
    before = read_record(out)
    if before is not None and (changed := _difference(before, record)):
        raise ValueError(f"{out} holds a run with {changed}; give the same options, or another folder")
    out.mkdir(parents=True, exist_ok=True)
    if before is None:
        with complete(out / RECORD) as file:
            file.write((json.dumps(record, indent=2) + "\n").encode())


def sample_run(
    cascade: CascadePipeline,
    plan: RunPlan,
    out: Path,
    arguments: Mapping[str, Any],
    place: Place | None = None,
    on_progress: RunProgress | None = None,
) -> bool:
    """Make the images of this process that do not exist yet; the last process to end packs them where that is asked for.

    Args:
        cascade: Makes the images.
        plan: Which.
        out: Folder that `begin` has marked.
        arguments: Settings of the cascade's call.
        place: Which blocks are made here; None = as the environment says.
        on_progress: Called at the start and after every block.

    Returns:
        Whether the run is complete; False while other processes are still at work.

    Raises:
        ValueError: if the cascade can't do what is asked.
        RuntimeError: if a network makes something that is no number.
        OSError: if a file can't be written.
    """
    place = place or Place.from_environment()
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
        if on_progress is not None:
            on_progress(done, total)
        missing = [i for i in block if i not in present]
        if not missing:
            continue
        images = _make(cascade, plan, block, arguments)
        for i in missing:
            with complete(folder / image_name(i)) as file:
                images[i - block.start].save(file, format="PNG")
        done += len(missing)
    if on_progress is not None:
        on_progress(done, total)
    if len(_present(out, plan)) < plan.num_images:
        return False
    _pack(out, plan)
    return True


def image_name(index: int) -> str:
    """Name of an image's file."""
    return f"{index:06d}.png"


def labels_of_run(out: Path) -> list[int | None]:
    """Class of every image of a run, in order. Raises ValueError if the folder holds no run."""
    record = read_record(out)
    if record is None:
        raise ValueError(f"{out} holds no {RECORD}, so the classes of its images are not known; make them by `cascade sample`")
    plan = plan_of(record)
    return [plan.label(i) for i in range(plan.num_images)]


@contextmanager
def complete(path: Path) -> Iterator[BinaryIO]:
    """A file to write that gets its name when it is complete, and leaves nothing behind otherwise."""
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with open(partial, "wb") as file:
            yield file
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def _make(cascade: CascadePipeline, plan: RunPlan, block: range, arguments: Mapping[str, Any]) -> Sequence[Image]:
    labels = [plan.label(i) for i in block]
    out: Any = cascade(
        class_labels=None if labels[0] is None else labels,  # type: ignore[arg-type]  # all or none are None
        num_images_per_class=len(block) if labels[0] is None else 1,
        seeds=[plan.seed + i for i in block],
        size=plan.size,
        **{**arguments, "batch_size": plan.batch_size},
    )
    return out.images


def _difference(before: Mapping[str, Any], now: Mapping[str, Any], key: str = "") -> str | None:
    """The first value in which two records differ, in words; what an image costs follows from the rest."""
    for name in [name for name in {**before, **now} if name != "cost"]:
        old, new = before.get(name), now.get(name)
        if isinstance(old, Mapping) and isinstance(new, Mapping):
            if found := _difference(old, new, f"{key}{name}."):
                return found
        elif old != json.loads(json.dumps(new)):
            return f"{key}{name} {old}, not {new}"
    return None


def _present(out: Path, plan: RunPlan) -> set[int]:
    """The images that exist, alone or in a shard."""
    folder = out if plan.format == "png" else out / PARTS
    names = set(os.listdir(folder)) if folder.is_dir() else set()
    shards = [k for k in _shards(plan) if (out / shard_name(k.start)).is_file()] if plan.format == "shards" else []
    return {i for i in range(plan.num_images) if image_name(i) in names} | {i for shard in shards for i in shard}


def _shards(plan: RunPlan) -> list[range]:
    return [range(start, min(start + SHARD_SIZE, plan.num_images)) for start in range(0, plan.num_images, SHARD_SIZE)]


def _is_packed(out: Path, plan: RunPlan) -> bool:
    if plan.format == "shards":
        return all((out / shard_name(shard.start)).is_file() for shard in _shards(plan))
    return plan.format == "npz" and (out / npz_name(plan.num_images, plan.size)).is_file()


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
