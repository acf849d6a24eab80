import pytest
import torch
import torch.nn.functional as F
from diffusers import DDIMScheduler, DDPMScheduler, DPMSolverMultistepScheduler, EulerDiscreteScheduler

from cascade.stages.conditioning import resize
from cascade.stages.consistent import TOLERANCE, Consistent, project
from cascade.stages.denoiser import PREDICTION_TYPES, ClassifierFreeGuidance, Denoiser, from_x0, to_x0
from cascade.stages.noise import add_noise
from cascade.stages.sampling import sample
from cascade.stages.tiling import Tiled

RNG = torch.Generator().manual_seed(0)
IMAGES = torch.rand(2, 3, 16, 16, dtype=torch.float64, generator=RNG) * 3 - 1.5
LOW_RES = torch.rand(2, 3, 4, 4, dtype=torch.float64, generator=RNG) * 2 - 1
HARD = torch.tensor([-1.0, 1.0, -1 + 1e-4, 1 - 1e-4], dtype=torch.float64).repeat(2, 3, 4, 1)
"""Means that only one image has, and such that hardly any other has."""


def means(images, size=4):
    return resize(images, size)


class Wild:
    """x0 far out of range, coloured by the class, in any prediction type."""

    num_classes, null_label = 5, 0

    def __init__(self, prediction_type="sample", learned_variance=False):
        self.prediction_type, self.learned_variance = prediction_type, learned_variance

    def __call__(self, x_t, log_snr, class_labels=None, low_res=None, aug_level=None):
        shift = 0 if class_labels is None else 0.3 * class_labels.view(-1, 1, 1, 1)
        made = from_x0(1.5 * torch.sin(5 * x_t) + shift, self.prediction_type, x_t, log_snr)
        return torch.cat([made, 7 * made], dim=1) if self.learned_variance else made


@pytest.mark.parametrize("low_res", [LOW_RES, HARD, HARD.flip(3), torch.zeros_like(LOW_RES)])
@pytest.mark.parametrize("images", [IMAGES, 100 * IMAGES, IMAGES.sign(), torch.zeros_like(IMAGES)])
def test_means_and_range_are_reached(images, low_res):
    projected = project(images, low_res)
    torch.testing.assert_close(means(projected), low_res, rtol=0, atol=TOLERANCE)
    assert projected.abs().max() <= 1


def test_float32_reaches_them_up_to_rounding():
    projected = project(IMAGES.float(), LOW_RES.float())
    torch.testing.assert_close(means(projected), LOW_RES.float(), rtol=0, atol=2 * TOLERANCE)


def test_a_consistent_image_is_left_alone():
    image = IMAGES.clamp(-1, 1)
    assert torch.equal(project(image, means(image)), image)


def test_projecting_again_changes_nothing():
    once = project(IMAGES, LOW_RES)
    torch.testing.assert_close(project(once, LOW_RES), once, rtol=0, atol=10 * TOLERANCE)


def test_impossible_means_are_clipped():
    torch.testing.assert_close(means(project(IMAGES, 1.5 * LOW_RES)), (1.5 * LOW_RES).clamp(-1, 1), rtol=0, atol=TOLERANCE)


def test_within_range_the_correction_is_smooth():
    """A grey image of the wrong mean moves by the bicubic enlargement of what it lacks: no blocks."""
    ramp = torch.linspace(-0.3, 0.3, 8, dtype=torch.float64).expand(1, 3, 8, 8)
    steps = project(torch.zeros(1, 3, 32, 32, dtype=torch.float64), ramp).diff(dim=3)[0, 0, 0, 8:-8]
    replicated = F.interpolate(ramp, scale_factor=4).diff(dim=3)[0, 0, 0, 8:-8]
    assert steps.max() < 0.35 * replicated.max()


def test_what_the_range_forbids_is_moved_to_the_nearest_image():
    """The remainder's solution is clip(x + shift): every pixel strictly inside the range moved by its block's one shift."""
    images = torch.zeros(1, 1, 4, 4, dtype=torch.float64)
    images[..., 0] = 0.9
    (projected,) = project(images, torch.full((1, 1, 1, 1), 0.5, dtype=torch.float64))
    assert (projected[0, :, 0] == 1).all()
    torch.testing.assert_close(projected[0, :, 1:], torch.full((4, 3), 1 / 3, dtype=torch.float64))


def test_images_of_eight_bits_are_consistent_up_to_rounding():
    low_res = ((LOW_RES / 2 + 0.5) * 255).round() / 127.5 - 1
    pixels = ((project(IMAGES, low_res) / 2 + 0.5) * 255).round()
    assert (means(pixels) / 127.5 - 1 - low_res).abs().max() <= 0.5 / 127.5
    assert ((means(pixels) - (low_res + 1) * 127.5) / 255).square().mean() < 0.27e-5  # a tenth of SR3's figure


def test_every_denoised_image_is_consistent():
    log_snr = torch.tensor([-3.0, 2.0], dtype=torch.float64)
    x_t = add_noise(IMAGES, torch.randn(IMAGES.shape, dtype=torch.float64, generator=RNG), log_snr)
    for prediction_type in PREDICTION_TYPES:
        denoiser = Consistent(Wild(prediction_type), LOW_RES)
        assert isinstance(denoiser, Denoiser)
        x0 = to_x0(denoiser(x_t, log_snr), prediction_type, x_t, log_snr)
        torch.testing.assert_close(means(x0), LOW_RES, rtol=0, atol=2 * TOLERANCE)
        torch.testing.assert_close(x0, project(Wild()(x_t, log_snr), LOW_RES), rtol=0, atol=1e-5)


def test_a_learned_variance_is_passed_on():
    log_snr = torch.zeros(2, dtype=torch.float64)
    denoiser = Consistent(Wild("epsilon", learned_variance=True), LOW_RES)
    assert denoiser.learned_variance
    made, plain = denoiser(IMAGES, log_snr), Wild("epsilon", learned_variance=True)(IMAGES, log_snr)
    assert torch.equal(made[:, 3:], plain[:, 3:])
    assert not torch.equal(made[:, :3], plain[:, :3])


@pytest.mark.parametrize("scheduler", [DDIMScheduler, DDPMScheduler, DPMSolverMultistepScheduler, EulerDiscreteScheduler])
@pytest.mark.parametrize("prediction_type", PREDICTION_TYPES)
def test_samples_are_consistent_under_guidance_and_tiles(scheduler, prediction_type):
    """By the wrapper alone: the last step of these schedulers returns the last denoised image."""
    options = {"clip_sample": False} if scheduler in (DDIMScheduler, DDPMScheduler) else {}
    denoiser = Consistent(Tiled(ClassifierFreeGuidance(Wild(prediction_type), 3.0), 8), LOW_RES)
    noise = torch.randn(IMAGES.shape, dtype=torch.float64, generator=RNG)
    made = sample(
        denoiser,
        scheduler(prediction_type=prediction_type, **options),
        noise,
        4,
        class_labels=torch.tensor([1, 2]),
        generator=torch.Generator().manual_seed(0),
    )
    torch.testing.assert_close(means(made), LOW_RES, rtol=0, atol=1e-4)
