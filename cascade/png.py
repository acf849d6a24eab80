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


@dataclass(frozen=True)
class Origin:
    """What a picture carries in its text chunks; nothing in it depends on when or where it was made.

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
    """The text chunks of a PNG file, whose pixels are not looked at; empty where it has none or isn't a PNG.

    Raises OSError if it can't be read, ValueError if it is not a regular file.
    """
    from PIL.PngImagePlugin import PngStream

    if not path.is_file():
        raise ValueError(f"{path} is not a regular file")
    with path.open("rb") as file, suppress(SyntaxError, ValueError, EOFError, struct.error):  # of a damaged one
        if file.read(len(_SIGNATURE)) != _SIGNATURE:
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


def is_png(out: Path | None) -> bool:
    """Whether --out names a single picture, not a folder."""
    return out is not None and out.suffix.lower() == ".png" and not out.is_dir()


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
    """Write a PNG file, whole or not at all; raises OSError if it can't be written."""
    from PIL.PngImagePlugin import PngInfo

    info = PngInfo()
    for key, text in origin.chunks().items():
        info.add_text(key, text)
    try:
        with complete(path) as file:
            image.save(file, format="PNG", pnginfo=info)
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
