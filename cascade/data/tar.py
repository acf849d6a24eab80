"""Shards as WebDataset lays them out: in a tar file, `key.jpg` (or another picture) beside `key.cls`, its class."""

from __future__ import annotations

import tarfile
from dataclasses import dataclass
from pathlib import PurePosixPath

import numpy as np

from cascade.data.decoding import ENDINGS
from cascade.data.hub import ShardFile
from cascade.data.shards import Contents, read_at


@dataclass(frozen=True)
class TarShard:
    """One tar file; pictures are read from their place in it, without unpacking."""

    file: ShardFile

    @property
    def name(self) -> str:
        return self.file.name

    def identity(self) -> str:
        return f"tar 1 {self.file.identity()}"

    def contents(self) -> Contents:
        """Where each sample's picture lies. A sample is all members of one key, as `a/0001` of `a/0001.jpg`."""
        pictures: dict[str, tuple[str, int, int]] = {}
        classes: dict[str, str] = {}
        try:
            with tarfile.open(self.file.local(), "r:") as tar:
                for member in tar:
                    folder, _, name = member.name.rpartition("/")
                    stem, _, ending = name.partition(".")
                    key = f"{folder}/{stem}" if folder else stem
                    if not member.isreg() or member.issparse() or not stem:
                        continue
                    if ending == "cls":
                        content = tar.extractfile(member)
                        classes[key] = content.read().decode().strip() if content else ""
                    elif PurePosixPath(f"x.{ending}").suffix.lower() in ENDINGS:
                        pictures.setdefault(key, (member.name, member.offset_data, member.size))
        except (tarfile.TarError, EOFError, UnicodeDecodeError) as error:
            raise ValueError(f"{self.name} is damaged, or not a plain tar file ({error}); fetch it again") from error
        for key in pictures.keys() ^ classes.keys():
            raise ValueError(f"sample {key!r} of {self.name} lacks its {'class (.cls)' if key in pictures else 'picture'}")
        values = [classes[key] for key in pictures]
        return Contents(
            classes=np.array([int(v) for v in values] if all(v.isdecimal() for v in values) else values),
            keys=np.array([name for name, _, _ in pictures.values()], str),
            offsets=np.array([offset for _, offset, _ in pictures.values()], np.int64),
            lengths=np.array([length for _, _, length in pictures.values()], np.int64),
            class_names=np.array([], str),
        )

    def encoded(self, contents: Contents, index: int) -> bytes:
        return read_at(self.file.local(), int(contents.offsets[index]), int(contents.lengths[index]))
