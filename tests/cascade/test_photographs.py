"""SR3's tables on photographs: a stage without classes behind a base with some, by steps, judged among all of ImageNet's."""

import json

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler
from PIL import Image

from cascade import BasePipeline, CascadePipeline, SR3Pipeline
from cascade.classes import imagenet
from cascade.cli.main import main
from cascade.measure import named
from cascade.measure.super_resolution import evaluate_sr
from cascade.stages.unet import UNet

SHOWN = ("n01443537", "n02123045", "n07749582")
SHAPE = {"channels": [8], "blocks": [1], "attention_sizes": [], "head_channels": 8, "layout": "efficient"}


@pytest.fixture
def model():
    torch.manual_seed(0)
    base = BasePipeline(UNet(sample_size=8, num_classes=2, **SHAPE), DDIMScheduler(), num_inference_steps=1)
    later = SR3Pipeline(UNet(sample_size=16, low_res_size=8, **SHAPE), DDIMScheduler(), num_inference_steps=1)
    return CascadePipeline({"base": base, "sr16": later}, ["cat", "dog"], name="m")


@pytest.fixture
def photographs(tmp_path):
    for number, one in enumerate((*SHOWN, *SHOWN)):
        (tmp_path / "real" / one).mkdir(parents=True, exist_ok=True)
        pixels = np.random.default_rng(number).integers(0, 256, (16, 16, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / "real" / one / f"{number}.png")
    (tmp_path / "real" / "attribution.csv").write_text("file,author\n")
    return tmp_path / "real"


@pytest.fixture
def judged(monkeypatch):
    """How many pictures were judged at a time, by a network that always sees a goldfish."""
    seen = []

    class Network:
        def __init__(self, device):
            pass

        def probabilities(self, images):
            seen.append(len(images))
            return np.tile(np.arange(1000) == imagenet().index("goldfish"), (len(images), 1)).astype(float)

    monkeypatch.setattr(named, "EfficientNetLite", Network)
    return seen


def test_a_row_for_each_number_of_steps_and_errors_among_all_of_imagenets_classes(model, photographs, judged, tmp_path):
    how = {"images": photographs, "num_images": 6, "resamples": 0, "extractor": None}
    report = evaluate_sr(model, tmp_path / "out", by_steps=(1, 3), **how)
    rows = {row.name: row.values for row in report.rows}
    assert list(rows) == ["m, sr16, 1 step", "m, sr16, 3 steps", "bicubic", "originals"]
    assert [row["top-1 error"] for row in rows.values()] == pytest.approx([2 / 3] * 4) and sum(judged) == 4 * 6
    assert report.facts["classifier"] == "EfficientNet-Lite0"
    alone = evaluate_sr(model, tmp_path / "three", sampling=model.sampling(num_inference_steps=3), **how)
    assert alone.rows[0].name == "m, sr16" and alone.rows[0].values == rows["m, sr16, 3 steps"]
    assert rows["m, sr16, 1 step"]["PSNR"] != rows["m, sr16, 3 steps"]["PSNR"]
    for wrong in ((2, 2), (0,)):
        with pytest.raises(ValueError, match="by_steps are .* expected different numbers of at least 1"):
            evaluate_sr(model, tmp_path / "wrong", by_steps=wrong, **how)


def test_the_command_shows_rows_by_steps_beside_a_protocols_published_ones(model, photographs, judged, tmp_path, capsys):
    model.save_pretrained(tmp_path / "m")
    protocol = tmp_path / "small.yaml"
    lines = ["name: small", "title: Small", "kind: super-resolution", "size: 16", "low_res_size: 8", "num_images: 6"]
    lines += ["extractor: efficientnet-lite0", "distance: D", "published: [{name: Theirs, values: {PSNR: 27.9}, source: S}]"]
    protocol.write_text("\n".join(lines))
    words = ["evaluate", "sr", str(tmp_path / "m"), "--images", str(photographs), "--out", str(tmp_path / "out")]
    words += ["--no-distance", "--by-steps", "1,2", "--protocol", str(protocol), "--resamples", "0"]
    assert main(words) == 0
    capsys.readouterr()
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert [row["name"] for row in report["rows"]] == ["m, sr16, 1 step", "m, sr16, 2 steps", "bicubic", "originals", "Theirs"]
    assert report["title"] == "Small"
    assert main([*words, "--by-steps", "1,x"]) == 2 and main([*words, "--protocol", "photos-2"]) == 2
