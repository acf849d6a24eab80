"""Images as they come from disk, and the one way in which evaluation makes them smaller."""

import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cascade.eval.pictures import open_picture

Images = NDArray[np.uint8]  # RGB, [N, height, width, 3]

IMAGE_SUFFIXES = {".png", ".jpg", ".jpeg", ".webp", ".bmp"}
BATCH = 64  # images per network evaluation
SIDECAR_SUFFIXES = {".json", ".jsonl", ".partial"}  # what a sampling run keeps beside its images
SIDECAR_NAMES = {"notice", "license", "licence", "copying", "readme", "attribution"}  # whose the images are, with any suffix


@dataclass(frozen=True)
class _Lazy:
    """`count` images that `read` gives by their places, [n], when they are asked for."""

    count: int
    read: Callable[[NDArray[np.integer]], Images]

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, part: slice) -> Images:
        return self.read(np.arange(self.count)[part])


@dataclass(frozen=True)
class ImageSet:
    """A checked set of equally large images, read batch by batch so that any number of them fits in memory.

    Made by `image_folder` or `image_array`.

    name: Where the images come from, as errors and reports say it.
    size: Side of the square images in pixels.
    """

    name: str
    size: int
    _items: Images | tuple[Path, ...] | _Lazy

    def __len__(self) -> int:
        return len(self._items)

    def batches(self, batch_size: int = BATCH) -> Iterator[Images]:
        """uint8 RGB, [at most batch_size, size, size, 3], in order; ValueError at a file that is not an image of this size."""
        for start in range(0, len(self), batch_size):
            part = self._items[start : start + batch_size]
            yield part if isinstance(part, np.ndarray) else np.stack([_read_image(path, self.size) for path in part])

    @property
    def paths(self) -> tuple[Path, ...] | None:
        """Their files, in order; None where the images don't lie in files of their own."""
        return self._items if isinstance(self._items, tuple) else None

    def take(self, indices: NDArray[np.integer]) -> "ImageSet":
        """The images at these places, in this order, read when they are asked for."""
        items = self._items
        if isinstance(items, tuple):
            return ImageSet(self.name, self.size, tuple(items[int(i)] for i in indices))
        read = items.read if isinstance(items, _Lazy) else items.__getitem__
        return ImageSet(self.name, self.size, _Lazy(len(indices), lambda places: read(indices[places])))

    def mapped(self, function: Callable[[Images], Images], size: int) -> "ImageSet":
        """What `function` makes of these images, [N, S, S, 3] to [N, size, size, 3], when they are asked for."""
        return ImageSet(self.name, size, _Lazy(len(self), lambda places: function(self.take(places).array())))

    def array(self) -> Images:
        """All of them in memory; 10,000 images of 256 px take 2 GB."""
        return self._items if isinstance(self._items, np.ndarray) else np.concatenate(list(self.batches()))

    def source_hash(self) -> str:
        """SHA-256 over size and pixels in order: equal for a folder of PNG files and an archive of the same images."""
        walk = HashedWalk(self)
        for _ in walk:
            pass
        return walk.source_hash


@dataclass(frozen=True)
class ImageStream:
    """Images of one size, [size, size, 3], that come one by one and are read once, so that more of them than a disk holds do."""

    size: int
    images: Iterable[Images]

    def batches(self, batch_size: int = BATCH) -> Iterator[Images]:
        """As `ImageSet.batches`, once."""
        remaining = iter(self.images)
        while batch := list(islice(remaining, batch_size)):
            yield np.stack(batch)


class HashedWalk:
    """One walk through the batches of a set, after which `source_hash` is that of the set."""

    def __init__(self, images: ImageSet | ImageStream):
        self._images = images
        self._digest = hashlib.sha256(f"{images.size}x{images.size}".encode())

    def __iter__(self) -> Iterator[Images]:
        for batch in self._images.batches():
            self._digest.update(batch.tobytes())
            yield batch

    @property
    def source_hash(self) -> str:
        return self._digest.hexdigest()


def image_folder(folder: Path, *, size: int | None = None, minimum: int = 1) -> ImageSet:
    """The images in a folder and its sub-folders, ordered by path.

    Files whose name begins with a dot, the records of a sampling run (.json, .jsonl, .partial) and notices (NOTICE, LICENSE,
    README.md and their like) are passed over; any other file that is not an image is refused, when it is listed (by its suffix)
    or read (by its content).

    Raises ValueError if the folder is missing or empty, holds fewer than `minimum` images or something else, or if the first is
    not square with sides of `size` pixels (None = any); the others' sizes are checked when they are read.
    """
    if not folder.is_dir():
        raise ValueError(f"{folder} is not a folder; expected a folder of images")
    paths = sorted(p for p in folder.rglob("*") if p.is_file() and not p.name.startswith("."))
    paths = [p for p in paths if p.suffix.lower() in IMAGE_SUFFIXES or not _is_sidecar(p)]
    for path in paths:
        if path.suffix.lower() not in IMAGE_SUFFIXES:
            raise ValueError(f"{path} is not an image; a folder to be scored may hold only {', '.join(sorted(IMAGE_SUFFIXES))}")
    _check_count(str(folder), len(paths), minimum)
    return ImageSet(str(folder), _read_image(paths[0], size).shape[0], tuple(paths))


def image_array(images: NDArray, *, name: str = "images", size: int | None = None, minimum: int = 1) -> ImageSet:
    """Images that are in memory already, uint8 [N, S, S, 3]. Arguments and errors as in `image_folder`."""
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[3] != 3:
        raise ValueError(f"{name} holds {images.dtype} of shape {images.shape}, expected uint8 RGB images, [N, S, S, 3]")
    _check_count(name, len(images), minimum)
    _check_size(name, images.shape[2], images.shape[1], size)
    return ImageSet(name, images.shape[1], images)


def balanced_choice(classes: Sequence[Any] | NDArray | None, total: int, count: int) -> NDArray[np.int64]:
    """Places of `count` of `total` images (all of them if there are fewer), always the same ones, [min(count, total)].

    Classes take turns in one random order; of each its images come in a random order. So classes differ by one image at most
    while they have any left, and a larger choice goes on where a smaller one ended. `classes` says what each image shows,
    [total]; None = not known, and the choice is a random one.
    """
    rng = np.random.default_rng(0)
    order = rng.permutation(total)
    if classes is None:
        return order[:count]
    _, labels = np.unique(np.asarray(classes), return_inverse=True)
    turn = rng.permutation(labels.max(initial=0) + 1)
    shuffled = labels[order]
    by_class = np.argsort(shuffled, kind="stable")
    starts = np.searchsorted(shuffled[by_class], np.arange(len(turn)))
    rank = np.empty(total, np.int64)  # of each shuffled image among those of its class
    rank[by_class] = np.arange(total) - starts[shuffled[by_class]]
    return order[np.lexsort((turn[shuffled], rank))][:count]


def area_downsample(images: NDArray, size: int) -> NDArray[np.float32]:
    """Mean over equal square blocks of pixels, unrounded: [N, S, S, C] of any real type to float32 [N, size, size, C].

    Raises ValueError if the images are not square or their side is not a multiple of `size`.
    """
    num, height, width, channels = images.shape
    if height != width or size < 1 or height % size:
        raise ValueError(f"images are {width}x{height}; only squares whose side is a multiple of {size} average to {size}x{size}")
    factor = height // size
    if factor == 1:
        return images.astype(np.float32)
    return images.reshape(num, size, factor, size, factor, channels).mean(axis=(2, 4), dtype=np.float32)


def _is_sidecar(path: Path) -> bool:
    return path.suffix.lower() in SIDECAR_SUFFIXES or path.name.partition(".")[0].lower() in SIDECAR_NAMES


def _read_image(path: Path, size: int | None) -> Images:
    try:
        with open_picture(path) as image:
            pixels = np.asarray(image.convert("RGB"))
    except Exception as error:  # Pillow's readers raise almost anything at hostile files
        raise ValueError(f"{path} is not an image, or is damaged ({error})") from error
    _check_size(str(path), pixels.shape[1], pixels.shape[0], size)
    return pixels


def _check_size(name: str, width: int, height: int, size: int | None) -> None:
    wanted = size or height
    if (width, height) != (wanted, wanted):
        raise ValueError(f"{name} is {width}x{height}, expected {wanted}x{wanted}; a set has square images of one size")


def _check_count(name: str, count: int, minimum: int) -> None:
    if count == 0:
        raise ValueError(f"{name} holds no images; has the sampling run written there yet?")
    if count < minimum:
        raise ValueError(f"{name} holds {count} images, but at least {minimum} are needed for this measurement")
