"""One record says everything of a family: each is complete, and a further one takes its module and its line."""

import dataclasses
import json
import sys
from importlib import import_module
from pathlib import Path

import pytest
import references
import torch
import toy_family
from diffusers import ConfigMixin, SchedulerMixin
from references import config_of, stage_of

from cascade.cli.main import main
from cascade.stages import published
from cascade.stages.base import BasePipeline
from cascade.stages.denoiser import PREDICTION_TYPES
from cascade.stages.published import families
from cascade.stages.published.family import Family

BY_NAME = pytest.mark.parametrize("family", families.FAMILIES, ids=lambda family: family.name)

# What converted folders name, for ever: the networks of stages, and schedulers of ours.
SAVED = {
    "guided-diffusion": "guided_diffusion.GuidedDiffusionDenoiser",
    "guided-diffusion-sr": "guided_diffusion.GuidedDiffusionDenoiser",
    "improved-diffusion": "improved_diffusion.ImprovedDiffusionDenoiser",
    "improved-diffusion-sr": "improved_diffusion.ImprovedDiffusionDenoiser",
    "consistency": "consistency.ConsistencyDenoiser",
    "edm": "edm.EDMDenoiser",
    "edm2": "edm2.EDM2Denoiser",
    "sr3": "janspiry.JanspirySR3Denoiser",
    "sr3-ddpm": "janspiry.JanspiryDDPMDenoiser",
    "jit": "jit.JiTDenoiser",
    "pmf": "pmf.MeanFlowDenoiser",
}
SAVED_SCHEDULERS = {
    "consistency": "consistency.ConsistencyScheduler",
    "edm": "heun.EDMHeunScheduler",
    "edm2": "heun.EDMHeunScheduler",
    "jit": "heun.FlowHeunScheduler",
}


def test_names_of_families_and_files_are_theirs_alone() -> None:
    names = [family.name for family in families.FAMILIES]
    files = [checkpoint.file for family in families.FAMILIES for checkpoint in family.checkpoints]
    assert len(set(names)) == len(names) and len(set(files)) == len(files)
    assert {family.name for family in families.FAMILIES if family.denoiser} == set(references.FAMILIES) == set(SAVED)


@BY_NAME
def test_record_is_complete(family: Family) -> None:
    assert families.family_of(family.name) is family
    for field in dataclasses.fields(family):
        optional = {"denoiser", "sampler", "pickled_classes", "checkpoints", "average", "told_by_shapes", "classifier"}
        assert field.name in optional or getattr(family, field.name), field.name
    assert (family.denoiser is None) == (family.sampler is None) == (family.classifier is not None)
    assert family.project.startswith("https://github.com/") and family.config_keys[0] in family.config_hint
    for checkpoint in family.checkpoints:
        assert families.known(checkpoint.file) == (family, checkpoint)
        assert checkpoint.url.startswith("https://") and checkpoint.parameters > 1e6 and checkpoint.keys > 100
        assert family.kept(checkpoint.config) == {"family": family.name, **checkpoint.config}  # none of it is commentary
        if family.denoiser is not None and family.sampler is not None:
            with torch.device("meta"):
                denoiser = family.denoiser(published=family.kept(checkpoint.config))
            scheduler, settings = family.sampler(checkpoint.config)
            assert denoiser.prediction_type in PREDICTION_TYPES and denoiser.config.sample_size > 0
            assert isinstance(scheduler, SchedulerMixin) and isinstance(scheduler, ConfigMixin)
            assert settings["num_inference_steps"] > 0


@pytest.mark.parametrize("name", SAVED)
def test_modules_of_saved_classes_have_not_moved(name: str) -> None:
    module, class_name = SAVED[name].split(".")
    found = families.family_of(name).denoiser
    assert found is getattr(import_module(f"cascade.stages.published.{module}"), class_name)
    assert type(stage_of(name).unet) is found
    scheduler = type(stage_of(name).scheduler)
    full = f"{scheduler.__module__}.{scheduler.__name__}"
    assert full.removeprefix("cascade.stages.published.") == SAVED_SCHEDULERS.get(name) or full.startswith("diffusers.")
    assert full.startswith("diffusers.") == (name not in SAVED_SCHEDULERS)


def test_help_of_convert_names_every_family(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["convert", "--help"])
    listed = capsys.readouterr().out.split("families:")[1].split("examples:")[0].replace(",", " ").split()
    assert listed == [family.name for family in families.FAMILIES if family.denoiser]


def test_a_further_family_is_its_module_and_its_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    weights = torch.linspace(-1, 1, 5 * 3 * 4**2).view(5, -1)
    torch.save({"ema.pictures.weight": weights}, tmp_path / "toy.pt")
    with pytest.raises(ValueError, match="family is 'toy', expected one of guided-diffusion"):
        published.load("toy", tmp_path / "toy.pt")

    module = "cascade.stages.published.toy"
    monkeypatch.setitem(sys.modules, module, toy_family)
    monkeypatch.setattr(toy_family.BrushDenoiser, "__module__", module)
    monkeypatch.setattr(families, "FAMILIES", (*families.FAMILIES, toy_family.FAMILY))

    assert torch.equal(published.load("toy", tmp_path / "toy.pt").pictures.weight, weights)
    with pytest.raises(ValueError, match="toy.pt is a toy checkpoint, but the family asked for is edm2"):
        published.load("edm2", tmp_path / "toy.pt")
    folder = published.convert("toy", tmp_path / "toy.pt", None, tmp_path / "stage")
    assert json.loads((folder / "model_index.json").read_text())["unet"] == [module, "BrushDenoiser"]
    assert "https://example.org/toy.pt" in (folder / "README.md").read_text()
    stage = BasePipeline.from_pretrained(folder)
    stage.set_progress_bar_config(disable=True)
    images = stage(class_labels=[3, 0], output_type="pt").images
    torch.testing.assert_close(images, weights[[3, 0]].tanh().view(2, 3, 4, 4))


def test_commentary_of_a_configuration_is_left_out_and_its_options_are_not() -> None:
    family, config = families.family_of("sr3"), config_of("sr3")
    kept = family.kept({**config, "low_res_size": 16, "note": "mine"})
    assert "note" not in kept and kept["low_res_size"] == 16 and kept["family"] == "sr3"
