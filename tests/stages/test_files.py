"""Files that are written whole or not at all, on the disk before they have their names, and by one process at a time."""

import errno
import inspect
import os
import subprocess
import sys
import threading

import pytest
from safetensors import SafetensorError

from cascade.eval import files as eval_files
from cascade.stages import files
from cascade.stages.files import Batch, complete, complete_folder, held, read_bytes


@pytest.fixture
def calls(monkeypatch):
    """The names under which files were flushed, and those that they got, in order."""
    made = []
    fsync, replace, exchanged = os.fsync, os.rename, files._exchanged

    def path_of(descriptor):
        return os.path.basename(os.readlink(f"/proc/self/fd/{descriptor}"))

    def flushed(descriptor):
        made.append(("flush", path_of(descriptor)))
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", flushed)
    for module in ("replace", "rename"):
        monkeypatch.setattr(os, module, lambda a, b: (made.append(("name", os.path.basename(b))), replace(a, b)))
    monkeypatch.setattr(files, "_exchanged", lambda a, b: (made.append(("name", b.name)), exchanged(a, b))[1])
    return made


@pytest.mark.parametrize("one", [complete, eval_files.complete])
def test_a_file_is_on_the_disk_before_it_has_its_name(tmp_path, calls, one):
    with one(tmp_path / "folder" / "a") as file:
        file.write(b"content")
        assert not (tmp_path / "folder" / "a").exists()
    assert calls[:2] == [("flush", ".a.partial"), ("name", "a")]
    assert (tmp_path / "folder" / "a").read_bytes() == b"content"
    assert os.listdir(tmp_path / "folder") == ["a"]


def test_the_two_rooms_write_files_by_the_same_rule():
    for said in ("os.O_WRONLY | os.O_CREAT", "samestat", "fcntl.flock", "os.fsync", "_NOT_KNOWN = (errno.EINVAL", ".partial"):
        assert all(said in inspect.getsource(module) for module in (files, eval_files))


@pytest.mark.parametrize("one", [complete, eval_files.complete])
def test_a_failure_leaves_what_was_there(tmp_path, one):
    (tmp_path / "a").write_bytes(b"before")
    with pytest.raises(RuntimeError), one(tmp_path / "a") as file:
        file.write(b"half")
        raise RuntimeError
    assert (tmp_path / "a").read_bytes() == b"before" and os.listdir(tmp_path) == ["a"]


@pytest.mark.parametrize("one", [complete, eval_files.complete])
def test_what_a_killed_process_left_is_taken_over(tmp_path, one):
    (tmp_path / ".a.partial").write_bytes(b"a long rest of another content")
    with one(tmp_path / "a") as file:
        file.write(b"new")
    assert (tmp_path / "a").read_bytes() == b"new" and os.listdir(tmp_path) == ["a"]


@pytest.mark.parametrize("one", [complete, eval_files.complete])
def test_many_writers_of_one_file_take_turns(tmp_path, one):
    def write(number):
        with one(tmp_path / "a") as file:
            file.write(bytes([number]) * 1000)

    threads = [threading.Thread(target=write, args=[number]) for number in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    content = (tmp_path / "a").read_bytes()
    assert len(content) == 1000 and len(set(content)) == 1 and os.listdir(tmp_path) == ["a"]


def test_files_of_a_batch_get_their_names_together(tmp_path, calls):
    with Batch() as batch:
        for name in "abc":
            with batch.file(tmp_path / name) as file:
                file.write(name.encode())
        assert not [name for name in "abc" if (tmp_path / name).exists()]
    kinds = [kind for kind, _ in calls]
    assert kinds == ["flush"] * 3 + ["name"] * 3 + ["flush"], "the last one is of their folder"
    assert sorted(os.listdir(tmp_path)) == ["a", "b", "c"]


def test_files_of_a_batch_that_are_complete_survive_an_error_and_wait_for_no_more_than_a_second(tmp_path, monkeypatch):
    with pytest.raises(RuntimeError), Batch() as batch:
        with batch.file(tmp_path / "a") as file:
            file.write(b"a")
        with batch.file(tmp_path / "b") as file:
            raise RuntimeError
    assert os.listdir(tmp_path) == ["a"]
    monkeypatch.setattr(files, "SECONDS", 0.0)
    with Batch() as batch:
        with batch.file(tmp_path / "c"):
            pass
        assert (tmp_path / "c").exists()


def fill(folder, text="new"):
    (folder / "inner").mkdir()
    for path in (folder / "a", folder / "inner" / "b"):
        path.write_text(text)
        path.chmod(0o600)


def test_a_folder_takes_the_place_of_another_at_one_moment(tmp_path, calls):
    for text in ("old", "new"):
        with complete_folder(tmp_path / "model") as folder:
            assert not list(folder.iterdir())
            fill(folder, text)
    assert (tmp_path / "model" / "inner" / "b").read_text() == "new" and os.listdir(tmp_path) == ["model"]
    flushed = {name for kind, name in calls[: calls.index(("name", "model"))] if kind == "flush"}
    assert flushed == {"a", "b", "inner", ".model.partial"}
    umask = os.umask(0)
    os.umask(umask)
    assert (tmp_path / "model" / "a").stat().st_mode & 0o777 == 0o666 & ~umask, "as for any other file"


@pytest.mark.skipif(sys.platform != "linux", reason="other systems have no exchange of names")
def test_there_is_never_no_folder(tmp_path, monkeypatch):
    with complete_folder(tmp_path / "model") as folder:
        fill(folder)
    monkeypatch.setattr(os, "rename", lambda *_: pytest.fail("two renames leave a moment without any"))
    with complete_folder(tmp_path / "model") as folder:
        fill(folder)


def test_without_an_exchange_of_names_a_killed_process_leaves_the_old_one_to_be_found(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "_exchanged", lambda first, second: False)
    for text in ("old", "new"):
        with complete_folder(tmp_path / "model") as folder:
            fill(folder, text)
    assert (tmp_path / "model" / "a").read_text() == "new" and os.listdir(tmp_path) == ["model"]
    (tmp_path / "model").rename(tmp_path / ".model.old")  # killed here
    with pytest.raises(RuntimeError), complete_folder(tmp_path / "model"):
        raise RuntimeError
    assert (tmp_path / "model" / "a").read_text() == "new" and os.listdir(tmp_path) == ["model"]


def test_of_two_writers_of_a_folder_one_is_told(tmp_path):
    with complete_folder(tmp_path / "model") as folder:
        fill(folder)
        with pytest.raises(ValueError, match="another process is writing .*model; wait for it, or choose another folder"):
            complete_folder(tmp_path / "model").__enter__()
        assert (folder / "a").exists()
    assert os.listdir(tmp_path) == ["model"]


def test_what_a_killed_process_left_of_a_folder_goes(tmp_path):
    (tmp_path / ".model.partial" / "stage").mkdir(parents=True)
    (tmp_path / ".model.partial" / "weights").write_text("half")
    with complete_folder(tmp_path / "model") as folder:
        fill(folder)
    assert sorted(os.listdir(tmp_path / "model")) == ["a", "inner"] and os.listdir(tmp_path) == ["model"]


def test_what_safetensors_says_of_a_disk_is_an_os_error(tmp_path):
    with pytest.raises(OSError, match="^No space left on device"), complete_folder(tmp_path / "model"):
        raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")
    assert not os.listdir(tmp_path)


def test_a_lock_is_held_by_one_process_and_gone_with_it(tmp_path):
    script = (
        "from cascade.stages.files import held; from pathlib import Path\n"
        f"held(Path({str(tmp_path / 'l')!r}), 'taken').__enter__()"
    )
    with held(tmp_path / "l", "taken"):
        other = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
        assert "ValueError: taken" in other.stderr
    assert not os.listdir(tmp_path)
    (tmp_path / "l").write_text("")  # left by a process that was killed
    with held(tmp_path / "l", "taken"):
        pass
    assert not os.listdir(tmp_path)


def test_nothing_is_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", tmp_path, "/dev/zero"):
        with pytest.raises((ValueError, OSError)):
            read_bytes(path)
    (tmp_path / "large").write_bytes(b"123")
    with pytest.raises(ValueError, match="has 3 bytes, expected at most 2"):
        read_bytes(tmp_path / "large", 2)
    (tmp_path / ".a.partial").unlink(missing_ok=True)
    os.mkfifo(tmp_path / ".a.partial")
    with pytest.raises(OSError) as refused, complete(tmp_path / "a"):
        pass
    assert refused.value.errno == errno.ENXIO
