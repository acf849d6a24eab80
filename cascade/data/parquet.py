"""Shards as data sets on the Hub have them: parquet files with a column of encoded pictures and one of classes.

A row of a parquet file can't be read alone, so a shard's pictures are unpacked into the user's cache when the first is needed.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

import numpy as np
from filelock import FileLock

from cascade.data.hub import ShardFile
from cascade.data.shards import Contents, kept, read_at
from cascade.files import complete

_CLASS_COLUMNS = ("label", "labels", "class", "cls", "fine_label", "category")
_ROWS = 64  # unpacked at a time


@dataclass(frozen=True)
class ParquetShard:
    """One parquet file. `label` names the column of the class; None = the only one that can be it."""

    file: ShardFile
    label: str | None = None

    @property
    def name(self) -> str:
        return self.file.name

    def identity(self) -> str:
        return f"parquet 1 {self.label} {self.file.identity()}"

    def contents(self) -> Contents:
        """Classes and their names; of a file on the Hub only these parts are fetched."""
        with self.file.open() as file:
            table = _opened(file, self.name)
            features = _features(table)
            label = _label_column(table, features, self.label, self.name)
            _image_column(table, self.name)
            values = table.read(columns=[label]).column(label)
            if values.null_count:
                raise ValueError(f"{self.name} has rows without a class in column {label!r}")
            classes = np.array(values.to_pylist())
            if len(classes) and classes.dtype.kind not in "iuU":
                raise ValueError(f"column {label!r} of {self.name} holds {values.type}, expected whole numbers or names")
            return Contents(
                classes=classes.astype(np.int64) if classes.dtype.kind in "iuf" else classes,
                keys=np.char.add("row ", np.arange(len(classes)).astype(str)),
                offsets=np.array([], np.int64),
                lengths=np.array([], np.int64),
                class_names=np.array(features.get(label, {}).get("names") or [], str),
            )

    def encoded(self, contents: Contents, index: int) -> bytes:
        path = kept(self, ".pictures")
        if not path.exists():
            self._unpack(path)
        where = path.stat().st_size - 8 * (len(contents.classes) + 1) + 8 * index
        begin, end = np.frombuffer(read_at(path, where, 16), "<i8").tolist()
        return read_at(path, begin, end - begin)

    def _unpack(self, path: Any) -> None:
        """Write the pictures one after the other, then where each begins, int64 [N + 1]; by one process, the others wait."""
        with FileLock(path.with_suffix(".lock")):
            if path.exists():
                return
            with self.file.fetched() as source, source.open("rb") as file, complete(path) as out:
                table = _opened(file, self.name)
                column = _image_column(table, self.name)
                begins = [0]
                for batch in table.iter_batches(_ROWS, columns=[column]):
                    for value in batch.column(0).to_pylist():
                        data = (value.get("bytes") if isinstance(value, dict) else value) or b""
                        begins.append(begins[-1] + out.write(data))
                out.write(np.array(begins, "<i8").tobytes())


def _opened(file: Any, name: str) -> Any:
    try:
        import pyarrow
        from pyarrow.parquet import ParquetFile
    except ModuleNotFoundError:
        raise ValueError("reading parquet files needs the package pyarrow; install cascade-diffusion[data]") from None
    try:
        return ParquetFile(file)
    except (pyarrow.ArrowInvalid, OSError) as error:
        raise ValueError(f"{name} is damaged, or not a parquet file ({error}); fetch it again") from error


def _features(table: Any) -> dict[str, Any]:
    """What the Hub's own description in the file says of its columns."""
    try:
        return json.loads(table.schema_arrow.metadata[b"huggingface"])["info"]["features"]
    except (TypeError, KeyError, ValueError):
        return {}


def _image_column(table: Any, name: str) -> str:
    schema = table.schema_arrow
    pictures = [f.name for f in schema if str(f.type).startswith("struct") and f.type.get_field_index("bytes") >= 0]
    found = pictures or [f.name for f in schema if str(f.type) in ("binary", "large_binary")]
    if len(found) != 1:
        raise ValueError(f"{name} has columns {', '.join(schema.names)}; expected one of encoded pictures, got {len(found)}")
    return found[0]


def _label_column(table: Any, features: dict[str, Any], label: str | None, name: str) -> str:
    columns = table.schema_arrow.names
    described = [c for c in columns if isinstance(features.get(c), dict) and features[c].get("_type") == "ClassLabel"]
    found = [label] if label else described or [c for c in columns if c in _CLASS_COLUMNS]
    if len(found) != 1 or found[0] not in columns:
        problem = f"no column {label!r}" if label else f"{len(found)} columns that may be the class"
        raise ValueError(f"{name} has {problem}; name one of {', '.join(columns)} as data.label")
    return found[0]
