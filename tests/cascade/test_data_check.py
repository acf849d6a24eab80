"""`cascade data check`, and a training, on a folder as it comes in the world."""

import os
import re
import subprocess
import sys
from pathlib import Path

import measuring
import numpy as np
import pytest
import yaml
from odd_files import forms, spoil, write_photos
from PIL import Image

from cascade.cli.main import main
from cascade.data import open_pictures
from cascade.data.crops import crop_adm, crop_rule
from cascade.data.drawings import DRAWINGS
from cascade.eval.references import ADM_CROP_RULE, load_reference
from cascade.measure.named import image_source
from cascade.stages.training import Data
from cascade.stages.training.odd_pictures import ODDITIES, Oddity

RECIPE = {
    "name": "tiny",
    "data": {"source": "set", "max_damaged": 0.5},
    "network": {
        "sample_size": 16,
        "channels": [8, 8],
        "blocks": [1, 1],
        "attention_sizes": [],
        "head_channels": 8,
        "layout": "efficient",
        "norm": "pixel",
    },
    "phases": [{"size": 16, "images": 200, "batch_size": 10}],
    "optimization": {"precision": "float32", "warmup": 0},
    "sampling": {"num_inference_steps": 1},
    "samples": {"count": 1},
    "checkpoint_every": 200,
}


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def counts_in(table: str) -> dict[Oddity, int]:
    """The counts of a printed table, with or without a rule that says which."""
    found = {}
    for oddity in ODDITIES:
        row = re.search(rf"^{re.escape(oddity.title)} +([\d,]+)  set/.*{re.escape(oddity.rule)}$", table, re.MULTILINE)
        if row:
            found[oddity] = int(row[1].replace(",", ""))
    return found


def test_check_counts_and_names_every_kind(here, capsys):
    expected = spoil(write_photos(Path("set"), 80), each=2)
    assert main(["data", "check", "set", "--size", "16", "--workers", "1"]) == 0
    out = capsys.readouterr().out
    found = counts_in(out)
    assert all(found[kind] >= count for kind, count in expected.items())
    assert {kind: found[kind] for kind in expected if not kind.usable} == {k: n for k, n in expected.items() if not k.usable}
    skipped = sum(count for kind, count in expected.items() if not kind.usable)
    assert out.splitlines()[-1] == f"80 pictures, 2 classes: {80 - skipped} usable at 16 px, {skipped} skipped"


def test_check_of_good_pictures_is_their_classes_and_one_line(here, capsys):
    write_photos(Path("set"), 6)
    assert main(["data", "check", "set", "--size", "24"]) == 0
    *classes, last = capsys.readouterr().out.splitlines()
    assert last == "6 pictures, 2 classes: 6 usable at 24 px, 0 skipped"
    assert classes[0] == "class  pictures" and len(classes) == 3
    assert main(["data", "check", "set", "--size", "64"]) == 1
    assert "no picture of set can be used at 64 px" in capsys.readouterr().err
    assert main(["data", "check", "nowhere"]) == 2
    assert "expected 'drawings', a folder" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["drawings", "drawings:train", "drawings:heldout"])
def test_the_drawings_have_the_same_names_for_checking_training_and_measuring(capsys, monkeypatch, name):
    monkeypatch.setattr("cascade.data.cached_array", lambda size, split, **_: measuring.drawings(size, split))
    monkeypatch.setattr("cascade.measure.named.cached_array", measuring.drawings)
    count = len(measuring.drawings(64, DRAWINGS[name])[0])
    assert main(["data", "check", name, "--size", "64"]) == 0
    *classes, last = capsys.readouterr().out.splitlines()
    assert last == f"{count} pictures, 75 classes: {count} usable at 64 px, 0 skipped" and len(classes) == 76
    assert len(open_pictures(Data(source=name), 64)) == len(image_source(name, size=64)[0]) == count


def test_the_crop_rule_of_training_is_on_record_as_adms_own_references_have_it():
    assert crop_rule("adm").recorded == ADM_CROP_RULE


@pytest.mark.skipif(os.geteuid() == 0, reason="everything may be read by root")
def test_what_may_not_be_read_is_counted(here, capsys):
    write_photos(Path("set"), 4)[0].chmod(0)
    assert main(["data", "check", "set", "--size", "16"]) == 0
    assert counts_in(capsys.readouterr().out) == {Oddity.UNREADABLE: 1}


def test_a_training_on_odd_files_tells_what_it_did(here, capsys):
    write_photos(Path("set"), 80)
    expected = spoil(sorted(Path("set").rglob("*.*"))[:40], each=1)
    Path("tiny.yaml").write_text(yaml.safe_dump(RECIPE))
    assert main(["train", "tiny.yaml"]) == 0
    told = capsys.readouterr().err
    found = counts_in(told)
    assert set(found) >= set(expected) and "odd pictures of 200 met" in told
    for kind, count in expected.items():
        if not kind.usable:
            assert found[kind] == count == told.count(f"is {kind.title}: {kind.rule}")


def test_a_training_stops_when_too_much_is_damaged(here, capsys):
    spoil(write_photos(Path("set"), 60), each=1)
    recipe = {**RECIPE, "data": {"source": "set", "max_damaged": 0.02}, "phases": [{"size": 16, "images": 900, "batch_size": 50}]}
    Path("tiny.yaml").write_text(yaml.safe_dump(recipe))
    assert main(["train", "tiny.yaml"]) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert re.search(r"\d+ of 500 pictures met can't be used \(1 missing, .*more than data.max_damaged, 2%", error)


def test_a_reference_of_photos_is_that_of_the_pictures_cut_by_the_rule(here, capsys, monkeypatch):
    """The same statistics as of PNG files that were cut beforehand; what can't be used is left out and told of."""
    measuring.quick(monkeypatch, here)
    photos = write_photos(Path("set"), 12, size=40)
    for i, path in enumerate(sorted(photos)):
        Path("cut").mkdir(exist_ok=True)
        with Image.open(path) as image:
            Image.fromarray(crop_adm(image, 32)).save(f"cut/{i:02}.png")
    Path("set/bee/99999.jpg").write_text("no picture")
    assert main(["evaluate", "reference", "set", "--crop", "adm", "--size", "32", "--out", "a.npz"]) == 0
    out, err = capsys.readouterr()
    assert "a.npz: 12 pictures of 32 px" in out and "not a picture      1  set/bee/99999.jpg" in err
    assert main(["evaluate", "reference", "cut", "--crop-rule", ADM_CROP_RULE, "--out", "b.npz"]) == 0
    one, other = load_reference(Path("a.npz")), load_reference(Path("b.npz"))
    assert one.provenance == other.provenance and np.array_equal(one.mean, other.mean) and np.array_equal(one.cov, other.cov)
    assert not list(here.glob(".cutting*"))
    assert main(["evaluate", "reference", "set", "--crop", "adm", "--out", "c.npz"]) == 2
    assert "crop needs the size" in capsys.readouterr().err


@pytest.mark.slow
def test_two_hundred_damaged_files_among_two_thousand(here):
    """All kinds but the unreadable, which root can't make; checked and trained on by the commands themselves."""
    per_kind = -(-200 // len(forms()))
    expected = spoil(write_photos(Path("set"), 2000, tuple("abcdefghij")), each=per_kind)
    assert sum(expected.values()) >= 200 and len(expected) >= 15
    command = [sys.executable, "-m", "cascade"]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    checked = subprocess.run([*command, "data", "check", "set", "--size", "16"], capture_output=True, text=True, env=environment)
    assert checked.returncode == 0, checked.stderr
    print(checked.stdout)
    found = counts_in(checked.stdout)
    assert {kind: found[kind] for kind in expected if not kind.usable} == {k: n for k, n in expected.items() if not k.usable}
    assert all(found[kind] >= count for kind, count in expected.items())
    recipe = {**RECIPE, "phases": [{"size": 16, "images": 4000, "batch_size": 50}], "checkpoint_every": 4000}
    Path("tiny.yaml").write_text(yaml.safe_dump(recipe))
    trained = subprocess.run([*command, "train", "tiny.yaml"], capture_output=True, text=True, env=environment)
    assert trained.returncode == 0, trained.stderr
    print(trained.stderr)
    assert counts_in(trained.stderr) == found  # two epochs meet every picture
