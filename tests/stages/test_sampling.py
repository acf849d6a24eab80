import math
import warnings

import pytest
import torch
from diffusers import (
    CMStochasticIterativeScheduler,
    DDIMInverseScheduler,
    DDIMParallelScheduler,
    DDIMScheduler,
    DDPMParallelScheduler,
    DDPMScheduler,
    DEISMultistepScheduler,
    DPMSolverMultistepScheduler,
    DPMSolverSinglestepScheduler,
    EDMDPMSolverMultistepScheduler,
    EDMEulerScheduler,
    EulerAncestralDiscreteScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    FlowMatchHeunDiscreteScheduler,
    HeunDiscreteScheduler,
    IPNDMScheduler,
    KDPM2AncestralDiscreteScheduler,
    KDPM2DiscreteScheduler,
    LMSDiscreteScheduler,
    PNDMScheduler,
    RePaintScheduler,
    SASolverScheduler,
    UnCLIPScheduler,
    UniPCMultistepScheduler,
)

from cascade.stages.denoiser import PREDICTION_TYPES, from_x0
from cascade.stages.noise import CosineSchedule, LinearSchedule, betas_of, signal_and_noise
from cascade.stages.sampling import Run, draw_noise, generators_of, nfe, sample

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")

# Pixels that are N(MEAN, STD^2) each: the one data set whose ideal denoiser and sampling trajectories are known exactly.
MEAN, STD = 0.3, 0.5
NOISE = torch.randn(1, 3, 16, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
KARRAS = {"use_karras_sigmas": True}
TRAILING = {"clip_sample": False, "timestep_spacing": "trailing"}
ZERO_SNR = TRAILING | {"rescale_betas_zero_snr": True}
FLOW = {"use_flow_sigmas": True, "prediction_type": "flow_prediction"}

# Order seen when the number of steps is doubled from n to 2 n: log2 of the ratio of the largest errors of 768 pixels. Steps are
# chosen above the floor of each scheduler (float32 inside, and whole timesteps for DDIM and PNDM). LMS is used with its default
# four steps, UniPC's corrector adds one order to its two.
ORDERS = [
    (DDIMScheduler, TRAILING, 50, 1.0),
    (DPMSolverMultistepScheduler, KARRAS | {"solver_order": 1}, 40, 1.0),
    (EulerDiscreteScheduler, KARRAS, 40, 1.0),
    (EDMEulerScheduler, {}, 40, 1.0),
    (FlowMatchEulerDiscreteScheduler, {}, 40, 1.0),
    (DPMSolverMultistepScheduler, KARRAS, 40, 2.2),
    (DPMSolverSinglestepScheduler, KARRAS, 40, 1.9),
    (HeunDiscreteScheduler, KARRAS, 40, 2.2),
    (KDPM2DiscreteScheduler, KARRAS, 40, 2.2),
    (DEISMultistepScheduler, KARRAS, 40, 2.2),
    (EDMDPMSolverMultistepScheduler, {}, 40, 2.1),
    (FlowMatchHeunDiscreteScheduler, {}, 40, 2.0),
    (UniPCMultistepScheduler, FLOW, 40, 2.2),
    (UniPCMultistepScheduler, KARRAS, 20, 3.2),
    (LMSDiscreteScheduler, KARRAS, 40, 3.6),
    (PNDMScheduler, {}, 10, 3.9),
]
WITH_BETAS = {"beta_start": 1e-4, "beta_end": 0.02}
EVERY_SCHEDULER = [
    *[(cls, options) for cls, options, *_ in ORDERS],
    (DDPMScheduler, {"clip_sample": False}),
    (DDPMParallelScheduler, {"clip_sample": False}),
    (DDIMParallelScheduler, {"clip_sample": False}),
    (EulerAncestralDiscreteScheduler, {}),
    (KDPM2AncestralDiscreteScheduler, {}),
    (SASolverScheduler, {}),
    (DPMSolverMultistepScheduler, KARRAS | {"algorithm_type": "sde-dpmsolver++"}),
]


class IdealDenoiser:
    """E[x0 | x_t], expressed as the prediction type asked for."""

    num_classes, null_label, learned_variance = None, None, False

    def __init__(self, prediction_type="v_prediction"):
        self.prediction_type = prediction_type
        self.seen = []

    def __call__(self, x_t, log_snr, class_labels=None, low_res=None, aug_level=None):
        self.seen.append(log_snr[0].item())
        alpha, sigma = (a.view(-1, 1, 1, 1) for a in signal_and_noise(log_snr))
        x0 = MEAN + alpha * STD**2 * (x_t - alpha * MEAN) / (alpha**2 * STD**2 + sigma**2)
        return from_x0(x0, self.prediction_type, x_t, log_snr)


def end_of_the_ode(x_t, log_snr):
    """Where the probability-flow ODE carries `x_t` at `log_snr`: each pixel keeps its quantile of the Gaussian."""
    alpha, sigma = signal_and_noise(log_snr)
    return MEAN + STD * (x_t - alpha * MEAN) / (alpha**2 * STD**2 + sigma**2).sqrt()


def build(cls, options, **more):
    """The scheduler on DDPM's linear schedule where it takes one."""
    own_schedule = "EDM" in cls.__name__ or "FlowMatch" in cls.__name__
    return cls(**({} if own_schedule else WITH_BETAS), **(options | more))


def name(value):
    return value.__name__ if isinstance(value, type) else None


def error(scheduler, prediction_type, steps):
    want = end_of_the_ode(NOISE, Run.of(scheduler, steps).log_snr[0])
    return (sample(IdealDenoiser(prediction_type), scheduler, NOISE, steps) - want).abs().max().item()


def from_pure_noise(cls, options):
    """Flow matching starts where an epsilon prediction says nothing of the image."""
    return "FlowMatch" in cls.__name__ or options == FLOW


@pytest.mark.parametrize(
    "cls, options, steps, order, prediction_type",
    [(*row, kind) for row in ORDERS for kind in PREDICTION_TYPES if kind != "epsilon" or not from_pure_noise(*row[:2])],
    ids=name,
)
def test_deterministic_schedulers_converge_to_the_ode_with_their_order(cls, options, steps, order, prediction_type):
    scheduler = build(cls, options)
    coarse, fine = error(scheduler, prediction_type, steps), error(scheduler, prediction_type, 2 * steps)
    assert fine < 0.06
    assert math.log2(coarse / fine) == pytest.approx(order, abs=0.25)


@pytest.mark.parametrize("prediction_type", PREDICTION_TYPES)
@pytest.mark.parametrize(
    "cls, options", [(EulerDiscreteScheduler, KARRAS), (HeunDiscreteScheduler, KARRAS), (DDIMScheduler, TRAILING)]
)
def test_what_the_scheduler_expects_does_not_change_the_result(cls, options, prediction_type):
    """Denoiser and scheduler may differ in prediction type."""
    want = sample(IdealDenoiser("v_prediction"), build(cls, options, prediction_type="v_prediction"), NOISE, 10)
    got = sample(IdealDenoiser("epsilon"), build(cls, options, prediction_type=prediction_type), NOISE, 10)
    torch.testing.assert_close(got, want, rtol=0, atol=2e-4)  # float32 inside the schedulers, at sigma 157


def ddpm_moments(scheduler, steps):
    """Exact mean and std of DDPM's chain on Gaussian pixels: every step is affine (Ho et al. 2020, Eq. 6, 7)."""
    scheduler.set_timesteps(steps)
    alpha_bar = [*scheduler.alphas_cumprod[scheduler.timesteps].double().tolist(), 1.0]
    mean, variance = 0.0, 1.0
    for now, then in zip(alpha_bar, alpha_bar[1:], strict=False):
        beta = 1 - now / then
        to_x0, keep = math.sqrt(then) * beta / (1 - now), math.sqrt(now / then) * (1 - then) / (1 - now)
        gain = math.sqrt(now) * STD**2 / (now * STD**2 + 1 - now)
        mean = to_x0 * (MEAN + gain * (mean - math.sqrt(now) * MEAN)) + keep * mean
        variance = (to_x0 * gain + keep) ** 2 * variance + (1 - then) / (1 - now) * beta
    return mean, math.sqrt(variance)


@pytest.mark.parametrize("prediction_type", PREDICTION_TYPES)
@pytest.mark.parametrize("steps", [10, 100])
def test_ddpm_has_the_distribution_of_its_chain(steps, prediction_type):
    rng = torch.Generator().manual_seed(0)
    pixels = torch.randn(1, 3, 128, 128, generator=rng)
    scheduler = DDPMScheduler(clip_sample=False)

    images = sample(IdealDenoiser(prediction_type), scheduler, pixels, steps, generator=rng)

    mean, std = ddpm_moments(scheduler, steps)
    standard_error = std / math.sqrt(pixels.numel())
    assert images.mean().item() == pytest.approx(mean, abs=4 * standard_error)
    assert images.std().item() == pytest.approx(std, abs=4 * standard_error)


@pytest.mark.parametrize("cls, options", EVERY_SCHEDULER, ids=name)
@pytest.mark.parametrize("prediction_type", ["epsilon", "sample"])
def test_every_scheduler_reaches_the_data(cls, options, prediction_type):
    """Whatever its config says of predictions, and stochastic ones too."""
    configured = {} if from_pure_noise(cls, options) else {"prediction_type": "sample"}
    pixels = torch.randn(1, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    rng = torch.Generator().manual_seed(1)
    denoiser = IdealDenoiser("v_prediction" if from_pure_noise(cls, options) else prediction_type)
    images = sample(denoiser, build(cls, options, **configured), pixels, 100, generator=rng)
    assert images.dtype == torch.float32
    assert images.mean().item() == pytest.approx(MEAN, abs=0.04)
    assert images.std().item() == pytest.approx(STD, abs=0.05)


@pytest.mark.parametrize("cls, options", EVERY_SCHEDULER, ids=name)
def test_the_denoiser_is_told_the_noise_that_is_there(cls, options):
    """The std of Gaussian pixels on their way is that of the log-SNR named beside them."""
    gaps = []

    class Watching(IdealDenoiser):
        def __call__(self, x_t, log_snr, *args):
            share = torch.sigmoid(log_snr[0])
            gaps.append(abs(x_t.std().item() / math.sqrt(share * STD**2 + 1 - share) - 1))
            return super().__call__(x_t, log_snr, *args)

    denoiser = Watching()
    pixels = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    sample(denoiser, build(cls, options), pixels, 100, generator=torch.Generator().manual_seed(1))
    assert max(gaps) < 0.08
    falls = [b < a - 1e-4 for a, b in zip(denoiser.seen, denoiser.seen[1:], strict=False)]
    assert not any(falls) or cls is PNDMScheduler  # its Runge-Kutta steps look ahead


def test_sigma_based_schedulers_use_sigma_itself_not_its_rounded_timestep():
    scheduler = DPMSolverMultistepScheduler(**KARRAS)
    denoiser = IdealDenoiser()
    sample(denoiser, scheduler, NOISE, 7)
    scheduler.set_timesteps(7)
    torch.testing.assert_close(torch.tensor(denoiser.seen).double(), -2 * scheduler.sigmas[:-1].double().log())


@pytest.mark.parametrize("schedule", [LinearSchedule(beta_start=1e-6, beta_end=0.01), CosineSchedule(size=256)])
def test_trained_betas_carry_any_schedule(schedule):
    scheduler = DPMSolverMultistepScheduler(trained_betas=betas_of(schedule), **KARRAS)
    assert error(scheduler, "v_prediction", 80) < 0.05


def test_a_prediction_type_left_over_from_another_scheduler_means_nothing_to_flow_matching():
    """`from_config` keeps options that the scheduler doesn't have."""
    scheduler = FlowMatchEulerDiscreteScheduler.from_config(DDPMScheduler(prediction_type="sample").config)
    assert scheduler.config["prediction_type"] == "sample" and Run.of(scheduler, 10).target == "flow"
    assert error(scheduler, "sample", 80) < 0.05


COSINE = {"trained_betas": betas_of(CosineSchedule()), "prediction_type": "sample", "timestep_spacing": "linspace"}


@pytest.mark.parametrize(
    "cls, steps",
    [(HeunDiscreteScheduler, 20), (KDPM2DiscreteScheduler, 20), (KDPM2AncestralDiscreteScheduler, 40), (PNDMScheduler, 20)],
)
def test_steps_too_wide_for_a_scheduler_are_placed_anew(cls, steps):
    """Our cosine schedule begins at log-SNR -20; evenly spaced timesteps leap from there to -5."""
    assert Run.of(DDIMScheduler(**COSINE), steps).widest_step > 12
    scheduler = cls(**COSINE)
    assert Run.of(scheduler, steps).widest_step < 2
    assert not scheduler.config.get("use_exponential_sigmas") and scheduler.config["timestep_spacing"] == "linspace"
    pixels = torch.randn(1, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    images = sample(IdealDenoiser("sample"), scheduler, pixels, steps, generator=torch.Generator().manual_seed(1))
    assert images.mean().item() == pytest.approx(MEAN, abs=0.06)
    assert images.std().item() == pytest.approx(STD, abs=0.1)


@pytest.mark.parametrize("cls", [DDPMScheduler, DDIMScheduler])
@pytest.mark.parametrize("spacing", ["linspace", "leading"])
def test_one_step_begins_at_pure_noise(cls, spacing):
    """By diffusers' own placing it would be the least noisy one, and the picture the noise itself."""
    scheduler = cls(**{**COSINE, "timestep_spacing": spacing, "clip_sample": False})
    denoiser = IdealDenoiser("sample")
    made = sample(denoiser, scheduler, NOISE, 1)
    assert denoiser.seen[0] < -10
    torch.testing.assert_close(made, IdealDenoiser("sample")(NOISE, torch.full((len(NOISE),), denoiser.seen[0])))


def test_steps_that_suit_a_scheduler_stay_as_they_are():
    for cls in (HeunDiscreteScheduler, KDPM2DiscreteScheduler, KDPM2AncestralDiscreteScheduler, PNDMScheduler):
        scheduler = cls(timestep_spacing="linspace", **WITH_BETAS)
        run = Run.of(scheduler, 25)
        scheduler.set_timesteps(25)
        assert torch.equal(run.scheduler.timesteps, scheduler.timesteps)


def test_nfe_counts_evaluations():
    for scheduler, count in [(DDIMScheduler(), 10), (HeunDiscreteScheduler(), 19), (KDPM2DiscreteScheduler(), 19)]:
        denoiser = IdealDenoiser()
        sample(denoiser, scheduler, NOISE, 10)
        assert nfe(scheduler, 10) == len(denoiser.seen) == count


def test_a_run_leaves_the_scheduler_alone_and_does_not_depend_on_runs_before():
    scheduler = UniPCMultistepScheduler(**KARRAS)
    before = (scheduler.timesteps.clone(), dict(scheduler.config))
    first = sample(IdealDenoiser(), scheduler, NOISE, 9)
    sample(IdealDenoiser(), scheduler, NOISE + 1, 4)
    assert torch.equal(sample(IdealDenoiser(), scheduler, NOISE, 9), first)
    assert torch.equal(scheduler.timesteps, before[0]) and dict(scheduler.config) == before[1]


def test_an_image_does_not_depend_on_its_batch():
    def run(seeds):
        generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        noise = draw_noise((len(seeds), 3, 4, 4), generators, torch.device("cpu"))
        return sample(IdealDenoiser(), DDPMScheduler(), noise, 5, generator=generators)

    together = run([3, 4, 5])
    assert torch.equal(run([4]), together[1:2])
    assert torch.equal(run([5, 4]), together[[2, 1]])


def test_one_generator_stands_for_one_an_image():
    def seeds(generator, count=3):
        return [g.initial_seed() for g in generators_of(generator, count)]

    assert seeds(torch.Generator().manual_seed(7)) == seeds(torch.Generator().manual_seed(7))
    assert seeds(torch.Generator().manual_seed(7))[:2] == seeds(torch.Generator().manual_seed(7), 2)
    own = [torch.Generator().manual_seed(i) for i in range(3)]
    assert generators_of(own, 3) == own
    with pytest.raises(ValueError, match="3 generators for 2 images"):
        generators_of(own, 2)


def test_a_learned_variance_goes_to_the_schedulers_that_take_it():
    class Learned(IdealDenoiser):
        learned_variance = True

        def __call__(self, *args):
            prediction = super().__call__(*args)
            return torch.cat([prediction, torch.full_like(prediction, -1.0)], dim=1)  # the smaller end of the range

    def run(denoiser, scheduler):
        return sample(denoiser, scheduler, NOISE, 20, generator=torch.Generator().manual_seed(0))

    want = run(IdealDenoiser("epsilon"), DDPMScheduler(clip_sample=False))
    torch.testing.assert_close(run(Learned("epsilon"), DDPMScheduler(clip_sample=False)), want)
    learned = DDPMScheduler(clip_sample=False, variance_type="learned_range")
    torch.testing.assert_close(run(Learned("epsilon"), learned), want, rtol=0, atol=1e-4)
    solver = DPMSolverMultistepScheduler.from_config(learned.config)
    torch.testing.assert_close(run(Learned("sample"), solver), run(IdealDenoiser("sample"), solver))


def test_inputs_reach_the_denoiser_and_callbacks_see_every_step():
    class Recorder(IdealDenoiser):
        def __call__(self, x_t, log_snr, *further):
            assert further == inputs
            return super().__call__(x_t, log_snr, *further)

    inputs = (torch.tensor([1]), torch.zeros(1, 3, 2, 2), torch.tensor([0.5]))
    steps = []

    def callback(i, t, x):
        steps.append((i, int(t)))
        return torch.zeros_like(x) if i == 4 else None

    out = sample(
        Recorder(), DDIMScheduler(), NOISE, 5, class_labels=inputs[0], low_res=inputs[1], aug_level=inputs[2], callback=callback
    )
    assert steps == [(0, 800), (1, 600), (2, 400), (3, 200), (4, 0)]
    assert torch.equal(out, torch.zeros_like(NOISE))  # the last callback took its place


def test_clipping_is_the_schedulers():
    class Overshooting(IdealDenoiser):
        def __call__(self, x_t, *args):
            return torch.full_like(x_t, 3.0)

    for clip, want in [(True, 1.0), (False, 3.0)]:
        images = sample(Overshooting("sample"), DDIMScheduler(clip_sample=clip), NOISE, 10)
        torch.testing.assert_close(images, torch.full_like(NOISE, want), rtol=0, atol=1e-4)


@pytest.mark.parametrize("wrong", [torch.inf, -torch.inf, torch.nan])
def test_clipping_hides_no_value_that_is_not_finite(wrong):
    class Once(IdealDenoiser):
        """Gives one such value, for the second image, in the first step."""

        calls = 0

        def __call__(self, x_t, *args):
            x0 = super().__call__(x_t, *args).clone()
            if self.calls == 0 and len(x0) > 1:
                x0[1, 0, 0, 0] = wrong
            self.calls += 1
            return x0

    scheduler = DDIMScheduler(prediction_type="sample", clip_sample=True)
    images = sample(Once("sample"), scheduler, NOISE.repeat(2, 1, 1, 1), 5)
    assert images[1].isnan().all()
    torch.testing.assert_close(images[:1], sample(Once("sample"), scheduler, NOISE, 5), rtol=0, atol=1e-12)


class Untouchable(IdealDenoiser):
    def __call__(self, *args):
        raise AssertionError("called before the checks were done")


@pytest.mark.parametrize(
    "scheduler, prediction_type, steps, message",
    [
        (IPNDMScheduler(), "epsilon", 5, "neither alphas_cumprod nor sigmas"),
        (RePaintScheduler(), "epsilon", 5, "prediction_type is None|its step needs original_image"),
        (UnCLIPScheduler(), "epsilon", 5, "its step needs prev_timestep"),
        (DDIMInverseScheduler(), "epsilon", 5, "goes from image to noise"),
        (CMStochasticIterativeScheduler(), "epsilon", 5, "applies the scalings of a consistency model itself"),
        (HeunDiscreteScheduler(**COSINE), "sample", 8, "goes 4.7.* of log-SNR at once, expected at most 4; take more steps, or"),
        (PNDMScheduler(**COSINE), "sample", 10, "begin at log-SNR -3.71 with 10 steps, where an image is more than noise"),
        (KDPM2AncestralDiscreteScheduler(**COSINE), "sample", 20, "expected at most 1.1; take more steps"),
        (object(), "epsilon", 5, "not a diffusers scheduler"),
        (DDIMScheduler(), "epsilon", 0, "at least 1, got 0"),
        (DDIMScheduler(), "epsilon", 2000, "2000"),
        (DDIMScheduler(**ZERO_SNR), "epsilon", 5, "the model's prediction_type 'epsilon' says nothing"),
        (DDIMScheduler(**ZERO_SNR), "v_prediction", 5, "DDIMScheduler's prediction_type 'epsilon' says nothing"),
        (DDPMScheduler(variance_type="learned_range"), "epsilon", 5, "predicts no variance"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_what_cannot_be_sampled_is_refused_before_the_network_runs(scheduler, prediction_type, steps, message):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with pytest.raises(ValueError, match=message):
            sample(Untouchable(prediction_type), scheduler, NOISE, steps)


def test_zero_terminal_snr_works_where_the_image_is_predicted():
    scheduler = DDIMScheduler(prediction_type="v_prediction", **ZERO_SNR)
    want = end_of_the_ode(NOISE, torch.tensor(-torch.inf))
    torch.testing.assert_close(sample(IdealDenoiser(), scheduler, NOISE, 500), want, rtol=0, atol=0.02)
