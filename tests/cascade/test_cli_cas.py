"""`cascade evaluate cas`: what is learned from which pictures, how classes find each other, and how mistakes are answered."""

import json
from dataclasses import asdict

import numpy as np
import pytest
import torch
from PIL import Image

from cascade.cli.main import main
from cascade.eval.classification_score import Training
from cascade.measure.classification_score import classification_score
from cascade.runs.plan import RunPlan
from cascade.runs.record import FORMAT

QUICK = ["--network", "small", "--epochs", "1", "--batch-size", "8", "--device", "cpu"]


@pytest.fixture(autouse=True)
def threads():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def stripes(across, number, width=32, height=32):
    """Across or down, in a phase of their own, under noise."""
    rng = np.random.default_rng([across, number])
    wave = 128 + 60 * np.sin(np.arange(height if across else width) * 2 * np.pi / 8 + rng.uniform(0, 6))
    plane = np.broadcast_to(wave[:, None] if across else wave, (height, width))
    pixels = plane[..., None] + rng.normal(0, 20, (height, width, 3))
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


def folders(root, count, first=0, names=("across", "down"), size=(32, 32)):
    """Class folders of stripes; the first class has those across."""
    for place, name in enumerate(names):
        (root / name).mkdir(parents=True)
        for number in range(first, first + count):
            stripes(place == 0, number, *size).save(root / name / f"{number}.png")
    return root


def run(root, count):
    """A sampling run of two classes in turn, 0 = across."""
    root.mkdir()
    plan = asdict(RunPlan(num_images=count, size=32, seed=0, labels="balanced", num_classes=2))
    (root / "run.json").write_text(json.dumps({"format": FORMAT, "plan": plan}))
    for number in range(count):
        stripes(number % 2 == 0, number).save(root / f"{number:06d}.png")
    return root


def refused(capsys, *words):
    assert main(["evaluate", "cas", *map(str, words), *QUICK]) == 2
    return capsys.readouterr().err


def test_a_run_is_learned_from_and_tested_on_class_folders_in_the_order_of_their_names(tmp_path, capsys):
    """The classes of the run are numbers, those of the folders names: numbered the other way round, all would be wrong."""
    samples, real = run(tmp_path / "run", 80), folders(tmp_path / "real", 15, first=100)
    words = ["evaluate", "cas", str(samples), str(real), "--out", str(tmp_path / "out"), *QUICK, "--epochs", "6"]
    assert main(words) == 0
    out = capsys.readouterr().out
    kept = (tmp_path / "out" / "score.json").read_bytes()
    score = json.loads(kept)
    assert score["top1"]["estimate"] > 90 and score["top5"]["estimate"] == 100, "there are but two classes"
    assert (score["num_samples"], score["num_real"], score["num_classes"], score["unusable"]) == (80, 30, 2, 0)
    assert score["training"] == {"network": "small", "epochs": 6, "batch_size": 8, "seed": 0}
    assert "top-1 " in out and "that learned from 80 samples of 2 classes in 6 passes" in out
    assert main(words) == 0 and (tmp_path / "out" / "score.json").read_bytes() == kept, "it is only tested again"
    (real / "across").rename(real / "zigzag")  # now the second by name
    assert main(words) == 0
    assert json.loads((tmp_path / "out" / "score.json").read_text())["top1"]["estimate"] < 10
    words[words.index("--epochs", 12) + 1] = "7"
    assert main(words) == 2 and "holds a run with settings.training.epochs 6, not 7" in capsys.readouterr().err


def test_a_stopped_training_goes_on_where_it_was_stopped(tmp_path, monkeypatch):
    samples, real = folders(tmp_path / "samples", 8), folders(tmp_path / "real", 3, first=100)
    words = ["evaluate", "cas", str(samples), str(real), *QUICK, "--epochs", "3", "--out"]
    assert main([*words, str(tmp_path / "whole")]) == 0

    class Stop(Exception):
        pass

    def in_the_second_pass(title, done, total):
        if title.startswith("pass 2"):
            raise Stop

    training = Training(network="small", epochs=3, batch_size=8)
    with pytest.raises(Stop):
        classification_score(samples, real, tmp_path / "stopped", training=training, device="cpu", on_progress=in_the_second_pass)
    assert not (tmp_path / "stopped" / "score.json").exists()
    assert main([*words, str(tmp_path / "stopped")]) == 0
    for name in ("score.json", "classifier.safetensors"):
        assert (tmp_path / "stopped" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def test_photos_are_cut_and_those_too_small_are_counted(tmp_path, capsys):
    samples, real = run(tmp_path / "run", 8), folders(tmp_path / "photos", 3, size=(64, 40))
    stripes(True, 9, 20, 20).save(real / "across" / "small.png")
    words = ["evaluate", "cas", str(samples), str(real), "--crop", "adm", *QUICK, "--out", str(tmp_path / "out")]
    assert main(words) == 0
    assert "of 6 real pictures, 1 more could not be used" in capsys.readouterr().out
    assert "needs the size" in refused(capsys, real, real, "--crop", "adm", "--out", tmp_path / "other")
    words[2:4] = [str(real), str(real)]
    words[-1] = str(tmp_path / "sized")
    assert main([*words, "--size", "32"]) == 0 and "learned from 7 samples" in capsys.readouterr().out
    assert main([*words[:-1], str(tmp_path / "large"), "--size", "256"]) == 2
    assert "at least 2 usable samples" in capsys.readouterr().err


def test_an_archive_says_its_classes_by_numbers(tmp_path, capsys):
    pixels = np.stack([np.asarray(stripes(number % 2 == 0, number)) for number in range(8)])
    np.savez(tmp_path / "a.npz", arr_0=pixels, arr_1=np.arange(8) % 2)
    np.savez(tmp_path / "three.npz", arr_0=pixels, arr_1=np.arange(8) % 3)
    np.savez(tmp_path / "none.npz", arr_0=pixels)
    np.savez(tmp_path / "words.npz", arr_0=pixels, arr_1=np.array(["a", "b"] * 4))
    a, out = tmp_path / "a.npz", ("--out", tmp_path / "out")
    assert main(["evaluate", "cas", str(a), str(a), *map(str, out), *QUICK]) == 0
    capsys.readouterr()
    out = ("--out", tmp_path / "other")
    assert "shows class 2, but" in refused(capsys, a, tmp_path / "three.npz", *out)
    assert "doesn't say by numbers" in refused(capsys, tmp_path / "none.npz", a, *out)
    assert "arr_1 as <U1 of shape (8,), expected a class per image" in refused(capsys, tmp_path / "words.npz", a, *out)
    assert "has 2 class folders, but" in refused(capsys, tmp_path / "three.npz", folders(tmp_path / "real", 1), *out)
    assert not (tmp_path / "other").exists()


def test_pictures_whose_classes_are_not_known_or_others_are_refused(tmp_path, capsys):
    samples, real = folders(tmp_path / "samples", 2), folders(tmp_path / "real", 2, names=("across", "dots"))
    out = ("--out", tmp_path / "out")
    assert "has the class 'dots', which" in refused(capsys, samples, real, *out)
    stripes(True, 0).save(samples / "outside.png")
    assert "outside of class folders" in refused(capsys, samples, real, *out)
    made = run(tmp_path / "run", 4)
    (made / "000003.png").unlink()
    assert "has 3 pictures but 4 classes; is its run complete" in refused(capsys, made, real, *out)
    (made / "run.json").write_text(json.dumps({"format": FORMAT, "settings": {}}))
    assert "holds no sampling run" in refused(capsys, made, real, *out)
    assert "there is no" in refused(capsys, tmp_path / "nothing", real, *out)
    assert not (tmp_path / "out").exists()
