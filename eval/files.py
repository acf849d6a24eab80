"""Files: written whole or not at all, told apart by their hash, and the folder of what was downloaded.

`complete` keeps the rule of `cascade.stages.files`, from which this room may not import: what gets its name is on the disk, and
until then it lies beside as `.NAME.partial`, locked by the process that writes it.
"""

import errno
import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

try:
    import fcntl
except ModuleNotFoundError:  # Windows, where nothing is locked
    fcntl = None  # type: ignore[assignment]

_NOT_KNOWN = (errno.EINVAL, errno.ENOSYS, errno.ENOTSUP, errno.ENOLCK, errno.EBADF)  # of file systems without locks or flushes


@contextmanager
def complete(path: Path) -> Iterator[BinaryIO]:
    """A file to write that gets its name when it is complete, and leaves nothing behind otherwise; makes its folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.partial")
    file = _taken(partial)
    try:
        yield file
        file.flush()
        _told(os.fsync, file.fileno())
        if fcntl is None:
            file.close()  # there, an open file can't be renamed
        partial.replace(path)
    except BaseException:
        if fcntl is None:
            file.close()
        partial.unlink(missing_ok=True)
        raise
    finally:
        with suppress(OSError):  # of a full disk, for what was not written yet
            file.close()


def file_sha256(path: str | Path) -> str:
    """SHA-256 of a file's bytes, in hexadecimal."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def cache_folder() -> Path:
    """Where downloads are kept: `$XDG_CACHE_HOME/cascade-diffusion/weights`, by default under `~/.cache`."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "cascade-diffusion" / "weights"


def _taken(partial: Path) -> BinaryIO:
    """The file, empty, once no other process writes it."""
    flags = os.O_WRONLY | os.O_CREAT | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_NOFOLLOW", 0)
    while True:
        file = open(partial, "wb", opener=lambda name, _: os.open(name, flags, 0o666))  # noqa: SIM115 (for the caller to close)
        if fcntl is not None:
            _told(fcntl.flock, file.fileno(), fcntl.LOCK_EX)
        with suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(file.fileno()), partial.lstat()):
                file.truncate()
                return file
        file.close()  # who wrote it before has renamed it


def _told(call, *arguments: int) -> None:  # type: ignore[no-untyped-def]  # of the system
    """A call that some file systems don't know."""
    try:
        call(*arguments)
    except OSError as error:
        if error.errno not in _NOT_KNOWN:
            raise
