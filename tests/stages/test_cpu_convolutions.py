"""Packed convolutions: the same results, only where they pay, and no trace of them afterwards."""

import pytest
import torch
from diffusers import DDPMScheduler
from torch import nn

from cascade.stages.base import BasePipeline
from cascade.stages.cpu_convolutions import MAX_PIXELS, packed_convolutions
from cascade.stages.unet import UNet

OPERATOR = "mkldnn::_convolution_pointwise"

pytestmark = pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="torch has no oneDNN here")


def operators_of(call) -> list[str]:
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        call()
    return [event.name for event in profile.events()]


@pytest.mark.parametrize(
    "convolution",
    [
        nn.Conv2d(16, 32, 3, padding=1),
        nn.Conv2d(16, 32, 1, bias=False),
        nn.Conv2d(16, 32, 3, stride=2, padding=(1, 0), dilation=2),
        nn.Conv2d(16, 32, 3, groups=4, padding=1),
    ],
    ids=["3x3", "1x1", "strided", "grouped"],
)
@torch.no_grad()
def test_a_packed_convolution_is_the_convolution(convolution):
    exact = nn.Conv2d.forward(convolution.double(), x := torch.randn(2, 16, 8, 8, dtype=torch.float64))
    convolution.float().to(memory_format=torch.channels_last)
    with packed_convolutions(convolution):
        got = convolution(x.float().to(memory_format=torch.channels_last))
        assert OPERATOR in operators_of(lambda: convolution(x.float()))
    torch.testing.assert_close(got.double(), exact, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_what_does_not_pay_or_is_another_type_runs_as_ever():
    convolution = nn.Conv2d(4, 4, 3, padding=1)
    side = int(MAX_PIXELS**0.5)
    small, large = torch.randn(1, 4, side, side), torch.randn(1, 4, side + 1, side)
    with packed_convolutions(convolution):
        assert OPERATOR in operators_of(lambda: convolution(small))
        assert OPERATOR not in operators_of(lambda: convolution(large))
        convolution.double()
        assert OPERATOR not in operators_of(lambda: convolution(small.double()))
        with torch.enable_grad():
            convolution.float()
            convolution(small).sum().backward()
    assert convolution.weight.grad is not None and convolution.weight.grad.abs().sum() > 0


@torch.no_grad()
def test_other_paddings_keep_their_meaning():
    for padding in ({"padding": "same"}, {"padding": 1, "padding_mode": "circular"}):
        convolution = nn.Conv2d(4, 4, 3, **padding)
        x = torch.randn(1, 4, 6, 6)
        want = convolution(x)
        with packed_convolutions(convolution):
            assert torch.equal(convolution(x), want)


@torch.no_grad()
def test_nothing_stays_and_new_weights_count_the_next_time():
    convolution = nn.Conv2d(4, 4, 3, padding=1)
    x, state = torch.randn(1, 4, 4, 4), set(vars(convolution))
    with pytest.raises(KeyError), packed_convolutions(convolution):
        convolution(x)
        raise KeyError
    assert set(vars(convolution)) == state
    convolution.weight.zero_()
    with packed_convolutions(convolution):
        torch.testing.assert_close(convolution(x), convolution.bias[None, :, None, None].expand(1, 4, 4, 4))


def test_compiled_networks_are_left_alone():
    network = nn.Sequential(nn.Conv2d(4, 4, 3))
    network.compile(backend="eager")
    for one in (network, torch.compile(nn.Sequential(nn.Conv2d(4, 4, 3)), backend="eager")):
        with packed_convolutions(one):
            assert not any("_conv_forward" in vars(part) for part in one.modules())


def test_a_stage_samples_with_packed_convolutions(monkeypatch):
    torch.manual_seed(0)
    unet = UNet(
        16, channels=[32, 64], blocks=[1, 1], attention_sizes=[], layout="efficient", prediction_type="sample", head_channels=32
    )
    nn.init.normal_(unet.conv_out.weight, std=0.05)
    stage = BasePipeline(unet.eval(), DDPMScheduler(clip_sample=False))
    stage.set_progress_bar_config(disable=True)

    def images():
        return stage(num_images=1, num_inference_steps=3, output_type="pt", generator=torch.Generator().manual_seed(3)).images

    assert OPERATOR in operators_of(images)
    packed = images()
    monkeypatch.setattr("cascade.stages.cpu_convolutions.MAX_PIXELS", 0)
    assert OPERATOR not in operators_of(images)
    torch.testing.assert_close(packed, images(), rtol=0, atol=1e-4)
