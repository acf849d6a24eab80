"""Published files: one download into the user's cache; and weights of networks, on disk or there, checked by SHA-256."""

import hashlib
import os
import urllib.request
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, kw_only=True)
class PublishedWeights:
    """One file of weights that other people publish."""

    url: str
    sha256: str

    @property
    def file_name(self) -> str:
        return self.url.rsplit("/", 1)[1]

    def locate(self, path: Path | None = None, sha256: str | None = None) -> tuple[Path, str]:
        """The file, verified, and its SHA-256.

        Args:
            path: a file that is there already; None looks into the cache and downloads once if it is not there.
            sha256: what to expect instead of the published file's hash, for weights of one's own; needs `path`.

        Raises:
            ValueError: if `path` is missing or its hash is not the expected one.
            ConnectionError: if the file must be downloaded and cannot be.
        """
        if path is None and sha256 is not None:
            raise ValueError("a hash of one's own needs the path of the weights that it belongs to")
        if path is not None and not path.is_file():
            raise ValueError(f"no weights at {path}; expected the file {self.file_name} from {self.url}")
        expected = sha256 or self.sha256
        file = path or cached_download(self.url, self.sha256)
        found = file_sha256(file)
        if found != expected.lower():
            raise ValueError(
                f"{file} has SHA-256 {found}, expected {expected.lower()}; it is damaged or another file"
            )
        return file, found


def cache_folder() -> Path:
    """Where downloads are kept: `$XDG_CACHE_HOME/cascade-diffusion/weights`, by default under `~/.cache`."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "cascade-diffusion" / "weights"


def cached_download(url: str, sha256: str | None = None) -> Path:
    """A file in the cache, fetched once; a download is checked before it gets its name, so a bad one never stays.

    Args:
        url: where it is published; its last part names it in the cache.
        sha256: of its bytes, checked when it is downloaded; None = nobody publishes one.

    Raises:
        ValueError: if what was downloaded has another hash.
        ConnectionError: if it must be downloaded and cannot be.
    """
    target = cache_folder() / url.rsplit("/", 1)[1]
    if target.is_file():
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_name(f"{target.name}.{os.getpid()}.partial")
    try:
        with urllib.request.urlopen(url, timeout=60) as response, partial.open("wb") as file:
            while chunk := response.read(1 << 20):
                file.write(chunk)
        if sha256 is not None and (found := file_sha256(partial)) != sha256:
            raise ValueError(f"{url} delivered a file with SHA-256 {found}, expected {sha256}; it was not kept")
        partial.replace(target)
    except OSError as error:
        raise ConnectionError(
            f"{target.name} is not in {target.parent} and could not be downloaded from {url} ({error});"
            " fetch it on a machine with a network and put it there or pass its path"
        ) from error
    finally:
        partial.unlink(missing_ok=True)
    return target


def file_sha256(path: str | Path) -> str:
    """SHA-256 of a file's bytes, in hexadecimal."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()
