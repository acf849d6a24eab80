"""A two-alternative forced choice: which real picture is shown beside which made one, and the folder that a study lies in.

`study.json` alone says which picture of a pair is real. Pictures are called by a hash of their pixels and written anew, so that
neither name nor file tells.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Literal, get_args

import numpy as np
from PIL import Image

from cascade.eval.files import complete
from cascade.eval.images import Images, ImageSet, area_downsample
from cascade.eval.page import png

FILE, PICTURES, PAGE, ANSWERS = "study.json", "pictures", "study.html", "answers.sqlite"
FORMAT = 1
COARSE = 8  # side in squares of the picture that an attention check shows beside a real one

Kind = Literal["practice", "check", "rated"]
"""With the truth told afterwards; against a picture that no one takes for real; one that counts."""


@dataclass(frozen=True, kw_only=True)
class Pair:
    """What is shown at once: file names of a real and a made picture, and of the small one between them (None = none is shown).

    picture: What the real one is called where it comes from; one person sees it once.
    method: What made the other.
    """

    kind: Kind
    picture: str
    method: str
    real: str
    made: str
    small: str | None = None


@dataclass(frozen=True, kw_only=True)
class Study:
    """A study as its folder has it.

    seconds: For which a pair is seen before the answer; None = until it.
    per_rater: Pairs that each person rates, beside practice and checks.
    """

    title: str
    seconds: float | None
    per_rater: int
    pairs: tuple[Pair, ...]

    @cached_property
    def id(self) -> str:
        """Of everything in it: answers belong to one study."""
        return hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()[:16]

    @property
    def shows_small(self) -> bool:
        """Whether the small picture is shown: SR3's task 1, else its task 2."""
        return self.pairs[0].small is not None

    @property
    def methods(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(pair.method for pair in self.pairs if pair.kind == "rated"))

    @classmethod
    def read(cls, folder: Path) -> "Study":
        """Raises ValueError if the folder holds no study, or a damaged one."""
        try:
            values = json.loads((folder / FILE).read_text("utf-8"))
        except FileNotFoundError:
            raise ValueError(f"{folder} is not a study: there is no {FILE} in it") from None
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{folder / FILE} is damaged; make the study again") from error
        try:
            if values.pop("format") != FORMAT:
                raise ValueError("another format")
            study = cls(**{**values, "pairs": tuple(Pair(**pair) for pair in values["pairs"])})
            _check(study)
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{folder / FILE} is not that of a study that this version reads; make the study again") from error
        return study


def _check(study: Study) -> None:
    """Raise ValueError unless everything is of its kind and no name leads out of the folder of pictures."""
    names = [name for pair in study.pairs for name in (pair.real, pair.made, pair.small) if name is not None]
    texts = [study.title, *names, *(text for pair in study.pairs for text in (pair.picture, pair.method))]
    fine = (
        all(isinstance(text, str) and text.isprintable() for text in texts)
        and all(Path(name).name == name and name.endswith(".png") for name in names)
        and all(pair.kind in get_args(Kind) for pair in study.pairs)
        and any(pair.kind == "rated" for pair in study.pairs)
        and isinstance(study.per_rater, int)
        and (study.seconds is None or 0 < study.seconds < 3600)
    )
    if not fine:
        raise ValueError("not a study")


def write_study(
    out: Path,
    title: str,
    real: ImageSet,
    names: Sequence[str],
    made: Mapping[str, ImageSet],
    *,
    small: int | None,
    seconds: float | None,
    per_rater: int,
    practice: int,
    checks: int,
) -> Study:
    """Write a study's folder, whole files only.

    Args:
        out: A new folder, or one of a study that nobody has answered.
        title: What its page is headed with.
        real: Real pictures; the first `practice` are for practice, the next `checks` for attention checks, and the rest count.
        names: What each of them is called.
        made: By method the made pictures, the i-th of each to be shown beside the i-th real one.
        small: Side of the small picture between the two, the real one's average over blocks; None = none is shown.
        seconds, per_rater: As `Study` has them; nobody can rate more than there are.

    Raises:
        ValueError: if the pictures don't fit together or are too few, a name can't be shown, or the folder holds answers.
    """
    if (out / ANSWERS).exists():
        raise ValueError(f"{out} holds answers to a study, which a new one would orphan; choose another folder")
    if len(real) <= practice + checks:
        wanted = f"{practice} practice pairs, {checks} checks and one that counts"
        raise ValueError(f"there are {len(real)} pictures, too few for {wanted}")
    for method, one in made.items():
        if not method or not method.isprintable():
            raise ValueError(f"a method is called {method!r}, expected a name that can be shown")
        if one.size != real.size:
            raise ValueError(f"{method} has pictures of {one.size} px, the real ones are of {real.size} px")
    if small is not None and (small >= real.size or real.size % small):
        raise ValueError(f"the small pictures' side is {small}, expected a divisor of {real.size}, the side of the large ones")
    pairs: list[Pair] = []
    for place, name in enumerate(names):
        index = np.array([place])
        picture = real.take(index).array()[0]
        kind: Kind = "practice" if place < practice else "check" if place < practice + checks else "rated"
        others = {method: one.take(index).array()[0] for method, one in made.items()}
        if kind == "practice":
            others = dict([list(others.items())[place % len(others)]])
        if kind == "check":
            others = {"attention check": _coarse(picture)}
        reduced = None if small is None else area_downsample(picture[None], small).round().astype(np.uint8)[0]
        shown = None if reduced is None else _write(out, reduced)
        printable = "".join(letter if letter.isprintable() else "?" for letter in name)
        for method, other in others.items():
            files = {"real": _write(out, picture), "made": _write(out, other)}
            pairs.append(Pair(kind=kind, picture=printable, method=method, small=shown, **files))
    per_rater = min(per_rater, len(names) - practice - checks)
    study = Study(title=title, seconds=seconds, per_rater=per_rater, pairs=tuple(pairs))
    with complete(out / FILE) as file:
        file.write((json.dumps({"format": FORMAT} | asdict(study), indent=1, ensure_ascii=False) + "\n").encode())
    return study


def partners(real: ImageSet, made: ImageSet, *, by_name: bool) -> np.ndarray:
    """For each real picture the place of the made one that is shown beside it, int64 [N]; -1 = there is none.

    Files are partners if they have the same path below their folders, but for the suffix. Unless that is asked for by `by_name`,
    where neither folder's files all have a partner so, they come in a random order, always the same: of the class, if folders
    of both are called alike, else of all. No picture is used twice.
    """
    mine, theirs = _keys(real), _keys(made)
    place = {key: i for i, key in enumerate(theirs)}
    if by_name or set(mine) <= set(place) or set(place) <= set(mine):
        return np.array([place.get(key, -1) for key in mine], np.int64)
    rng = np.random.default_rng(0)
    classes = [key.rpartition("/")[0] for key in mine], [key.rpartition("/")[0] for key in theirs]
    alike = bool({*classes[0]} & {*classes[1]} - {""})
    left: dict[str, list[int]] = {}
    for i in rng.permutation(len(theirs)):
        left.setdefault(classes[1][i] if alike else "", []).append(int(i))
    found = np.full(len(mine), -1, np.int64)
    for i in rng.permutation(len(mine)):
        if rest := left.get(classes[0][i] if alike else ""):
            found[i] = rest.pop()
    return found


def _keys(images: ImageSet) -> list[str]:
    """Paths below the folder, without suffixes; places where the pictures have no files."""
    if images.paths is None:
        return [f"{place:06d}" for place in range(len(images))]
    return [path.relative_to(images.name).with_suffix("").as_posix() for path in images.paths]


def _coarse(picture: Images) -> Images:
    """The picture as a few flat squares, of the same size."""
    image = Image.fromarray(picture)
    squares = image.resize((COARSE, COARSE), Image.Resampling.BOX)
    return np.asarray(squares.resize(image.size, Image.Resampling.NEAREST))


def _write(out: Path, picture: Images) -> str:
    """Write it as a PNG that says nothing but its pixels; returns its name."""
    name = hashlib.sha256(str(picture.shape).encode() + picture.tobytes()).hexdigest()[:20] + ".png"
    path = out / PICTURES / name
    if not path.exists():
        with complete(path) as file:
            file.write(png(picture))
    return name
