"""How files are read, written and told apart in every room: whole or not at all, and by their SHA-256.

What gets its final name is on the disk before, so that no loss of power leaves an empty file of that name. Until then it lies
beside, as `.NAME.partial`, locked by the process that writes it. The lock ends with that process, however it ends, and the next
one that writes the same file takes over what it finds there.
"""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
import stat
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO, Self

try:
    import fcntl
except ModuleNotFoundError:  # Windows, where nothing is locked
    fcntl = None  # type: ignore[assignment]

PARTIAL, OLD = ".partial", ".old"
"""Endings of what is not complete yet, and of what is going to be removed; the name before them begins with a dot."""

MOST_WAITING, SECONDS = 64, 1.0
"""Complete files of a batch that wait to be flushed, and for how long at most while others are made."""

MOST_BYTES = 64 * 2**20
"""Of a file that is read at once, as JSON and YAML are."""

_NO_WAIT = getattr(os, "O_NONBLOCK", 0)  # to open a named pipe would wait for ever
_NO_LINK = getattr(os, "O_NOFOLLOW", 0)
_NOT_KNOWN = (errno.EINVAL, errno.ENOSYS, errno.ENOTSUP, errno.ENOLCK, errno.EBADF)  # of file systems without locks or flushes
_EXCHANGE = 2  # RENAME_EXCHANGE of Linux


class Batch:
    """Files to write that get their names together, for which many are flushed as fast as one; for use in a `with` statement.

    They get them when `MOST_WAITING` are complete, when the last time was `SECONDS` ago, and at the end, by an error too.
    """

    def __init__(self) -> None:
        self._waiting: list[tuple[BinaryIO, Path, Path]] = []
        self._named = time.monotonic()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.give_names()

    @contextmanager
    def file(self, path: Path) -> Iterator[BinaryIO]:
        """A binary file to write; nothing of it is left if that fails. Its folder is made if it is missing."""
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_name(f".{path.name}{PARTIAL}")
        file = _taken(partial)
        try:
            yield file
            file.flush()
        except BaseException:
            _dropped(file, partial)
            raise
        self._waiting.append((file, partial, path))
        if len(self._waiting) >= MOST_WAITING or time.monotonic() - self._named > SECONDS:
            self.give_names()

    def give_names(self) -> None:
        """Flush what waits, and let it take the place of whatever had its names."""
        waiting, self._waiting = self._waiting, []
        try:
            _together(_flush, [file.fileno() for file, _, _ in waiting])
            while waiting:
                file, partial, path = waiting[0]
                if fcntl is None:
                    file.close()  # there, an open file can't be renamed
                partial.replace(path)
                file.close()
                del waiting[0]
                if all(path.parent != other.parent for _, _, other in waiting):
                    flush(path.parent)
        finally:
            self._named = time.monotonic()
            for file, partial, _ in waiting:
                _dropped(file, partial)


@contextmanager
def complete(path: Path) -> Iterator[BinaryIO]:
    """A binary file to write, which gets its name when it is complete and on the disk, and leaves nothing behind otherwise.

    Its folder is made if it is missing. Who else writes it waits; the last one wins.
    """
    with Batch() as batch, batch.file(path) as file:
        yield file


@contextmanager
def complete_folder(path: Path) -> Iterator[Path]:
    """A new folder to fill, which takes the place of whatever is called `path` when it is complete, and leaves nothing otherwise.

    What was there stays until the new one has its name. Its files are readable by whom the umask lets, and on the disk. Raises
    ValueError if another process is writing it, OSError if it can't be written.
    """
    path = path.absolute()
    partial, old = (path.with_name(f".{path.name}{ending}") for ending in (PARTIAL, OLD))
    path.parent.mkdir(parents=True, exist_ok=True)
    with _sole_folder(partial, path):
        if path.exists():
            shutil.rmtree(old, ignore_errors=True)
        elif old.exists():
            old.rename(path)  # a process was killed between two renames
        try:
            with _as_os_error():
                yield partial
            written = [partial, *partial.rglob("*")]
            readable = partial.stat().st_mode & 0o666  # safetensors writes for its owner only
            for file in written:
                if not file.is_dir():
                    file.chmod(readable)
            _together(flush, written)
            if not path.exists():
                partial.rename(path)
            elif not _exchanged(partial, path):
                path.rename(old)
                partial.rename(path)
            flush(path.parent)
        finally:
            for left in (partial, old):
                shutil.rmtree(left, ignore_errors=True)


@contextmanager
def held(lock: Path, problem: str) -> Iterator[None]:
    """Hold a lock by this file, which goes at the end. Raises ValueError, which says `problem`, if another process holds it."""
    while True:
        with open(lock, "ab", opener=lambda name, flags: os.open(name, flags | _NO_WAIT | _NO_LINK, 0o666)) as file:
            if not _lock(file.fileno(), wait=False):
                raise ValueError(problem)
            if not _has_name(file.fileno(), lock):  # who held it before has removed it
                continue
            try:
                yield
                return
            finally:
                if fcntl is not None:
                    lock.unlink(missing_ok=True)


def flush(path: Path) -> None:
    """Make sure that a file, or the names in a folder, are on the disk."""
    if os.name == "nt":  # which can't open folders
        return
    descriptor = os.open(path, os.O_RDONLY | _NO_WAIT)
    try:
        _flush(descriptor)
    finally:
        os.close(descriptor)


def remove_folder(folder: Path) -> None:
    """Remove a folder so that it is never half there under its own name."""
    doomed = folder.with_name(f".{folder.name}{OLD}")
    shutil.rmtree(doomed, ignore_errors=True)
    folder.rename(doomed)
    shutil.rmtree(doomed, ignore_errors=True)


def read_bytes(path: Path, most: int = MOST_BYTES) -> bytes:
    """All of a file. Raises ValueError if it is a pipe or device, which may never end, or larger; OSError if it can't be read."""
    with open(path, "rb", opener=lambda name, flags: os.open(name, flags | _NO_WAIT)) as file:
        status = os.fstat(file.fileno())
        if not stat.S_ISREG(status.st_mode):
            raise ValueError(f"{path} is not a regular file")
        if status.st_size > most:
            raise ValueError(f"{path} has {status.st_size:,} bytes, expected at most {most:,}")
        return file.read(most)


def read_text(path: Path, most: int = MOST_BYTES) -> str:
    """All of a UTF-8 file, its line ends as "\\n". Errors as of `read_bytes`, ValueError if it is not UTF-8."""
    return read_bytes(path, most).decode().replace("\r\n", "\n")


def sha256(path: Path) -> str:
    """SHA-256 of a file's content, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _taken(partial: Path) -> BinaryIO:
    """The file, empty, once no other process writes it."""
    flags = os.O_WRONLY | os.O_CREAT | _NO_WAIT | _NO_LINK
    while True:
        file = open(partial, "wb", opener=lambda name, _: os.open(name, flags, 0o666))  # noqa: SIM115 (for the caller to close)
        _lock(file.fileno())
        if _has_name(file.fileno(), partial):
            file.truncate()
            return file
        file.close()  # who wrote it before has renamed it


def _dropped(file: BinaryIO, partial: Path) -> None:
    """Remove a file that was taken; its lock ends after its name, so that no one else's is removed."""
    if fcntl is None:
        file.close()
    partial.unlink(missing_ok=True)
    with suppress(OSError):  # of a full disk, for what was not written yet
        file.close()


@contextmanager
def _sole_folder(partial: Path, path: Path) -> Iterator[None]:
    """Hold an empty folder for what is going to be `path`."""
    if fcntl is None:
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir()
        yield
        return
    while True:
        partial.mkdir(exist_ok=True)
        descriptor = os.open(partial, os.O_RDONLY | os.O_DIRECTORY | _NO_LINK)
        try:
            if not _lock(descriptor, wait=False):
                raise ValueError(f"another process is writing {path}; wait for it, or choose another folder")
            if _has_name(descriptor, partial):
                for left in partial.iterdir():
                    shutil.rmtree(left) if left.is_dir() and not left.is_symlink() else left.unlink()
                yield
                return
        finally:
            os.close(descriptor)


def _lock(descriptor: int, wait: bool = True) -> bool:
    """Lock a file for this process; whether it is, or can't be on its file system."""
    if fcntl is None:
        return True
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except OSError as error:
        if error.errno in (errno.EACCES, errno.EAGAIN):
            return False
        if error.errno not in _NOT_KNOWN:
            raise
    return True


def _has_name(descriptor: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), path.lstat())
    except FileNotFoundError:
        return False


def _flush(descriptor: int) -> None:
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in _NOT_KNOWN:
            raise


def _together(function: Callable[[Any], None], items: Sequence[Any]) -> None:
    """A call for each item, many at a time: a disk takes as long for sixty flushes that come together as for two."""
    if len(items) < 2:
        for item in items:
            function(item)
        return
    from concurrent.futures import ThreadPoolExecutor  # here, so that a command that writes nothing answers at once

    with ThreadPoolExecutor(min(16, len(items))) as pool:
        for _ in pool.map(function, items):
            pass


def _exchanged(first: Path, second: Path) -> bool:
    """Let two folders exchange their names at one moment; False where the system or the file system can't."""
    import ctypes

    rename: Any = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None) if sys.platform == "linux" else None
    here = -100  # AT_FDCWD
    return rename is not None and rename(here, os.fsencode(first), here, os.fsencode(second), _EXCHANGE) == 0


@contextmanager
def _as_os_error() -> Iterator[None]:
    """What safetensors says of a disk as an OSError, whose message is the reason alone."""
    from safetensors import SafetensorError

    try:
        yield
    except SafetensorError as error:
        raise OSError(str(error).removeprefix("Error while serializing: ").removeprefix("I/O error: ")) from error
