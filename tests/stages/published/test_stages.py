"""Published files as stages: sampled as their authors did, converted once, loaded without the original ever after."""

import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import mock_pickle
import pytest
import torch
from diffusers import DDIMScheduler, DPMSolverMultistepScheduler, EulerDiscreteScheduler, HeunDiscreteScheduler
from diffusers.schedulers import scheduling_ddpm
from references import FAMILIES, arrays, config_of, relative_error, stage_of, weights_of
from torch import Tensor

from cascade.stages import published
from cascade.stages.base import BasePipeline
from cascade.stages.published import openai_flags
from cascade.stages.published.families import family_of
from cascade.stages.sampling import sample
from cascade.stages.sr3 import SR3Pipeline

SAMPLED = {"guided-diffusion": "ancestral_", "guided-diffusion-sr": "ancestral_", "sr3": "", "sr3-ddpm": ""}


@pytest.fixture
def draw_recorded_noise(monkeypatch: pytest.MonkeyPatch) -> Any:
    def use(noises: Tensor) -> Iterator[Tensor]:
        remaining = iter(noises)
        monkeypatch.setattr(scheduling_ddpm, "randn_tensor", lambda *args, **kwargs: next(remaining))
        return remaining

    return use


@pytest.mark.parametrize("family", SAMPLED)
def test_ancestral_sampling_ends_where_the_original_does(family: str, draw_recorded_noise: Any) -> None:
    pipeline, prefix = stage_of(family), SAMPLED[family]
    run = arrays(family, "sampling")
    remaining = draw_recorded_noise(run[f"{prefix}step_noise"])
    steps, states = len(run[f"{prefix}step_noise"]), {}

    end = sample(
        pipeline.unet,
        pipeline.scheduler,
        run["initial_noise"],
        steps,
        class_labels=run.get("y"),
        low_res=run.get("low_res", run.get("cond")),
        callback=lambda i, t, x: states.update({i + 1: x}),
    )

    between = {int(name.rsplit("_", 1)[1]): values for name, values in run.items() if name.startswith(f"{prefix}x_after_step_")}
    assert len(between) == 2
    for step, expected in between.items():
        assert relative_error(states[step], expected) < 2e-5
    assert relative_error(end, run[f"{prefix}sample"]) < 2e-4
    assert len(list(remaining)) == 1  # the originals draw a noise for the last step too, and don't use it


@pytest.mark.parametrize("family", ["guided-diffusion", "guided-diffusion-sr"])
def test_ddim_ends_where_the_original_does(family: str) -> None:
    """The original derives its noise again from the clipped x0, as the loop has stock DDIM do."""
    pipeline, run = stage_of(family), arrays(family, "sampling")
    scheduler = DDIMScheduler.from_config(pipeline.scheduler.config, timestep_spacing="leading")
    scheduler.set_timesteps(10)
    assert torch.equal(scheduler.timesteps, run["ddim_timesteps"])
    x = sample(pipeline.unet, scheduler, run["initial_noise"], 10, class_labels=run["y"], low_res=run.get("low_res"))
    assert relative_error(x, run["ddim_sample"]) < 2e-4


@pytest.mark.parametrize("family", ["guided-diffusion", "guided-diffusion-sr", "improved-diffusion", "improved-diffusion-sr"])
@pytest.mark.parametrize("count", [10, 25])
def test_scheduler_respaces_as_the_original(family: str, count: int) -> None:
    schedule = arrays(family, "schedule")
    scheduler = openai_flags.sampler(config_of(family))[0]
    scheduler.set_timesteps(count)
    assert torch.equal(scheduler.timesteps.flip(0), schedule[f"timestep_map_{count}"])
    alpha_bar = torch.cumprod(1 - schedule[f"betas_{count}"], dim=0)
    kept = scheduler.alphas_cumprod[schedule[f"timestep_map_{count}"]].double()
    torch.testing.assert_close(kept, alpha_bar, rtol=3e-5, atol=1e-9)


def call(pipeline: Any, **settings: Any) -> Tensor:
    """Two images of a pipeline, with the inputs that it needs."""
    labels = [1, 2] if pipeline.unet.num_classes is not None else None
    settings = {"num_inference_steps": 3, "output_type": "pt", "generator": torch.Generator().manual_seed(0), **settings}
    if isinstance(pipeline, BasePipeline):
        return pipeline(class_labels=labels, num_images=2, **settings).images
    small = torch.rand(2, 3, *[pipeline.low_res_size] * 2, generator=torch.Generator().manual_seed(1)) * 2 - 1
    return pipeline(small, class_labels=labels, **settings).images


@pytest.mark.parametrize("family", FAMILIES)
def test_conversion_keeps_the_stage(family: str, tmp_path: Path) -> None:
    original = stage_of(family)
    folder = published.convert(family, weights_of(family), config_of(family), tmp_path / "stage")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["stage"]
    again = type(original).from_pretrained(folder)
    again.set_progress_bar_config(disable=True)

    expected = original.unet.state_dict()
    assert again.unet.state_dict().keys() == expected.keys()
    for name, value in again.unet.state_dict().items():
        torch.testing.assert_close(value, expected[name], rtol=0, atol=0)
    kept = [{name: value for name, value in p.scheduler.config.items() if name[0] != "_"} for p in (again, original)]
    assert json.dumps(kept[0], sort_keys=True) == json.dumps(kept[1], sort_keys=True)
    torch.testing.assert_close(call(again), call(original), rtol=1e-3, atol=1e-3)

    card = (folder / "README.md").read_text()
    assert hashlib.sha256(weights_of(family).read_bytes()).hexdigest() in card
    assert family_of(family).licence in card
    assert ("on-commercial: these weights may not be used" in card) == (family in ("edm", "edm2"))
    assert json.loads((folder / "unet" / "config.json").read_text())["sample_size"] == original.unet.config.sample_size


def test_own_sampler_runs() -> None:
    assert call(stage_of("improved-diffusion")).isfinite().all()


def test_upsampler_families_refine_and_base_families_do_not() -> None:
    for family in FAMILIES:
        refines = family.endswith("-sr") or family.startswith("sr3")
        assert isinstance(stage_of(family), SR3Pipeline if refines else BasePipeline)


def test_conversion_leaves_nothing_behind_when_it_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: Any) -> str:
        raise OSError("disk full")

    monkeypatch.setattr("cascade.stages.published.conversion.model_card", fail)
    with pytest.raises(OSError, match="disk full"):
        published.convert("edm2", weights_of("edm2"), config_of("edm2"), tmp_path / "stage")
    assert list(tmp_path.iterdir()) == []


def test_conversion_refuses_an_existing_folder(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="exists already"):
        published.convert("edm2", weights_of("edm2"), config_of("edm2"), tmp_path)


def test_a_classifier_is_not_a_stage(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="makes no images"):
        published.stage("guided-diffusion-classifier", tmp_path / "64x64_classifier.pt")


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("scheduler", [DDIMScheduler, DPMSolverMultistepScheduler, EulerDiscreteScheduler, HeunDiscreteScheduler])
def test_every_family_runs_with_other_schedulers(family: str, scheduler: Any) -> None:
    pipeline = stage_of(family)
    own = pipeline.scheduler
    try:
        pipeline.scheduler = scheduler(prediction_type=pipeline.unet.prediction_type)
        assert call(pipeline, num_inference_steps=8).isfinite().all()  # Heun's method refuses wider steps
    finally:
        pipeline.scheduler = own


def test_edm2_guided_by_a_weaker_model() -> None:
    strong = stage_of("edm2")
    guided = BasePipeline(strong.unet, strong.scheduler, guide_unet=stage_of("edm").unet, guidance_scale=1.7)
    guided.set_progress_bar_config(disable=True)
    images = call(guided)
    assert images.isfinite().all() and not torch.equal(images, call(strong))
    torch.testing.assert_close(call(guided, guidance_scale=1.0), call(strong))


def test_stage_of_one_family_refines_that_of_another() -> None:
    base, upsampler = stage_of("edm"), stage_of("guided-diffusion-sr")
    small = call(base)
    large = upsampler(small, class_labels=[1, 2], num_inference_steps=3, output_type="pt").images
    assert large.shape == (2, 3, 32, 32) and large.isfinite().all()


def random_weights(suffix: str, width: int, path: Path) -> tuple[str, dict[str, Any]]:
    """A weight file of a reference network made wider, and its family and configuration."""
    if suffix == ".pkl":
        family, config = "edm2", {"init_kwargs": {**config_of("edm2")["init_kwargs"], "model_channels": width}}
    else:
        flags = {**config_of("guided-diffusion")["flags"], "num_channels": width, "num_head_channels": width}
        family, config = "guided-diffusion", {**config_of("guided-diffusion"), "flags": flags}
    tensors = dict(family_of(family).build(config).state_dict())
    if suffix == ".pkl":
        mock_pickle.write(path, mock_pickle.as_published(tensors, family), family, config)
    else:
        torch.save(tensors, path)
    return family, config


@pytest.mark.parametrize("suffix", [".pt", ".pkl"])
def test_conversion_needs_little_memory_beside_the_file(suffix: str, tmp_path: Path) -> None:
    jobs, sizes = [], []
    for width in (16, 160 if suffix != ".pkl" else 320):
        weights = tmp_path / f"{width}{suffix}"
        family, config = random_weights(suffix, width, weights)
        jobs.append([family, str(weights), config, str(tmp_path / f"stage{width}")])
        sizes.append(weights.stat().st_size)
    (tmp_path / "jobs.json").write_text(json.dumps(jobs))
    command = [sys.executable, str(Path(__file__).with_name("convert_two.py")), str(tmp_path / "jobs.json")]
    root = Path(__file__).parents[3]
    done = subprocess.run(
        command, capture_output=True, text=True, check=True, cwd=root, env={**os.environ, "PYTHONPATH": str(root)}
    )
    assert sizes[1] > 50e6
    assert int(done.stdout) < 1.5 * sizes[1]
