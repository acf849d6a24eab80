import inspect
import math

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler, DPMSolverMultistepScheduler, EulerDiscreteScheduler, IPNDMScheduler
from diffusers.callbacks import PipelineCallback
from PIL import Image

from cascade.stages.base import BasePipeline
from cascade.stages.unet import UNet

SMALL = {"sample_size": 8, "channels": (8, 16), "blocks": (1, 1), "attention_sizes": (), "head_channels": 8}


def network(seed=0, **config):
    """A small network whose output is not zero, as it would be before training."""
    torch.manual_seed(seed)
    unet = UNet(**(SMALL | {"num_classes": 4} | config)).eval()
    for parameter in unet.parameters():
        if parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=0.1)
    return unet


def pipeline(scheduler=None, guide_unet=None, unet=None, **defaults):
    unet = network() if unet is None else unet
    scheduler = scheduler or DDPMScheduler(prediction_type="v_prediction")
    pipe = BasePipeline(unet, scheduler, guide_unet, **({"num_inference_steps": 3} | defaults))
    pipe.set_progress_bar_config(disable=True)
    return pipe


def seeds(*values):
    return [torch.Generator().manual_seed(value) for value in values]


def evaluations(unet):
    """Sizes of the batches that the network will run on."""
    batches = []
    unet.register_forward_pre_hook(lambda module, args: batches.append(len(args[0])))
    return batches


def test_an_image_is_the_same_alone_in_a_batch_and_in_another_order():
    pipe = pipeline()
    together = pipe([0, 1, 2], generator=seeds(5, 6, 7), output_type="pt").images
    alone = pipe(1, generator=seeds(6), output_type="pt").images
    shuffled = pipe([2, 0, 1], generator=seeds(7, 5, 6), output_type="pt").images
    assert torch.equal(alone[0], together[1])
    assert torch.equal(shuffled, together[[2, 0, 1]])


def test_larger_micro_batches_change_rounding_only():
    pipe = pipeline()
    batches = evaluations(pipe.unet)
    one = pipe([0, 1, 2], generator=seeds(5, 6, 7), output_type="pt").images
    two = pipe([0, 1, 2], generator=seeds(5, 6, 7), output_type="pt", batch_size=2).images
    assert batches == [1] * 9 + [2] * 3 + [1] * 3
    torch.testing.assert_close(one, two, rtol=0, atol=1e-5)


def test_one_generator_is_one_seed_an_image_whatever_the_micro_batches():
    pipe = pipeline()
    runs = [pipe([0, 1], generator=torch.Generator().manual_seed(3), output_type="pt", batch_size=n).images for n in (1, 2)]
    torch.testing.assert_close(*runs, rtol=0, atol=1e-5)
    torch.manual_seed(9)
    first = pipe([0, 1], output_type="pt").images
    assert not torch.equal(first, pipe([0, 1], output_type="pt").images)
    torch.manual_seed(9)
    assert torch.equal(first, pipe([0, 1], output_type="pt").images)


def test_every_output_type_shows_the_same_picture():
    pipe = pipeline()
    pt, array, pil = (pipe([0, 1], generator=seeds(1, 2), output_type=kind).images for kind in ("pt", "np", "pil"))
    assert pt.shape == (2, 3, 8, 8) and pt.dtype == torch.float32 and pt.abs().max() <= 1
    assert array.shape == (2, 8, 8, 3) and array.min() >= 0 and array.max() <= 1
    np.testing.assert_allclose(array, (pt.permute(0, 2, 3, 1).numpy() + 1) / 2, atol=1e-6)
    assert isinstance(pil[0], Image.Image)
    np.testing.assert_allclose(np.stack([np.asarray(image) for image in pil]) / 255, array, atol=0.5 / 255 + 1e-6)
    (images,) = pipe([0, 1], generator=seeds(1, 2), output_type="pt", return_dict=False)
    assert torch.equal(images, pt)


def test_guidance_scale_one_evaluates_once_and_others_twice():
    pipe = pipeline()
    batches = evaluations(pipe.unet)
    pipe(0)
    pipe(0, guidance_scale=3.0)
    pipe(0, guidance_scale=3.0, guidance_interval=(0, 1e-9))
    assert batches == [1] * 3 + [2] * 3 + [1] * 3


def test_guidance_scale_zero_ignores_the_class():
    pipe = pipeline()
    images = pipe([0, 3], guidance_scale=0.0, generator=seeds(1, 1), output_type="pt").images
    torch.testing.assert_close(images[0], images[1], rtol=0, atol=1e-5)


def test_a_guide_takes_over_guidance_and_the_same_network_as_guide_changes_nothing():
    plain = pipeline()(0, generator=seeds(1), output_type="pt").images
    by_itself = pipeline(guide_unet=network())(0, guidance_scale=4.0, generator=seeds(1), output_type="pt").images
    by_other = pipeline(guide_unet=network(seed=1))(0, guidance_scale=4.0, generator=seeds(1), output_type="pt").images
    torch.testing.assert_close(by_itself, plain, rtol=0, atol=1e-5)
    assert (by_other - plain).abs().max() > 1e-3


def test_settings_and_images_survive_saving(tmp_path):
    guide = network(seed=1)
    saved = pipeline(DDIMScheduler(), guide, num_inference_steps=4, guidance_scale=1.5, guidance_interval=(0.2, 3.0))
    saved.save_pretrained(tmp_path)
    loaded = BasePipeline.from_pretrained(tmp_path, unet=UNet.from_pretrained(tmp_path / "unet"))
    loaded.set_progress_bar_config(disable=True)
    assert any(p.data_ptr() % 64 for p in loaded.unet.parameters()), "weights of a file lie at odd addresses"
    batches = evaluations(loaded.unet)
    want = saved(2, generator=seeds(1), output_type="pt").images
    got = loaded(2, generator=seeds(1), output_type="pt").images
    assert torch.equal(got, want) and not any(p.data_ptr() % 64 for p in loaded.unet.parameters())
    assert len(batches) == 4
    assert all(torch.equal(a, b) for a, b in zip(loaded.unet.parameters(), saved.unet.parameters(), strict=True))
    again = BasePipeline.from_pretrained(tmp_path)(2, generator=seeds(1), output_type="pt").images
    assert torch.equal(again, got)
    assert isinstance(loaded.scheduler, DDIMScheduler) and isinstance(loaded.guide_unet, UNet)
    assert (tmp_path / "unet" / "diffusion_pytorch_model.safetensors").is_file()
    explicit = pipeline(DDIMScheduler(), guide)(
        2, num_inference_steps=4, guidance_scale=1.5, guidance_interval=(0.2, 3.0), generator=seeds(1), output_type="pt"
    )
    assert torch.equal(explicit.images, want)
    everywhere = saved(2, guidance_interval=(0, math.inf), generator=seeds(1), output_type="pt").images
    assert (everywhere - want).abs().max() > 1e-3


def test_a_stage_without_a_guide_is_saved_without_one(tmp_path):
    pipeline().save_pretrained(tmp_path)
    assert not (tmp_path / "guide_unet").exists()
    assert BasePipeline.from_pretrained(tmp_path).guide_unet is None


def test_a_scheduler_can_be_exchanged():
    pipe = pipeline()
    for cls in (EulerDiscreteScheduler, DPMSolverMultistepScheduler):
        pipe.scheduler = cls.from_config(pipe.scheduler.config)
        assert pipe(0, generator=seeds(0), output_type="pt").images.isfinite().all()


def test_bf16_weights_keep_the_image_in_float32():
    pipe = pipeline(num_inference_steps=10)
    want = pipe(0, generator=seeds(0), output_type="pt").images
    got = pipe.to(torch.bfloat16)(0, generator=seeds(0), output_type="pt").images
    assert got.dtype == torch.float32
    assert not torch.equal(got, got.bfloat16().float())
    torch.testing.assert_close(got, want, rtol=0, atol=0.1)


def test_without_classes_num_images_counts():
    pipe = pipeline(unet=network(num_classes=None))
    assert len(pipe().images) == 1
    assert len(pipe(num_images=3).images) == 3
    assert len(pipeline()(2, num_images=2).images) == 2  # a single index stands for all


def test_callbacks_see_the_pipeline_and_may_change_the_image():
    seen = []

    def on_step_end(pipe, step, timestep, values):
        seen.append((type(pipe), step, int(timestep), values["latents"].shape))
        return {"latents": torch.ones_like(values["latents"])} if step == 2 else {}

    images = pipeline()(0, callback_on_step_end=on_step_end, output_type="pt").images
    assert seen == [(BasePipeline, step, t, (1, 3, 8, 8)) for step, t in enumerate((666, 333, 0))]
    assert torch.equal(images, torch.ones(1, 3, 8, 8))


def test_callbacks_get_what_they_ask_for_and_return_a_dictionary_of_the_right_shape():
    pipe, seen = pipeline(), []
    pipe(0, callback_on_step_end=lambda *args: seen.append(args[3]) or {}, callback_on_step_end_tensor_inputs=[])
    assert seen == [{}, {}, {}]
    with pytest.raises(ValueError, match="inputs has 'prompt', but there is only latents"):
        pipe(0, callback_on_step_end_tensor_inputs=["latents", "prompt"])
    for made, message in [
        (None, "returned None, expected a dictionary; return the one it is given"),
        ({"latents": torch.zeros(3)}, r"returned latents of shape \(3,\), expected \(1, 3, 8, 8\)"),
        ({"latents": None}, "returned latents of shape NoneType, expected"),
    ]:
        with pytest.raises(ValueError, match=f"callback_on_step_end {message}"):
            pipe(0, callback_on_step_end=lambda *args, made=made: made)

    class Official(PipelineCallback):
        tensor_inputs = ["latents"]

        def callback_fn(self, pipeline, step, timestep, values):
            return {"latents": torch.ones_like(values["latents"])}

    images = pipe(0, callback_on_step_end=Official(), output_type="pt").images
    assert torch.equal(images, torch.ones(1, 3, 8, 8))


def test_an_interrupted_call_returns_the_denoised_images_of_the_step_it_was_in():
    pipe, denoised = pipeline(unet=network(prediction_type="sample")), []
    pipe.unet.register_forward_hook(lambda module, args, made: denoised.append(made))

    def stop(pipe, step, timestep, values):
        pipe._interrupt = step == 1
        return values

    images = pipe(0, callback_on_step_end=stop, output_type="pt", generator=seeds(1)).images
    assert len(denoised) == 2 and torch.equal(images, denoised[1].clamp(-1, 1))
    assert pipe.interrupt and len(pipe([0, 1], output_type="pt").images) == 2 and not pipe.interrupt
    denoised.clear()

    def stop_at_once(pipe, step, timestep, values):
        pipe._interrupt = True
        return values

    assert len(pipe([0, 1, 2], callback_on_step_end=stop_at_once, output_type="pt").images) == len(denoised) == 3


def test_the_noise_may_be_given():
    pipe = pipeline(DDIMScheduler())
    noise = torch.cat([torch.randn(1, 3, 8, 8, generator=one) for one in seeds(5, 6)])
    want = pipe([0, 1], generator=seeds(5, 6), output_type="pt").images
    assert torch.equal(pipe([0, 1], latents=noise, output_type="pt").images, want)
    assert torch.equal(pipe([0, 1], latents=noise.double(), output_type="pt").images, want)
    assert len(pipe(2, latents=noise).images) == 2  # a single class for all of them
    with pytest.raises(ValueError, match="got 3 class_labels for 2 images"):
        pipe([0, 1, 2], latents=noise)
    with pytest.raises(ValueError, match=r"latents have shape \(2, 3, 8, 9\), expected unit Gaussian noise of shape \(2, 3"):
        pipe(2, latents=torch.zeros(2, 3, 8, 9))


def test_the_steps_may_be_given_where_the_scheduler_takes_them():
    seen = []

    def look(pipe, step, timestep, values):
        seen.append(round(float(timestep)))
        return values

    pipe = pipeline()
    pipe(0, timesteps=[900, 500, 20, 3], callback_on_step_end=look)
    assert seen == [900, 500, 20, 3]
    pipe.scheduler = EulerDiscreteScheduler.from_config(pipe.scheduler.config)
    levels = evaluations(pipe.unet)
    pipe(0, sigmas=[80.0, 2.0, 0.1, 0.0])  # as Euler's method takes them, with the end
    assert len(levels) == 3
    for call, message in [
        ({"timesteps": [9, 5], "sigmas": [2.0, 1.0]}, "say the same thing in different ways; give one of them"),
        ({"timesteps": [9, 5], "num_inference_steps": 2}, "say the same thing in different ways"),
        ({"timesteps": [5, 9]}, r"timesteps are \[5, 9\], expected numbers that fall from noise to image"),
        ({"timesteps": []}, "expected numbers that fall"),
    ]:
        with pytest.raises(ValueError, match=message):
            pipe(0, **call)
    pipe.scheduler = DDIMScheduler()
    with pytest.raises(ValueError, match="DDIMScheduler takes no sigmas of your own; give num_inference_steps, or use"):
        pipe(0, sigmas=[2.0, 1.0])


def test_progress_counts_every_evaluation(capsys):
    pipe = pipeline()
    pipe.set_progress_bar_config(disable=False)
    pipe([0, 1])
    assert "6/6" in capsys.readouterr().err


def test_argument_names_are_those_of_diffusers():
    ours = inspect.signature(BasePipeline.__call__).parameters
    assert {
        "num_inference_steps", "guidance_scale", "generator", "output_type", "return_dict", "callback_on_step_end",
        "callback_on_step_end_tensor_inputs", "latents", "timesteps", "sigmas",
    } <= ours.keys()  # fmt: skip


@pytest.mark.parametrize(
    "call, message",
    [
        ({}, "class_labels is missing"),
        ({"class_labels": 4}, "class index 4 is out of range: this model makes 4 classes, 0 to 3"),
        ({"class_labels": [0, -1]}, "class index -1"),
        ({"class_labels": []}, "empty"),
        ({"class_labels": 1.5}, "list of indices"),
        ({"class_labels": [True]}, "list of indices"),
        ({"class_labels": "cat"}, "list of indices"),
        ({"class_labels": [0, 1], "num_images": 3}, "got 2 class_labels for 3 images"),
        ({"class_labels": 0, "num_images": 0}, "num_images must be at least 1"),
        ({"class_labels": 0, "num_inference_steps": 0}, "num_inference_steps must be at least 1"),
        ({"class_labels": 0, "output_type": "jpg"}, "output_type is 'jpg'"),
        ({"class_labels": 0, "batch_size": 0}, "batch_size must be at least 1"),
        ({"class_labels": 0, "generator": seeds(1, 2)}, "got 2 generators for 1 images"),
        ({"class_labels": 0, "guidance_interval": (2, 1)}, "empty"),
    ],
)
def test_wrong_arguments_are_refused_before_the_network_runs(call, message):
    pipe = pipeline()
    batches = evaluations(pipe.unet)
    with pytest.raises(ValueError, match=message):
        pipe(**call)
    assert batches == []


def test_stages_that_cannot_be_are_refused():
    with pytest.raises(ValueError, match="refines 4 px images and can't be a base stage"):
        pipeline(unet=network(low_res_size=4))
    with pytest.raises(ValueError, match="knows no classes"):
        pipeline(unet=network(num_classes=None))(0)
    with pytest.raises(ValueError, match="label dropout"):
        pipeline(unet=network(null_class=False))(0, guidance_scale=2.0)
    with pytest.raises(ValueError, match="IPNDMScheduler can't be sampled with"):
        pipeline(IPNDMScheduler())(0)


def test_damaged_weights_are_named_with_their_stage():
    unet = network()
    unet.conv_in.weight.data[0, 0, 0, 0] = math.nan
    with pytest.raises(RuntimeError, match="BasePipeline at 8 px made values that are not numbers"):
        pipeline(unet=unet)(0)
