"""Pictures in shards, here or on the Hub: parquet files, read by the library `datasets`, and tar files, read in place."""

from __future__ import annotations

import fnmatch
import glob
import hashlib
import itertools
import json
import re
import tarfile
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from cascade.data.numbering import labelled
from cascade.eval.pictures import ENDINGS
from cascade.files import Progress, cache_folder, complete
from cascade.stages.training.examples import epoch_order

HUB = "hub:"
_MOST_OF_A_CLASS = 1_000  # bytes
WINDOW = 16
"""Shards that are mixed with one another at any moment of an epoch."""

MOST_SHARDS = 100_000
"""That a pair of braces may stand for."""

MAX_LABEL_BYTES = 2**16
"""Of the file of a sample that says its class."""

MIN_ROW_BYTES, MOST_UNPACKED = 8, 100
"""Of a parquet file: bytes of a row, fewer than any picture has; and how many times as large as the file its pictures may be, as
encoded ones hardly shrink."""

MOST_NAME_BYTES, ROWS_COPIED = 2**29, 16
"""Of a parquet file: bytes of the names of all rows' classes in memory; and rows whose pictures are copied together."""

_BRACES = re.compile(r"\{([^{}]*)\}")
_SOURCE = re.compile(r"hub:(?P<repo>[\w.-]+/[\w.-]+)(@(?P<revision>[\w./-]+?))?(/(?P<pattern>.+))?")
_CLASS_COLUMNS = ("label", "labels", "class", "cls", "fine_label", "category")


class TarShard:
    """A tar file as WebDataset lays it out: `key.jpg`, or another picture, beside `key.cls`, its class, or `key.json`, an object
    with it.

    Where its pictures lie is looked up once and kept in the user's cache.

    Args:
        path: Of the file.
        label: Key of the class in the objects; None = the only one that can be it.

    Raises:
        ValueError: if the file is damaged, or a sample in it lacks its picture or its class.
    """

    class_names: tuple[str, ...] = ()

    def __init__(self, path: Path, label: str | None) -> None:
        self.path, status = path, path.stat()
        identity = f"tar 3 {path.resolve()} {status.st_size} {status.st_mtime_ns} {label}"
        kept = cache_folder() / "datasets" / f"{hashlib.sha256(identity.encode()).hexdigest()[:32]}.npz"
        try:
            with np.load(kept, allow_pickle=False) as arrays:
                found = arrays["classes"], arrays["names"], arrays["places"]
        except (FileNotFoundError, ValueError, EOFError, zipfile.BadZipFile):  # none, or a damaged one
            found = _members(path, label)
            with complete(kept) as file:
                np.savez(file, classes=found[0], names=found[1], places=found[2])
        self.classes, self._names, self._places = found

    def encoded(self, index: int) -> bytes:
        offset, length = self._places[index].tolist()
        with self.path.open("rb", buffering=0) as file:  # nothing stays open, so that data workers share nothing
            file.seek(offset)
            return file.read(length)

    def name(self, index: int) -> str:
        return f"{self.path}: {self._names[index]}"


class ParquetShard:
    """A parquet file with a column of encoded pictures and one of classes, as data sets on the Hub have them.

    Its classes are read now; its pictures are copied into the cache of `datasets` when the first is needed, as a row of a parquet
    file can't be read alone. Nothing else of the file is used, and nothing in it is executed.

    Args:
        path: Of the file.
        label: Column of the class; None = the only one that can be it.

    Raises:
        ValueError: if `datasets` is not installed, the file is damaged, or it lacks one of the columns.
    """

    def __init__(self, path: Path, label: str | None) -> None:
        try:
            import datasets  # noqa: F401  # said to be missing before any work
            from pyarrow import int64, types
            from pyarrow.parquet import ParquetFile
        except ModuleNotFoundError:
            raise ValueError(
                "reading parquet files needs the package datasets, which is not installed; pip install 'cascade-diffusion[data]'"
            ) from None
        self.path = path
        with _told_in_a_sentence(path), ParquetFile(path) as file:
            features = _features(file.schema_arrow, path)
            label = _label_column(features, label, path)
            self._picture = _picture_column(file, path)
            _check_sizes(file.metadata, self._picture, path)
            values = file.read(columns=[label]).column(label)
            if types.is_unsigned_integer(values.type):
                values = values.cast(int64())
        if values.null_count:
            raise ValueError(f"{path} has rows without a class in column {label!r}")
        if types.is_string(values.type) or types.is_large_string(values.type):
            longest = max(map(len, values.unique().to_pylist()), default=0)
            if longest * 4 * len(values) > MOST_NAME_BYTES:
                names = f"{len(values):,} names of classes of up to {longest:,} letters"
                raise ValueError(f"column {label!r} of {path} has {names}, which is too much; name the classes by numbers")
        elif not types.is_integer(values.type):
            raise ValueError(f"column {label!r} of {path} holds {values.type}, expected whole numbers or names")
        self.classes = np.array(values.to_pylist(), np.int64 if types.is_integer(values.type) else np.str_)
        self.class_names = tuple(getattr(features[label], "names", None) or ())
        if not all(isinstance(name, str) for name in self.class_names):
            raise ValueError(f"{path} calls its classes {self.class_names!r}, expected names")

    @cached_property
    def _rows(self) -> Any:
        """The pictures in the library's copy on the disk, which one process makes where several need it."""
        from datasets import Dataset, Features, Image

        with _told_in_a_sentence(self.path):
            features = Features({self._picture: Image(decode=False)})
            options = {"columns": [self._picture], "features": features, "batch_size": ROWS_COPIED}
            rows = Dataset.from_parquet(glob.escape(str(self.path)), **options)
        return rows.with_format("arrow")

    def encoded(self, index: int) -> bytes:
        picture = self._rows[index][self._picture][0].as_py()
        return (picture or {}).get("bytes") or b""

    def name(self, index: int) -> str:
        return f"{self.path}: row {index}"


class ShardSet:
    """All shards of a set as one listing (`cascade.data.folder.Listing`).

    Args:
        paths: Of the shards, in their order.
        source: Name of the set, for errors.
        label: As in `ParquetShard`.
        progress: Called with (shards looked through, all).

    Raises:
        ValueError: if a shard is damaged, the set is empty, or the shards disagree on their classes.
    """

    def __init__(self, paths: list[Path], source: str, label: str | None, progress: Progress) -> None:
        self.shards: list[TarShard | ParquetShard] = []
        for done, path in enumerate(paths, start=1):
            if path.suffix not in (".tar", ".parquet"):
                raise ValueError(f"{path} is not a shard, expected files that end in .tar or .parquet")
            self.shards.append(TarShard(path, label) if path.suffix == ".tar" else ParquetShard(path, label))
            progress(done, len(paths))
        full = [shard.classes for shard in self.shards if len(shard.classes)]
        names = {shard.class_names for shard in self.shards}
        if len({classes.dtype.kind == "U" for classes in full}) != 1 or len(names) != 1:
            problem = "shards that write their classes in different ways" if full else "no pictures"
            raise ValueError(f"{source} holds {problem}; expected shards of one labelled data set")
        self.class_names, self.labels = labelled(np.concatenate(full), names.pop(), source)
        self.firsts = np.cumsum([0] + [len(shard.classes) for shard in self.shards])

    def encoded(self, index: int) -> bytes:
        shard, place = self._place(index)
        return shard.encoded(place)

    def name(self, index: int) -> str:
        shard, place = self._place(index)
        return shard.name(place)

    def order(self, seed: int, epoch: int) -> np.ndarray:
        """A shuffle of all pictures, drawn towards a shuffle of the shards.

        Pictures of at most WINDOW shards are mixed at any moment, and new shards are first needed one at a time, at an even pace.
        A single shard is shuffled as a folder is.
        """
        shuffled = epoch_order(seed, epoch, len(self.labels))
        turns = np.random.default_rng([seed, 3, epoch]).permutation(len(self.shards))
        shard = np.searchsorted(self.firsts, shuffled, side="right") - 1
        when = turns[shard] + np.arange(len(shuffled)) * (WINDOW / len(shuffled))
        return shuffled[np.argsort(when, kind="stable")]

    def _place(self, index: int) -> tuple[TarShard | ParquetShard, int]:
        shard = int(np.searchsorted(self.firsts, index, side="right")) - 1
        return self.shards[shard], index - int(self.firsts[shard])


def shard_paths(source: str, progress: Progress) -> list[Path]:
    """The files that a pattern means, sorted by name; those of a data set on the Hub are fetched into its cache.

    Args:
        source: A pattern of file names, as "set/train-*.tar" or "set/train-{000..011}.tar"; or the same of a data set on the Hub,
            as "hub:owner/name[@revision]/pattern".
        progress: Called with (files fetched, all).

    Raises:
        ValueError: if the Hub has no such data set or files, or one that braces name is missing.
        ConnectionError: if the Hub can't be reached.
    """
    if not source.startswith(HUB):
        found_here: set[Path] = set()
        for pattern in expanded(str(Path(source).expanduser())):
            matching = [path for path in map(Path, glob.glob(pattern, recursive=True)) if path.is_file()]
            if not matching and pattern != str(Path(source).expanduser()):
                raise ValueError(f"there is no file {pattern}, one of those that {source} names")
            found_here |= set(matching)
        return sorted(found_here)
    match = _SOURCE.fullmatch(source)
    if match is None:
        raise ValueError(f"data is {source!r}, expected {HUB}owner/name/pattern, such as {HUB}owner/name/data/train-*.parquet")
    from huggingface_hub import HfApi, hf_hub_download

    repo, revision, pattern = match["repo"], match["revision"], match["pattern"] or ""
    with _hub_told_in_a_sentence(f"{repo}@{revision}" if revision else repo):
        info = HfApi().dataset_info(repo, revision=revision)
    files = [sibling.rfilename for sibling in info.siblings or ()]
    found, paths = sorted({file for one in expanded(pattern) for file in fnmatch.filter(files, one)}), []
    if not found:
        some = [file for file in files if file.endswith((".parquet", ".tar"))][:3]
        has = ", ".join([*some, "..."]) if some else "no parquet or tar files"
        raise ValueError(f"no file of {HUB}{repo} matches {pattern or 'an empty pattern'!r}; it has {has}")
    for file in found:
        with _hub_told_in_a_sentence(f"{repo}/{file}"):
            paths.append(Path(hf_hub_download(repo, file, repo_type="dataset", revision=info.sha)))
        progress(len(paths), len(found))
    return paths


def expanded(pattern: str) -> list[str]:
    """The patterns that one with braces stands for, as a shell and WebDataset expand them: {000..011} and {a,b}."""
    parts = _BRACES.split(pattern)  # texts, with the insides of braces between them
    choices = [[text] if place % 2 == 0 else _choices(text) for place, text in enumerate(parts)]
    return ["".join(chosen) for chosen in itertools.product(*choices)]


def _choices(inside: str) -> list[str]:
    """What braces stand for; themselves, where a shell would leave them alone."""
    if bounds := re.fullmatch(r"(\d+)\.\.(\d+)", inside):
        first, last = (int(bound) for bound in bounds.groups())
        if last - first >= MOST_SHARDS:
            raise ValueError(f"{{{inside}}} stands for {last - first + 1:,} files, expected at most {MOST_SHARDS:,}")
        width = len(bounds[1]) if bounds[1].startswith("0") or len(bounds[1]) == len(bounds[2]) else 0
        return [f"{number:0{width}}" for number in range(first, last + 1)]
    return inside.split(",") if "," in inside else [f"{{{inside}}}"]


@contextmanager
def _hub_told_in_a_sentence(wanted: str) -> Iterator[None]:
    from huggingface_hub.errors import RepositoryNotFoundError, RevisionNotFoundError

    try:
        yield
    except (RepositoryNotFoundError, RevisionNotFoundError) as error:
        raise ValueError(f"there is no data set {wanted} on the Hub, or it needs a login that has access") from error
    except Exception as error:  # the Hub's own errors, those of the network library that it has, and OSError
        raise ConnectionError(f"{HUB}{wanted} can't be fetched from the Hub: {error}") from error


def _members(path: Path, label: str | None) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Classes, names, and offset and length [N, 2] of a tar file's pictures. A sample is all members of one key, as `a/0001`."""
    pictures: dict[str, tuple[str, int, int]] = {}
    classes: dict[str, str | int] = {}
    try:
        with tarfile.open(path, "r:") as tar:
            for member in tar:
                folder, _, name = member.name.rpartition("/")
                stem, _, ending = name.partition(".")
                key = f"{folder}/{stem}" if folder else stem
                if not member.isreg() or member.issparse() or not stem:
                    continue
                if ending in ("cls", "json"):
                    content = tar.extractfile(member)
                    text = content.read(_MOST_OF_A_CLASS if ending == "cls" else MAX_LABEL_BYTES).decode() if content else ""
                    if ending == "cls":
                        classes[key] = text.strip()
                    elif (found := _label_in(text, label, member.name, path)) is not None:
                        classes.setdefault(key, found)
                elif PurePosixPath(f"x.{ending}").suffix.lower() in ENDINGS:
                    pictures.setdefault(key, (member.name, member.offset_data, member.size))
    except (tarfile.TarError, EOFError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is damaged, or not a plain tar file ({error}); fetch it again") from error
    for key in pictures.keys() ^ classes.keys():
        what = f"class ({key}.cls, or a key of {key}.json named as data.label, {', '.join(_CLASS_COLUMNS)})"
        raise ValueError(f"sample {key!r} of {path} lacks its {what if key in pictures else 'picture'}")
    values = [str(classes[key]) for key in pictures]
    return (
        np.array([int(v) for v in values] if all(v.isdecimal() and len(v) < 19 for v in values) else values),
        np.array([name for name, _, _ in pictures.values()], str),
        np.array([place for _, *place in pictures.values()], np.int64),
    )


def _label_in(text: str, label: str | None, name: str, path: Path) -> str | int | None:
    """The class in a sample's JSON; None where it says none. ValueError if it is not an object, or several keys may be it."""
    try:
        values = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{name!r} in {path} is not JSON of at most {MAX_LABEL_BYTES:,} bytes ({error})") from error
    if not isinstance(values, dict):
        raise ValueError(f"{name!r} in {path} is not a JSON object, expected one such as {{\"label\": 3}}")
    found = [key for key in ([label] if label else _CLASS_COLUMNS) if type(values.get(key)) in (str, int)]
    if len(found) > 1:
        raise ValueError(f"{name!r} in {path} has {', '.join(found)}, any of which may be the class; name one as data.label")
    return values[found[0]] if found else None


def _features(schema: Any, path: Path) -> Any:
    """What the file says of its columns. Raises ValueError where `datasets` can't make sense of it."""
    from datasets import Features

    try:
        return Features.from_arrow_schema(schema)
    except Exception as error:  # almost any: it trusts what is written there
        problem = f"{path} describes its columns in a way that can't be read ({type(error).__name__}: {error})"
        raise ValueError(f"{problem}; fetch it again") from error


def _label_column(features: Any, label: str | None, path: Path) -> str:
    described = [column for column, feature in features.items() if type(feature).__name__ == "ClassLabel"]
    found = [label] if label else described or [column for column in features if column in _CLASS_COLUMNS]
    if len(found) != 1 or found[0] not in features:
        problem = f"no column {label!r}" if label else f"{len(found)} columns that may be the class"
        raise ValueError(f"{path} has {problem}; name one of {', '.join(features)} as data.label")
    return found[0]


def _picture_column(file: Any, path: Path) -> str:
    schema = file.schema_arrow
    described = [f.name for f in schema if str(f.type).startswith("struct") and f.type.get_field_index("bytes") >= 0]
    found = described or [f.name for f in schema if str(f.type) in ("binary", "large_binary")]
    if len(found) != 1:
        named = [f.name for f in schema if str(f.type) in ("string", "large_string") and _names_pictures(file, f.name)]
        if named:
            raise ValueError(
                f"column {named[0]!r} of {path} holds names of files, not pictures; give the folder of the files, or shards with"
                " the pictures in them"
            )
        raise ValueError(f"{path} has columns {', '.join(schema.names)}; expected one of encoded pictures, got {len(found)}")
    if described and _only_paths(file.metadata, found[0]):
        raise ValueError(
            f"column {found[0]!r} of {path} holds paths of pictures, not the pictures; give the folder of the files, or write the"
            " set with the pictures in it (`datasets` does so on push_to_hub)"
        )
    return found[0]


def _check_sizes(metadata: Any, column: str, path: Path) -> None:
    """Raise ValueError for a small file that says it is a large one, before any of it is unpacked."""
    rows, size = metadata.num_rows, path.stat().st_size
    if rows * MIN_ROW_BYTES > size:
        raise ValueError(f"{path} has {rows:,} rows in {size:,} bytes, so that most have no picture; fetch it again")
    groups = map(metadata.row_group, range(metadata.num_row_groups))
    parts = (group.column(place) for group in groups for place in range(group.num_columns))
    unpacked = sum(part.total_uncompressed_size for part in parts if part.path_in_schema.split(".")[0] == column)
    if unpacked > MOST_UNPACKED * size:
        raise ValueError(f"{path} unpacks from {size:,} bytes to {unpacked:,}, as no encoded pictures do; fetch it again")


def _only_paths(metadata: Any, column: str) -> bool:
    """Whether all rows lack the bytes of a picture and some have its path, by what the file says of itself."""
    full = {"bytes": 0, "path": 0}
    for group in map(metadata.row_group, range(metadata.num_row_groups)):
        for place in range(group.num_columns):
            part, facts = group.column(place), group.column(place).statistics
            inner = part.path_in_schema.removeprefix(f"{column}.")
            if inner in full:
                full[inner] += part.num_values - (facts.null_count if facts is not None and facts.has_null_count else 0)
    return not full["bytes"] and full["path"] > 0


def _names_pictures(file: Any, column: str) -> bool:
    """Whether a column of text begins with the name of a picture's file."""
    first = next(file.iter_batches(1, columns=[column]), None)
    value = first.column(0)[0].as_py() if first is not None and len(first) else None
    return PurePosixPath(value or "").suffix.lower() in ENDINGS


@contextmanager
def _told_in_a_sentence(path: Path) -> Iterator[None]:
    """`datasets` keeps silent; what it finds wrong with a file is a ValueError, or an OSError where the disk is at fault."""
    import datasets
    from pyarrow import ArrowInvalid

    bars, verbosity = datasets.are_progress_bars_disabled(), datasets.logging.get_verbosity()
    datasets.disable_progress_bars()
    datasets.logging.set_verbosity(datasets.logging.CRITICAL)
    try:
        yield
    except (datasets.exceptions.DatasetGenerationError, ArrowInvalid, OSError) as error:
        cause = error.__cause__ if isinstance(error, datasets.exceptions.DatasetGenerationError) else error
        if isinstance(cause, OSError) and cause.errno:
            raise cause from None
        raise ValueError(f"{path} is damaged, or not a parquet file ({cause}); fetch it again") from error
    finally:
        datasets.logging.set_verbosity(verbosity)
        if not bars:
            datasets.enable_progress_bars()
