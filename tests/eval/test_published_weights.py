"""Weights are loaded only after their hash was checked, and downloaded at most once."""

import hashlib
import urllib.request
from pathlib import Path

import pytest

from cascade.eval.files import cache_folder
from cascade.eval.published_weights import PublishedWeights

CONTENT = b"weights" * 1000
SHA256 = hashlib.sha256(CONTENT).hexdigest()


@pytest.fixture
def published(tmp_path, monkeypatch) -> PublishedWeights:
    """A file that is 'published' on this disk; the cache is in tmp_path too."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    (tmp_path / "network.pt").write_bytes(CONTENT)
    return PublishedWeights(url=(tmp_path / "network.pt").as_uri(), sha256=SHA256)


def cached_files() -> list[str]:
    return [path.name for path in cache_folder().rglob("*")]


def test_a_download_happens_once(published, monkeypatch):
    file, found = published.locate()
    assert (file.read_bytes(), found) == (CONTENT, SHA256)
    monkeypatch.setattr(urllib.request, "urlopen", lambda *_, **__: pytest.fail("downloaded again"))
    assert published.locate() == (file, SHA256)
    assert cached_files() == ["network.pt"]


def test_a_wrong_download_is_not_kept(published, tmp_path):
    (tmp_path / "network.pt").write_bytes(b"something else")
    with pytest.raises(ValueError, match="it was not kept"):
        published.locate()
    assert cached_files() == []


def test_a_cached_file_that_was_changed_is_refused(published):
    published.locate()[0].write_bytes(b"changed")
    with pytest.raises(ValueError, match="damaged or another file"):
        published.locate()


def test_no_network_is_one_sentence_that_names_the_way_out(published, tmp_path):
    (tmp_path / "network.pt").unlink()
    with pytest.raises(ConnectionError, match="could not be downloaded .* pass its path"):
        published.locate()
    assert cached_files() == []


def test_a_given_path_is_checked_and_never_copied(published, tmp_path):
    own = tmp_path / "own.pt"
    own.write_bytes(CONTENT)
    assert published.locate(own) == (own, SHA256)
    own.write_bytes(b"mine")
    with pytest.raises(ValueError, match=f"expected {SHA256}"):
        published.locate(own)
    assert published.locate(own, hashlib.sha256(b"mine").hexdigest().upper())[0] == own
    assert not cache_folder().exists()


def test_a_missing_path_and_a_hash_without_path_are_refused(published):
    with pytest.raises(ValueError, match="no weights at"):
        published.locate(Path("nowhere.pt"))
    with pytest.raises(ValueError, match="needs the path"):
        published.locate(sha256=SHA256)
