"""`cascade benchmark` and its protocols: the table, the floor, what is not comparable, and how mistakes are answered."""

import json
import re

import measuring
import numpy as np
import pytest
import torch
from PIL import Image

from cascade.cli.main import main
from cascade.protocols import load_protocol, protocol_names

PROTOCOL = """
name: mine
title: Mine
kind: samples
size: 64
num_images: 50000
labels: balanced
extractor: efficientnet-lite0
distance: distance
reference: drawings:train
crop_rule: drawings
published:
  - {name: Theirs, values: {distance: 3.94}, source: their paper}
"""


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return measuring.model(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture(autouse=True)
def quick(monkeypatch, tmp_path):
    measuring.quick(monkeypatch, tmp_path)
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


def benchmark(model, out, *words):
    return main(["benchmark", str(model), "--out", str(out), "--device", "cpu", "--processes", "1", "--steps", "1", *words])


def files(folder):
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_the_protocols_that_come_with_it_are_sound():
    assert protocol_names() == ["emoji-256", "emoji-64", "imagenet-256", "imagenet-64", "sr3-faces-128"]
    for name in protocol_names():
        protocol = load_protocol(name)
        assert all(row.source for row in protocol.published)
        assert (protocol.reference is None) == (protocol.reference_file is not None), "one way to come to a reference"
    rows = {row.name: row for row in load_protocol("imagenet-256").published}
    assert rows["SR3, two stages"].values["FID"] == 11.3 and rows["CDM"].values["FID"] == 4.88
    assert rows["ADM-G + ADM-U"].values == {"FID": 3.94, "IS": 215.84, "precision": 0.83, "recall": 0.53}
    assert load_protocol("sr3-faces-128").published[-2].values == {"PSNR": 23.04, "SSIM": 0.65, "consistency": 2.68}


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (("kind: samples", "kind: videos"), "kind is 'videos', expected one of samples, super-resolution"),
        (("size: 64", "size: big"), "size is 'big', expected a whole number"),
        (("size: 64", "sise: 64"), "unknown key 'sise'; did you mean 'size'?"),
        (("title: Mine", ""), "title is missing"),
        (("labels: balanced", "labels: most"), "labels is 'most'"),
        (("3.94", "low"), "distance of 'Theirs' is 'low', expected a number"),
        (("name: mine", "name: yours"), "name is 'yours', expected 'mine'"),
        (("kind: samples", "kind: super-resolution"), "only super-resolution has one, and needs it"),
    ],
)
def test_a_protocol_file_is_checked(tmp_path, change, problem):
    path = tmp_path / "mine.yaml"
    path.write_text(PROTOCOL.replace(*change, 1))
    with pytest.raises(ValueError, match=re.escape(problem)) as caught:
        load_protocol(str(path))
    assert str(path) in str(caught.value)


def test_emoji_shows_model_and_floor_with_equal_counts_and_resumes(model, tmp_path, capsys):
    out = tmp_path / "bench"
    assert benchmark(model, out, "--protocol", "emoji-64", "--num-images", "8") == 0
    told = capsys.readouterr().out
    assert "EfficientNet-Lite Frechet distance" in told and "not FID" in told and "| FID" not in told
    report = json.loads((out / "report.json").read_text())
    ours, floor = report["rows"]
    assert floor["name"] == "held-out drawings (floor)" and report["details"]["scores"]["samples"]["frechet"]["num_samples"] == 8
    assert report["details"]["scores"]["heldout"]["frechet"]["num_samples"] == 8
    assert ours["values"]["EfficientNet-Lite Frechet distance"] > floor["values"]["EfficientNet-Lite Frechet distance"] > 0
    assert ours["values"]["NFE"] == "1 + 1" and {"class agreement", "among five", "closer to training"} <= set(ours["values"])
    labels = report["details"]["run"]["plan"]["labels"]
    assert len(labels) == 8 and set(labels) <= set(measuring.drawings(64, "heldout")[1].tolist())
    before = files(out)
    (out / "samples" / "000003.png").unlink()
    assert benchmark(model, out, "--protocol", "emoji-64", "--num-images", "8") == 0
    assert files(out) == before, "a resumed benchmark ends in the same bytes"


def test_the_page_needs_no_other_file(model, tmp_path):
    assert benchmark(model, tmp_path / "bench", "--protocol", "emoji-64", "--num-images", "5") == 0
    page = (tmp_path / "bench" / "report.html").read_text()
    assert page.count("data:image/png;base64,") == 2 and not re.search(r"(src|href)=\"(?!data:)", page)
    assert "http" not in page and "held-out drawings (floor)" in page
    text = (tmp_path / "bench" / "report.md").read_text()
    for name in re.findall(r"\]\((pictures/[^)]+)\)", text):
        with Image.open(tmp_path / "bench" / name) as picture:
            assert np.asarray(picture).std() > 0


def test_few_samples_stand_beside_no_published_figure(model, tmp_path, capsys):
    path = tmp_path / "mine.yaml"
    path.write_text(PROTOCOL)
    assert benchmark(model, tmp_path / "bench", "--protocol", str(path), "--num-images", "6") == 0
    out = capsys.readouterr().out
    assert "6 samples are fewer than 10,000: our row is not comparable" in out
    assert re.search(r"\| Theirs +\| +3.94 .*not comparable: their paper", out)


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        (["--protocol", "imagenet-1"], "there is no protocol 'imagenet-1'; choose one of emoji-256"),
        (["--protocol", "imagenet-64"], "needs --reference: VIRTUAL_imagenet64_labeled.npz"),
        (["--protocol", "imagenet-256"], "--size is 256, but the stages of 'tiny' make 16, 64 px"),
        (["--protocol", "sr3-faces-128"], "needs --reference: a folder of CelebA-HQ"),
        (["--protocol", "emoji-64", "--num-images", "13"], "there are only 12 held-out drawings"),
    ],
)
def test_a_wrong_request_is_one_sentence(model, tmp_path, capsys, words, problem):
    assert benchmark(model, tmp_path / "bench", *words) == 2
    out, err = capsys.readouterr()
    assert problem in err and out == "" and len(err.splitlines()) == 1 and not (tmp_path / "bench").exists()
