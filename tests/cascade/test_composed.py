"""From stages, or the training runs that made them, to a model that knows its classes."""

import json
import shutil

import pytest
import torch
from diffusers import DDPMScheduler
from safetensors.torch import load_file
from tiny import CLASSES, base, network, sr3

from cascade import BasePipeline, CascadePipeline, SR3Pipeline, compose
from cascade.cli.main import main
from cascade.folder import Manifest
from cascade.models import resolve

ID2LABEL = dict(enumerate(CLASSES))


def named_base(**names):
    return BasePipeline(network(), DDPMScheduler(prediction_type="v_prediction"), num_inference_steps=2, **names)


@pytest.fixture
def runs(tmp_path):
    """Folders as a training run, and as `cascade train --export`, leave them; weights as float16."""
    later = sr3()
    refine = SR3Pipeline(later.unet, later.scheduler, num_inference_steps=1, id2label=ID2LABEL)
    named_base(id2label=ID2LABEL).to(torch.float16).save_pretrained(tmp_path / "run" / "stage")
    refine.to(torch.float16).save_pretrained(tmp_path / "sr16")
    return tmp_path


def test_a_model_of_a_run_and_a_stage_knows_its_classes_and_keeps_the_number_type(runs, capsys):
    assert main(["compose", str(runs / "run"), str(runs / "sr16"), "--out", str(runs / "pets")]) == 0
    assert capsys.readouterr().out == f"{runs / 'pets'}\n"
    manifest = Manifest.read(runs / "pets")
    assert (manifest.name, list(manifest.classes)) == ("pets", CLASSES)
    assert [(one.name, one.size, one.low_res_size) for one in manifest.stages] == [("base", 8, None), ("sr16", 16, 8)]
    for stage, before in (("base", runs / "run" / "stage"), ("sr16", runs / "sr16")):
        now, then = (
            load_file(folder / "unet" / "diffusion_pytorch_model.safetensors") for folder in (runs / "pets" / stage, before)
        )
        assert all(value.dtype == torch.float16 and torch.equal(value, then[name]) for name, value in now.items())
    picture = CascadePipeline.from_pretrained(runs / "pets")("dog", seeds=1).images[0]
    assert picture.size == (16, 16)


def test_from_python_it_is_the_same_model(runs):
    made = compose(runs / "run", runs / "sr16", name="pets", default_size=8)
    assert (made.name, made.default_size, made.dtype, list(made.classes)) == ("pets", 8, torch.float16, CLASSES)
    assert "cat" in made.classes and 2 in made.classes and "rat" not in made.classes and made.classes[0] == "cat"


def test_class_names_survive_composition_from_stages_in_memory():
    made = CascadePipeline({"base": named_base(id2label=ID2LABEL), "sr16": sr3()})
    assert list(made.classes) == CLASSES
    assert CascadePipeline({"base": named_base(), "sr16": sr3()}).classes is None
    other = SR3Pipeline(sr3().unet, sr3().scheduler, id2label={0: "ant", 1: "bee", 2: "fly"})
    with pytest.raises(ValueError, match="'base', 'sr16' were trained on classes of different names; give `classes`"):
        CascadePipeline({"base": named_base(id2label=ID2LABEL), "sr16": other})


@pytest.mark.parametrize("what", ["run", "run/stage"])
def test_a_run_or_a_base_stage_is_a_model(runs, what, capsys):
    out = runs / "cat.png"
    assert main(["generate", "--model", str(runs / what), "--class", "cat", "--out", str(out)]) == 0
    assert out.is_file()
    assert Manifest.read(resolve(runs / what)).name == "run"
    main(["classes", "--model", str(runs / what)])
    assert [line.split()[-1] for line in capsys.readouterr().out.splitlines()[-3:]] == CLASSES


def test_a_stage_that_enlarges_says_how_it_becomes_a_model(runs, capsys):
    assert main(["generate", "--model", str(runs / "sr16"), "--class", "cat"]) == 2
    assert f"`cascade compose BASE {runs / 'sr16'} --out MODEL`" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("stages", "problem"),
    [
        (["nothing"], "nothing holds no stage; give the folder of a stage, or of the training run that made one"),
        (["run", "run"], "is a second stage 'base'; give one base"),
        (["sr16"], "the first stage, 'sr16', enlarges images; put a base before it"),
    ],
)
def test_what_makes_no_model_is_refused_in_one_sentence(runs, stages, problem, capsys):
    assert main(["compose", *(str(runs / stage) for stage in stages), "--out", str(runs / "out")]) == 2
    assert problem in capsys.readouterr().err and not (runs / "out").exists()


def test_nothing_but_a_model_is_replaced(runs, capsys):
    shutil.copytree(runs / "run", runs / "mine")
    assert main(["compose", str(runs / "run"), "--out", str(runs / "mine")]) == 2
    assert "is there already and is not a cascade" in capsys.readouterr().err
    assert json.loads((runs / "mine" / "stage" / "model_index.json").read_text())["_class_name"] == "BasePipeline"


def test_tiny_stages_without_names_are_known_by_index(tmp_path):
    base().save_pretrained(tmp_path / "stage")
    assert compose(tmp_path / "stage").classes is None
