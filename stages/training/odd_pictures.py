"""What pictures can be beside ordinary ones, the rule for each, and the log that counts and names them during a training run."""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum
from typing import TYPE_CHECKING

import numpy as np
from torch import Tensor

if TYPE_CHECKING:
    from cascade.stages.training.examples import PictureSource

FEWEST = 500
"""Pictures that must have been met before their damaged share can stop a run."""
TRIES = 16
"""Damaged pictures in a row after which no usable one is looked for."""


class Oddity(Enum):
    """A kind of picture that isn't ordinary: its name, and the rule by which it is used or skipped."""

    UNREADABLE = ("unreadable", "skipped: no permission, or the disk fails")
    MISSING = ("missing", "skipped: vanished, a broken link, or links in a circle")
    NOT_A_FILE = ("not a file", "skipped: a folder, pipe or device named as a picture")
    EMPTY = ("empty", "skipped: no bytes, or no picture in its row")
    NOT_A_PICTURE = ("not a picture", "skipped: text, a web page, or a format that isn't read")
    TRUNCATED = ("truncated", "skipped: the end of the file is missing")
    CORRUPT = ("corrupt", "skipped: the decoder or a checksum finds damage")
    TOO_SMALL = ("too small", "skipped, never enlarged: the shorter side is below the size that is needed")
    TOO_LARGE = ("too large", "skipped before decoding: more than 89,478,485 pixels or 256 MiB")
    UNKNOWN_COLOURS = ("unknown colours", "skipped: floating point, 32-bit, LAB and other modes with no stated range")
    GREYSCALE = ("greyscale", "used: grey in all three channels")
    SIXTEEN_BIT = ("16-bit grey", "used: scaled to 8 bits, value x 255 / 65535, rounded")
    PALETTE = ("palette", "used: the palette's colours")
    TRANSPARENT = ("transparent", "used: laid on white")
    CMYK = ("CMYK", "used: converted by Pillow, without a colour profile")
    ANIMATED = ("animated", "used: the first frame")
    ROTATED = ("rotated", "used: turned upright as its EXIF says")
    WRONG_ENDING = ("wrong ending", "used: read by its content")

    def __init__(self, title: str, rule: str) -> None:
        self.title, self.rule = title, rule
        self.code = len(type(self).__members__)
        self.usable = rule.startswith("used")


ODDITIES = tuple(Oddity)


class DamagedPicture(Exception):
    """A picture that can't be used; `oddity` is its kind."""

    def __init__(self, oddity: Oddity) -> None:
        super().__init__(oddity)
        self.oddity = oddity


class DamageLog:
    """Counts the odd pictures of a run, names each damaged one once, and ends the run when more than `max_damaged` of all are."""

    KEYS = ("index", "oddities", "damaged")
    """What is counted of a batch of `TrainingExamples`: [B], [B] and [B, TRIES, 2], int64."""

    def __init__(self, pictures: PictureSource, max_damaged: float) -> None:
        self.pictures, self.max_damaged = pictures, max_damaged
        self.met = self.damaged = 0
        self._found: dict[Oddity, tuple[int, np.ndarray]] = {}  # the first of each kind, and which of all are of it

    def add(self, batch: Mapping[str, Tensor]) -> list[str]:
        """Count a batch, of which only KEYS are looked at; a sentence on every new damaged file and the first of each other kind.

        Raises ValueError if too large a share of the pictures is damaged, or no usable one was found for an example: together in
        all processes that add the same batches.
        """
        indices, masks, tries = (batch[key].cpu().numpy() for key in self.KEYS)
        said = []
        for index, code in tries[tries[..., 0] >= 0].tolist():
            if self.note(index, ODDITIES[code]):
                said.append(f"{self.pictures.name(index)} is {ODDITIES[code].title}: {ODDITIES[code].rule}")
        for place in np.flatnonzero(masks).tolist():
            for oddity in oddities_in(int(masks[place])):
                first = oddity not in self._found
                if self.note(int(indices[place]), oddity) and first:
                    said.append(f"{self.pictures.name(int(indices[place]))} is the first of kind {oddity.title}: {oddity.rule}")
        self.met += len(indices)
        self.damaged += int((tries[:, 0, 0] >= 0).sum())
        self._check(tries)
        return said

    def note(self, index: int, oddity: Oddity) -> bool:
        """Count one picture; whether it is new to its kind."""
        _, found = self._found.setdefault(oddity, (index, np.zeros(len(self.pictures), bool)))
        new = not found[index]
        found[index] = True
        return new

    def count(self, oddity: Oddity) -> int:
        """How many different pictures of this kind were met."""
        return int(self._found[oddity][1].sum()) if oddity in self._found else 0

    def skipped(self) -> int:
        """How many different pictures were met that can't be used."""
        return sum(self.count(oddity) for oddity in ODDITIES if not oddity.usable)

    def table(self) -> str:
        """Kind, rule, number of different pictures and the first met of each kind; an empty text if there are none."""
        rows = [("kind", "count", "first", "rule")]
        for oddity in ODDITIES:
            if oddity in self._found:
                rows.append((oddity.title, f"{self.count(oddity):,}", self.pictures.name(self._found[oddity][0]), oddity.rule))
        if len(rows) == 1:
            return ""
        a, b, c, _ = (max(map(len, column)) for column in zip(*rows, strict=True))
        return "\n".join(f"{kind:<{a}}  {count:>{b}}  {first:<{c}}  {rule}" for kind, count, first, rule in rows)

    def _check(self, tries: np.ndarray) -> None:
        kinds = ", ".join(f"{self.count(o):,} {o.title}" for o in ODDITIES if not o.usable and self.count(o))
        if (tries[:, -1, 0] >= 0).any():
            raise ValueError(f"{TRIES} pictures in a row can't be used ({kinds}); `cascade data check` tells what is wrong")
        if self.met >= FEWEST and self.damaged > self.max_damaged * self.met:
            raise ValueError(
                f"{self.damaged:,} of {self.met:,} pictures met can't be used ({kinds}), more than data.max_damaged,"
                f" {self.max_damaged:.0%}; `cascade data check` tells what is wrong"
            )


def mask_of(oddities: tuple[Oddity, ...]) -> int:
    """Kinds as one whole number, a bit for each."""
    return sum(1 << oddity.code for oddity in set(oddities))


def oddities_in(mask: int) -> list[Oddity]:
    return [oddity for oddity in ODDITIES if mask >> oddity.code & 1]
