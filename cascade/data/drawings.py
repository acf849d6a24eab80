"""The emoji drawings: 9,738 labelled SVG documents in 75 classes, rendered the same way everywhere.

The one rule of rendering: a picture of RENDER_SIZE pixels or more is drawn at its size, and a smaller one is the exact
area average of the RENDER_SIZE picture, as low-resolution inputs are made from high-resolution images.
"""

from __future__ import annotations

import functools
import io
import json
import lzma
import multiprocessing
import os
import re
import shutil
import tarfile
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
import resvg_py
from PIL import Image

from cascade.classes import EMOJI
from cascade.eval.pictures import open_picture
from cascade.files import PARTIAL, Batch, Progress, cache_folder, complete, read_text, sha256, write_text
from cascade.png import is_whole

SPLITS = ("train", "heldout")
DRAWINGS = {"drawings": "train", "drawings:train": "train", "drawings:heldout": "heldout"}
"""Names of the drawings wherever pictures are named, and the split that each means."""

RENDER_SIZE = 256  # pixels
MAX_SIZE = 4096  # pixels; one picture of this size is 50 MB

# Mirrored, these say something else: letters, digits, directions, flags.
_NEVER_FLIP = frozenset(
    {"arrow", "book-and-paper", "clock", "flag", "game", "globe-and-map", "money", "moon", "musical-instrument"}
    | {"office", "phone-and-computer", "play-button", "religion-sign", "warning-sign", "zodiac"}
)

MAY_FLIP = tuple(name not in _NEVER_FLIP for name in EMOJI.names)
"""For each class of EMOJI, whether a drawing of it means the same when mirrored."""

_ASSETS = Path(__file__).parents[1] / "assets"
_PACK = _ASSETS / "drawings.tar.xz"
_MEMBER = re.compile(r"(train|heldout)/([a-z-]+)/([a-z0-9-]+__[0-9a-f-]+__[a-z0-9-]+)\.svg")
_RULES = 1  # raise it when render() begins to give other pixels, so that old caches are not taken for new

_TOGETHER = 16  # pictures that get their names at once

_Item = TypeVar("_Item")
_Result = TypeVar("_Result")


@dataclass(frozen=True, slots=True)
class Drawing:
    """One drawing of the pack."""

    split: str  # "train" or "heldout"; no concept is in both
    class_name: str  # one of cascade.classes.EMOJI
    name: str  # unique in its class: design team's set, code points, and the set's own name, as noto-v1__1f408-2b1b__black-cat
    svg: str  # a complete SVG document


def drawings(split: str) -> list[Drawing]:
    """Every drawing of a split, sorted by class name, then file name; takes about a second.

    Args:
        split: "train" (8,747 drawings) or "heldout" (991).

    Raises:
        ValueError: if split is neither, or the pack is damaged.
    """
    if split not in SPLITS:
        raise ValueError(f"split is {split!r}, expected one of {', '.join(SPLITS)}")
    found = []
    try:
        with tarfile.open(_PACK, "r|xz") as pack:
            for member in pack:
                match = _MEMBER.fullmatch(member.name)
                content = pack.extractfile(member)
                if match is None or content is None:
                    raise tarfile.ReadError(f"unexpected member {member.name!r}")
                if match[1] == split:
                    found.append(Drawing(match[1], match[2], match[3], content.read().decode()))
    except (tarfile.TarError, lzma.LZMAError, EOFError) as error:
        raise ValueError(f"the pack of drawings {_PACK} is damaged ({error}); install the package again") from error
    return sorted(found, key=lambda drawing: (drawing.class_name, f"{drawing.name}.svg"))


def glyphs(split: str) -> np.ndarray:
    """Code points of each drawing of a split, in the order of `drawings`, [N]: what several sets have each drawn once."""
    return np.array([drawing.name.split("__")[1] for drawing in drawings(split)])


def render(svg: str, size: int) -> np.ndarray:
    """Draw on white; what is not square is fitted in and centred.

    Args:
        svg: A complete SVG document. Fonts of the machine are not used.
        size: Side of the picture in pixels, 1 to MAX_SIZE.

    Returns:
        uint8 RGB, [size, size, 3].

    Raises:
        ValueError: if size is out of range or svg is not an SVG document.
    """
    _check_size(size)
    if size < RENDER_SIZE:
        return area_average(render(svg, RENDER_SIZE), size)
    png = resvg_py.svg_to_bytes(svg_string=svg, width=size, height=size, background="white", skip_system_fonts=True)
    with open_picture(io.BytesIO(png), ("PNG",)) as image:
        picture = np.asarray(image.convert("RGB"))
    height, width, _ = picture.shape
    if height == width:
        return picture
    square = np.full((size, size, 3), 255, np.uint8)
    top, left = (size - height) // 2, (size - width) // 2
    square[top : top + height, left : left + width] = picture
    return square


def area_average(pictures: np.ndarray, size: int) -> np.ndarray:
    """Each output pixel is the mean of the area it covers, rounded half up; exact, also where areas cut pixels.

    Args:
        pictures: uint8, [..., n, n, 3].
        size: Side of the result in pixels, 1 to n.

    Returns:
        uint8, [..., size, size, 3].

    Raises:
        ValueError: if the pictures are not square uint8, or size is out of range.
    """
    n = pictures.shape[-2]
    if pictures.dtype != np.uint8 or pictures.shape[-3:] != (n, n, 3):
        raise ValueError(f"pictures are {pictures.dtype} {pictures.shape}, expected uint8 [..., n, n, 3]")
    if not 1 <= size <= n:
        raise ValueError(f"size is {size}, expected 1 to {n}, the size of the pictures")
    if size == n:
        return pictures
    sums = _area_sums(_area_sums(pictures, size, -3, np.int32), size, -2, np.int64)
    return ((2 * sums + n * n) // (2 * n * n)).astype(np.uint8)


def _area_sums(values: np.ndarray, size: int, axis: int, dtype: type) -> np.ndarray:
    """Sums over `size` equal stretches of an axis, times `size`, so that stretches that cut values give whole numbers too."""
    n = values.shape[axis]
    whole, cut = np.divmod(np.arange(size + 1) * n, size)  # where stretch i begins: at a value, and how much of it is before
    shape = [-1] + [1] * (-axis - 1)
    sums = size * np.add.reduceat(values, whole[:-1], axis=axis, dtype=dtype)
    sums -= cut[:-1].reshape(shape).astype(dtype) * values.take(whole[:-1], axis=axis)
    sums += cut[1:].reshape(shape).astype(dtype) * values.take(np.minimum(whole[1:], n - 1), axis=axis)
    return sums


def cached_array(size: int, split: str, progress: Progress | None = None, every: int = 1) -> tuple[np.memmap, np.ndarray]:
    """The drawings of a split as one array, rendered at the first call and read from the disk afterwards.

    The rendering uses every core, in processes: a script that calls this needs the `if __name__ == "__main__"` guard.

    Args:
        size: Side of the pictures in pixels, 1 to MAX_SIZE.
        split: "train" or "heldout".
        progress: Called after each picture that is rendered.
        every: Only every n-th drawing, 1 = all. As they are sorted by class and set, so are the classes and sets of the rest
            in proportion.

    Returns:
        Pictures, uint8 [N, size, size, 3], a read-only memory map; and labels, int64 [N], indices into EMOJI. The
        order is that of `drawings(split)`.

    Raises:
        ValueError: if size, split or every is wrong.
        OSError: if the folder can't be written or the disk has no room.
    """
    _check_size(size)
    if every < 1:
        raise ValueError(f"every is {every}, expected 1 (all drawings) or more (every n-th)")
    items = drawings(split)[::every]
    labels = np.array([EMOJI.names.index(item.class_name) for item in items], np.int64)
    folder = cache_folder() / f"drawings-{_rendering()}"
    part = split if every == 1 else f"{split}-every{every}"
    path, shape = folder / f"{part}-{size}.npy", (len(items), size, size, 3)
    cached = _open_array(path, shape)
    if cached is None:
        full = _open_array(folder / f"{part}-{RENDER_SIZE}.npy", (len(items), RENDER_SIZE, RENDER_SIZE, 3))
        if full is not None and size < RENDER_SIZE:
            pictures: Iterator[np.ndarray] = (area_average(picture, size) for picture in full)
        else:
            pictures = _in_processes(functools.partial(render, size=size), [item.svg for item in items])
        _write_array(path, shape, _reporting(pictures, len(items), progress))
        cached = _open_array(path, shape)
        if cached is None:
            raise OSError(f"the rendered drawings in {path} can't be read back; is the disk full or failing?")
    return cached, labels


def write_image_folder(out: str | os.PathLike[str], size: int, split: str | None = None, progress: Progress | None = None) -> int:
    """Write drawings as PNG files, `{split}/{class}/{set}__{code points}__{icon}.png`, beside their NOTICE.

    Uses every core (see `cached_array`). Each file appears complete or not at all, so a run that was stopped goes on
    where it was when it is called again.

    Args:
        out: Folder: a new or empty one, or one that an earlier call with the same size began.
        size: Side of the pictures in pixels, 1 to MAX_SIZE.
        split: "train" or "heldout"; None = both.
        progress: Called after every few pictures that are written.

    Returns:
        How many pictures of the split the folder now holds.

    Raises:
        ValueError: if size or split is wrong, or out is a file or holds something else.
        OSError: if the folder can't be written or the disk has no room.
    """
    _check_size(size)
    out = Path(out)
    items = [item for name in (SPLITS if split is None else [split]) for item in drawings(name)]
    _claim_folder(out, {"size": size, "rendering": _rendering()})
    jobs = [(out / item.split / item.class_name / f"{item.name}.png", item.svg) for item in items]
    missing = [job for job in jobs if not (job[0].exists() and is_whole(job[0], size))]
    parts = [missing[start : start + _TOGETHER] for start in range(0, len(missing), _TOGETHER)]
    done = 0
    for part, _ in zip(parts, _in_processes(functools.partial(_write_pngs, size=size), parts, chunksize=1), strict=True):
        done += len(part)
        if progress is not None:
            progress(done, len(missing))
    return len(jobs)


def notice() -> str:
    """Who drew the drawings, under which licences, and what was changed: to go with every copy of them."""
    return (_ASSETS / "NOTICE").read_text("utf-8")


def _check_size(size: int) -> None:
    if not 1 <= size <= MAX_SIZE:
        raise ValueError(f"size is {size}, expected 1 to {MAX_SIZE} pixels")


@functools.cache
def _rendering() -> str:
    """What decides the pixels: the pack, the renderer, and our rules."""
    return f"{sha256(_PACK)[:12]}-resvg{resvg_py.__version__}-{_RULES}"


def _open_array(path: Path, shape: tuple[int, ...]) -> np.memmap | None:
    """The array of this shape, or None where there is none or only a part of one."""
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except (FileNotFoundError, ValueError, EOFError):  # ValueError: not an array, or shorter than it says
        return None
    return array if isinstance(array, np.memmap) and array.shape == shape and array.dtype == np.uint8 else None


def _write_array(path: Path, shape: tuple[int, ...], pictures: Iterable[np.ndarray]) -> None:
    """Write pictures one after the other; not through a memory map, where a full disk kills the process."""
    path.parent.mkdir(parents=True, exist_ok=True)
    needed, free = int(np.prod(shape)), shutil.disk_usage(path.parent).free
    if needed > free:
        raise OSError(f"rendered, the drawings take {needed / 1e9:.1f} GB, but {path.parent} has {free / 1e9:.1f} left")

    with complete(path) as file:
        np.lib.format.write_array_header_1_0(file, {"descr": "|u1", "fortran_order": False, "shape": shape})
        for picture in pictures:
            file.write(picture.tobytes())


def _write_pngs(jobs: list[tuple[Path, str]], size: int) -> None:
    with Batch() as batch:
        for path, svg in jobs:
            with batch.file(path) as file:
                Image.fromarray(render(svg, size)).save(file, format="PNG")


def _claim_folder(out: Path, contents: dict[str, object]) -> None:
    """Mark a new folder with what it will hold, or see that it is marked so; and lay the NOTICE in it."""
    mark = out / "drawings.json"
    if out.exists() and not out.is_dir():
        raise ValueError(f"{out} is a file, expected a folder for the pictures")
    if mark.is_file():
        try:
            found = json.loads(read_text(mark))
        except ValueError:
            found = None
        if found != contents:
            raise ValueError(f"{out} holds drawings of another size or rendering (see {mark}); choose another folder")
    elif out.is_dir() and any(path.name != f".{mark.name}{PARTIAL}" for path in out.iterdir()):  # left by a killed process
        raise ValueError(f"{out} is not empty and was not made by this command; choose a new folder")
    write_text(mark, json.dumps(contents))
    write_text(out / "NOTICE", notice())


def _in_processes(function: Callable[[_Item], _Result], items: list[_Item], chunksize: int = 16) -> Iterator[_Result]:
    """function of every item, in order, computed on every core."""
    # Spawned, not forked: a process that runs torch holds threads and locks that a fork would copy.
    pool = ProcessPoolExecutor(mp_context=multiprocessing.get_context("spawn"), initializer=_end_with_parent)
    try:
        yield from pool.map(function, items, chunksize=chunksize)
    finally:
        pool.shutdown(cancel_futures=True)


def _end_with_parent() -> None:
    """Let this process end when the one that started it is killed; by itself it would wait for work for ever."""

    def wait() -> None:
        if (parent := multiprocessing.parent_process()) is not None:
            parent.join()
            os._exit(1)

    threading.Thread(target=wait, daemon=True).start()


def _reporting(results: Iterable[_Result], total: int, progress: Progress | None) -> Iterator[_Result]:
    for done, result in enumerate(results, start=1):
        yield result
        if progress is not None:
            progress(done, total)
