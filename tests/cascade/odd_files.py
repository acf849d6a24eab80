"""Files as they come in the world: for each kind of odd picture, what writes one in each of its forms."""

import io
import os
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

from cascade.stages.training.odd_pictures import Oddity

Write = Callable[[Path], None]


def photo(seed: int, width: int = 24, height: int = 20) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


def encoded(image: Image.Image, form: str, **options) -> bytes:
    file = io.BytesIO()
    image.save(file, form, **options)
    return file.getvalue()


def chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def png(width: int, height: int, bits: int, colour: int, rows: bytes) -> bytes:
    """A PNG file; `rows` are the compressed rows, each begun by its filter, 0."""
    header = struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


def content(ending: str, data: bytes) -> tuple[str, Write]:
    return ending, lambda path: path.write_bytes(data)


def forms(seed: int = 0) -> dict[Oddity, list[tuple[str, Write]]]:
    """For each kind its forms: the ending of the file's name, and what writes it. All but the tiny are 24x20 pixels."""
    rgb, other = photo(seed), photo(seed + 1)
    grey, red = rgb.convert("L"), np.asarray(rgb)[..., 0]
    rgba = Image.merge("RGBA", [*rgb.split(), grey])
    sixteen = Image.fromarray(red.astype(np.uint16) * 200)
    frames = {"save_all": True, "append_images": [other]}
    flat = bytes(20 * 73)  # the rows of a black RGB picture with their filters
    wrong_sum = bytearray(encoded(rgb, "PNG"))
    wrong_sum[wrong_sum.index(b"IEND") - 6] ^= 1  # in the checksum of the last IDAT
    no_stream = bytearray(zlib.compress(bytes(np.random.default_rng(seed).integers(0, 256, 20 * 73, dtype=np.uint8))))
    no_stream[2:60] = b"\xff" * 58
    exif = Image.Exif()
    exif[0x0112] = 6

    def sparse(path: Path) -> None:
        with path.open("wb") as file:
            file.truncate(300 * 2**20)

    def circle(path: Path) -> None:
        path.symlink_to(path.name)

    return {
        Oddity.MISSING: [(".jpg", circle), (".png", lambda path: path.symlink_to("nowhere.png"))],
        Oddity.NOT_A_FILE: [(".jpg", lambda path: path.mkdir()), (".png", lambda path: os.mkfifo(path))],
        Oddity.EMPTY: [content(".jpg", b"")],
        Oddity.NOT_A_PICTURE: [
            content(".jpg", b"404 not found " * 9),
            content(".png", b"<html><body>Sign in</body></html>"),
            content(".jpg", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 30 30\nshowpage\n"),
            content(".gif", bytes(900)),
        ],
        Oddity.TRUNCATED: [
            content(ending, encoded(rgb, form)[: -len(encoded(rgb, form)) // 3])
            for ending, form in ((".jpg", "JPEG"), (".png", "PNG"), (".webp", "WEBP"), (".bmp", "BMP"), (".tif", "TIFF"))
        ],
        Oddity.CORRUPT: [
            content(".png", bytes(wrong_sum)),
            content(".png", png(24, 20, 8, 2, bytes(no_stream))),
            content(".jpg", encoded(rgb, "JPEG")[:6] + b"\xff" * 40),
        ],
        Oddity.TOO_SMALL: [
            content(".png", encoded(photo(seed, 40, 7), "PNG")),
            content(".jpg", encoded(photo(seed, 1, 1), "JPEG")),
        ],
        Oddity.TOO_LARGE: [
            content(".png", png(30_000, 30_000, 8, 2, zlib.compress(flat))),
            content(".png", png(10_000, 9_000, 1, 0, zlib.compress(bytes(9_000 * 1_251)))),
            (".bmp", sparse),
        ],
        Oddity.UNKNOWN_COLOURS: [
            content(".tif", encoded(Image.fromarray(red.astype(np.float32)), "TIFF")),
            content(".tif", encoded(Image.fromarray(red.astype(np.int32)), "TIFF")),
            content(".tif", encoded(Image.frombytes("LAB", rgb.size, rgb.tobytes()), "TIFF")),
        ],
        Oddity.GREYSCALE: [content(".jpg", encoded(grey, "JPEG")), content(".png", encoded(grey.convert("1"), "PNG"))],
        Oddity.SIXTEEN_BIT: [
            content(".png", encoded(sixteen, "PNG")),
            content(".tif", encoded(sixteen, "TIFF")),
            content(".pgm", b"P5 24 20 65535\n" + (red.astype(">u2") * 200).tobytes()),
        ],
        Oddity.PALETTE: [content(".png", encoded(rgb.quantize(9), "PNG")), content(".gif", encoded(rgb.quantize(9), "GIF"))],
        Oddity.TRANSPARENT: [
            content(".png", encoded(rgba, "PNG")),
            content(".png", encoded(Image.merge("LA", [grey, grey]), "PNG")),
            content(".png", encoded(rgb.quantize(9), "PNG", transparency=2)),
            content(".webp", encoded(rgba, "WEBP", lossless=True)),
        ],
        Oddity.CMYK: [
            content(".jpg", encoded(rgb.convert("CMYK"), "JPEG")),
            content(".tif", encoded(rgb.convert("CMYK"), "TIFF")),
        ],
        Oddity.ANIMATED: [content(ending, encoded(rgb, form, **frames)) for ending, form in ((".webp", "WEBP"), (".png", "PNG"))]
        + [content(".gif", encoded(rgb.quantize(9), "GIF", save_all=True, append_images=[other.quantize(9)]))],
        Oddity.ROTATED: [content(".jpg", encoded(rgb, "JPEG", exif=exif)), content(".png", encoded(rgb, "PNG", exif=exif))],
        Oddity.WRONG_ENDING: [content(".jpg", encoded(rgb, "PNG")), content(".png", encoded(rgb, "WEBP"))],
    }


def write_photos(root: Path, count: int, classes: tuple[str, ...] = ("ant", "bee"), size: int = 24) -> list[Path]:
    """A folder of class folders of ordinary pictures, taken in turn by the classes."""
    paths = []
    for i in range(count):
        path = root / classes[i % len(classes)] / f"{i:05}.{'jpg' if i % 3 else 'png'}"
        path.parent.mkdir(parents=True, exist_ok=True)
        photo(i, size + i % 5, size + i % 3).save(path)
        paths.append(path)
    return paths


def spoil(paths: list[Path], each: int) -> dict[Oddity, int]:
    """Put `each` odd files of every kind in the place of the first pictures; how many of each kind, the first that is meant."""
    waiting, counts = iter(paths), dict.fromkeys(forms(), 0)
    for number in range(each):
        for kind, written in forms(number).items():
            ending, write = written[number % len(written)]
            path = next(waiting)
            path.unlink()
            write(path.with_suffix(ending))
            counts[kind] += 1
    return counts
