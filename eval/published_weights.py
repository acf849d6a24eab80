"""Published files: one download into the user's cache; and weights of networks, on disk or there, checked by SHA-256."""

import shutil
import urllib.request
from dataclasses import dataclass
from pathlib import Path

from cascade.eval.files import cache_folder, complete, file_sha256


@dataclass(frozen=True, kw_only=True)
class PublishedWeights:
    """One file of weights that other people publish."""

    url: str
    sha256: str

    def locate(self, path: Path | None = None, sha256: str | None = None) -> tuple[Path, str]:
        """The file, verified, and its SHA-256.

        Args:
            path: A file that is there already; None = from the cache, downloaded once.
            sha256: What to expect instead of the published file's hash, for weights of one's own; needs `path`.

        Raises:
            ValueError: if `path` is missing or its hash is not the expected one.
            ConnectionError: if the file must be downloaded and can't be.
        """
        if path is None and sha256 is not None:
            raise ValueError("a hash of one's own needs the path of the weights that it belongs to")
        if path is not None and not path.is_file():
            raise ValueError(f"no weights at {path}; expected the file {Path(self.url).name} from {self.url}")
        expected = (sha256 or self.sha256).lower()
        file = path or cached_download(self.url, self.sha256)
        found = file_sha256(file)
        if found != expected:
            raise ValueError(f"{file} has SHA-256 {found}, expected {expected}; it is damaged or another file")
        return file, found


def cached_download(url: str, sha256: str | None = None) -> Path:
    """A file in the cache by the last part of its URL, fetched once and checked on arrival (None = no hash is published).

    Raises ValueError if what was downloaded has another hash, and doesn't keep it; ConnectionError if it can't be downloaded.
    """
    target = cache_folder() / Path(url).name
    if target.is_file():
        return target
    try:
        with complete(target) as file:
            with urllib.request.urlopen(url, timeout=60) as response:
                shutil.copyfileobj(response, file, 1 << 20)
                expected = response.headers.get("Content-Length")
            file.flush()
            if expected is not None and (got := file.tell()) != int(expected):
                raise ConnectionError(f"it was cut off after {got:,} of {int(expected):,} bytes")
            if sha256 is not None and (found := file_sha256(file.name)) != sha256:
                raise ValueError(f"{url} delivered a file with SHA-256 {found}, expected {sha256}; it was not kept")
    except OSError as error:
        raise ConnectionError(
            f"{target.name} is not in {target.parent} and could not be downloaded from {url} ({error});"
            " fetch it on a machine with a network and put it there or pass its path"
        ) from error
    return target
