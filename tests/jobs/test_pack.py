"""What travels to a rented accelerator, and what comes back: files in parts, the pack's list, mosaics, and a job in small."""

import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cascade import BasePipeline, load_recipe
from cascade.data import open_pictures
from cascade.stages.training import Data, PictureSet
from jobs import mosaics
from jobs.pack import HEAVY, check_way_back, distributed, light, portable
from jobs.parts import join, split

ROOT = Path(__file__).parents[2]


def a_file(folder: Path, size: int) -> Path:
    path = folder / "stage.tar"
    path.write_bytes(np.random.default_rng(0).bytes(size))
    return path


@pytest.mark.parametrize("size", [0, 1, 999, 1000, 1001, 5000])
def test_parts_join_to_the_file_that_was_split(tmp_path, size):
    path = a_file(tmp_path, size)
    (tmp_path / "parts").mkdir()
    manifest = split(path, tmp_path / "parts", size=1000)
    parts = sorted((tmp_path / "parts").glob("stage.tar.0*"))
    assert [part.stat().st_size for part in parts] == [min(1000, size - start) for start in range(0, size, 1000)]
    assert json.loads(manifest.read_text())["sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()
    assert join(manifest, tmp_path / "joined").read_bytes() == path.read_bytes()


@pytest.mark.parametrize("harm", ["missing", "damaged", "left out", "exchanged", "elsewhere"])
def test_parts_that_are_not_what_was_split_are_told_and_leave_nothing(tmp_path, harm):
    manifest = split(a_file(tmp_path, 2500), tmp_path, size=1000)
    second, facts = tmp_path / "stage.tar.001", json.loads(manifest.read_text())
    if harm == "missing":
        second.unlink()
    elif harm == "damaged":
        second.write_bytes(second.read_bytes()[:-1] + b"x")
    elif harm == "left out":
        del facts["parts"][1]
    elif harm == "exchanged":
        facts["parts"].reverse()
    else:
        facts["name"] = "../stage.tar"
    manifest.write_text(json.dumps(facts))
    told = {"missing": "is missing", "damaged": "is damaged", "elsewhere": "expected names of files"}
    with pytest.raises(ValueError, match=told.get(harm, "all parts, or not in their order")):
        join(manifest, tmp_path / "joined")
    assert not (tmp_path / "joined").exists() or not list((tmp_path / "joined").iterdir())


def test_what_travels_as_code_is_small_and_whole():
    tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True)
    if tracked.returncode:
        pytest.skip("needs a git checkout")
    files = light(tracked.stdout.split())
    left = set(tracked.stdout.split()) - set(files)
    assert left and all(HEAVY.fullmatch(path) for path in left)
    assert not [path for path in left if path.endswith(".py")]
    assert {"cascade/assets/drawings.tar.xz", "cascade/stages", "tests/conftest.py", "jobs/run.py"} <= set(files)
    assert sum((ROOT / path).lstat().st_size for path in files) < 16 * 2**20


def test_every_file_is_in_one_part_and_no_part_is_too_large():
    sizes = {"code": 8, "stage": 35, "a": 30, "b": 20, "c": 1, "d": 40}
    parts = distributed(sizes, 60)
    assert sorted(name for part in parts for name in part) == sorted(sizes)
    assert all(sum(sizes[name] for name in part) <= 60 for part in parts)
    assert "code" in parts[0] and len(parts) == 3
    with pytest.raises(ValueError, match="d takes"):
        distributed(sizes, 39)


def test_a_packed_recipe_names_places_of_the_job_and_is_otherwise_the_same():
    drawn = load_recipe("emoji/base64", {"start_from": "somewhere/else"})
    assert load_recipe("emoji/base64", {"start_from": "stage"}) == portable(drawn)
    settings = {"data.source": "photos", "data.balanced": False, "validation": {"source": "others", "images": 5}}
    photos = portable(load_recipe("emoji/base64", settings))
    moved = {"data.source": "data/train", "validation": {"source": "data/held-out", "images": 5}}
    assert photos == load_recipe("emoji/base64", settings | moved)


def test_a_stage_that_could_not_come_back_is_told_before_anything_is_packed():
    check_way_back(load_recipe("emoji/base64"))
    with pytest.raises(ValueError, match="too many to come back"):
        check_way_back(load_recipe("emoji/base64", {"network.channels": [128, 256, 640]}))


def pictures(count=70, size=32):
    """Smooth pictures, each of a colour of its own; a few of the class "rare"."""
    ramp = np.linspace(0, 60, size)[:, None, None] * np.ones((1, size, 3))
    colours = np.random.default_rng(0).integers(0, 190, (count, 1, 1, 3))
    labels = np.array([2 if index % 30 == 7 else index % 2 for index in range(count)])
    return PictureSet((ramp + colours).round().astype(np.uint8), labels, ("cat", "dog", "rare"), (True,) * 3)


def test_mosaics_are_a_folder_of_class_folders_again(tmp_path, monkeypatch):
    monkeypatch.setattr(mosaics, "SIDE", 160)  # several mosaics, the last one not full
    given = pictures()
    assert mosaics.pack(given, tmp_path / "packed", quality=80) == 70
    assert len(list((tmp_path / "packed").glob("*.avif"))) == 3
    for path in sorted((tmp_path / "packed").glob("*.avif")):
        mosaics._read(path, json.loads((tmp_path / "packed" / "labels.json").read_text()), ready(tmp_path / "data"))
    found = open_pictures(Data(source=str(tmp_path / "data")), 32)
    assert found.class_names == given.class_names and len(found) == 70
    apart = []
    for index in range(70):  # each picture is there once, in its class, nearly as it was
        errors = np.abs(given.pictures.astype(int) - found.read(index).pixels).mean(axis=(1, 2, 3))
        apart.append(int(errors.argmin()))
        assert errors.min() < 6 and given.labels[apart[-1]] == found.label(index)
    assert sorted(apart) == list(range(70))


def ready(folder: Path) -> Path:
    for name in ("cat", "dog", "rare"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    return folder


def test_of_too_many_pictures_every_class_keeps_its_share(tmp_path):
    mosaics.pack(pictures(), tmp_path / "packed", quality=80, most=9)
    labels = json.loads((tmp_path / "packed" / "labels.json").read_text())["labels"]
    assert sorted(labels) == [0, 0, 0, 1, 1, 1, 2, 2, 2]


def test_a_class_that_no_folder_can_be_called_after_is_told(tmp_path):
    given = pictures()
    with pytest.raises(ValueError, match="rename it"):
        mosaics.pack(PictureSet(given.pictures, given.labels, ("a", "../b", "c"), given.may_flip), tmp_path / "packed", 80)


RECIPE = """
name: small
data: {source: photos}
network: {sample_size: 16, prediction_type: sample, layout: efficient, patch_size: 2, channels: [16, 32], blocks: [1, 1],
  attention_sizes: [], head_channels: 16, norm: pixel}
phases: [{size: 16, images: 100000, batch_size: 8}]
sampling: {scheduler: ddpm, num_inference_steps: 3}
samples: {count: 4}
"""


@pytest.mark.slow
@pytest.mark.parametrize("kill", [False, True], ids=["to its end", "killed in its training"])
def test_a_job_in_small(tmp_path, kill):
    """Packed, run from the pack alone, and joined again; killed, what was finished is there."""
    from tests.cascade import tiny

    for index, pixels in enumerate(pictures(40, 16).pictures):
        path = tmp_path / "photos" / f"class{index % 3}" / f"{index}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(path)
    (tmp_path / "recipe.yaml").write_text(RECIPE.replace("photos", str(tmp_path / "photos")))
    tiny.base(sample_size=16).save_pretrained(tmp_path / "tiny")
    words = ["jobs.pack", tmp_path / "recipe.yaml", "--stage", tmp_path / "tiny", "--out", tmp_path / "pack", "--wheels"]
    subprocess.run([sys.executable, "-m", *words], cwd=ROOT, check=True)
    (tmp_path / "work").mkdir()
    with tarfile.open(tmp_path / "pack" / "part-1" / "code.tar.xz") as tar:
        tar.extractall(tmp_path / "work", filter="data")
    shutil.rmtree(tmp_path / "photos")
    words = ["--parts", tmp_path / "pack" / "part-1", "--out", tmp_path / "out", "--seconds", "200", "--benchmark", "0"]
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"} | {"OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "jobs.run", *map(str, words), "--tests", "60", "--grids", "30"]
    job = subprocess.Popen(command, cwd=tmp_path / "work", env=environment, start_new_session=True)
    log = tmp_path / "out" / "job.log"
    if kill:
        while job.poll() is None and not (log.is_file() and "training: begins" in log.read_text()):
            time.sleep(0.5)
        time.sleep(3)
        os.killpg(job.pid, signal.SIGKILL)
        job.wait()
        assert "smoke test: done" in log.read_text() and "gpu tests: done" in log.read_text()
        with tarfile.open(tmp_path / "out" / "results.tar.gz") as tar:
            assert {"results/smoke.png", "results/smoke.json"} <= set(tar.getnames())
        return
    assert job.wait(240) == 0
    assert "FAILED" not in log.read_text() and "training: done" in log.read_text()
    with tarfile.open(join(tmp_path / "out" / "stage.tar.json", tmp_path / "joined")) as tar:
        tar.extractall(tmp_path / "joined", filter="data")
    assert BasePipeline.from_pretrained(tmp_path / "joined" / "run" / "stage").class_names == ("class0", "class1", "class2")
    with tarfile.open(tmp_path / "out" / "results.tar.gz") as tar:
        assert {"results/samples.png", "run/recipe.yaml", "run/log.jsonl"} <= set(tar.getnames())
    assert len(list((tmp_path / "out").iterdir())) <= 8
