"""Presets: what is missing is said exactly; with files in place they become a cascade."""

import hashlib
import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tiny
import torch
from PIL import Image
from safetensors.torch import save_file

from cascade import BasePipeline, CascadePipeline, models, presets
from cascade.catalogue import catalogue
from cascade.cli.generate import main as generate
from cascade.cli.main import main
from cascade.costs import cost_of
from cascade.models import resolve
from cascade.stages.denoiser import ClassifierGuidance
from cascade.stages.published import families
from cascade.stages.published.family import Checkpoint

REFERENCE = Path(__file__).parents[1] / "stages" / "published" / "reference"


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "cascade-diffusion"


def test_every_preset_names_published_files_that_are_known():
    wanted = "adm-256 adm-g-256 adm-g-u-256 edm2-autoguided-256 few-step-256 jit-b-256 pmf-b-256 pmf-b-1024"
    assert set(presets.names()) >= set(wanted.split())
    for name in presets.names():
        for file in presets.files_of(presets.named(name)):
            known = families.known(file.file)
            assert known is not None and known[0].name == file.family, file.file
            assert file.published == known[1].url


def test_a_mistake_in_a_preset_is_answered_by_its_key_and_file(tiny_preset, tmp_path):
    path = tmp_path / "configs" / "presets" / "tiny.yaml"
    path.write_text(path.read_text().replace('"family"', '"famly"', 1))
    with pytest.raises(ValueError, match="tiny.yaml: unknown key 'stages.base.famly'; did you mean 'family'?"):
        presets.named(tiny_preset)


def test_missing_files_are_listed_with_their_places(cache, capsys):
    assert generate(["--class", "281", "--model", "adm-256"]) == 2
    said = capsys.readouterr().err
    for file in ("64x64_diffusion.pt", "64_256_upsampler.pt"):
        assert str(cache / "published" / file) in said and f"jul-2021/{file}" in said
    assert "MIT" in said and "Traceback" not in said


def publish(cache: Path, monkeypatch, family: str, file: str) -> dict[str, object]:
    """A tiny 1,000-class checkpoint of a family with random weights, laid where the user would put it, and known by its name."""
    record = families.family_of(family)
    if record.classifier is None:
        config = {**json.loads((REFERENCE / family / "config.json").read_text()), "num_classes": 1000}
    else:
        flags = {**record.checkpoints[0].config["flags"], "image_size": 16, "classifier_width": 32}
        config = {"flags": flags | {"classifier_attention_resolutions": "8"}, "channel_mult": [1, 2], "num_classes": 1000}
    if "init_kwargs" in config:
        config["init_kwargs"]["num_classes"] = 1000
    network = record.build(record.kept(config))
    generator = torch.Generator().manual_seed(len(file))
    weights = {
        name: torch.randn(value.shape, generator=generator) * 0.05 + (1 if value.ndim == 1 and "weight" in name else 0)
        for name, value in network.state_dict().items()
    }
    (cache / "published").mkdir(parents=True, exist_ok=True)
    save_file(weights, cache / "published" / file)
    known = Checkpoint(file=file, config=record.kept(config), url=f"https://example.org/{file}", parameters=0, keys=len(weights))
    more = replace(record, checkpoints=(*record.checkpoints, known))
    monkeypatch.setattr(families, "FAMILIES", tuple(more if one is record else one for one in families.FAMILIES))
    return {"family": family, "file": file, "published": known.url, "licence": "MIT"}


def preset(tmp_path: Path, monkeypatch, name: str, **content: object) -> str:
    """A preset of a user's configs folder."""
    folder = tmp_path / "configs" / "presets"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{name}.yaml").write_text(json.dumps({"name": name, **content}))
    monkeypatch.setattr(presets, "CONFIGS", tmp_path / "configs")
    return name


@pytest.fixture
def tiny_preset(tmp_path, cache, monkeypatch) -> str:
    """A base of one family under an upsampler of another."""
    sampled = {"num_inference_steps": 3, "nfe": 3}
    stages = {
        "base": publish(cache, monkeypatch, "consistency", "tiny_base.safetensors") | sampled | {"size": 16},
        "sr32": publish(cache, monkeypatch, "guided-diffusion-sr", "tiny_upsampler.safetensors") | sampled | {"size": 32},
    }
    return preset(tmp_path, monkeypatch, "tiny", stages=stages, nfe=6, tmac_per_image=0.1)


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


def test_guide_of_a_preset_may_be_a_classifier(cache, tmp_path, monkeypatch):
    base = publish(cache, monkeypatch, "guided-diffusion", "tiny_adm.safetensors") | {"num_inference_steps": 4, "size": 16}
    guide = publish(cache, monkeypatch, "guided-diffusion-classifier", "tiny_classifier.safetensors")
    preset(tmp_path, monkeypatch, "tiny-g", stages={"base": {**base, "guide": guide, "guidance_scale": 9.0}})
    pictures = []
    for scale in ("9", "1"):
        out = tmp_path / f"{scale}.png"
        words = ["--class", "281", "--model", "tiny-g", "--out", str(out), "--seed", "1"]
        assert generate([*words, *["--guidance-scale", "1"] * (scale == "1")]) == 0
        pictures.append(np.asarray(Image.open(out)))
    assert pictures[0].shape == (16, 16, 3) and (pictures[0] != pictures[1]).any()
    stage = CascadePipeline.from_pretrained("tiny-g").stages["base"]
    assert isinstance(stage.guided(None, None), ClassifierGuidance) and stage.guided(None, None).strength == 8.0


def test_flow_map_with_a_stage_of_ours_behind_it(cache, tmp_path, monkeypatch):
    """pMF's picture goes on into a stage that was trained on other classes, and is told of none."""
    base = publish(cache, monkeypatch, "pmf", "tiny_pmf.safetensors") | {"num_inference_steps": 1, "size": 32}
    ours = CascadePipeline({"base": tiny.base(sample_size=32), "sr64": tiny.sr3(64, 32)}, tiny.CLASSES, name="ours")
    ours.save_pretrained(tmp_path / "ours")
    monkeypatch.setitem(models.SHIPPED, "ours", tmp_path / "ours")
    preset(tmp_path, monkeypatch, "tiny-pmf", stages={"base": base}, behind={"sr64": "ours"}, nfe=3, tmac_per_image=0.1)
    assert generate(["--class", "tabby", "--model", "tiny-pmf", "--out", str(tmp_path / "cat.png")]) == 0
    assert Image.open(tmp_path / "cat.png").size == (64, 64)
    made = CascadePipeline.from_pretrained("tiny-pmf")
    assert made.sizes == {"base": 32, "sr64": 64} and made.num_classes == 1000 and made.stages["sr64"].unet.num_classes is None
    assert next(one for one in catalogue() if one.name == "tiny-pmf").sizes == (32, 64)
    made.set_progress_bar_config(disable=True)
    assert cost_of(made, 64, made.sampling(guidance_scale={"base": 5.0}))["base"]["nfe"] == 1

    preset(tmp_path, monkeypatch, "tiny-wrong", stages={"base": base}, behind={"sr128": "ours"})
    with pytest.raises(ValueError, match="needs the stage 'sr128' of 'ours', which has none of that name"):
        resolve("tiny-wrong")
    assert not (cache / "presets" / "tiny-wrong").exists()


def test_files_with_a_published_hash_are_checked(cache, tmp_path, monkeypatch):
    entry = publish(cache, monkeypatch, "pmf", "tiny_pmf.safetensors") | {"size": 32}
    file = cache / "published" / "tiny_pmf.safetensors"
    digest = hashlib.sha256(file.read_bytes()).hexdigest()
    preset(tmp_path, monkeypatch, "right", stages={"base": {**entry, "sha256": digest}})
    assert digest in (resolve("right") / "README.md").read_text()
    preset(tmp_path, monkeypatch, "wrong", stages={"base": {**entry, "sha256": "0" * 64}})
    with pytest.raises(ValueError, match=f"has SHA-256 {digest}, but its authors published 0000.*get it again from"):
        resolve("wrong")


def test_models_are_listed_with_what_they_lack_and_how_to_get_it(tiny_preset, cache, tmp_path, monkeypatch, capsys):
    page = {"family": "jit", "file": "JiT-B-16.pth", "published": "https://github.com/LTH14/JiT", "licence": "MIT", "size": 256}
    preset(tmp_path, monkeypatch, "by-hand", stages={"base": page}, nfe=1, tmac_per_image=0.1)
    (cache / "published" / "tiny_base.safetensors").unlink()
    assert main(["models"]) == 0
    said = capsys.readouterr().out
    assert "emoji (model): 64 -> 256 -> 1024 px, 75 classes, 60 MB, apache-2.0-weights" in said
    assert "tiny (preset): 16 -> 32 px, 1000 classes, size not stated, MIT\n  6 evaluations, 0.1 TMAC" in said
    place = cache / "published" / "tiny_base.safetensors"
    command = f"curl --fail --location --create-dirs --output {place} https://example.org/tiny_base.safetensors"
    assert f"lacks 1 of its files:\n    {command}\n" in said
    assert f"get it by way of https://github.com/LTH14/JiT and name it {cache / 'published' / 'JiT-B-16.pth'}" in said
    publish(cache, monkeypatch, "consistency", "tiny_base.safetensors")
    resolve(tiny_preset)
    shutil.rmtree(cache / "published")
    assert main(["models"]) == 0
    assert "FID not measured\n  ready" in capsys.readouterr().out


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
