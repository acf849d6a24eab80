"""The one way in which files of pictures are opened: as one of a few formats, whose readers start no other program."""

from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO

from PIL import Image

ENDINGS = {
    ".jpg": "JPEG",
    ".jpeg": "JPEG",
    ".png": "PNG",
    ".webp": "WEBP",
    ".bmp": "BMP",
    ".gif": "GIF",
    ".tif": "TIFF",
    ".tiff": "TIFF",
    ".ppm": "PPM",
    ".pgm": "PPM",
}
"""Endings of pictures, and the formats that they stand for; no other format is opened (EPS would start Ghostscript)."""

FORMATS = tuple(sorted(set(ENDINGS.values())))

MAX_PIXELS = 89_478_485
"""Above it Pillow suspects a decompression bomb; as RGB a quarter of a gigabyte."""


class TooManyPixels(ValueError):
    """A picture of more than `MAX_PIXELS`."""


def open_picture(file: Path | BinaryIO, formats: Sequence[str] = FORMATS) -> Image.Image:
    """The picture in a file, of which no more than the head was read.

    Raises TooManyPixels; ValueError if a path is a pipe or a device, which may never end; and what Pillow raises: OSError if it
    is not a picture of these formats, and at damaged ones almost anything.
    """
    if isinstance(file, Path) and file.exists() and not file.is_file():
        raise ValueError(f"{file} is not a regular file")
    try:
        image = Image.open(file, formats=list(formats))
    except Image.DecompressionBombError as error:
        raise TooManyPixels(str(error)) from error
    if image.width * image.height > MAX_PIXELS:
        image.close()
        raise TooManyPixels(f"it has {image.width:,} x {image.height:,} pixels, expected at most {MAX_PIXELS:,} in all")
    return image


def open_no_other_formats() -> None:
    """Let Pillow open `FORMATS` alone in this process, for one in which another library opens what a stranger sends."""
    Image.init()
    for name in set(Image.ID) - set(FORMATS):
        Image.ID.remove(name)
        Image.OPEN.pop(name, None)
