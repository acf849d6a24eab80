"""`cascade sample`: the run it makes, its record, several processes, and how mistakes are answered."""

import json

import numpy as np
import pytest
import torch
from PIL import Image
from tiny import base, cascade, sr3

from cascade.cli.main import main
from cascade.runs.record import model_hash


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models") / "tiny"
    cascade(base=base(), sr16=sr3()).save_pretrained(folder)
    return folder


@pytest.fixture(autouse=True)
def threads():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def sample(model, out, *words):
    return main(["sample", str(model), "--out", str(out), "--device", "cpu", "--processes", "1", *words])


def files(folder):
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def test_a_run_is_a_folder_of_pictures_and_a_record(model, tmp_path, capsys):
    assert sample(model, tmp_path / "run", "--num-images", "4", "--seed", "7", "--steps", "base=2") == 0
    assert capsys.readouterr().out == f"{tmp_path / 'run'}: 4 pictures of 16 px\n"
    assert sorted(files(tmp_path / "run")) == [f"{i:06d}.png" for i in range(4)] + ["run.json"]
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    assert record["model"] == {"name": "tiny", "sha256": model_hash(model)}
    assert record["plan"]["labels"] == "balanced" and record["plan"]["seed"] == 7 and record["plan"]["batch_size"] == 1
    assert record["settings"]["stages"]["base"]["num_inference_steps"] == 2 and record["settings"]["threads"] == 1
    assert record["cost"]["base"]["nfe"] == 2 and record["cost"]["sr16"]["nfe"] == 2
    assert record["cost"]["sr16"]["multiply_adds"] > record["cost"]["base"]["multiply_adds"] > 0
    made = cascade(base=base(), sr16=sr3())(class_labels=[0], seeds=[10], num_inference_steps={"base": 2}).images[0]
    with Image.open(tmp_path / "run" / "000003.png") as image:
        assert np.array_equal(np.asarray(image), np.asarray(made))


def test_the_same_command_completes_a_run_and_another_is_refused(model, tmp_path, capsys):
    out = tmp_path / "run"
    assert sample(model, out, "--num-images", "3", "--size", "8") == 0
    before = files(out)
    (out / "000001.png").unlink()
    assert sample(model, out, "--num-images", "3", "--size", "8") == 0
    assert files(out) == before
    capsys.readouterr()
    assert sample(model, out, "--num-images", "3", "--size", "8", "--steps", "1") == 2
    err = capsys.readouterr().err
    assert "num_inference_steps 3, not 1" in err and len(err.splitlines()) == 1 and files(out) == before


def test_several_processes_and_torchruns_make_the_same_files(model, tmp_path, monkeypatch):
    words = ["--num-images", "3", "--size", "8"]
    assert sample(model, tmp_path / "one", *words) == 0
    assert sample(model, tmp_path / "two", *words, "--processes", "2") == 0
    for rank in ("1", "0"):
        monkeypatch.setenv("RANK", rank)
        monkeypatch.setenv("WORLD_SIZE", "2")
        assert sample(model, tmp_path / "torchrun", *words) == 0
    assert files(tmp_path / "one") == files(tmp_path / "two") == files(tmp_path / "torchrun")


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        (["--num-images", "0"], "argument --num-images: '0' is not a whole number of at least 1"),
        (["--num-images", "2", "--labels", "most"], "argument --labels"),
        (["--num-images", "2", "--size", "9"], "no stage of 'tiny' makes 9x9 images"),
        (["--num-images", "2", "--format", "jpg"], "argument --format"),
        ([], "--num-images"),
    ],
)
def test_a_wrong_request_is_one_sentence(model, tmp_path, capsys, words, problem):
    assert sample(model, tmp_path / "run", *words) == 2
    out, err = capsys.readouterr()
    assert problem in err and out == "" and len(err.splitlines()) == 1 and not (tmp_path / "run").exists()


def test_a_folder_of_something_else_is_refused_before_the_model_is_loaded(model, tmp_path, capsys, monkeypatch):
    (tmp_path / "thesis.doc").touch()
    monkeypatch.setattr("cascade.cli.request.Request.load", lambda request: pytest.fail("loaded"))
    assert sample(model, tmp_path, "--num-images", "2") == 2
    assert "is not empty and holds no sampling run" in capsys.readouterr().err
