"""Files of pictures: their names, what they say of themselves, and how they are written whole or not at all."""

from __future__ import annotations

import json
import os
import re
import struct
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import cascade
from cascade.classes import Vocabulary
from cascade.files import complete

if TYPE_CHECKING:
    from PIL.Image import Image

_MAKER = "cascade-diffusion"
_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_JPEG = b"\xff\xd8\xff"

WRITTEN = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG"}
"""Endings of the files that a picture can be written to, and their formats."""

MOST_IN_JPEG = 65_533
"""Bytes of a comment in a JPEG file: a segment has two for its length."""


@dataclass(frozen=True)
class Origin:
    """What a picture carries: a PNG in text chunks, a JPEG in its comment. Nothing in it depends on when or where it was made.

    command: The command line that makes it again.
    model: Name of the model.
    class_names, class_indices: One of each; several for a grid, none for a model without classes.
    seeds: One; several for a grid.
    settings: Everything that the result depends on beside these.
    """

    command: str
    model: str
    class_names: tuple[str, ...]
    class_indices: tuple[int, ...]
    seeds: tuple[int, ...]
    settings: Mapping[str, Any]

    def chunks(self) -> dict[str, str]:
        """Keyword and text of each chunk."""
        texts = {
            "Software": f"{_MAKER} {cascade.__version__}",
            "Command": self.command,
            "Model": self.model,
            "Class": ", ".join(self.class_names),
            "Class index": ", ".join(str(index) for index in self.class_indices),
            "Seed": ", ".join(str(seed) for seed in self.seeds),
            "Settings": json.dumps(self.settings),
        }
        encoded = {key: text.encode("utf-8", "backslashreplace").decode() for key, text in texts.items()}  # names needn't be text
        return {key: text.replace("\0", "\\x00") for key, text in encoded.items() if text}


def read_chunks(path: Path) -> dict[str, str]:
    """What a picture says of itself: the text chunks of a PNG, the same in the comment of a JPEG. Its pixels are not looked at.

    Empty where there is nothing, and for other files. Raises OSError if it can't be read, ValueError if it is not a regular file.
    """
    from PIL.PngImagePlugin import PngStream

    if not path.is_file():
        raise ValueError(f"{path} is not a regular file")
    with path.open("rb") as file, suppress(SyntaxError, ValueError, EOFError, struct.error):  # of a damaged one
        signature = file.read(len(_SIGNATURE))
        if signature.startswith(_JPEG):
            return _in_comment(path)
        if signature != _SIGNATURE:
            return {}
        stream = PngStream(file)  # type: ignore[no-untyped-call]  # with Pillow's bounds for texts
        try:
            while (chunk := stream.read())[0] != b"IEND":
                kind, place, length = chunk
                if kind in (b"tEXt", b"zTXt", b"iTXt"):
                    stream.call(kind, place, length)
                    file.seek(4, os.SEEK_CUR)  # its checksum
                else:
                    file.seek(length + 4, os.SEEK_CUR)
        except OSError as error:  # Pillow's word for a file that is cut short has no number
            if error.errno is not None:
                raise
        finally:
            found = {str(key): str(text) for key, text in stream.im_text.items()}
        return found
    return {}


def _in_comment(path: Path) -> dict[str, str]:
    """The texts that `write` has put into the comment of a JPEG; empty for any other comment."""
    from cascade.eval.pictures import open_picture

    with suppress(Exception):  # Pillow's reader raises almost anything at files that are damaged
        with open_picture(path, ("JPEG",)) as image:
            texts = json.loads(image.info.get("comment", b""))
        if isinstance(texts, dict) and all(isinstance(text, str) for text in texts.values()):
            return texts
    return {}


def is_whole(path: Path, size: int) -> bool:
    """Whether the file is a PNG of this side whose chunks are all there with their checksums."""
    from cascade.eval.pictures import open_picture

    try:
        with open_picture(path, ("PNG",)) as image:
            right = image.size == (size, size)
            image.verify()
            return right
    except Exception:  # Pillow's reader raises almost anything at files that are damaged
        return False


def is_ours(path: Path) -> bool:
    """Whether the file is a picture that this program made."""
    return path.is_file() and read_chunks(path).get("Software", "").startswith(f"{_MAKER} ")


def is_picture(out: Path | None) -> bool:
    """Whether --out names a single picture, not a folder. Raises ValueError if it names one of a format that is not written."""
    from cascade.eval.pictures import ENDINGS

    if out is None or out.is_dir() or (ending := out.suffix.lower()) not in ENDINGS:
        return False
    if ending not in WRITTEN:
        raise ValueError(f"--out is {out}, and pictures are written as {', '.join(WRITTEN)}; choose one of these, or a folder")
    return True


def stems(classes: Vocabulary | None, labels: Sequence[int | None]) -> list[str]:
    """For each class the part of a file's name that says it; with the index where another class's would be the same."""
    words = [] if classes is None else [_slug(name) for name in classes.names]
    counts = Counter(words)

    def stem(label: int | None) -> str:
        if label is None:
            return "image"
        if classes is None:
            return f"class-{label}"
        return words[label] if counts[words[label]] == 1 else f"{words[label]}-{label}"

    return [stem(label) for label in labels]


def check_targets(paths: Sequence[Path]) -> None:
    """Raise ValueError unless these files can be written without harm, PermissionError if their folder can't be written to."""
    twice = next((path for path, count in Counter(paths).items() if count > 1), None)
    if twice is not None:
        raise ValueError(f"two pictures would be written to {twice}; write them to different folders by --out")
    for path in paths:
        if path.exists() and not is_ours(path):
            raise ValueError(f"{path} exists and was not made by this program, so it is not replaced; choose another --out")
    for folder in {path.parent for path in paths}:
        ancestor = next(parent for parent in (folder, *folder.absolute().parents) if parent.exists())
        if not ancestor.is_dir():
            raise ValueError(f"{ancestor} is a file, so {folder} can't be a folder for the pictures; choose another --out")
        if not os.access(ancestor, os.W_OK | os.X_OK):
            raise PermissionError(f"{ancestor} can't be written; choose another folder by --out")


def write(path: Path, image: Image, origin: Origin) -> None:
    """Write a file of the format that its ending says, whole or not at all.

    Raises OSError if it can't be written, ValueError if what it says of itself is too long for a JPEG.
    """
    from PIL.PngImagePlugin import PngInfo

    options: dict[str, Any]
    if WRITTEN[path.suffix.lower()] == "JPEG":
        comment = json.dumps(origin.chunks()).encode()
        if len(comment) > MOST_IN_JPEG:
            room = f"a JPEG has room for {MOST_IN_JPEG:,} bytes"
            raise ValueError(f"what {path} says of itself takes {len(comment):,} bytes, and {room}; write a PNG")
        options = {"format": "JPEG", "comment": comment, "quality": 95, "subsampling": 0}  # colours as sharp as the rest
    else:
        info = PngInfo()
        for key, text in origin.chunks().items():
            info.add_text(key, text)
        options = {"format": "PNG", "pnginfo": info}
    try:
        with complete(path) as file:
            image.save(file, **options)
    except OSError as error:
        raise OSError(f"{path} could not be written: {error.strerror or error}; nothing half-written is left") from error


def grid(rows: Sequence[Sequence[Image]]) -> Image:
    """Pictures of one size side by side on white, a thin gap between them."""
    from PIL import Image as images

    size, columns = rows[0][0].width, max(len(row) for row in rows)
    step = size + max(1, size // 32)
    sheet = images.new("RGB", (step * columns - step + size, step * len(rows) - step + size), "white")
    for y, row in enumerate(rows):
        for x, image in enumerate(row):
            sheet.paste(image, (x * step, y * step))
    return sheet


def joined(words: Iterable[str]) -> str:
    """Names of classes as part of one file's name, each once; many are counted."""
    once = list(dict.fromkeys(words))
    return "-".join(once) if len(once) <= 4 else f"{len(once)}-classes"


def _slug(name: str) -> str:
    return re.sub(r"[\W_]+", "-", name.casefold()).strip("-")
