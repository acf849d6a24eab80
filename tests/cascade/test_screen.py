"""Pictures in a terminal: bytes as the protocols define them, which terminal gets which, and that nothing else gets any."""

import fcntl
import io
import os
import re
import struct
import sys
import termios
import threading
from base64 import b64decode
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cascade.cli import screen
from cascade.cli.generate import main as generate

KITTY, ITERM, ABILITIES = "\x1b_Gi=1;OK\x1b\\", "\x1bP>|iTerm2 3.5.4\x1b\\", "\x1b[?62;22c"


def picture(width: int, height: int, colours: int = 6) -> Image.Image:
    """Of colours that percentages name exactly."""
    rng = np.random.default_rng(width)
    return Image.fromarray((255 * rng.integers(0, colours, (height, width, 3)) // (colours - 1)).astype(np.uint8))


def same(data: bytes, image: Image.Image) -> bool:
    with Image.open(io.BytesIO(data)) as read:
        return read.format == "PNG" and np.array_equal(np.asarray(read), np.asarray(image))


def of_kitty(text: str) -> bytes:
    """The PNG in escape sequences of kitty's protocol: keys and base64, in chunks of at most 4096, of which all but the last are
    of a multiple of 4 and say m=1."""
    parts = re.findall(r"\x1b_G([^;]*);([^\x1b]*)\x1b\\", text)
    assert "".join(f"\x1b_G{keys};{data}\x1b\\" for keys, data in parts) == text
    keys = [dict(pair.split("=") for pair in one.split(",")) for one, _ in parts]
    assert keys[0].items() >= {"a": "T", "f": "100", "q": "2"}.items() and all(one.keys() == {"m"} for one in keys[1:])
    assert [one["m"] for one in keys] == ["1"] * (len(keys) - 1) + ["0"]
    assert all(len(data) <= 4096 for _, data in parts) and all(len(data) % 4 == 0 for _, data in parts[:-1])
    return b64decode("".join(data for _, data in parts))


def of_iterm(text: str) -> bytes:
    found = re.fullmatch(r"\x1b\]1337;File=inline=1;size=(\d+):([A-Za-z0-9+/=]+)\x07", text)
    data = b64decode(found[2])
    assert int(found[1]) == len(data)
    return data


def of_sixel(text: str) -> np.ndarray:
    """The pixels that sixels paint, as DEC defines them: # chooses or defines a colour, ! repeats, $ returns, - goes on."""
    head = re.match(r'\x1bP\d*;1q"1;1;(\d+);(\d+)', text)
    width, height = int(head[1]), int(head[2])
    painted, colours = np.full((height + 5, width, 3), -1), {}
    x = y = colour = 0
    body = text[head.end() :].removesuffix("\x1b\\")
    for number, more, count, many, one in re.findall(r"#(\d+)((?:;\d+){4})?|!(\d+)([?-~])|([?-~$-])", body):
        if number:
            colour = int(number)
            if more:
                system, *percent = (int(value) for value in more[1:].split(";"))
                assert system == 2
                colours[colour] = [round(255 * value / 100) for value in percent]
        elif one in ("$", "-"):
            x, y = 0, y + 6 * (one == "-")
        else:
            for _ in range(int(count or 1)):
                bits = ord(many or one) - 63
                for row in range(6):
                    if bits >> row & 1:
                        assert (painted[y + row, x] == -1).all(), "a pixel is painted twice"
                        painted[y + row, x] = colours[colour]
                x += 1
            assert x <= width
    assert (painted[height:] == -1).all(), "something is painted below the picture"
    return painted[:height]


@pytest.mark.parametrize("size", [(1, 1), (40, 30), (200, 100)])
def test_the_protocols_give_the_picture_back(size):
    image = picture(*size)
    assert same(of_kitty(screen.kitty(image)), image)
    assert same(of_iterm(screen.iterm(image)), image)


@pytest.mark.parametrize(("width", "height"), [(1, 1), (7, 6), (31, 13), (64, 64)])
def test_sixels_give_a_picture_of_at_most_256_colours_back(width, height):
    image = picture(width, height)
    assert np.array_equal(of_sixel(screen.sixel(image)), np.asarray(image))


def test_sixels_are_near_a_picture_of_many_colours():
    y, x = np.mgrid[:96, :96]
    image = Image.fromarray(np.stack([2 * x, 2 * y, x + y], axis=-1).astype(np.uint8))
    error = np.abs(of_sixel(screen.sixel(image)) - np.asarray(image)).mean()
    assert error < 6 and len(screen.sixel(Image.new("RGB", (600, 600)))) < 4000  # runs are counted


class Terminal:
    """The other side of a pseudo-terminal, which answers what it is asked and keeps what it is sent."""

    def __init__(self, answer: str, window: tuple[int, int, int, int]) -> None:
        self.answer, self.sent = answer, b""
        self.master, slave = os.openpty()
        fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", *window))  # lines, columns, width, height
        self.stream = os.fdopen(slave, "w", encoding="utf-8")
        self.reader = threading.Thread(target=self.read)
        self.reader.start()

    def read(self) -> None:
        while True:
            try:
                got = os.read(self.master, 65536)
            except OSError:  # closed
                return
            self.sent += got
            if b"\x1b[c" in got:
                os.write(self.master, self.answer.encode())

    def close(self) -> str:
        self.stream.close()
        self.reader.join()
        os.close(self.master)
        return self.sent.decode().replace("\r\n", "\n")


def shown(model: Path, answer: str, monkeypatch, *words: str, window=(0, 0, 0, 0)) -> tuple[int, str]:
    """Exit code of `generate --show` in a terminal that answers so, and what it is sent."""
    terminal = Terminal(answer, window)
    with monkeypatch.context() as patched:
        patched.setattr(sys, "stdout", terminal.stream)
        code = generate(["--class", "cat", "--show", "--model", str(model), *words])
    return code, terminal.close()


@pytest.mark.parametrize(
    ("answer", "read"),
    [
        (KITTY + "\x1bP>|kitty(0.38)\x1b\\" + ABILITIES, of_kitty),
        (ITERM + "\x1b[?65;4;22c", of_iterm),
        ("\x1b_Gi=1;ENOTSUPPORTED\x1b\\" + "\x1b[?62;4c", of_sixel),
    ],
)
def test_a_terminal_is_shown_pictures_as_it_says_that_it_can(model, here, monkeypatch, capsys, answer, read):
    code, sent = shown(model, answer, monkeypatch, "-n", "2")
    assert code == 0
    told = sent.removeprefix(screen._QUESTION).split("\n")
    assert told[::2] == ["cat-seed0.png", "cat-seed1.png", ""]
    for name, drawn in zip(told[::2], told[1::2], strict=False):
        with Image.open(name) as image:
            seen = read(drawn)
            assert same(seen, image) if isinstance(seen, bytes) else np.abs(seen - np.asarray(image)).max() < 12


@pytest.mark.parametrize(("window", "size"), [((5, 10, 90, 20), 12), ((5, 1, 0, 0), 8), ((24, 80, 10, 600), 10), ((0,) * 4, 16)])
def test_a_picture_that_is_larger_than_the_terminal_is_drawn_smaller(model, here, monkeypatch, window, size):
    code, sent = shown(model, KITTY + ABILITIES, monkeypatch, window=window)
    with Image.open(io.BytesIO(of_kitty(sent.split("\n")[1]))) as drawn, Image.open("cat-seed0.png") as written:
        assert (code, drawn.size, written.size) == (0, (size, size), (16, 16))


@pytest.mark.parametrize("answer", [ABILITIES, "\x1b[?1;2c", "\x1b[?64;14;24c", ""])
def test_a_terminal_that_shows_no_pictures_is_told_so_before_any_is_made(model, here, monkeypatch, capsys, answer):
    monkeypatch.setattr(screen, "SECONDS", 0.1)
    code, sent = shown(model, answer, monkeypatch)
    assert (code, sent) == (2, screen._QUESTION) and list(here.iterdir()) == []
    assert capsys.readouterr().err == (
        "generate: this terminal shows no pictures, by kitty's protocol, iTerm2's, or as sixels; leave out --show\n"
    )


def test_nothing_is_drawn_in_a_pipe_or_beside_json(model, here, capsys):
    assert generate(["--class", "cat", "--show", "--model", str(model)]) == 2
    assert generate(["--class", "cat", "--show", "--json", "--model", str(model)]) == 2
    out, err = capsys.readouterr()
    assert out == "" and list(here.iterdir()) == []
    assert "standard output is not one" in err and "--json" in err.splitlines()[1]


def test_a_terminal_is_left_as_it_was(monkeypatch):
    terminal = Terminal(KITTY + ABILITIES, (24, 80, 0, 0))
    before = termios.tcgetattr(terminal.stream.fileno())
    monkeypatch.setattr(sys, "stdout", terminal.stream)
    assert screen.protocol() is screen.kitty
    assert termios.tcgetattr(terminal.stream.fileno()) == before
    monkeypatch.undo()
    terminal.close()
