"""Stages load alone, in a fresh process, with diffusers' own arguments; `tests/cascade/test_models.py` damages their files."""

import json
import os
import shutil
import subprocess
import sys

import huggingface_hub
import pytest
import torch
from diffusers import DDIMScheduler, DDPMPipeline, DDPMScheduler, DiffusionPipeline
from safetensors.torch import load_file

from cascade.stages.base import BasePipeline
from cascade.stages.regression import RegressionPipeline
from cascade.stages.saved import ModelError, load_stage, number_type
from cascade.stages.sr3 import SR3Pipeline
from cascade.stages.stage import StagePipeline
from cascade.stages.unet import UNet

SMALL = {"channels": (8, 16), "blocks": (1, 1), "attention_sizes": (), "head_channels": 8, "num_classes": 3}
SR = {"sample_size": 16, "low_res_size": 8}
SETTINGS = {"num_inference_steps": 7, "guidance_scale": 2.5, "guidance_interval": [0.2, 3.0]}


def scheduler(**config):
    return DDPMScheduler(prediction_type="v_prediction", **config)


def base(**given):
    return BasePipeline(UNet(sample_size=8, **SMALL), scheduler(), **(SETTINGS | given))


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A stage of each class, saved."""
    home = tmp_path_factory.mktemp("stages")
    base().save_pretrained(home / "base")
    SR3Pipeline(UNet(aug_level=True, **SR, **SMALL), scheduler(), aug_level=0.25, tile_size=8).save_pretrained(home / "sr3")
    RegressionPipeline(UNet(prediction_type="sample", **SR, **SMALL)).save_pretrained(home / "regression")
    return home


ALONE = """
import os, sys
from importlib import import_module
import cascade, torch, diffusers.pipelines.pipeline_utils  # libraries, in which most of the time goes, are imported once
for module, name, old, new in zip(*[iter(sys.argv[1:])] * 4):
    if os.fork():
        assert os.wait()[1] == 0, name
        continue
    stage = getattr(import_module(f"cascade.stages.{module}"), name)
    pipe = stage.from_pretrained(old)
    assert type(pipe) is stage and type(pipe.unet).__name__ == "UNet" and not pipe.unet.training
    own = {name for name in sys.modules if name.startswith("cascade.") and not name.startswith("cascade.stages")}
    assert own == {"cascade.torchvision_mend"}  # which importing anything of cascade imports
    pipe.save_pretrained(new)
    stage.from_pretrained(new)
    print(pipe.size, flush=True)
    os._exit(0)
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="processes can't be forked here")
def test_a_stage_loads_in_a_fresh_process_with_no_other_import(folders, tmp_path):
    """Saved by today's version, and with the module paths of versions before 0.2."""
    words = []
    for module, name in (("base", "BasePipeline"), ("sr3", "SR3Pipeline"), ("regression", "RegressionPipeline")):
        folder = shutil.copytree(folders / module, tmp_path / module)
        index = json.loads((folder / "model_index.json").read_text())
        assert index["unet"] == ["cascade.stages.unet", "UNet"]
        (folder / "model_index.json").write_text(json.dumps(index | {"unet": ["stages.unet", "UNet"]}))
        words += [module, name, folder, tmp_path / f"new-{module}"]
    ran = subprocess.run([sys.executable, "-c", ALONE, *words], capture_output=True, text=True)
    assert ran.returncode == 0 and ran.stdout == "8\n16\n16\n", ran.stderr


def test_settings_come_with_the_stage_and_may_be_replaced(folders):
    pipe = BasePipeline.from_pretrained(folders / "base")
    assert pipe.parameters == {} and {key: pipe.config[key] for key in SETTINGS} == SETTINGS
    other, guide = DDIMScheduler(), base().unet
    pipe = BasePipeline.from_pretrained(folders / "base", scheduler=other, guide_unet=guide, guidance_scale=4.0)
    assert pipe.scheduler is other and pipe.guide_unet is guide
    assert pipe.config["guidance_scale"] == 4.0 and pipe.config["num_inference_steps"] == 7
    with pytest.raises(ValueError, match="^BasePipeline.from_pretrained doesn't take 'colour'; of a stage, it takes unet, sched"):
        BasePipeline.from_pretrained(folders / "base", colour="red")


def test_number_types_devices_and_variants(folders, tmp_path):
    for given in ({"torch_dtype": torch.bfloat16}, {"dtype": "bfloat16"}, {"dtype": "torch.bfloat16", "device_map": "cpu"}):
        assert BasePipeline.from_pretrained(folders / "base", **given).dtype == torch.bfloat16
    assert BasePipeline.from_pretrained(folders / "base", device_map="meta").device.type == "meta"
    for wrong in ("balanced", {"unet": "cpu"}):
        with pytest.raises(ValueError, match="device_map is .*, but a stage lies on one device as a whole; give its name"):
            BasePipeline.from_pretrained(folders / "base", device_map=wrong)
    with pytest.raises(ValueError, match="got both dtype and torch_dtype"):
        BasePipeline.from_pretrained(folders / "base", dtype="float16", torch_dtype=torch.float16)
    for wrong in ("float17", "int8", "nn", torch.int64):
        with pytest.raises(ValueError, match="expected a floating-point number type, such as torch.bfloat16"):
            number_type(wrong)
    half = BasePipeline.from_pretrained(folders / "base", dtype="float16")
    half.save_pretrained(tmp_path, variant="fp16", max_shard_size="20KB")
    files = sorted((tmp_path / "unet").glob("*.safetensors"))
    assert len(files) > 1 and all("fp16" in path.name for path in files)
    assert {value.dtype for path in files for value in load_file(path).values()} == {torch.float16}
    again = BasePipeline.from_pretrained(tmp_path, variant="fp16", dtype="float16")
    assert all(torch.equal(a, b) for a, b in zip(again.unet.parameters(), half.unet.parameters(), strict=True))
    with pytest.raises(ModelError, match="diffusion_pytorch_model.safetensors is missing"):
        BasePipeline.from_pretrained(tmp_path)


def test_the_wrong_class_names_the_right_one(folders, tmp_path):
    with pytest.raises(ModelError, match="is of class SR3Pipeline, not BasePipeline: load it with SR3Pipeline.from_pretrained$"):
        BasePipeline.from_pretrained(folders / "sr3")
    with pytest.raises(ModelError, match="is of class BasePipeline, not SR3Pipeline: load it with BasePipeline.from_pretrained$"):
        SR3Pipeline.from_pretrained(folders / "base")
    with pytest.raises(ModelError, match=f"{folders} is not one stage, but holds the stages base, regression, sr3; load it as"):
        BasePipeline.from_pretrained(folders)
    with pytest.raises(ModelError, match="stage 'nothing' is not there, and not the id of a model on the Hugging Face Hub"):
        BasePipeline.from_pretrained("nothing")
    with pytest.raises(ModelError, match="is a file; expected the folder of a stage"):
        BasePipeline.from_pretrained(folders / "base" / "model_index.json")
    with pytest.raises(ModelError, match="the model is incomplete: .*model_index.json is missing"):
        BasePipeline.from_pretrained(tmp_path)


def test_classes_related_to_the_saved_one(folders, tmp_path):
    class Mine(BasePipeline):
        pass

    for cls, folder, expected in [
        (StagePipeline, "sr3", SR3Pipeline), (StagePipeline, "base", BasePipeline), (Mine, "base", Mine)
    ]:  # fmt: skip
        assert type(cls.from_pretrained(folders / folder)) is expected
    Mine.from_pretrained(folders / "base").save_pretrained(tmp_path / "mine")
    assert type(Mine.from_pretrained(tmp_path / "mine")) is Mine
    with pytest.raises(ModelError, match="is a 'Mine', expected BasePipeline, SR3Pipeline, RegressionPipeline or the name of"):
        BasePipeline.from_pretrained(tmp_path / "mine")


def test_a_pipeline_of_diffusers_loads_by_the_same_way(tmp_path):
    from diffusers import UNet2DModel

    unet = UNet2DModel(
        sample_size=8, block_out_channels=(8, 8), layers_per_block=1, norm_num_groups=4,
        down_block_types=("DownBlock2D",) * 2, up_block_types=("UpBlock2D",) * 2,
    )  # fmt: skip
    DDPMPipeline(unet, DDPMScheduler()).save_pretrained(tmp_path)
    assert type(load_stage(tmp_path)) is DDPMPipeline
    with pytest.raises(ModelError, match="is of class DDPMPipeline, not BasePipeline: load it with DDPMPipeline"):
        BasePipeline.from_pretrained(tmp_path)


def test_diffusers_own_loader_says_at_least_which_class_it_lacks(folders):
    with pytest.raises(AttributeError, match="diffusers has no attribute BasePipeline"):
        DiffusionPipeline.from_pretrained(folders / "base")


def test_hub_options_reach_the_download(monkeypatch, folders, tmp_path):
    asked = []

    def snapshot(hub_id, **options):
        asked.append((hub_id, options))
        return str(folders / "base")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot)
    options = {"revision": "v2", "cache_dir": tmp_path, "local_files_only": True, "token": "secret"}
    assert type(BasePipeline.from_pretrained("someone/tiny", **options)) is BasePipeline
    assert asked == [("someone/tiny", {"allow_patterns": ["*.json", "*.safetensors", "*.md"], **options})]


def test_pipelines_made_of_the_parts_of_others_keep_the_settings(folders):
    pipe = SR3Pipeline.from_pretrained(folders / "sr3", dtype=torch.bfloat16)
    made = [SR3Pipeline(**pipe.components), SR3Pipeline(**pipe.components, **pipe.parameters), SR3Pipeline.from_pipe(pipe)]
    for other in made:
        assert other.config["aug_level"] == 0.25 and other.config["tile_size"] == 8
        assert other.unet is pipe.unet and other.scheduler is pipe.scheduler and other.dtype == torch.bfloat16
    assert SR3Pipeline.from_pipe(pipe, aug_level=0.5).config["aug_level"] == 0.5
    pipe.to("cpu", torch.float32)
    assert pipe.dtype == torch.float32
    regression = RegressionPipeline.from_pipe(RegressionPipeline.from_pretrained(folders / "regression"))
    assert regression.components.keys() == {"unet"}
    with pytest.raises(ValueError, match="SR3Pipeline.from_pipe doesn't take 'colour'; it takes unet, scheduler"):
        SR3Pipeline.from_pipe(pipe, colour="red")
    with pytest.raises(ValueError, match="can't be a base stage; use SR3Pipeline"):
        BasePipeline.from_pipe(pipe)
