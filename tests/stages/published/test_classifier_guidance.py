"""Classifier guidance: the classifier and the guided ancestral step against guided-diffusion's, written out independently."""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from diffusers import DDIMScheduler, DDPMScheduler
from diffusers.schedulers import scheduling_ddpm
from references import arrays, network_of, relative_error, stage_of
from safetensors.torch import save_file
from torch import Tensor

from cascade import CascadePipeline
from cascade.costs import cost_of
from cascade.stages import published
from cascade.stages.base import BasePipeline
from cascade.stages.denoiser import ClassifierGuidance, Denoiser, to_x0
from cascade.stages.published import families, guided_diffusion
from cascade.stages.sampling import Run, _variance, sample


class Quadratic(torch.nn.Module):
    """Classifier whose log p(class | x) is that of two unit Gaussians with means +1 and -1 in every pixel."""

    num_classes = 2

    def forward(self, x: Tensor, timesteps: Tensor) -> Tensor:
        return torch.stack([-((x - 1) ** 2).sum((1, 2, 3)) / 2, -((x + 1) ** 2).sum((1, 2, 3)) / 2], dim=1)


class White:
    """Ideal denoiser of the data N(0, 1) in every pixel, with a learned variance of zeros; knows no class."""

    prediction_type, num_classes, null_label, learned_variance = "epsilon", None, None, True

    def __call__(self, x_t: Tensor, log_snr: Tensor, *_: Any) -> Tensor:
        return torch.cat([torch.sigmoid(-log_snr).sqrt().view(-1, 1, 1, 1) * x_t, torch.zeros_like(x_t)], dim=1)

    def timesteps(self, log_snr: Tensor) -> Tensor:
        return log_snr


def test_classifier_guidance_moves_x0_along_the_gradient_of_log_p() -> None:
    """Tweedie: x0_hat = (x_t + sigma^2 score) / alpha, so guidance adds scale * sigma^2 / alpha * grad log p(class | x_t)."""
    x, log_snr, labels = torch.randn(2, 3, 4, 4), torch.tensor([-1.0, 1.5]), torch.tensor([0, 1])
    guided = ClassifierGuidance(White(), Quadratic(), scale=0.7)

    with torch.no_grad():
        got = guided(x, log_snr, labels)

    p_first = torch.sigmoid(2 * x.sum((1, 2, 3)))
    gradient = torch.stack([2 * (1 - p_first[0]), -2 * p_first[1]]).view(-1, 1, 1, 1).expand_as(x)  # d/dx log softmax
    sigma2, alpha = torch.sigmoid(-log_snr).view(-1, 1, 1, 1), torch.sigmoid(log_snr).sqrt().view(-1, 1, 1, 1)
    plain = to_x0(White()(x, log_snr)[:, :3], "epsilon", x, log_snr)
    expected = plain + 0.7 * sigma2 / alpha * gradient
    torch.testing.assert_close(to_x0(got[:, :3], "epsilon", x, log_snr), expected, rtol=1e-4, atol=1e-4)
    assert torch.equal(got[:, 3:], torch.zeros_like(x))
    assert isinstance(guided, Denoiser) and guided.num_classes == 2 and guided.learned_variance


def test_classifier_guidance_of_scale_zero_is_none_and_needs_labels_otherwise() -> None:
    x, log_snr, labels = torch.randn(1, 3, 4, 4), torch.zeros(1), torch.tensor([1])
    unguided = ClassifierGuidance(White(), Quadratic(), scale=0)
    torch.testing.assert_close(unguided(x, log_snr, labels), White()(x, log_snr))
    with pytest.raises(ValueError, match="needs class_labels, indices from 0 to 1"):
        ClassifierGuidance(White(), Quadratic(), scale=1)(x, log_snr)


def test_classifier_of_other_classes_is_refused() -> None:
    with pytest.raises(ValueError, match="the classifier knows 2 classes and the model 10"):
        ClassifierGuidance(stage_of("guided-diffusion").unet, Quadratic(), 1.0)


def classifier_config() -> dict[str, Any]:
    """A classifier of the reference network's size and classes, by the flags of a published one."""
    known = families.family_of("guided-diffusion-classifier").known("64x64_classifier.pt")
    assert known is not None
    flags = {**known.config["flags"], "image_size": 16, "classifier_width": 32}
    flags |= {"classifier_depth": 1, "classifier_attention_resolutions": "8"}
    return {"flags": flags, "channel_mult": [1, 2], "num_classes": 10}


@pytest.fixture(scope="module")
def classifier_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Random weights, those that start as zero too; of a scale at which the classifier is sure of some things."""
    network = guided_diffusion.build_classifier(classifier_config())
    generator = torch.Generator().manual_seed(0)
    tensors = {}
    for name, value in network.state_dict().items():
        fan_in = value[0].numel() if value.ndim > 1 and "positional" not in name else 1
        tensors[name] = torch.randn(value.shape, generator=generator) / math.sqrt(fan_in) * (1.0 if value.ndim > 1 else 0.3)
        tensors[name] += 1.0 if name.endswith("weight") and value.ndim == 1 else 0.0
    path = tmp_path_factory.mktemp("classifier") / "classifier.safetensors"
    save_file(tensors, path)
    return path


def logits(w: Mapping[str, Tensor], x: Tensor, timesteps: Tensor) -> Tensor:
    """The classifier of guided-diffusion for the tiny configuration, function by function, from its weights."""
    silu = F.silu

    def linear(value: Tensor, name: str) -> Tensor:
        return value @ w[f"{name}.weight"].T + w[f"{name}.bias"]

    def convolution(value: Tensor, name: str) -> Tensor:
        return F.conv2d(value, w[f"{name}.weight"], w[f"{name}.bias"], padding=w[f"{name}.weight"].shape[-1] // 2)

    def group_norm(value: Tensor, name: str) -> Tensor:
        grouped = value.flatten(2).reshape(len(value), 32, -1)
        mean, var = grouped.mean(-1, keepdim=True), grouped.var(-1, keepdim=True, unbiased=False)
        normal = ((grouped - mean) / (var + 1e-5).sqrt()).reshape(value.shape)
        shape = (1, -1, *[1] * (value.ndim - 2))
        return normal * w[f"{name}.weight"].view(shape) + w[f"{name}.bias"].view(shape)

    def softmax_attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        scores = torch.einsum("bct,bcs->bts", q, k) / math.sqrt(q.shape[1])
        return torch.einsum("bts,bcs->bct", scores.softmax(-1), v)

    waves = torch.tensor([math.exp(-math.log(10000) * i / 16) for i in range(16)], dtype=torch.float32).double()
    angles = timesteps.double()[:, None] * waves
    embedding = linear(silu(linear(torch.cat([angles.cos(), angles.sin()], 1), "time_embed.0")), "time_embed.2")

    def residual(h: Tensor, name: str, halve: bool = False) -> Tensor:
        half = (lambda value: F.avg_pool2d(value, 2)) if halve else (lambda value: value)
        inner = convolution(half(silu(group_norm(h, f"{name}.in_layers.0"))), f"{name}.in_layers.2")
        scale, shift = linear(silu(embedding), f"{name}.emb_layers.1")[:, :, None, None].chunk(2, 1)
        inner = silu(group_norm(inner, f"{name}.out_layers.0") * (1 + scale) + shift)
        h = half(h)
        skip = convolution(h, f"{name}.skip_connection") if f"{name}.skip_connection.weight" in w else h
        return skip + convolution(inner, f"{name}.out_layers.3")

    def attention(h: Tensor, name: str) -> Tensor:
        flat = h.flatten(2)
        qkv = torch.einsum("oc,bcn->bon", w[f"{name}.qkv.weight"][..., 0], group_norm(flat, f"{name}.norm"))
        q, k, v = (qkv + w[f"{name}.qkv.bias"][:, None]).chunk(3, 1)  # one head of 64 channels
        out = torch.einsum("oc,bcn->bon", w[f"{name}.proj_out.weight"][..., 0], softmax_attention(q, k, v))
        return (flat + out + w[f"{name}.proj_out.bias"][:, None]).view_as(h)

    h = convolution(x, "input_blocks.0.0")
    h = residual(h, "input_blocks.1.0")
    h = residual(h, "input_blocks.2.0", halve=True)
    h = attention(residual(h, "input_blocks.3.0"), "input_blocks.3.1")
    h = residual(attention(residual(h, "middle_block.0"), "middle_block.1"), "middle_block.2")
    h = silu(group_norm(h, "out.0")).flatten(2)
    h = torch.cat([h.mean(-1, keepdim=True), h], -1) + w["out.2.positional_embedding"]
    qkv = torch.einsum("oc,bcn->bon", w["out.2.qkv_proj.weight"][..., 0], h) + w["out.2.qkv_proj.bias"][:, None]
    pooled = softmax_attention(*qkv.chunk(3, 1))[:, :, 0]
    return pooled @ w["out.2.c_proj.weight"][..., 0].T + w["out.2.c_proj.bias"]


def test_classifier_gives_the_logits_and_gradients_of_the_algorithm_written_out(classifier_file: Path) -> None:
    network = published.load("guided-diffusion-classifier", classifier_file, classifier_config())
    weights = {name: value.double() for name, value in network.state_dict().items()}
    x, timesteps, labels = torch.randn(3, 3, 16, 16), torch.tensor([0.0, 37.0, 999.0]), torch.tensor([1, 7, 4])
    found = []
    for one, given in ((network, x), (lambda *inputs: logits(weights, *inputs), x.double())):
        given = given.clone().requires_grad_()
        values = one(given, timesteps)
        log_p = values.log_softmax(1).gather(1, labels[:, None]).sum()
        found.append((values.detach(), torch.autograd.grad(log_p, given)[0]))
    assert found[1][0].std() > 0.1 and found[1][1].std() > 1e-4
    for got, expected in zip(*found, strict=True):
        assert relative_error(got, expected) < 1e-5


def guided_ancestral(weights: Mapping[str, Tensor], run: Mapping[str, Tensor], scale: float) -> list[Tensor]:
    """Algorithm 1 as guided-diffusion runs it: respaced posterior, learned variance, mean moved after x0 was clipped."""
    network, y = network_of("guided-diffusion"), run["y"]
    betas, alpha_bar = run["ancestral_betas"].double(), run["ancestral_alphas_cumprod"].double()
    before = torch.cat([torch.ones(1, dtype=torch.float64), alpha_bar[:-1]])
    posterior = betas * (1 - before) / (1 - alpha_bar)
    log_posterior = torch.cat([posterior[1:2], posterior[1:]]).log()
    x, states = run["initial_noise"].double(), []
    for number, t in enumerate(run["ancestral_timesteps"]):
        i = len(betas) - 1 - number
        times = t.repeat(len(x)).float()
        eps, v = network(x.float(), times, y).double().chunk(2, 1)
        log_variance = (v + 1) / 2 * betas[i].log() + (1 - v) / 2 * log_posterior[i]
        x0 = ((x - (1 - alpha_bar[i]).sqrt() * eps) / alpha_bar[i].sqrt()).clamp(-1, 1)
        mean = before[i].sqrt() * betas[i] / (1 - alpha_bar[i]) * x0
        mean = mean + (1 - betas[i]).sqrt() * (1 - before[i]) / (1 - alpha_bar[i]) * x
        given = x.clone().requires_grad_()
        log_p = logits(weights, given, times).log_softmax(1).gather(1, y[:, None]).sum()
        mean = mean + log_variance.exp() * scale * torch.autograd.grad(log_p, given)[0]
        x = mean + (i > 0) * (log_variance / 2).exp() * run["ancestral_step_noise"][number]
        states.append(x)
    return states


@pytest.mark.parametrize("strength", [0.0, 1.0, 20.0])
def test_guided_ancestral_sampling_ends_where_the_algorithm_does(
    classifier_file: Path, strength: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, pipeline = arrays("guided-diffusion", "sampling"), stage_of("guided-diffusion")
    guide = published.guide("guided-diffusion-classifier", classifier_file, classifier_config())
    expected = guided_ancestral({n: v.double() for n, v in guide.network.state_dict().items()}, run, strength)
    if strength == 0:
        assert relative_error(expected[-1], run["ancestral_sample"]) < 2e-4  # what the original itself computed, unguided
    else:
        assert relative_error(expected[-1], run["ancestral_sample"]) > 0.01

    noises, states = iter(run["ancestral_step_noise"]), []
    monkeypatch.setattr(scheduling_ddpm, "randn_tensor", lambda *args, **kwargs: next(noises))
    guided = BasePipeline(pipeline.unet, pipeline.scheduler, guide_unet=guide).guided(1 + strength, None)
    assert isinstance(guided, ClassifierGuidance) and isinstance(pipeline.scheduler, DDPMScheduler)
    end = sample(
        guided, pipeline.scheduler, run["initial_noise"], 10, class_labels=run["y"], callback=lambda i, t, x: states.append(x)
    )
    assert relative_error(states[4], expected[4]) < 2e-5
    assert relative_error(end, expected[-1]) < 2e-4


def test_ancestral_variance_is_that_with_which_the_scheduler_draws() -> None:
    """The std of many draws of one step, for a variance that is fixed."""
    for kind in ("fixed_small", "fixed_large"):
        scheduler = DDPMScheduler(variance_type=kind, clip_sample=False)
        run = Run.of(scheduler, 20)
        x = torch.zeros(1, 1, 500, 500)
        drawn = run.scheduler.step(x, run.scheduler.timesteps[7], x, generator=torch.Generator().manual_seed(0)).prev_sample
        assert float(_variance(run, 7, x)) == pytest.approx(float(drawn.var()), rel=0.02)


def test_guidance_under_other_schedulers_pushes_the_predicted_noise(classifier_file: Path) -> None:
    guide = published.guide("guided-diffusion-classifier", classifier_file, classifier_config())
    own = stage_of("guided-diffusion")
    pipeline = BasePipeline(own.unet, DDIMScheduler.from_config(own.scheduler.config), guide_unet=guide, guidance_scale=6.0)
    pipeline.set_progress_bar_config(disable=True)
    make = {"class_labels": [3], "num_inference_steps": 4, "output_type": "pt"}
    images = [pipeline(generator=torch.Generator().manual_seed(0), guidance_scale=scale, **make).images for scale in (None, 1.0)]
    assert images[0].isfinite().all() and not torch.equal(*images)
    inside, outside = (
        pipeline(generator=torch.Generator().manual_seed(0), guidance_interval=interval, **make).images
        for interval in ((0.0, math.inf), (1e6, 1e7))
    )
    assert torch.equal(inside, images[0]) and torch.equal(outside, images[1])


def test_guided_stage_is_saved_and_costs_what_it_runs(classifier_file: Path, tmp_path: Path) -> None:
    guide, own = (
        published.guide("guided-diffusion-classifier", classifier_file, classifier_config()),
        stage_of("guided-diffusion"),
    )
    pipeline = BasePipeline(own.unet, own.scheduler, guide_unet=guide, guidance_scale=2.0, num_inference_steps=3)
    pipeline.save_pretrained(tmp_path / "base")
    index = json.loads((tmp_path / "base" / "model_index.json").read_text())
    assert index["guide_unet"] == ["cascade.stages.published.guided_diffusion", "GuidedDiffusionClassifier"]
    again = BasePipeline.from_pretrained(tmp_path / "base")
    for one in (pipeline, again):
        one.set_progress_bar_config(disable=True)
    pictures = [one([2], output_type="pt", generator=torch.Generator().manual_seed(4)).images for one in (pipeline, again)]
    torch.testing.assert_close(*pictures, rtol=1e-4, atol=1e-4)
    guided, plain = (
        cost_of(CascadePipeline({"base": one}), 16)["base"]
        for one in (again, BasePipeline(own.unet, own.scheduler, num_inference_steps=3))
    )
    assert guided["nfe"] == 6 and plain["nfe"] == 3 and guided["multiply_adds"] > plain["multiply_adds"]
