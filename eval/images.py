"""Images as they come from disk, and the one way in which evaluation makes them smaller."""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

Images = NDArray[np.uint8]  # RGB, [N, height, width, 3]

IMAGE_SUFFIXES = {".png", ".jpg", ".jpeg", ".webp", ".bmp"}
BATCH = 64  # images per network evaluation
SIDECAR_SUFFIXES = {".json", ".jsonl", ".partial"}  # what a sampling run keeps beside its images


@dataclass(frozen=True)
class ImageSet:
    """A checked set of equally large images, read batch by batch so that 50,000 of them fit in memory.

    Made by `image_folder` or `image_array`.

    name: Where the images come from, as errors and reports say it.
    size: Side of the square images in pixels.
    """

    name: str
    size: int
    _items: Images | tuple[Path, ...]

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
        return None if isinstance(self._items, np.ndarray) else self._items

    def take(self, indices: NDArray[np.integer]) -> "ImageSet":
        """The images at these places, in this order."""
        if isinstance(self._items, np.ndarray):
            return ImageSet(self.name, self.size, self._items[indices])
        return ImageSet(self.name, self.size, tuple(self._items[int(i)] for i in indices))

    def array(self) -> Images:
        """All of them in memory; 10,000 images of 256 px take 2 GB."""
        return self._items if isinstance(self._items, np.ndarray) else np.concatenate(list(self.batches()))

    def source_hash(self) -> str:
        """SHA-256 over size and pixels in order: equal for a folder of PNG files and an archive of the same images."""
        digest = hashlib.sha256(f"{self.size}x{self.size}".encode())
        for batch in self.batches():
            digest.update(batch.tobytes())
        return digest.hexdigest()


def image_folder(folder: Path, *, size: int | None = None, minimum: int = 1) -> ImageSet:
    """The images in a folder and its sub-folders, ordered by path.

    Files whose name begins with a dot and the records of a sampling run (.json, .jsonl, .partial) are passed over; any other file
    that is not an image is refused, when it is listed (by its suffix) or read (by its content).

    Raises ValueError if the folder is missing or empty, holds fewer than `minimum` images or something else, or if the first is
    not square with sides of `size` pixels (None = any); the others' sizes are checked when they are read.
    """
    if not folder.is_dir():
        raise ValueError(f"{folder} is not a folder; expected a folder of images")
    paths = sorted(p for p in folder.rglob("*") if p.is_file() and not p.name.startswith("."))
    paths = [p for p in paths if p.suffix.lower() not in SIDECAR_SUFFIXES]
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


def _read_image(path: Path, size: int | None) -> Images:
    try:
        with Image.open(path) as image:
            pixels = np.asarray(image.convert("RGB"))
    except (UnidentifiedImageError, OSError, SyntaxError, Image.DecompressionBombError) as error:
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
