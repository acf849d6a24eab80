"""How a stage is sampled is one value, and everything that is said of it follows from its fields."""

import inspect
from dataclasses import fields
from typing import get_type_hints

import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler
from tiny import cascade

from cascade import BasePipeline, CascadePipeline, SR3Pipeline
from cascade.cli.arguments import SAMPLING_OPTIONS
from cascade.stage_sampling import SamplingSettings, StageSampling, sampling_of, settings_taken
from cascade.stages.stage import StagePipeline

FIELDS = [field.name for field in fields(StageSampling)]


@pytest.fixture(scope="module")
def tiny():
    return cascade()


def test_no_setting_can_be_forgotten():
    """A new field needs an option, an argument of the call, and, if a stage takes it, a default that a PNG can state."""
    assert sorted(SAMPLING_OPTIONS) == sorted(FIELDS) == sorted(get_type_hints(SamplingSettings))
    of_calls = {name for stage in (BasePipeline, SR3Pipeline) for name in inspect.signature(stage.__call__).parameters}
    plain = {"self", "image", "num_images", "class_labels", "generator", "output_type", "return_dict", "batch_size", "latents"}
    plain |= {"callback_on_step_end", "callback_on_step_end_tensor_inputs", "timesteps", "sigmas"}
    assert of_calls - plain == set(FIELDS) - {"scheduler"}


def test_a_value_for_all_goes_to_the_stages_that_have_the_setting(tiny):
    found = tiny.sampling(num_inference_steps=5, aug_level={"sr32": 0.2}, scheduler="euler")
    assert found == {
        "base": StageSampling(num_inference_steps=5, scheduler="euler"),
        "sr16": StageSampling(num_inference_steps=5, scheduler="euler"),
        "sr32": StageSampling(num_inference_steps=5, aug_level=0.2, scheduler="euler"),
    }
    assert tiny.sampling(aug_level=0.3)["base"] == StageSampling()


def test_settings_win_over_the_value_that_is_given(tiny):
    given = {"base": StageSampling(num_inference_steps=2, guidance_scale=3.0)}
    assert tiny.sampling(given, num_inference_steps=7)["base"] == StageSampling(num_inference_steps=7, guidance_scale=3.0)


def test_value_and_arguments_make_the_same_pictures(tiny):
    one = tiny("cat", seeds=3, num_inference_steps=2, scheduler={"base": "ddim"}, output_type="pt").images
    value = {name: StageSampling(num_inference_steps=2) for name in ("sr16", "sr32")}
    value["base"] = StageSampling(num_inference_steps=2, scheduler=DDIMScheduler)
    assert torch.equal(one, tiny("cat", seeds=3, sampling=value, output_type="pt").images)
    assert not torch.equal(one, tiny("cat", seeds=3, output_type="pt").images)
    assert isinstance(tiny.stages["base"].scheduler, DDPMScheduler), "for the time of the call only"


def test_what_is_described_is_what_runs(tiny):
    sampling = tiny.sampling(num_inference_steps={"sr16": 4}, guidance_interval=(0.5, 2), scheduler={"base": "heun"})
    described = tiny.described(["base", "sr16"], sampling, batch_size=2)
    assert described["stages"]["base"] == {
        "num_inference_steps": 3,
        "guidance_scale": 1.0,
        "guidance_interval": [0.5, 2],
        "scheduler": "HeunDiscreteScheduler",
    }
    assert described["stages"]["sr16"]["num_inference_steps"] == 4 and described["stages"]["sr16"]["aug_level"] == 0.1
    assert (described["dtype"], described["device"], described["batch_size"]) == ("float32", "cpu", 2)


@pytest.mark.parametrize(
    ("values", "problem"),
    [
        ({"num_inference_steps": 0}, "num_inference_steps must be at least 1, got 0"),
        ({"aug_level": 1.5}, r"aug_level must lie in \[0, 1\], got 1.5"),
        ({"guidance_interval": (1,)}, "guidance_interval must be"),
        ({"scheduler": "heuns"}, "scheduler is 'heuns', expected one of ddpm, ddim"),
    ],
)
def test_a_value_that_no_stage_can_have_is_refused(values, problem):
    with pytest.raises(ValueError, match=problem):
        StageSampling(**values)


def test_a_stage_or_setting_that_there_is_not_is_refused(tiny):
    takes = {name: settings_taken(stage) for name, stage in tiny.stages.items()}
    with pytest.raises(ValueError, match="there is no stage 'sr64'; the stages are base, sr16, sr32"):
        sampling_of(takes, {"sr64": StageSampling()}, {})
    with pytest.raises(ValueError, match="stage 'base' takes no aug_level"):
        tiny("cat", sampling={"base": StageSampling(aug_level=0.1)})
    with pytest.raises(TypeError, match="there is no argument 'steps'; the settings of a stage are num_inference_steps"):
        tiny("cat", steps=3)


def test_a_cascade_passes_on_only_what_stages_take():
    """The list of `settings_taken` is read off the call, so that a stage of another make says itself what it has."""

    class Plain(StagePipeline):
        def __call__(self, num_images=1, class_labels=None, num_inference_steps=None, **_): ...

    assert settings_taken(Plain(None, None)) == {"num_inference_steps"}
    assert settings_taken(CascadePipeline({"base": cascade().stages["base"]}).stages["base"]) == {
        "num_inference_steps", "guidance_scale", "guidance_interval", "scheduler",
    }  # fmt: skip
