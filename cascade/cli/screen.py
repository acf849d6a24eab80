"""Pictures in a terminal that can show them: by the protocols of kitty and of iTerm2, and by sixels."""

from __future__ import annotations

import io
import os
import re
import select
import sys
import time
from base64 import b64encode
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from cascade.cli.terminal import put_raw

if TYPE_CHECKING:
    from PIL.Image import Image

SECONDS = 1.0
"""For which an answer of the terminal is waited for."""

_QUESTION = "\x1b_Gi=1,s=1,v=1,a=q,t=d,f=24;AAAA\x1b\\\x1b[>q\x1b[c"
"""Whether a picture of one pixel by kitty's protocol would do; name and version; what it can (DA1), which all answer."""

_ABILITIES = re.compile(rb"\x1b\[\?([\d;]*)c")
_LIKE_ITERM = re.compile(rb"\x1bP>\|(iTerm2|WezTerm)")
_CHUNK = 4096
"""Characters of base64 in one escape sequence of kitty's."""

Protocol = Callable[["Image"], str]


def protocol() -> Protocol:
    """How the terminal that standard output goes to shows pictures, by its own answers.

    Raises ValueError if it can't, or if standard output is not a terminal.
    """
    if not sys.stdout.isatty():
        raise ValueError("--show draws in a terminal, and standard output is not one; the files need no --show")
    answer = _asked(sys.stdout.fileno())
    if b"\x1b_Gi=1;OK" in answer:
        return kitty
    if _LIKE_ITERM.search(answer):
        return iterm
    if (found := _ABILITIES.search(answer)) and b"4" in found[1].split(b";"):
        return sixel
    raise ValueError("this terminal shows no pictures, by kitty's protocol, iTerm2's, or as sixels; leave out --show")


def show(path: Path, how: Protocol) -> None:
    """Draw a picture of ours in the terminal, made smaller if that is smaller."""
    from cascade.eval.pictures import open_picture

    with open_picture(path) as opened:
        image = opened.convert("RGB")
    image.thumbnail(_room())
    put_raw(how(image) + "\n")


def kitty(image: Image) -> str:
    """The picture by kitty's graphics protocol (sw.kovidgoyal.net/kitty/graphics-protocol): a PNG in chunks, no answer wanted."""
    data = b64encode(_png(image)).decode()
    chunks = [data[start : start + _CHUNK] for start in range(0, len(data), _CHUNK)]
    keys = ["a=T,f=100,q=2,", *[""] * (len(chunks) - 1)]
    last = len(chunks) - 1
    return "".join(f"\x1b_G{key}m={int(i < last)};{chunk}\x1b\\" for i, (key, chunk) in enumerate(zip(keys, chunks, strict=True)))


def iterm(image: Image) -> str:
    """The picture by iTerm2's protocol (iterm2.com/documentation-images.html): a PNG in one sequence."""
    data = _png(image)
    return f"\x1b]1337;File=inline=1;size={len(data)}:{b64encode(data).decode()}\x07"


def sixel(image: Image) -> str:
    """The picture in at most 256 colours as sixels (DEC STD 070, chapter 9): bands of six rows, a pass for each colour in one."""
    import numpy as np

    reduced = image.quantize(palette=image.quantize(256))  # dithered to its own best colours
    palette = np.array(reduced.getpalette("RGB")).reshape(-1, 3)
    places = np.asarray(reduced).astype(np.int16)
    places = np.pad(places, ((0, -len(places) % 6), (0, 0)), constant_values=-1)
    percent = (palette * 100 + 127) // 255
    colours = "".join(f"#{i};2;{r};{g};{b}" for i, (r, g, b) in enumerate(percent.tolist()))
    bits = 1 << np.arange(6)[:, None]
    bands = []
    for band in places.reshape(-1, 6, image.width):
        passes = [(colour, ((band == colour) * bits).sum(0) + 63) for colour in np.unique(band[band >= 0]).tolist()]
        bands.append("$".join(f"#{colour}{_runs(bytes(row.tolist()).decode())}" for colour, row in passes))
    return f'\x1bP0;1q"1;1;{image.width};{image.height}{colours}{"-".join(bands)}\x1b\\'


def _runs(row: str) -> str:
    """A row of sixels with four or more of a kind as their number and one of them."""
    return re.sub(r"(.)\1{3,}", lambda run: f"!{len(run[0])}{run[1]}", row)


def _png(image: Image) -> bytes:
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()


def _room() -> tuple[int, int]:
    """Width and height in pixels that the terminal has for a picture, with two lines left; a guess where it doesn't say."""
    columns, lines = (told or usual for told, usual in zip(os.get_terminal_size(sys.stdout.fileno()), (80, 24), strict=True))
    width, height = 8 * columns, 16 * lines
    with suppress(ImportError, OSError):
        import fcntl
        import struct
        import termios

        told = struct.unpack("HHHH", fcntl.ioctl(sys.stdout.fileno(), termios.TIOCGWINSZ, bytes(8)))
        width, height = told[2] or width, told[3] or height
    return width, max(1, height * (lines - 2) // lines)


def _asked(descriptor: int) -> bytes:
    """What a terminal answers to the question, at most `SECONDS` long; empty where it can't be asked."""
    try:
        import termios
        import tty
    except ImportError:  # Windows
        return b""
    terminal = os.open(os.ttyname(descriptor), os.O_RDWR | os.O_NOCTTY)
    try:
        before = termios.tcgetattr(terminal)
        try:
            tty.setcbreak(terminal)  # the answer is read as it comes, and isn't echoed
            os.write(terminal, _QUESTION.encode())
            answer, end = b"", time.monotonic() + SECONDS
            while not _ABILITIES.search(answer) and select.select([terminal], [], [], max(0, end - time.monotonic()))[0]:
                answer += os.read(terminal, 1024)
            return answer
        finally:
            termios.tcsetattr(terminal, termios.TCSAFLUSH, before)
    finally:
        os.close(terminal)
