"""Images of a run in one file: WebDataset shards and the .npz of OpenAI's evaluator, the same bytes for the same images."""

from __future__ import annotations

import io
import tarfile
import zipfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import BinaryIO


def write_shard(file: BinaryIO, items: Iterable[tuple[Path, int | None]]) -> None:
    """Image files, each beside its class as text (000000.png, 000000.cls); no times, owners or other traces of the machine."""
    with tarfile.open(fileobj=file, mode="w", format=tarfile.USTAR_FORMAT) as shard:
        for path, label in items:
            _add(shard, path.name, path.read_bytes())
            if label is not None:
                _add(shard, f"{path.stem}.cls", str(label).encode())


def write_npz(file: BinaryIO, paths: Sequence[Path], size: int, labels: Sequence[int] | None) -> None:
    """`arr_0`, uint8 [N, size, size, 3], and where there are classes `arr_1`, int64 [N]; images are read one by one."""
    import numpy as np

    from cascade.eval.pictures import open_picture

    with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED, allowZip64=True) as archive:
        with archive.open(zipfile.ZipInfo("arr_0.npy"), "w", force_zip64=True) as member:
            shape = (len(paths), size, size, 3)
            np.lib.format.write_array_header_1_0(member, {"descr": "|u1", "fortran_order": False, "shape": shape})
            for path in paths:
                with open_picture(path) as image:
                    member.write(np.asarray(image.convert("RGB")).tobytes())
        if labels is not None:
            with archive.open(zipfile.ZipInfo("arr_1.npy"), "w", force_zip64=True) as member:
                np.lib.format.write_array(member, np.array(labels, np.int64), allow_pickle=False)


def _add(shard: tarfile.TarFile, name: str, content: bytes) -> None:
    entry = tarfile.TarInfo(name)
    entry.size, entry.mode = len(content), 0o644
    shard.addfile(entry, io.BytesIO(content))
