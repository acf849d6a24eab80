"""Sampling on one CUDA device: the CPU's pictures up to rounding, the same bytes every time, whatever moves the weights."""

import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DDPMScheduler,
    DEISMultistepScheduler,
    DPMSolverMultistepScheduler,
    EulerAncestralDiscreteScheduler,
    EulerDiscreteScheduler,
    HeunDiscreteScheduler,
    UniPCMultistepScheduler,
)

from cascade import BasePipeline, CascadePipeline, RegressionPipeline, SR3Pipeline
from cascade.stages.denoiser import ClassifierFreeGuidance, at_level
from cascade.stages.graphs import EAGER_CALLS, graphs_of
from cascade.stages.unet import UNet

pytestmark = pytest.mark.gpu

SCHEDULERS = [
    DDIMScheduler, DDPMScheduler, DEISMultistepScheduler, DPMSolverMultistepScheduler, EulerAncestralDiscreteScheduler,
    EulerDiscreteScheduler, HeunDiscreteScheduler, UniPCMultistepScheduler,
]  # fmt: skip


def network(**config):
    torch.manual_seed(0)
    settings = {
        "num_classes": 3, "prediction_type": "sample", "layout": "efficient", "channels": [16, 32], "blocks": [1, 1],
        "attention_sizes": [8], "head_channels": 16, "norm": "pixel",
    }  # fmt: skip
    unet = UNet(**settings, **config).eval()
    for weight in unet.parameters():
        if weight.ndim > 1:
            torch.nn.init.normal_(weight, std=0.08)
    return unet


def base(scheduler=DDIMScheduler):
    return BasePipeline(network(sample_size=16, coarse_below=0.0), made(scheduler), num_inference_steps=6, guidance_scale=2.0)


def refiner(scheduler=DDIMScheduler):
    unet = network(sample_size=32, low_res_size=16, aug_level=True)
    return SR3Pipeline(unet, made(scheduler), num_inference_steps=6, aug_level=0.1)


def made(scheduler):
    return scheduler(prediction_type="epsilon" if scheduler is EulerAncestralDiscreteScheduler else "sample")


def images(pipeline, device, batch_size=3, **given):
    pipeline.to(device)
    pipeline.set_progress_bar_config(disable=True)
    generators = [torch.Generator().manual_seed(seed) for seed in range(3)]
    return pipeline(class_labels=[0, 1, 2], generator=generators, output_type="pt", batch_size=batch_size, **given).images.cpu()


def small():
    return torch.rand(3, 3, 16, 16, generator=torch.Generator().manual_seed(7)) * 2 - 1


@pytest.fixture(autouse=True)
def exact(monkeypatch):
    """Products in float32, not in TensorFloat32, so that they compare."""
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)


@pytest.mark.parametrize("scheduler", SCHEDULERS)
def test_pictures_are_those_of_the_cpu_and_the_same_every_time(scheduler):
    for pipeline, given in ((base(scheduler), {}), (refiner(scheduler), {"image": small()})):
        expected = images(pipeline, "cpu", **given)
        runs = [images(pipeline, "cuda", **given) for _ in range(3)]
        assert torch.equal(runs[0], runs[1]) and torch.equal(runs[1], runs[2])
        torch.testing.assert_close(runs[0], expected, rtol=0, atol=5e-3)
        assert len(graphs_of(pipeline.unet)._recorded) > 0


def test_a_regression_is_that_of_the_cpu():
    pipeline = RegressionPipeline(network(sample_size=32, low_res_size=16))
    expected = pipeline(small(), [0, 1, 2], output_type="pt").images
    pipeline.to("cuda")
    torch.testing.assert_close(pipeline(small(), [0, 1, 2], output_type="pt").images.cpu(), expected, rtol=0, atol=1e-3)


def test_graphs_are_forgotten_when_weights_move():
    pipeline = base()
    first = images(pipeline, "cuda")
    before = graphs_of(pipeline.unet)
    pipeline.to("cpu")
    filler = torch.randn(10_000_000, device="cuda")  # where the weights may have been
    again = images(pipeline, "cuda")
    assert torch.equal(first, again) and graphs_of(pipeline.unet) is not before
    with torch.no_grad():
        pipeline.unet.conv_out.weight.mul_(0.5)  # in place: graphs read the new values
    changed = images(pipeline, "cuda")
    torch.testing.assert_close(changed, images(pipeline, "cpu"), rtol=0, atol=5e-3)
    assert not torch.equal(changed, first) and filler.isfinite().all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_near_the_full_one(dtype):
    pipeline = base()
    expected = images(pipeline, "cuda")
    pipeline.to(dtype)
    assert (images(pipeline, "cuda").float() - expected).abs().mean() < 0.05


@pytest.mark.parametrize("offload", ["enable_model_cpu_offload", "enable_sequential_cpu_offload"])
def test_offloaded_stages_make_the_same_pictures(offload):
    expected = images(base(), "cuda")
    pipeline = base()
    pipeline.set_progress_bar_config(disable=True)
    getattr(pipeline, offload)()
    generators = [torch.Generator().manual_seed(seed) for seed in range(3)]
    made = pipeline(class_labels=[0, 1, 2], generator=generators, output_type="pt", batch_size=3).images.cpu()
    torch.testing.assert_close(made, expected, rtol=0, atol=1e-4)


def test_tiles_a_cascade_and_a_saved_one(tmp_path):
    cascade = CascadePipeline({"base": base(), "sr32": refiner()}, ["ant", "bee", "cat"], name="tiny")
    cascade.set_progress_bar_config(disable=True)
    expected = cascade(class_labels=["ant", "cat"], seeds=[1, 2], output_type="pt").images
    cascade.to("cuda")
    made = cascade(class_labels=["ant", "cat"], seeds=[1, 2], output_type="pt").images
    torch.testing.assert_close(made.cpu(), expected, rtol=0, atol=1e-2)
    cascade.save_pretrained(tmp_path / "model")
    loaded = CascadePipeline.from_pretrained(tmp_path / "model").to("cuda")
    loaded.set_progress_bar_config(disable=True)
    assert torch.equal(loaded(class_labels=["ant", "cat"], seeds=[1, 2], output_type="pt").images, made)


def test_inputs_on_another_device_are_an_error_of_one_line():
    unet = network(sample_size=16).to("cuda")
    with pytest.raises(RuntimeError, match="device"):
        unet(torch.randn(1, 3, 16, 16), torch.zeros(1), torch.zeros(1, dtype=torch.long))


@torch.no_grad()
def test_no_evaluation_waits_for_the_device():
    guided = ClassifierFreeGuidance(network(sample_size=16, coarse_below=0.0).cuda(), 3.0, (0.5, 4.0))
    x_t, labels = torch.randn(2, 3, 16, 16, device="cuda"), torch.tensor([0, 2], device="cuda")
    levels = (-1.0, 1.0, 6.0)
    log_snr = {level: torch.full((2,), level, device="cuda") for level in levels}
    for _ in range(EAGER_CALLS + 1):
        expected = {level: at_level(guided, level)(x_t, log_snr[level], labels) for level in levels}
    torch.cuda.set_sync_debug_mode("error")
    try:
        found = {level: at_level(guided, level)(x_t, log_snr[level], labels) for level in levels}
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert all(torch.equal(found[level], expected[level]) for level in levels)
    for level in levels:
        torch.testing.assert_close(found[level], guided(x_t, log_snr[level], labels), rtol=1e-4, atol=1e-4)
