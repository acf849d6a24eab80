"""The regression stage: what its network sees, alone and inside a cascade."""

import json

import pytest
import torch
from diffusers import DDPMScheduler
from PIL import Image

from cascade import BasePipeline, CascadePipeline, RegressionPipeline
from cascade.stages.conditioning import resize
from cascade.stages.noise import MAX_LOG_SNR
from cascade.stages.unet import UNet

SMALL = {"channels": (8, 16), "blocks": (1, 1), "attention_sizes": (), "head_channels": 8, "num_classes": 4}
PHOTO = torch.rand(3, 3, 4, 4, generator=torch.Generator().manual_seed(0)) * 2 - 1


def network(**config):
    """A small network whose output is not zero, as it would be before training."""
    torch.manual_seed(0)
    unet = UNet(**(SMALL | {"sample_size": 16, "low_res_size": 4, "prediction_type": "sample"} | config)).eval()
    for parameter in unet.parameters():
        if parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=0.1)
    return unet


def pipeline(**config):
    pipe = RegressionPipeline(network(**config))
    pipe.set_progress_bar_config(disable=True)
    return pipe


def inputs(unet):
    """Positional inputs of every evaluation to come."""
    seen = []
    unet.register_forward_pre_hook(lambda module, args: seen.append(args))
    return seen


def test_the_network_sees_the_small_image_and_nothing_else_once():
    pipe = pipeline()
    seen = inputs(pipe.unet)
    made = pipe(PHOTO, [0, 1, 3], output_type="pt", batch_size=3).images
    ((x_t, log_snr, labels, low_res, aug_level),) = seen
    assert torch.equal(x_t, torch.zeros(3, 3, 16, 16)) and torch.equal(log_snr, torch.full((3,), -MAX_LOG_SNR))
    assert torch.equal(low_res, PHOTO) and labels.tolist() == [0, 1, 3] and aug_level is None
    with torch.no_grad():
        torch.testing.assert_close(made, pipe.unet(x_t, log_snr, labels, low_res).clamp(-1, 1))


def test_an_untrained_network_with_a_skip_interpolates():
    unet = UNet(**SMALL, sample_size=16, low_res_size=4, prediction_type="sample", low_res_skip=True)
    pipe = RegressionPipeline(unet.eval())
    want = torch.nn.functional.interpolate(PHOTO, size=(16, 16), mode="bicubic").clamp(-1, 1)
    torch.testing.assert_close(pipe(PHOTO, 0, output_type="pt").images, want)


def test_it_draws_nothing_and_an_image_does_not_depend_on_the_others():
    pipe = pipeline()
    torch.manual_seed(7)
    before = torch.get_rng_state()
    together = pipe(PHOTO, [0, 1, 2], output_type="pt").images
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(pipe(PHOTO[1], 1, output_type="pt").images[0], together[1])


def test_images_come_in_and_go_out_as_those_of_sr3():
    pipe = pipeline(num_classes=None)
    large = torch.rand(1, 3, 8, 8, generator=torch.Generator().manual_seed(1)) * 2 - 1
    reduced = pipe(large, output_type="pt").images
    assert torch.equal(reduced, pipe(resize(large, 4), output_type="pt").images)
    (array,) = pipe(large, output_type="np", return_dict=False)
    torch.testing.assert_close(torch.from_numpy(array).permute(0, 3, 1, 2) * 2 - 1, reduced)
    assert isinstance(pipe(large).images[0], Image.Image)


def test_it_saves_and_loads_as_a_folder(tmp_path):
    pipe = pipeline()
    pipe.save_pretrained(tmp_path)
    index = json.loads((tmp_path / "model_index.json").read_text())
    assert index["_class_name"] == "RegressionPipeline" and "scheduler" not in index
    assert index["unet"] == ["cascade.stages.unet", "UNet"]
    loaded = RegressionPipeline.from_pretrained(tmp_path)
    torch.testing.assert_close(loaded(PHOTO, 1, output_type="pt").images, pipe(PHOTO, 1, output_type="pt").images)


def test_it_composes_in_a_cascade_and_comes_back_from_disk(tmp_path):
    base = BasePipeline(UNet(**SMALL, sample_size=8).eval(), DDPMScheduler(prediction_type="v_prediction"), num_inference_steps=2)
    cascade = CascadePipeline({"base": base, "regression": pipeline(low_res_size=8)})
    cascade.save_pretrained(tmp_path / "model")
    loaded = CascadePipeline.from_pretrained(tmp_path / "model")
    loaded.set_progress_bar_config(disable=True)
    made = loaded([1, 2], seeds=[0, 1], output_type="pt", num_inference_steps=3, guidance_scale=1.0, scheduler=DDPMScheduler)
    assert made.images.shape == (2, 3, 16, 16)
    small = made.stages["base"].images
    assert torch.equal(made.images, loaded.stages["regression"](small, [1, 2], output_type="pt").images)
    assert torch.equal(loaded.upscale(small, [1, 2], seeds=0, output_type="pt").images, made.images)
    with pytest.raises(ValueError, match="stage 'regression' takes no num_inference_steps"):
        loaded(1, num_inference_steps={"regression": 2})
    with pytest.raises(ValueError, match="stage 'regression' takes no scheduler"):
        loaded(1, scheduler={"regression": DDPMScheduler})


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"prediction_type": "v_prediction"}, "predicts 'sample', and this one predicts 'v_prediction'"),
        ({"low_res_size": None}, "BasePipeline"),
    ],
)
def test_networks_that_cannot_regress_are_refused(config, words):
    with pytest.raises(ValueError, match=words):
        RegressionPipeline(network(**config))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"image": PHOTO, "class_labels": [0, 1]}, "2 class_labels for 3 images"),
        ({"image": PHOTO}, "class_labels is missing"),
        ({"image": torch.zeros(3, 32, 32), "class_labels": 0}, "larger than the 16x16"),
        ({"image": PHOTO, "class_labels": 0, "output_type": "jpg"}, "output_type is 'jpg'"),
        ({"image": PHOTO, "class_labels": 0, "batch_size": 0}, "batch_size must be at least 1"),
    ],
)
def test_wrong_arguments_are_refused(arguments, words):
    with pytest.raises(ValueError, match=words):
        pipeline()(**arguments)


def test_a_damaged_network_is_named():
    pipe = pipeline()
    pipe.unet.conv_out.bias.data.fill_(float("nan"))
    with pytest.raises(RuntimeError, match="RegressionPipeline at 16 px made values that are not numbers .* in torch.float32"):
        pipe(PHOTO, 0)
