"""The files of shards: on this machine, or in a data set on the Hub, from where they are fetched when they are needed."""

from __future__ import annotations

import contextlib
import fnmatch
import glob
import re
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cascade.files import cache_folder

HUB = "hub:"
_SOURCE = re.compile(r"hub:(?P<repo>[\w.-]+/[\w.-]+)(@(?P<revision>[\w./-]+?))?(/(?P<pattern>.+))?")


@dataclass(frozen=True)
class LocalFile:
    """A file of this machine."""

    path: Path

    @property
    def name(self) -> str:
        return str(self.path)

    def identity(self) -> str:
        """A text that changes when the content does."""
        status = self.path.stat()
        return f"{self.path.resolve()} {status.st_size} {status.st_mtime_ns}"

    def open(self) -> Any:
        """The file as a seekable binary one, of which only what is read is fetched."""
        return self.path.open("rb")

    def local(self) -> Path:
        """Where it lies on this machine, to stay there."""
        return self.path

    @contextlib.contextmanager
    def fetched(self) -> Iterator[Path]:
        """Where it lies on this machine, within a `with` statement."""
        yield self.path


@dataclass(frozen=True)
class HubFile:
    """A file of a data set on the Hub, of one commit, which is fetched when it is needed; methods as of `LocalFile`."""

    repo: str
    commit: str
    path: str

    @property
    def name(self) -> str:
        return f"{HUB}{self.repo}/{self.path}"

    def identity(self) -> str:
        return f"{self.repo} {self.commit} {self.path}"

    def open(self) -> Any:
        from huggingface_hub import HfFileSystem

        return HfFileSystem().open(f"datasets/{self.repo}@{self.commit}/{self.path}", "rb")

    def local(self) -> Path:
        from huggingface_hub import hf_hub_download

        return Path(hf_hub_download(self.repo, self.path, repo_type="dataset", revision=self.commit))

    @contextlib.contextmanager
    def fetched(self) -> Iterator[Path]:
        from huggingface_hub import hf_hub_download

        parent = cache_folder() / "datasets"
        with tempfile.TemporaryDirectory(prefix=".fetching-", dir=parent) as folder:
            yield Path(hf_hub_download(self.repo, self.path, repo_type="dataset", revision=self.commit, local_dir=folder))


ShardFile = LocalFile | HubFile


def shard_files(source: str) -> list[ShardFile]:
    """The files that a pattern means, sorted by name.

    Args:
        source: A pattern of file names, as "set/train-*.tar", or "hub:owner/name[@revision]/pattern".

    Raises:
        ValueError: if there are none.
        ConnectionError: if the Hub can't be reached.
    """
    if source.startswith(HUB):
        return list(_hub_files(source))
    paths = sorted(Path(path) for path in glob.glob(str(Path(source).expanduser()), recursive=True))
    return [LocalFile(path) for path in paths if path.is_file()]


def _hub_files(source: str) -> list[HubFile]:
    match = _SOURCE.fullmatch(source)
    if match is None:
        raise ValueError(f"data is {source!r}, expected {HUB}owner/name/pattern, such as {HUB}owner/name/data/train-*.parquet")
    commit, files = hub_listing(match["repo"], match["revision"])
    found = fnmatch.filter(files, match["pattern"] or "")
    if not found:
        some = [file for file in files if file.endswith((".parquet", ".tar"))][:3]
        raise ValueError(
            f"no file of {HUB}{match['repo']} matches {match['pattern'] or 'an empty pattern'!r}; it has"
            f" {', '.join(some) + ', ...' if some else 'no parquet or tar files'}"
        )
    return [HubFile(match["repo"], commit, file) for file in sorted(found)]


def hub_listing(repo: str, revision: str | None) -> tuple[str, list[str]]:
    """The commit that a revision of a data set on the Hub means, and the files in it.

    Raises:
        ValueError: if there is no such data set, or it may not be read.
        ConnectionError: if the Hub can't be reached.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled, RepositoryNotFoundError, RevisionNotFoundError

    try:
        info = HfApi().dataset_info(repo, revision=revision)
    except (RepositoryNotFoundError, RevisionNotFoundError) as error:
        raise ValueError(
            f"there is no data set {repo}{'@' + revision if revision else ''} on the Hub, or it needs a login that has access"
        ) from error
    except (HfHubHTTPError, OfflineModeIsEnabled, OSError) as error:
        raise ConnectionError(f"the Hub can't be asked for {HUB}{repo}: {error}") from error
    return str(info.sha), [sibling.rfilename for sibling in info.siblings or ()]
