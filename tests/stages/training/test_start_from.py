"""A training that starts from a saved stage takes its weights, and says where the two don't fit."""

import json

import pytest
import torch
from diffusers import DDPMScheduler
from toy import NETWORK, optimization, pictures, recipe, weights

from cascade.stages.base import BasePipeline
from cascade.stages.training import train
from cascade.stages.training.start_from import take_weights
from cascade.stages.unet import UNet


def network(num_classes=2, **changes):
    torch.manual_seed(7)
    made = UNet(**{**NETWORK, **changes}, num_classes=num_classes)
    for parameter in made.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    return made


@pytest.fixture
def stage(tmp_path):
    BasePipeline(network(), DDPMScheduler()).save_pretrained(tmp_path / "stage")
    return tmp_path / "stage"


def test_the_weights_are_those_of_the_stage(stage):
    new = UNet(**NETWORK, num_classes=2)
    assert take_weights(new, stage) == f"starts from the weights of {stage}"
    assert torch.equal(weights(new), weights(network()))


def test_half_precision_weights_become_float32(tmp_path):
    BasePipeline(network().half(), DDPMScheduler()).save_pretrained(tmp_path)
    new = UNet(**NETWORK, num_classes=2)
    take_weights(new, tmp_path)
    assert weights(new).dtype == torch.float32
    assert torch.equal(weights(new), weights(network()).half().float())


def test_other_classes_keep_their_random_start_and_it_is_said(stage):
    new = UNet(**NETWORK, num_classes=5)
    classes = new.class_embedding.weight.detach().clone()
    assert take_weights(new, stage).endswith("; it has 2 classes, so what it learned of them is left out")
    assert torch.equal(new.class_embedding.weight, classes)
    assert torch.equal(new.conv_in.weight, network().conv_in.weight)


def test_a_stage_with_classes_and_one_without_may_start_from_each_other(stage, tmp_path):
    new = UNet(**NETWORK)
    assert take_weights(new, stage).endswith("; it has 2 classes, so what it learned of them is left out")
    assert torch.equal(new.conv_in.weight, network().conv_in.weight)
    BasePipeline(new, DDPMScheduler()).save_pretrained(tmp_path / "without")
    again = UNet(**NETWORK, num_classes=2)
    assert "it has no classes" in take_weights(again, tmp_path / "without")
    assert torch.equal(again.conv_in.weight, new.conv_in.weight)


@pytest.mark.parametrize(
    ("key", "value"), [("channels", [32]), ("norm", "pixel"), ("prediction_type", "sample"), ("patch_size", 2)]
)
def test_the_first_setting_that_differs_is_named(stage, key, value):
    new = UNet(**{**NETWORK, key: value}, num_classes=2)
    before = UNet(**NETWORK).config[key]
    words = f"network.{key} is {list(before) if isinstance(before, tuple) else before} there and {value} here"
    with pytest.raises(ValueError) as error:
        take_weights(new, stage)
    assert words in str(error.value)


def test_settings_that_change_no_weight_may_differ(tmp_path):
    BasePipeline(network(prediction_type="sample"), DDPMScheduler()).save_pretrained(tmp_path)
    changes = {"prediction_type": "sample", "dropout": 0.3, "coarse_below": 1.0}
    take_weights(UNet(**{**NETWORK, **changes}, num_classes=2), tmp_path)


def test_a_setting_that_is_younger_than_the_stage_stood_at_its_default(stage):
    path = stage / "unet" / "config.json"
    settings = json.loads(path.read_text())
    del settings["norm"]
    path.write_text(json.dumps(settings))
    take_weights(UNet(**NETWORK, num_classes=2), stage)
    with pytest.raises(ValueError, match="norm is group there and pixel here"):
        take_weights(UNet(**NETWORK, norm="pixel", num_classes=2), stage)


def test_what_is_no_stage_of_ours_is_refused(stage, tmp_path):
    new = UNet(**NETWORK, num_classes=2)
    with pytest.raises(ValueError, match="nowhere, expected the folder of a saved stage"):
        take_weights(new, tmp_path / "nowhere")
    path = stage / "unet" / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "_class_name": "UNet2DModel"}))
    with pytest.raises(ValueError, match="whose network is a UNet2DModel; a run can start from a UNet only"):
        take_weights(new, stage)


def test_a_pickled_stage_is_not_opened(stage):
    (stage / "unet" / "diffusion_pytorch_model.safetensors").unlink()
    torch.save(network().state_dict(), stage / "unet" / "diffusion_pytorch_model.bin")
    with pytest.raises(ValueError, match="the model is incomplete: .*safetensors is missing"):
        take_weights(UNet(**NETWORK, num_classes=2), stage)


def test_a_training_goes_on_from_there_and_its_average_begins_there(stage, tmp_path):
    messages = []
    slow = optimization(learning_rate=1e-6, ema_ramp=100.0)  # an average that would still hold what it began with
    made = recipe(48, start_from=str(stage), optimization=slow)
    tuned = train(made, pictures(), tmp_path / "run", on_message=messages.append)
    assert messages == [f"starts from the weights of {stage}"]
    moved = (weights(tuned) - weights(network())).abs()
    assert 0 < moved.max() < 1e-5
    (stage / "unet" / "config.json").unlink()
    again = train(made, pictures(), tmp_path / "run", on_message=messages.append)
    assert messages[1:] == ["continued from 48 images"], "the stage is not asked for again"
    assert torch.equal(weights(again), weights(tuned))
