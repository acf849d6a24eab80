"""Presets: what is missing is said exactly; with files in place they become a cascade."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from cascade import BasePipeline, CascadePipeline, presets
from cascade.cli.generate import main as generate
from cascade.cli.main import main
from cascade.models import resolve
from cascade.stages.published import families
from cascade.stages.published.family import Checkpoint

REFERENCE = Path(__file__).parents[1] / "stages" / "published" / "reference"


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "cascade-diffusion"


def test_every_preset_names_published_files_that_are_known():
    assert set(presets.names()) >= {"adm-256", "edm2-autoguided-256", "few-step-256"}
    for name in presets.names():
        for stage in presets.stages_of(name).values():
            for file in filter(None, (stage, stage.guide)):
                known = families.known(file.file)
                assert known is not None and known[0].name == file.family, file.file
                assert file.published == known[1].url


def test_a_mistake_in_a_preset_is_answered_by_its_key_and_file(tiny_preset, tmp_path):
    path = tmp_path / "configs" / "presets" / "tiny.yaml"
    path.write_text(path.read_text().replace('"family"', '"famly"', 1))
    with pytest.raises(ValueError, match="tiny.yaml: unknown key 'stages.base.famly'; did you mean 'family'?"):
        presets.stages_of(tiny_preset)


def test_missing_files_are_listed_with_their_places(cache, capsys):
    assert generate(["--class", "281", "--model", "adm-256"]) == 2
    said = capsys.readouterr().err
    for file in ("64x64_diffusion.pt", "64_256_upsampler.pt"):
        assert str(cache / "published" / file) in said and f"jul-2021/{file}" in said
    assert "MIT" in said and "Traceback" not in said


def publish(cache: Path, monkeypatch, family: str, file: str) -> dict[str, object]:
    """A tiny 1,000-class checkpoint of a family with random weights, laid where the user would put it, and known by its name."""
    config = {**json.loads((REFERENCE / family / "config.json").read_text()), "num_classes": 1000}
    record = families.family_of(family)
    network = record.build(record.kept(config))
    generator = torch.Generator().manual_seed(len(file))
    weights = {
        name: torch.randn(value.shape, generator=generator) * 0.05 + (1 if value.ndim == 1 and "weight" in name else 0)
        for name, value in network.state_dict().items()
    }
    (cache / "published").mkdir(parents=True, exist_ok=True)
    save_file(weights, cache / "published" / file)
    known = Checkpoint(file=file, config=config, url="https://example.org", parameters=0, keys=len(weights))
    more = replace(record, checkpoints=(*record.checkpoints, known))
    monkeypatch.setattr(families, "FAMILIES", tuple(more if one is record else one for one in families.FAMILIES))
    return {"family": family, "file": file, "published": known.url, "licence": "MIT", "num_inference_steps": 3}


@pytest.fixture
def tiny_preset(tmp_path, cache, monkeypatch) -> str:
    """A base of one family under an upsampler of another."""
    stages = {
        "base": publish(cache, monkeypatch, "consistency", "tiny_base.safetensors"),
        "sr32": publish(cache, monkeypatch, "guided-diffusion-sr", "tiny_upsampler.safetensors"),
    }
    folder = tmp_path / "configs" / "presets"
    folder.mkdir(parents=True)
    (folder / "tiny.yaml").write_text(json.dumps({"name": "tiny", "stages": stages}))
    monkeypatch.setattr(presets, "CONFIGS", tmp_path / "configs")
    return "tiny"


def test_files_in_place_become_a_cascade_once(tiny_preset, cache):
    folder = resolve(tiny_preset)
    assert folder == cache / "presets" / "tiny" and "example.org" in (folder / "README.md").read_text()
    shutil.rmtree(cache / "published")
    assert resolve(tiny_preset) == folder  # the files are no longer needed
    cascade = CascadePipeline.from_pretrained(tiny_preset)
    assert cascade.sizes == {"base": 16, "sr32": 32} and cascade.num_classes == 1000
    assert cascade.stages["base"].config["num_inference_steps"] == 3


@pytest.mark.parametrize("scheduler", ["ddpm", "ddim", "dpm++", "unipc", "deis", "euler", "euler-a", "heun"])
def test_one_family_under_another_with_every_scheduler(tiny_preset, tmp_path, scheduler):
    """1,000 classes by WordNet id; finite pictures of the right size."""
    out = tmp_path / "cat.png"
    words = ["--class", "n02123045", "--model", tiny_preset, "--scheduler", scheduler, "--out", str(out), "--seed", "1"]
    words += ["--steps", "12"] * (scheduler == "heun")  # it is refused where it would make noise of steps as wide as three
    assert generate(words) == 0
    with Image.open(out) as image:
        assert image.size == (32, 32) and np.asarray(image).std() > 0


def test_convert_writes_a_stage_that_generates(tmp_path, cache, monkeypatch, capsys):
    entry = publish(cache, monkeypatch, "guided-diffusion", "tiny_adm.safetensors")
    out = tmp_path / "adm"
    assert main(["convert", "guided-diffusion", str(cache / "published" / str(entry["file"])), "--out", str(out)]) == 0
    assert capsys.readouterr().out.strip() == str(out)
    assert BasePipeline.from_pretrained(out)(class_labels=[5], num_inference_steps=2).images[0].size == (16, 16)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["adm", "x.pt"], "family is 'adm', expected one of"),
        (["guided-diffusion", "missing.pt"], "missing.pt"),
        (["guided-diffusion", "x.pt", "--config", "missing.json"], "there is no config missing.json"),
    ],
)
def test_convert_answers_mistakes_in_a_sentence(tmp_path, monkeypatch, capsys, words, said):
    monkeypatch.chdir(tmp_path)
    assert main(["convert", *words, "--out", "out"]) == 2
    error = capsys.readouterr().err
    assert said in error and len(error.strip().splitlines()) == 1 and not (tmp_path / "out").exists()
