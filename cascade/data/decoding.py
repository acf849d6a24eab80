"""From the bytes of a file to a square picture, by a stated rule for every kind of odd file (an `Oddity`)."""

from __future__ import annotations

import errno
import io
import stat
import warnings
from pathlib import Path, PurePath

import numpy as np
from PIL import Image, UnidentifiedImageError

from cascade.data.crops import Crop
from cascade.eval.pictures import ENDINGS, TooManyPixels, open_picture
from cascade.stages.training.examples import Picture
from cascade.stages.training.odd_pictures import DamagedPicture, Oddity

MAX_BYTES = 256 * 2**20
_MAGIC = (b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"GIF8", b"RIFF", b"BM", b"II*\0", b"MM\0*")
_UPRIGHT = {  # EXIF's orientation -> what turns the picture upright
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_ORIENTATION = 0x0112


def read_file(path: Path) -> bytes:
    """Everything in a file. Raises DamagedPicture if it is missing, not a file, too large or unreadable."""
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):  # looked at before opening: to open a pipe waits for ever
            raise DamagedPicture(Oddity.NOT_A_FILE)
        if status.st_size > MAX_BYTES:
            raise DamagedPicture(Oddity.TOO_LARGE)
        return path.read_bytes()
    except OSError as error:
        gone = error.errno in (errno.ENOENT, errno.ELOOP, errno.ENOTDIR)
        raise DamagedPicture(Oddity.MISSING if gone else Oddity.UNREADABLE) from error


def decode(data: bytes, size: int, crop: Crop, name: str = "") -> Picture:
    """The square picture in an encoded one.

    Args:
        data: The content of a file.
        size: Side of the picture in pixels.
        crop: How it is made square.
        name: The file's; its ending is compared with the content.

    Returns:
        uint8 [size, size, 3] and what was odd about it.

    Raises:
        DamagedPicture: if it can't be used.
    """
    if not data:
        raise DamagedPicture(Oddity.EMPTY)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            image, oddities = _opened(data, size, name)
    except (DamagedPicture, MemoryError):
        raise
    except TooManyPixels as error:
        raise DamagedPicture(Oddity.TOO_LARGE) from error
    except Exception as error:  # Pillow's readers raise almost anything at hostile files
        raise DamagedPicture(_kind_of_damage(data, error)) from error
    return Picture(crop(image, size), tuple(oddities))


def _opened(data: bytes, size: int, name: str) -> tuple[Image.Image, list[Oddity]]:
    """The image upright in RGB, and its oddities."""
    image = open_picture(io.BytesIO(data))
    if min(image.size) < size:
        raise DamagedPicture(Oddity.TOO_SMALL)
    if image.format == "PNG":
        open_picture(io.BytesIO(data), ("PNG",)).verify()  # decoding alone passes over wrong checksums
    oddities = []
    stands_for = ENDINGS.get(PurePath(name).suffix.lower())
    if stands_for and image.format not in (stands_for, "MPO"):  # MPO: a JPEG with further views, as phones write it
        oddities.append(Oddity.WRONG_ENDING)
    if getattr(image, "is_animated", False) and image.format != "MPO":
        oddities.append(Oddity.ANIMATED)
    image.load()
    orientation = _orientation(image)
    image, colours = _rgb(image)
    if orientation in _UPRIGHT:
        image = image.transpose(_UPRIGHT[orientation])
        oddities.append(Oddity.ROTATED)
    return image, oddities + colours


def _orientation(image: Image.Image) -> object:
    try:
        return image.getexif().get(_ORIENTATION)
    except Exception:  # EXIF that can't be read turns nothing
        return None


def _rgb(image: Image.Image) -> tuple[Image.Image, list[Oddity]]:
    mode = image.mode
    if mode.startswith("I;16") or (mode == "I" and image.format in ("PNG", "PPM")):  # I: 16 bits, as some readers hand them out
        values = np.asarray(image).astype(np.int64).clip(0, 65535)
        grey = ((values * 255 + 32767) // 65535).astype(np.uint8)
        return Image.fromarray(grey).convert("RGB"), [Oddity.SIXTEEN_BIT]
    if mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info:
        layer = image.convert("RGBA")
        white = Image.new("RGBA", layer.size, "white")
        return Image.alpha_composite(white, layer).convert("RGB"), [Oddity.TRANSPARENT]
    oddity = {"L": Oddity.GREYSCALE, "1": Oddity.GREYSCALE, "P": Oddity.PALETTE, "CMYK": Oddity.CMYK}.get(mode)
    if oddity:
        return image.convert("RGB"), [oddity]
    if mode != "RGB":
        raise DamagedPicture(Oddity.UNKNOWN_COLOURS)
    return image, []


def _kind_of_damage(data: bytes, error: Exception) -> Oddity:
    webp_is_short = data.startswith(b"RIFF") and int.from_bytes(data[4:8], "little") + 8 > len(data)
    if isinstance(error, EOFError) or webp_is_short or "truncated" in str(error).lower():
        return Oddity.TRUNCATED
    if isinstance(error, UnidentifiedImageError) and not data.startswith(_MAGIC):
        return Oddity.NOT_A_PICTURE
    return Oddity.CORRUPT
