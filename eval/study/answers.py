"""Answers of a study: kept in SQLite as they come, or saved by the page as a file; read for the report."""

import json
import math
import re
import sqlite3
import threading
from collections.abc import Iterable
from contextlib import closing
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from cascade.eval.study.design import ANSWERS, Study

MOST_BYTES = 1 << 20
"""Of what one page sends or saves; a study of 1,000 pairs takes a fifth of it."""

_RATER = re.compile(r"[0-9a-zA-Z_-]{1,64}")
_TABLES = """
CREATE TABLE IF NOT EXISTS study (id TEXT PRIMARY KEY);
CREATE TABLE IF NOT EXISTS answers (
  rater TEXT, pair INTEGER, left TEXT, chosen TEXT, seconds REAL, at TEXT, PRIMARY KEY (rater, pair)
);
"""


@dataclass(frozen=True)
class Answer:
    """What a person chose.

    rater: The person's number.
    pair: Place of the pair in the study.
    left, chosen: File names of the picture on the left, and of the one that is taken for real.
    seconds: From when an answer was possible.
    at: When, by the person's clock, ISO 8601.
    """

    rater: str
    pair: int
    left: str
    chosen: str
    seconds: float
    at: str


def answers_of(study: Study, text: str | bytes) -> list[Answer]:
    """What a page sent or saved; ValueError if it is not that, or belongs to another study."""
    try:
        sent = json.loads(text)
        if sent["study"] == study.id:
            return [_answer(study, sent["rater"], one) for one in sent["answers"]]
        other = str(sent["study"])
    except (KeyError, TypeError, ValueError, RecursionError):
        raise ValueError("these are not the answers of a study's page") from None
    known = other if re.fullmatch("[0-9a-f]{16}", other) else "unknown"
    raise ValueError(f"these answers are to another study ({known}) than this one ({study.id}), perhaps an older version of it")


def _answer(study: Study, rater: Any, said: Any) -> Answer:
    """A checked answer; whatever is wrong raises one of the errors that `answers_of` expects."""
    answer = Answer(rater, said["pair"], said["left"], said["chosen"], float(said["seconds"]), said["at"])
    if type(answer.pair) is not int or not 0 <= answer.pair < len(study.pairs):
        raise ValueError("no such pair")
    pair = study.pairs[answer.pair]
    fits = {answer.left, answer.chosen} <= {pair.real, pair.made} and _RATER.fullmatch(rater) and math.isfinite(answer.seconds)
    if not (fits and isinstance(answer.at, str) and len(answer.at) <= 40):
        raise ValueError("not an answer")
    return answer


class AnswerStore:
    """The answers in a study's folder, for one server at a time; whatever `add` returned from outlives a kill or a power cut.

    Raises:
        ValueError: if another server has them open, or they are to another study.
    """

    def __init__(self, study: Study, folder: Path) -> None:
        self._guard = threading.Lock()
        self._lock = FileLock(folder / f".{ANSWERS}.lock")
        try:
            self._lock.acquire(timeout=0)
        except Timeout:
            raise ValueError(f"another server is running the study in {folder}; people can use that one") from None
        self._connection = sqlite3.connect(folder / ANSWERS, check_same_thread=False)
        try:
            self._connection.execute("PRAGMA synchronous = EXTRA")
            self._connection.executescript(_TABLES)
            with self._connection:
                self._connection.execute("INSERT INTO study SELECT ? WHERE NOT EXISTS (SELECT 1 FROM study)", (study.id,))
            _check_study(self._connection, study, folder)
        except (sqlite3.DatabaseError, ValueError) as error:
            self.close()
            if isinstance(error, ValueError):
                raise
            raise ValueError(f"{folder / ANSWERS} is not a file of answers ({error}); move it away") from error

    def add(self, answers: Iterable[Answer]) -> None:
        """Keep them; of two to the same pair by one person the first stands."""
        rows = [astuple(answer) for answer in answers]
        with self._guard, self._connection:
            self._connection.executemany("INSERT OR IGNORE INTO answers VALUES (?, ?, ?, ?, ?, ?)", rows)

    def counts(self) -> tuple[int, int]:
        """How many answers there are, and of how many people."""
        with self._guard:
            answers, raters = self._connection.execute("SELECT count(*), count(DISTINCT rater) FROM answers").fetchone()
            return answers, raters

    def close(self) -> None:
        self._connection.close()
        self._lock.release()


def read_answers(study: Study, folder: Path, files: Iterable[Path] = ()) -> list[Answer]:
    """The answers in a study's folder, while a server adds to them too, and those that the page saved in `files`.

    Raises ValueError if there are none, or some are to another study.
    """
    found: dict[tuple[str, int], Answer] = {}
    path = folder / ANSWERS
    if path.is_file():
        try:
            with closing(sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True)) as connection:
                _check_study(connection, study, folder)
                for row in connection.execute("SELECT rater, pair, left, chosen, seconds, at FROM answers ORDER BY rowid"):
                    said = dict(zip(("pair", "left", "chosen", "seconds", "at"), row[1:], strict=True))
                    found[row[0], row[1]] = _answer(study, row[0], said)
        except (sqlite3.DatabaseError, TypeError, KeyError) as error:
            raise ValueError(f"{path} is not a file of answers ({type(error).__name__})") from error
    for file in files:
        try:
            if file.stat().st_size > MOST_BYTES:
                raise ValueError("these are not the answers of a study's page")
            for answer in answers_of(study, file.read_bytes()):
                found.setdefault((answer.rater, answer.pair), answer)
        except FileNotFoundError:
            raise ValueError(f"there is no file {file}") from None
        except ValueError as error:
            raise ValueError(f"{file}: {error}") from error
    if not found:
        raise ValueError(f"nobody has answered the study in {folder} yet; give the files that people saved, or serve it")
    return list(found.values())


def _check_study(connection: sqlite3.Connection, study: Study, folder: Path) -> None:
    """Raise ValueError unless the answers are to this study."""
    row = connection.execute("SELECT id FROM study").fetchone()
    if row is None or row[0] != study.id:
        path = folder / ANSWERS
        raise ValueError(f"{path} has answers to another study than the one in {folder}, perhaps an older version; move it away")
