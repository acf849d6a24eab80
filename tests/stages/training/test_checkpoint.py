"""Checkpoints: whole or absent, the newest good one taken, the best one kept."""

import errno
import json
import shutil
import subprocess

import pytest
import torch

from cascade.stages.training import checkpoint


def save(run, images, loss=None, keep=2, size=3):
    tensors = {"network": {"a": torch.full((size,), float(images))}}
    return checkpoint.save(run, images, tensors, {} if loss is None else {checkpoint.LOSS: loss}, keep)


def kept(run):
    return sorted(int(path.name.removeprefix(checkpoint.PREFIX)) for path in checkpoint.folders(run))


def test_what_was_saved_is_loaded_and_only_the_newest_stay(tmp_path):
    for images in (10, 20, 30):
        save(tmp_path, images)
    assert kept(tmp_path) == [20, 30]
    tensors, state, problems = checkpoint.load_newest(tmp_path)
    assert state["images_seen"] == 30 and not problems
    assert torch.equal(tensors["network"]["a"], torch.full((3,), 30.0))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint-000000000020", "checkpoint-000000000030"]


def test_the_checkpoint_of_the_least_validation_loss_stays_as_long_as_none_is_better(tmp_path):
    for images, loss in ((10, 0.5), (20, 0.2), (30, 0.4), (40, None), (50, 0.3)):
        save(tmp_path, images, loss)
    assert kept(tmp_path) == [20, 40, 50]
    assert checkpoint.best_folder(tmp_path).name.endswith("20")
    save(tmp_path, 60, 0.1)
    assert kept(tmp_path) == [50, 60] and checkpoint.best_folder(tmp_path).name.endswith("60")


def test_of_two_equal_losses_the_newer_is_the_best(tmp_path):
    for images in (10, 20):
        save(tmp_path, images, 0.5)
    assert checkpoint.best_folder(tmp_path).name.endswith("20")


@pytest.mark.parametrize(
    "damage", ["cut", "changed", "tensors gone", "state gone", "state cut", "state of another kind", "digit"]
)
def test_a_damaged_checkpoint_is_passed_over_and_named(tmp_path, damage):
    save(tmp_path, 10)
    newest = save(tmp_path, 20)
    tensors, state = newest / "network.safetensors", newest / checkpoint.STATE
    data = bytearray(tensors.read_bytes())
    if damage == "cut":
        tensors.write_bytes(data[:-4])
    elif damage == "changed":
        data[-1] ^= 1
        tensors.write_bytes(data)
    elif damage == "digit":
        state.write_text(state.read_text().replace('"images_seen": 20', '"images_seen": 21'))
    elif damage == "state cut":
        state.write_text(state.read_text()[:-9])
    elif damage == "state of another kind":
        state.write_text("[]")
    else:
        (tensors if damage == "tensors gone" else state).unlink()
    _, facts, problems = checkpoint.load_newest(tmp_path)
    assert facts["images_seen"] == 10
    assert len(problems) == 1 and problems[0].startswith(f"{newest.name} is damaged and was passed over: ")
    assert save(tmp_path, 20) == newest and checkpoint.load_newest(tmp_path)[2] == [], "written anew in its place"


def test_a_run_without_a_good_checkpoint_does_not_begin_anew(tmp_path):
    assert checkpoint.load_newest(tmp_path) is None
    (save(tmp_path, 10) / checkpoint.STATE).unlink()
    with pytest.raises(ValueError, match="no checkpoint in .* can be read .*remove the folder to train anew"):
        checkpoint.load_newest(tmp_path)


def test_what_a_killed_run_left_is_removed(tmp_path):
    save(tmp_path, 10)
    for name in (".checkpoint-000000000020.partial", ".checkpoint-000000000005.old"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "network.safetensors").write_text("half")
    (tmp_path / "log.jsonl").write_text("{}")
    assert kept(tmp_path) == [10], "neither counts as a checkpoint"
    checkpoint.clean(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint-000000000010", "log.jsonl"]


def test_what_is_not_the_runs_own_is_neither_read_nor_removed(tmp_path):
    for images in (10, 20):
        save(tmp_path, images)
    users = ["checkpoint-good", "checkpoint-000000000020-backup", "checkpoint-99999999999999", "checkpoint-000000000030.partial"]
    for name in users:
        shutil.copytree(tmp_path / "checkpoint-000000000010", tmp_path / name)
    assert checkpoint.load_newest(tmp_path)[1]["images_seen"] == 20
    checkpoint.clean(tmp_path)
    save(tmp_path, 40, keep=1)
    assert kept(tmp_path) == [40] and all((tmp_path / name / "state.json").is_file() for name in users)


def test_a_link_in_place_of_a_checkpoint_is_refused(tmp_path):
    save(tmp_path, 10)
    elsewhere = save(tmp_path / "elsewhere", 20)
    (tmp_path / "checkpoint-000000000020").symlink_to(elsewhere)
    with pytest.raises(ValueError, match="checkpoint-000000000020 is a link"):
        checkpoint.load_newest(tmp_path)
    assert elsewhere.is_dir()


def test_a_checkpoint_of_an_earlier_version_has_no_seal_and_is_read(tmp_path):
    state = save(tmp_path, 10) / checkpoint.STATE
    values = json.loads(state.read_text())
    del values[checkpoint.SEAL]
    state.write_text(json.dumps(values))
    assert checkpoint.load_newest(tmp_path)[1]["images_seen"] == 10


def test_a_failure_to_write_leaves_the_older_checkpoint_whole(tmp_path, monkeypatch):
    save(tmp_path, 10)

    def full(*args, **kwargs):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(checkpoint, "save_file", full)
    with pytest.raises(OSError, match="of 20 images .*No space left on device.* and checkpoint-000000000010 is whole; make room"):
        save(tmp_path, 20)
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint-000000000010"]
    assert checkpoint.load_newest(tmp_path)[1]["images_seen"] == 10


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 256 KiB."""
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", tmp_path], capture_output=True).returncode:
        pytest.skip("this user may not mount a small disk")
    yield tmp_path
    subprocess.run(["umount", tmp_path], check=True)


@pytest.mark.parametrize("size", [50_000, 32_400], ids=["in its tensors", "after them"])
def test_a_disk_that_really_is_full_leaves_the_older_checkpoint_whole(small_disk, size):
    save(small_disk, 10, size=31_000)
    with pytest.raises(OSError, match=r"No space left on device.*checkpoint-000000000010 is whole"):
        save(small_disk, 20, size=size)
    assert [path.name for path in small_disk.iterdir()] == ["checkpoint-000000000010"]
    _, state, problems = checkpoint.load_newest(small_disk)
    assert state["images_seen"] == 10 and not problems


def test_nothing_in_a_checkpoint_is_code(tmp_path):
    folder = save(tmp_path, 10)
    assert sorted(path.name for path in folder.iterdir()) == ["network.safetensors", checkpoint.STATE]
    assert set(json.loads((folder / checkpoint.STATE).read_text())) == {"images_seen", "sha256", checkpoint.SEAL}
