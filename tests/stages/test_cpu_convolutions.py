"""Packed convolutions: the same results, only where they pay, and no trace of them afterwards."""

import pytest
import torch
from diffusers import DDPMScheduler
from torch import nn

from cascade.stages.base import BasePipeline
from cascade.stages.cpu_convolutions import (
    MAX_PIXELS,
    MIN_CHANNELS,
    NARROW,
    Pointwise,
    added_to,
    multiplies_bfloat16,
    packed_convolutions,
)
from cascade.stages.stage import MAX_DIFFERENCE
from cascade.stages.unet import UNet

OPERATOR = "mkldnn::_convolution_pointwise"

pytestmark = pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="torch has no oneDNN here")

in_hardware = pytest.mark.skipif(not multiplies_bfloat16(), reason="this CPU has no instructions for products of bfloat16")


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


@in_hardware
@pytest.mark.parametrize("kind", [nn.Conv2d, Pointwise])
@torch.no_grad()
def test_mixed_precision_rounds_inputs_weights_and_results_alone(kind):
    """The sums are those of float64 but for the last bit of bfloat16, 2^-8 of a result."""
    convolution = kind(MIN_CHANNELS, 2 * MIN_CHANNELS, 1)
    x = torch.randn(1, MIN_CHANNELS, 24, 24).to(memory_format=torch.channels_last)
    weight, bias = (value.bfloat16().double() for value in (convolution.weight, convolution.bias))
    exact = nn.functional.conv2d(x.bfloat16().double(), weight.view(*weight.shape[:2], 1, 1), bias)
    with packed_convolutions(convolution, mixed=True):
        got = convolution(x)
    assert got.dtype == torch.float32 and got.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(got.double(), exact, rtol=2**-8, atol=1e-4)
    assert not torch.equal(got, convolution(x))


@in_hardware
@torch.no_grad()
def test_narrow_convolutions_stay_in_float32_and_networks_of_bfloat16_are_packed():
    narrow, x = nn.Conv2d(MIN_CHANNELS - 1, 64, 3), torch.randn(1, MIN_CHANNELS - 1, 32, 32)
    want = narrow(x)
    with packed_convolutions(narrow, mixed=True):
        assert torch.equal(narrow(x), want)
    whole, x = nn.Conv2d(8, 8, 3).bfloat16(), torch.randn(1, 8, 32, 32).bfloat16()
    want = whole(x)
    with packed_convolutions(whole):
        assert OPERATOR in operators_of(lambda: whole(x))
        torch.testing.assert_close(whole(x), want, rtol=2**-7, atol=1e-2)


@in_hardware
@pytest.mark.parametrize("width", [NARROW - 1, NARROW, NARROW + 1])
@torch.no_grad()
def test_narrow_maps_are_convolved_as_patches(width):
    """The sums are those of float64 but for the last bit of bfloat16; on the rim as inside, whatever the height."""
    convolution, x = nn.Conv2d(40, 48, 3, padding=1), torch.randn(2, 40, 6, width)
    exact = nn.functional.conv2d(*(a.bfloat16().double() for a in (x, convolution.weight, convolution.bias)), padding=1)
    with packed_convolutions(convolution, mixed=True):
        got = convolution(x.to(memory_format=torch.channels_last))
        assert ("mkldnn::_linear_pointwise" in operators_of(lambda: convolution(x))) == (width <= NARROW)
    assert got.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(got.double(), exact, rtol=2**-8, atol=1e-4)


@in_hardware
@pytest.mark.parametrize("side", [NARROW, 12])
@pytest.mark.parametrize("kind", [nn.Conv2d, Pointwise])
@torch.no_grad()
def test_a_map_is_added_whatever_the_precision_and_stays_as_it_is(kind, side):
    convolution = kind(40, 40, 3, padding=1) if kind is nn.Conv2d else kind(40, 40, 1)
    h, x = torch.randn(2, 2, 40, side, side).unbind()
    want = x + convolution(h)
    torch.testing.assert_close(added_to(x.clone(), convolution, h), want)
    for mixed in (False, True):
        with packed_convolutions(convolution, mixed=mixed):
            kept = x.clone()
            torch.testing.assert_close(added_to(kept, convolution, h), want, rtol=2**-6, atol=2e-2)
            assert torch.equal(kept, x)
    convolution.bfloat16()
    with packed_convolutions(convolution):
        kept = x.bfloat16()
        torch.testing.assert_close(added_to(kept, convolution, h.bfloat16()).float(), want, rtol=2**-5, atol=5e-2)
        assert torch.equal(kept, x.bfloat16())


@torch.no_grad()
def test_within_another_context_packed_weights_stay():
    convolution, x = nn.Conv2d(4, 4, 3), torch.randn(1, 4, 6, 6)
    with packed_convolutions(convolution):
        packed = vars(convolution)["_conv_forward"]
        with packed_convolutions(convolution):
            convolution(x)
        assert vars(convolution)["_conv_forward"] is packed
    assert "_conv_forward" not in vars(convolution)


def test_a_stage_runs_mixed_where_its_pictures_are_known_to_stay(monkeypatch):
    """By default only if they were measured, on a CPU that is made for it, in float32; and as it is told otherwise."""

    def stage(difference=None):
        return BasePipeline(UNet(8, channels=[8], blocks=[1], head_channels=8), DDPMScheduler(), bfloat16_difference=difference)

    monkeypatch.setattr("cascade.stages.stage.multiplies_bfloat16", lambda: True)
    assert [stage(value).runs_mixed for value in (None, 0.0, MAX_DIFFERENCE, MAX_DIFFERENCE + 0.01)] == [False, True, True, False]
    near, unknown = stage(0.0), stage()
    near.mixed_precision, unknown.mixed_precision = False, True
    assert not near.runs_mixed and unknown.runs_mixed and not unknown.to(torch.bfloat16).runs_mixed
    monkeypatch.setattr("cascade.stages.stage.multiplies_bfloat16", lambda: False)
    assert not stage(0.0).runs_mixed
