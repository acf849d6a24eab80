"""The one sampling loop: any diffusers scheduler that removes noise, with any denoiser, guided or not.

A scheduler keeps its noisy image in a scale of its own, `x = image * x0 + noise * eps`. With both amplitudes known at each step,
the denoiser sees the variance preserving image `x / hypot(image, noise)` at log-SNR `2 ln(image / noise)`, whatever the
scheduler; what it predicts is converted exactly to what the scheduler expects.
"""

from __future__ import annotations

import copy
import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from diffusers import DDPMScheduler
from diffusers.utils.torch_utils import randn_tensor
from torch import Tensor

from cascade.stages.denoiser import PREDICTION_TYPES, ClassifierGuidance, Denoiser, FlowMapGuidance, at_level, convert, to_x0
from cascade.stages.noise import MAX_LOG_SNR, like_image

StepCallback = Callable[[int, Tensor, Tensor], Tensor | None]
Steps = int | Mapping[str, Sequence[float]]
"""Their number, or the steps themselves as the scheduler takes them: `{"timesteps": [999, 500, 1]}`, `{"sigmas": [...]}`."""

# What these expect from a denoiser isn't all that their config can say: they don't know x0, or (PNDM) they mix the predictions of
# several noise levels, which only holds for the noise. Predictions are converted anyway, so such a run goes by epsilon.
_TAKEN_AS_EPSILON = {
    "PNDMScheduler": ("sample", "v_prediction"),
    "EulerAncestralDiscreteScheduler": ("sample",),
    "KDPM2DiscreteScheduler": ("sample",),
    "KDPM2AncestralDiscreteScheduler": ("sample",),
    "EDMEulerScheduler": ("sample",),
    "EDMDPMSolverMultistepScheduler": ("sample",),
}

# Schedulers that carry a slope of the noisy image over a whole step, and the widest step of log-SNR between two evaluations that
# they survive while noise outweighs the image: measured on the shipped base, whose own steps begin with one of 15, after which
# such a scheduler paints nothing but noise. Beside it, how steps are placed where the scheduler's own are too wide.
_NARROW: dict[str, tuple[float, dict[str, Any]]] = {
    "HeunDiscreteScheduler": (4.0, {"use_exponential_sigmas": True}),
    "KDPM2DiscreteScheduler": (1.2, {"use_exponential_sigmas": True}),
    "KDPM2AncestralDiscreteScheduler": (1.1, {"use_exponential_sigmas": True}),
    "PNDMScheduler": (4.0, {"timestep_spacing": "leading"}),
}
NOISE_ALONE = -4.0
"""Log-SNR below which pure noise passes for the noisy image, where steps are placed anew."""

_UNSUITED = {
    "CMStochasticIterativeScheduler": "it applies the scalings of a consistency model itself",
    "MiniMaxH3Scheduler": "its velocity points from the noise to the image",
}


@dataclass(frozen=True)
class Run:
    """One run of a scheduler: a copy of it set to its steps, and the amplitudes of its image at each of them.

    scheduler: The copy; the original is never touched.
    image, noise: Amplitudes of x0 and eps in the scheduler's own noisy image, float64 [nfe].
    target: What the scheduler expects: a prediction type of ours, "flow" (eps - x0) or "edm" (before its output preconditioning).
    """

    scheduler: Any
    image: Tensor
    noise: Tensor
    target: str

    @classmethod
    def of(cls, scheduler: Any, num_inference_steps: Steps) -> Run:
        """A fresh run.

        Steps that are too wide for a scheduler are placed anew, evenly in log-SNR, if it can do so and they are not given; so are
        steps that would take pure noise for an image, from the noisiest on.

        Raises:
            ValueError: if the scheduler's steps can't be understood, or it can't make these.
        """
        name = type(scheduler).__name__
        if not all(hasattr(scheduler, part) for part in ("config", "set_timesteps", "step")):
            raise ValueError(f"{name} is not a diffusers scheduler to sample with: it lacks set_timesteps, step or config")
        if name in _UNSUITED:
            raise _not_understood(scheduler, _UNSUITED[name])
        scheduler = copy.deepcopy(scheduler)
        if scheduler.config.get("prediction_type") in _TAKEN_AS_EPSILON.get(name, ()):
            scheduler.register_to_config(prediction_type="epsilon")
        run = cls._set(scheduler, num_inference_steps)
        late = run.log_snr[-1] >= run.log_snr[0] > 0 and "timestep_spacing" in scheduler.config
        if late and not isinstance(num_inference_steps, Mapping):  # DDPM's own one step is its least noisy one
            scheduler.register_to_config(timestep_spacing="trailing")
            run = cls._set(scheduler, num_inference_steps)
        if name in _NARROW and run.widest_step > _NARROW[name][0] and not isinstance(num_inference_steps, Mapping):
            scheduler.register_to_config(**_NARROW[name][1])
            run = cls._set(scheduler, num_inference_steps)
            if run.log_snr[0] > NOISE_ALONE:
                raise ValueError(
                    f"{name} would begin at log-SNR {run.log_snr[0]:.3g} with {num_inference_steps} steps, where an image is more"
                    f" than noise, expected at most {NOISE_ALONE:g}; take more steps, or another scheduler"
                )
        if not run.image[-1] / run.noise[-1] >= run.image[0] / run.noise[0]:
            raise ValueError(f"{name} goes from image to noise, sampling needs one that goes from noise to image")
        if "solver_order" in scheduler.config and (run.log_snr.diff() == 0).any():
            different = len(run.log_snr.unique())
            raise ValueError(f"{name} divides by the width of its steps, and only {different} of these are different; take fewer")
        if hasattr(scheduler, "set_begin_index"):
            scheduler.set_begin_index(0)  # or it looks its place up by timestep, wrongly where two steps round to the same one
        return run

    @classmethod
    def _set(cls, scheduler: Any, steps: Steps) -> Run:
        _set_steps(scheduler, steps)
        return cls(scheduler, *_amplitudes(scheduler), _target(scheduler))

    @property
    def log_snr(self) -> Tensor:
        """Log-SNR of every evaluation of the denoiser, float64 [nfe]; -inf at pure noise."""
        return 2 * (self.image.log() - self.noise.log())

    def end_of(self, i: int) -> float:
        """Log-SNR at which step i of a scheduler with one evaluation a step ends; infinite after the last."""
        return self.log_snr[i + 1].item() if i + 1 < len(self.image) else math.inf

    @property
    def widest_step(self) -> float:
        """Largest rise of the log-SNR between two evaluations, of those that begin where the noise outweighs the image."""
        rises = self.log_snr.diff()[self.log_snr[:-1] < 0].nan_to_num(nan=0.0)
        return rises.max().item() if len(rises) else 0.0

    @property
    def scale(self) -> Tensor:
        """Scheduler's image divided by the variance preserving one, float64 [nfe]."""
        return torch.hypot(self.image, self.noise)


def _set_steps(scheduler: Any, steps: Steps) -> None:
    name = type(scheduler).__name__
    if not isinstance(steps, Mapping):
        if steps < 1:
            raise ValueError(f"num_inference_steps must be at least 1, got {steps}")
        return scheduler.set_timesteps(steps, device="cpu")
    ((kind, values),) = steps.items()
    if kind not in inspect.signature(scheduler.set_timesteps).parameters or hasattr(scheduler, "precondition_outputs"):
        raise ValueError(f"{name} takes no {kind} of your own; give num_inference_steps, or use another scheduler")
    if len(values) == 0 or any(then >= now for now, then in zip(values, values[1:], strict=False)):
        raise ValueError(f"{kind} are {list(values)}, expected numbers that fall from noise to image")
    scheduler.set_timesteps(**{kind: list(values)}, device="cpu")


def nfe(scheduler: Any, num_inference_steps: Steps) -> int:
    """Evaluations of the denoiser per image: more than the steps for two-stage schedulers (Heun: 2N - 1). Guidance doubles it."""
    return len(Run.of(scheduler, num_inference_steps).scheduler.timesteps)


def generators_of(generator: torch.Generator | Sequence[torch.Generator] | None, count: int) -> list[torch.Generator]:
    """One generator per image, so that no image depends on how many others there are or how they are batched.

    Args:
        generator: One per image, returned as they are; or a single one, or None for torch's own, from which the seeds of `count`
            CPU generators are drawn.
        count: Number of images.

    Raises:
        ValueError: if their number is not `count`.
    """
    if isinstance(generator, Sequence):
        if len(generator) != count:
            raise ValueError(f"got {len(generator)} generators for {count} images; give one generator, or one per image")
        return list(generator)
    device = None if generator is None else generator.device
    seeds = torch.randint(2**63 - 1, (count,), generator=generator, device=device)
    return [torch.Generator().manual_seed(seed) for seed in seeds.tolist()]


def draw_noise(shape: tuple[int, ...], generators: list[torch.Generator], device: torch.device) -> Tensor:
    """Unit Gaussian noise [B, C, H, W] float32, image i from generator i on that generator's own device, moved to `device`."""
    return randn_tensor(shape, generator=generators, device=device, dtype=torch.float32)


@torch.no_grad()
def sample(
    denoiser: Denoiser,
    scheduler: Any,
    noise: Tensor,
    num_inference_steps: Steps,
    *,
    class_labels: Tensor | None = None,
    low_res: Tensor | None = None,
    aug_level: Tensor | None = None,
    generator: torch.Generator | list[torch.Generator] | None = None,
    callback: StepCallback | None = None,
    interrupted: Callable[[], bool] = lambda: False,
) -> Tensor:
    """Turn noise into images.

    Args:
        denoiser: Guidance is one too. A learned variance goes to a scheduler with a learned `variance_type`, and nowhere
            otherwise.
        scheduler: Any diffusers scheduler from noise to image; stays as it is. Thresholding and clipping of x0 are its matter.
        noise: Unit Gaussian noise, [B, C, H, W], float32 or float64; the whole run keeps its number type, unless its scheduler
            has `in_float64`.
        num_inference_steps: Number of the scheduler's steps, or the steps.
        class_labels: int64 [B], or None.
        low_res: Conditioning images, already augmented, [B, C, h, w]; None for a base stage.
        aug_level: In [0, 1], [B], or None.
        generator: Source of the noise that stochastic schedulers add: one per image, or one for all. None = torch's own.
        callback: Called after every step with its index, the timestep and the scheduler's noisy image; an image that it returns
            takes the place of the latter.
        interrupted: Asked after every step; True ends the run with the denoised images of that step.

    Returns:
        Images, [B, C, H, W], in [-1, 1] up to overshoot, as the scheduler's last step leaves them. An image is NaN where the
        denoiser ever gave a value for it that is no finite number, which a scheduler's clipping would hide.

    Raises:
        ValueError: before the denoiser is called, if the scheduler isn't understood or doesn't go together with the denoiser.
    """
    run = Run.of(scheduler, num_inference_steps)
    check_compatible(run, denoiser)
    options = _step_options(run.scheduler, generator)
    ends = "r_timestep" in inspect.signature(run.scheduler.step).parameters  # a scheduler of flow maps
    precise = getattr(run.scheduler, "in_float64", False) and noise.device.type != "mps"  # which has no float64
    x = (noise.double() if precise else noise) * run.scale[0].item()
    finite = torch.ones(len(x), dtype=torch.bool, device=x.device)  # looked at once, so that no step waits for an accelerator
    for i, t in enumerate(run.scheduler.timesteps):
        x_t = x / run.scale[i].item()
        level = run.log_snr[i].nan_to_num(posinf=MAX_LOG_SNR, neginf=-MAX_LOG_SNR).item()
        log_snr = torch.full((len(x),), level, dtype=x.dtype, device=x.device)
        one, gradient = at_level(denoiser, level), None
        if isinstance(one, FlowMapGuidance) and ends:
            one = one.until(run.end_of(i))
        if isinstance(one, ClassifierGuidance) and isinstance(run.scheduler, DDPMScheduler):
            gradient = one.gradient(x_t, log_snr, class_labels)
            prediction = one.unguided(x_t, log_snr, class_labels, low_res, aug_level).to(x.dtype)
        else:
            prediction = one(x_t, log_snr, class_labels, low_res, aug_level).to(x.dtype)
        finite &= prediction.isfinite().flatten(1).all(dim=1)
        _scale_model_input(run.scheduler, x, t)  # some count their steps by it
        x = run.scheduler.step(_output(run, i, denoiser, prediction, x, x_t), t, x, **options).prev_sample
        if gradient is not None:
            x = x + _variance(run, i, prediction) * gradient
        changed = callback(i, t, x) if callback is not None else None
        x = (x if changed is None else changed).to(x.dtype)
        if interrupted():
            x = to_x0(prediction[:, : x.shape[1]], denoiser.prediction_type, x_t, log_snr)
            break
    return x.where(like_image(finite, x) > 0, torch.nan).to(noise.dtype)


def _step_options(scheduler: Any, generator: torch.Generator | list[torch.Generator] | None) -> dict[str, Any]:
    """What a scheduler's `step` takes beside prediction, timestep and image; DDIM derives eps anew from a clipped x0 (ADM)."""
    takes = inspect.signature(scheduler.step).parameters
    options: dict[str, Any] = {"generator": generator} if "generator" in takes else {}
    if "use_clipped_model_output" in takes:
        options["use_clipped_model_output"] = bool(scheduler.config.clip_sample or scheduler.config.thresholding)
    return options


def _amplitudes(scheduler: Any) -> tuple[Tensor, Tensor]:
    """Amplitudes (image, noise) of x0 and eps in the scheduler's noisy image before each step, float64 [nfe]."""
    count = len(scheduler.timesteps)
    own: tuple[Tensor, Tensor] | None = getattr(scheduler, "amplitudes", None)
    if own is not None:
        return own
    sigmas = getattr(scheduler, "sigmas", None)
    if sigmas is None:
        if not hasattr(scheduler, "alphas_cumprod"):
            raise _not_understood(scheduler, "it has neither alphas_cumprod nor sigmas")
        alpha_bar = scheduler.alphas_cumprod.double()[scheduler.timesteps.long()]
        return alpha_bar.sqrt(), (1 - alpha_bar).sqrt()
    if len(sigmas) < count:
        raise _not_understood(scheduler, f"it has {len(sigmas)} sigmas for {count} steps")
    sigmas = sigmas[:count].double().cpu()
    if hasattr(scheduler, "sigmas_interpol"):  # KDPM2: every second evaluation lies between two sigmas
        places = torch.arange(1, count, 2)
        sigmas[places] = scheduler.sigmas_interpol.double().cpu()[places - 1 if hasattr(scheduler, "sigmas_up") else places]
    if scheduler.config.get("use_flow_sigmas") or hasattr(scheduler, "scale_noise"):
        return 1 - sigmas, sigmas
    exploding, preserving = torch.ones_like(sigmas), 1 / torch.hypot(sigmas, torch.ones(()))
    unit = _scale_model_input(copy.deepcopy(scheduler), torch.ones(1, 1, 1, 1), scheduler.timesteps[0]).item()
    data = float(scheduler.config.sigma_data) if hasattr(scheduler, "precondition_outputs") else 1.0
    if unit == 1:
        return preserving, sigmas * preserving
    if abs(unit * (sigmas[0] ** 2 + data**2) ** 0.5 - 1) < 1e-3:
        return exploding, sigmas
    raise _not_understood(scheduler, f"it scales its image by {unit:g} at sigma {sigmas[0]:g}")


def _scale_model_input(scheduler: Any, x: Tensor, t: Tensor) -> Tensor:
    return scheduler.scale_model_input(x, t) if hasattr(scheduler, "scale_model_input") else x


def _target(scheduler: Any) -> str:
    if hasattr(scheduler, "precondition_outputs"):
        return "edm"
    takes = inspect.signature(type(scheduler)).parameters  # a config taken over from another scheduler holds more
    target = scheduler.config["prediction_type"] if "prediction_type" in takes else None
    if target == "flow_prediction" or (target is None and hasattr(scheduler, "scale_noise")):
        return "flow"
    if target not in PREDICTION_TYPES:
        raise _not_understood(scheduler, f"its prediction_type is {target!r}, expected one of {PREDICTION_TYPES}")
    return str(target)


def _not_understood(scheduler: Any, why: str) -> ValueError:
    return ValueError(
        f"{type(scheduler).__name__} can't be sampled with: {why}; use another diffusers scheduler, such as DDIMScheduler or"
        " DPMSolverMultistepScheduler"
    )


def check_compatible(run: Run, denoiser: Denoiser) -> None:
    """Raise ValueError unless denoiser and scheduler go together and its steps are ones that it survives; says what to change."""
    name, step = type(run.scheduler).__name__, inspect.signature(run.scheduler.step).parameters
    foreign = [p.name for p in list(step.values())[3:] if p.default is p.empty or p.name == "prev_timestep"]
    if foreign:
        raise _not_understood(run.scheduler, f"its step needs {', '.join(foreign)}")
    if run.widest_step > (widest := _NARROW.get(name, (math.inf,))[0]):
        raise ValueError(
            f"{name} makes noise of steps as wide as these: it goes {run.widest_step:.3g} of log-SNR at once, expected at most"
            f" {widest:g}; take more steps, or another scheduler, such as DPMSolverMultistepScheduler"
        )
    if run.log_snr[0].isinf() and "epsilon" in (denoiser.prediction_type, run.target):
        who = "the model" if denoiser.prediction_type == "epsilon" else name
        raise ValueError(
            f"{name} starts from pure noise, where {who}'s prediction_type 'epsilon' says nothing of the image; use a schedule"
            " without rescale_betas_zero_snr, or prediction_type 'v_prediction'"
        )
    if _wants_variance(run.scheduler) and not denoiser.learned_variance:
        raise ValueError(
            f"{name} has variance_type={run.scheduler.variance_type!r}, but the model predicts no variance; set variance_type to"
            " 'fixed_small' or 'fixed_large'"
        )


def _wants_variance(scheduler: Any) -> bool:
    return vars(scheduler).get("variance_type") in ("learned", "learned_range")


def _variance(run: Run, i: int, prediction: Tensor) -> Tensor:
    """Variance of DDPM's step i, by which classifier guidance moves its mean; float64, or the learned one like the images.

    A learned variance lies between the posterior's and beta, in logarithms; the last step's posterior variance, which is 0, is
    taken from the step before (Nichol & Dhariwal 2021, arXiv:2102.09672, Eq. 15).
    """
    alpha_bar = torch.cat([run.image**2, torch.ones(1, dtype=torch.float64)])

    def posterior_and_beta(step: int) -> tuple[Tensor, Tensor]:
        beta = 1 - alpha_bar[step] / alpha_bar[step + 1]
        return beta * (1 - alpha_bar[step + 1]) / (1 - alpha_bar[step]), beta

    beta, before = posterior_and_beta(i)[1], i - 1 if 0 < i == len(run.image) - 1 else i
    posterior = posterior_and_beta(before)[0]
    kind = run.scheduler.config["variance_type"]
    if kind == "learned_range":
        share = (prediction.chunk(2, dim=1)[1] + 1) / 2
        return torch.exp(share * beta.log().item() + (1 - share) * posterior.log().item())
    return beta if kind.startswith("fixed_large") else posterior


def _output(run: Run, i: int, denoiser: Denoiser, prediction: Tensor, x: Tensor, x_t: Tensor) -> Tensor:
    """What the scheduler's step i expects, from the denoiser's prediction."""
    variance = None
    if denoiser.learned_variance:
        prediction, variance = prediction.chunk(2, dim=1)
    source, log_snr = denoiser.prediction_type, run.log_snr[i : i + 1]
    if run.target == "edm":  # the scheduler's denoised image is affine in what it is given
        denoised, sigma = run.scheduler.precondition_outputs, run.scheduler.sigmas[i]
        x0 = to_x0(prediction, source, x_t, log_snr)
        output = (x0 - denoised(x, torch.zeros_like(x), sigma)) / denoised(0, 1, sigma)
    elif run.target == "flow" and source == "sample":  # exact at pure noise too
        output = (x - prediction) / run.noise[i].item()
    elif run.target == "flow":
        output = convert(prediction, source, "epsilon", x_t, log_snr) - to_x0(prediction, source, x_t, log_snr)
    else:
        output = convert(prediction, source, run.target, x_t, log_snr)
    return torch.cat([output, variance], dim=1) if variance is not None and _wants_variance(run.scheduler) else output
