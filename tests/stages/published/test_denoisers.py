"""Every published family speaks the project's language: log-SNR in, its own clock inside."""

import math
from itertools import pairwise
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from references import FAMILIES, arrays, config_of, network_of, relative_error, stage_of
from torch import Tensor

from cascade.stages.denoiser import Denoiser
from cascade.stages.noise import add_noise, log_snr_of_alpha_bar
from cascade.stages.published import consistency, janspiry
from cascade.stages.published.denoisers import STEP_TOLERANCE, steps_of
from cascade.stages.published.openai_flags import noise_table
from cascade.stages.sampling import sample

STEPPED = ("guided-diffusion", "guided-diffusion-sr", "improved-diffusion", "improved-diffusion-sr", "sr3-ddpm")


def inputs(denoiser: Any, count: int = 2) -> dict[str, Tensor | None]:
    low_res_size = denoiser.config.low_res_size
    return {
        "class_labels": torch.arange(count) if denoiser.num_classes is not None else None,
        "low_res": torch.rand(count, 3, low_res_size, low_res_size) * 2 - 1 if low_res_size else None,
    }


@pytest.mark.parametrize("family", FAMILIES)
def test_is_a_denoiser(family: str) -> None:
    denoiser = stage_of(family).unet
    assert isinstance(denoiser, Denoiser)
    size = denoiser.config.sample_size
    out = denoiser(torch.randn(2, 3, size, size), torch.tensor([-2.0, 3.0]), **inputs(denoiser))
    assert out.shape == (2, 6 if denoiser.learned_variance else 3, size, size)
    assert out.isfinite().all()
    assert denoiser.num_classes == (None if family.startswith("sr3") else 10)
    assert denoiser.null_label == (10 if family == "jit" else None)


@pytest.mark.parametrize("family", ["guided-diffusion", "guided-diffusion-sr", "improved-diffusion", "improved-diffusion-sr"])
def test_openai_tables_are_those_of_the_original(family: str) -> None:
    flags, expected = config_of(family)["flags"], arrays(family, "schedule")
    table = noise_table(flags["noise_schedule"], flags["diffusion_steps"])
    torch.testing.assert_close(torch.sigmoid(table)[expected["index"]], expected["alphas_cumprod"], rtol=1e-9, atol=0)


def test_janspiry_schedule_is_that_of_the_original() -> None:
    for family in ("sr3", "sr3-ddpm"):
        expected = arrays(family, "schedule")["alphas_cumprod"].double()
        table = janspiry.schedule(config_of(family)).table()
        index = torch.tensor([int((torch.sigmoid(table) - value).abs().argmin()) for value in expected])
        torch.testing.assert_close(torch.sigmoid(table)[index], expected, rtol=1e-5, atol=0)
        assert (index[:5] == torch.arange(5)).all()


def test_steps_invert_the_table() -> None:
    table = noise_table("cosine", 1000)
    steps = torch.tensor([0.0, 0.4, 1.0, 37.25, 500.0, 998.5, 999.0])
    low = steps.floor().clamp(max=998).long()
    log_snr = torch.lerp(table[low], table[low + 1], (steps - low).double())
    torch.testing.assert_close(steps_of(log_snr, table), steps, rtol=0, atol=1e-4)


def test_steps_are_held_at_the_ends_and_whole_despite_float32() -> None:
    for schedule, count in (("linear", 1000), ("cosine", 1000), ("cosine", 4000)):
        table = noise_table(schedule, count)
        assert steps_of(torch.tensor([50.0, -50.0]), table).tolist() == [0, count - 1]
        as_schedulers_keep_it = log_snr_of_alpha_bar(torch.sigmoid(table).float().double())
        assert torch.equal(steps_of(as_schedulers_keep_it, table)[2:], torch.arange(2.0, count))
    assert STEP_TOLERANCE < 0.1


@pytest.mark.parametrize("family", STEPPED[:4])
def test_denoiser_at_a_step_is_the_network_at_that_step(family: str) -> None:
    io, denoiser = arrays(family), stage_of(family).unet
    for case in range(3):
        low_res = io["low_res"][case] if "low_res" in io else None
        got = denoiser(io["x"][case], denoiser.table[io["t"][case]], io["y"][case], low_res)
        assert relative_error(got, io["output"][case]) < 1e-5


def test_sr3_denoiser_at_a_noise_level_is_the_network_at_that_level() -> None:
    io, denoiser = arrays("sr3"), stage_of("sr3").unet
    for case in range(3):
        log_snr = log_snr_of_alpha_bar(io["noise_level"][case].flatten().double() ** 2)
        assert relative_error(denoiser(io["x"][case], log_snr, low_res=io["cond"][case]), io["output"][case]) < 1e-5


@pytest.mark.parametrize("family", ["consistency", "edm", "edm2"])
def test_sigma_denoisers_see_the_same_image_in_another_scale(family: str) -> None:
    io, denoiser = arrays(family), stage_of(family).unet
    for case in range(3):
        sigma = io["sigma"][case].double()
        x_t = io["x"][case] / (1 + sigma.view(-1, 1, 1, 1) ** 2).sqrt()
        got = denoiser(x_t.float(), -2 * sigma.log(), io["y"][case])
        assert denoiser.prediction_type == "sample"
        expected = io["denoised_boundary" if family == "consistency" else "denoised"][case]
        assert relative_error(got, expected) < 1e-5


def test_sr3_upsamples_as_image_files_were() -> None:
    picture = Image.effect_noise((16, 16), 20).convert("RGB").resize((16, 16))
    as_tensor = lambda image: torch.tensor(list(image.getdata())).view(*image.size, 3).permute(2, 0, 1)[None] / 127.5 - 1  # noqa: E731
    got = janspiry.upsampled(as_tensor(picture), 64)
    torch.testing.assert_close(got, as_tensor(picture.resize((64, 64), Image.Resampling.BICUBIC)), rtol=0, atol=2.01 / 127.5)


def test_missing_inputs_are_named() -> None:
    x, log_snr = torch.randn(1, 3, 32, 32), torch.zeros(1)
    with pytest.raises(ValueError, match="refines 16 px images: low_res is missing"):
        stage_of("guided-diffusion-sr").unet(x, log_snr, torch.zeros(1, dtype=torch.long))
    with pytest.raises(ValueError, match="knows 10 classes: y is missing"):
        stage_of("guided-diffusion").unet(x, log_snr)
    with pytest.raises(ValueError, match="noise_level is missing"):
        network_of("sr3")(x=x, cond=x)


def test_consistency_scheduler_alternates_denoising_and_noise() -> None:
    """Against Algorithm 1 of the paper written out, for the ideal consistency function of the data N(0, std^2)."""
    std, scheduler = 0.3, consistency.ConsistencyScheduler()
    kept = {"sigmas": [], "inputs": []}

    class Ideal:
        prediction_type, num_classes, null_label, learned_variance = "sample", None, None, False

        def __call__(self, x_t: Tensor, log_snr: Tensor, *_: Any) -> Tensor:
            sigma = math.exp(-float(log_snr[0]) / 2)
            x = x_t * math.sqrt(1 + sigma**2)
            kept["sigmas"].append(sigma)
            kept["inputs"].append(x)
            return x * std / math.sqrt(std**2 + sigma**2)

    noise = torch.randn(1, 3, 8, 8)
    got = sample(Ideal(), scheduler, noise, 2, generator=torch.Generator().manual_seed(5))

    levels = [(80 ** (1 / 7) + place / 39 * (0.002 ** (1 / 7) - 80 ** (1 / 7))) ** 7 for place in (0, 22)]
    torch.testing.assert_close(torch.tensor(kept["sigmas"]), torch.tensor(levels), rtol=1e-4, atol=0)
    x = noise * 80
    first = (x * std / math.sqrt(std**2 + 80**2)).clamp(-1, 1)
    x = first + math.sqrt(levels[1] ** 2 - 0.002**2) * torch.randn(1, 3, 8, 8, generator=torch.Generator().manual_seed(5))
    torch.testing.assert_close(kept["inputs"][1], x, rtol=1e-3, atol=1e-4)
    expected = (x * std / math.sqrt(std**2 + levels[1] ** 2)).clamp(-1, 1)
    torch.testing.assert_close(got, expected, rtol=1e-3, atol=1e-4)


def test_consistency_scheduler_spreads_other_numbers_of_steps_evenly() -> None:
    scheduler = consistency.ConsistencyScheduler()
    for count in (1, 4):
        scheduler.set_timesteps(count)
        assert len(scheduler.timesteps) == count and len(scheduler.sigmas) == count + 1
        torch.testing.assert_close(scheduler.sigmas[[0, -1]], torch.tensor([80.0, 0.002]))
        places = scheduler.sigmas ** (1 / 7)
        gaps = [float(a - b) for a, b in pairwise(places)]
        assert max(gaps) - min(gaps) < 1e-4


@pytest.mark.parametrize("family", ["edm", "guided-diffusion"])
def test_bfloat16_stays_close(family: str) -> None:
    torch.manual_seed(0)
    denoiser = stage_of(family).unet
    x0, log_snr = torch.rand(2, 3, 16, 16) * 2 - 1, torch.tensor([0.0, 2.0])
    x_t = add_noise(x0, torch.randn_like(x0), log_snr)
    exact = denoiser(x_t, log_snr, torch.tensor([1, 2]))
    try:
        rough = denoiser.to(torch.bfloat16)(x_t, log_snr, torch.tensor([1, 2]))
    finally:
        stage_of.cache_clear()
    assert relative_error(rough.float(), exact) < 0.05
    assert F.cosine_similarity(rough.float().flatten(), exact.flatten(), dim=0) > 0.99
