import pytest
import torch
import torch.nn.functional as F
from diffusers import DDIMScheduler

from cascade.stages.denoiser import ClassifierFreeGuidance, Denoiser
from cascade.stages.sampling import sample
from cascade.stages.tiling import OVERLAP, Tiled, tile_starts, tile_weights

RNG = torch.Generator().manual_seed(0)
X_T = torch.randn(2, 3, 64, 64, dtype=torch.float64, generator=RNG)
LOW_RES = torch.randn(2, 3, 16, 16, dtype=torch.float64, generator=RNG)
LOG_SNR = torch.tensor([0.0, 1.0], dtype=torch.float64)
LABELS = torch.tensor([1, 2])
LEVELS = torch.tensor([0.1, 0.2], dtype=torch.float64)


class Local:
    """Sees `radius` pixels around each one, and zeros beyond the border as convolutions do; records its batches."""

    prediction_type, num_classes, null_label = "sample", 5, 0

    def __init__(self, radius=0, learned_variance=False):
        self.radius, self.learned_variance, self.shapes = radius, learned_variance, []
        side = 2 * radius + 1
        self.kernel = torch.randn(3, 3, side, side, dtype=torch.float64, generator=torch.Generator().manual_seed(1))

    def __call__(self, x_t, log_snr, class_labels=None, low_res=None, aug_level=None):
        self.shapes.append(tuple(x_t.shape))
        out = F.conv2d(x_t, self.kernel, padding=self.radius) * (1 + log_snr.view(-1, 1, 1, 1))
        if class_labels is not None:
            out = out + class_labels.view(-1, 1, 1, 1)
        if low_res is not None:
            out = out + low_res.repeat_interleave(4, 2).repeat_interleave(4, 3) * (1 + aug_level.view(-1, 1, 1, 1))
        return torch.cat([out, 7 * out], dim=1) if self.learned_variance else out


class Global(Local):
    """Adds the mean of all that it sees, as attention may: what it says of a pixel depends on the tile."""

    def __call__(self, x_t, *others):
        return super().__call__(x_t, *others) + x_t.mean(dim=(2, 3), keepdim=True)


@pytest.mark.parametrize(
    "side, size, factor",
    [(64, 32, 4), (1024, 256, 4), (1000, 128, 8), (256, 96, 4), (100, 99, 1), (65, 16, 1), (24, 20, 4), (64, 8, 4)],
)
def test_tiles_cover_the_image_and_their_weights_add_up_to_one(side, size, factor):
    starts = tile_starts(side, size, factor)
    assert starts[0] == 0 and starts[-1] == side - size
    assert all(start % factor == 0 for start in starts)
    assert all(0 < b - a <= size * (1 - OVERLAP) for a, b in zip(starts, starts[1:], strict=False))
    weights = tile_weights(starts, side, size)
    total = torch.zeros(side, dtype=torch.float64)
    for start, row in zip(starts, weights, strict=True):
        total[start : start + size] += row
    torch.testing.assert_close(total, torch.ones_like(total), rtol=0, atol=1e-12)
    assert weights.min() >= 0


def test_a_tile_counts_nothing_beside_its_border_unless_that_is_the_images():
    starts = tile_starts(64, 32)
    first, *_, last = tile_weights(starts, 64, 32)
    assert first[0] == 1 and last[-1] == 1
    assert (first[-2:] == 0).all() and (last[:2] == 0).all()  # a quarter of the overlap of 8


def test_weights_have_no_kink():
    weights = tile_weights(tile_starts(1024, 256), 1024, 256)
    assert weights.diff(dim=1).abs().max() < 0.05
    assert weights.diff(n=2, dim=1).abs().max() < 0.01


@pytest.mark.parametrize("radius", [0, 1, 2])
@pytest.mark.parametrize("batch_size", [1, 5, 100])
def test_a_network_that_looks_no_farther_than_a_quarter_of_the_overlap_is_not_changed(radius, batch_size):
    inputs = (X_T, LOG_SNR, LABELS, LOW_RES, LEVELS)
    whole, local = Local(radius)(*inputs), Local(radius)
    torch.testing.assert_close(Tiled(local, 32, batch_size)(*inputs), whole, rtol=0, atol=1e-12)
    assert max(shape[0] for shape in local.shapes) <= batch_size
    assert {shape[2:] for shape in local.shapes} == {(32, 32)}


def test_a_network_that_looks_farther_is_changed():
    """Otherwise the tests above could not fail."""
    inputs = (X_T, LOG_SNR, LABELS, LOW_RES, LEVELS)
    assert (Tiled(Local(8), 32)(*inputs) - Local(8)(*inputs)).abs().max() > 0.1


def test_an_image_of_one_tile_goes_through_whole():
    local = Local()
    assert torch.equal(Tiled(local, 64)(X_T, LOG_SNR), Local()(X_T, LOG_SNR))
    assert local.shapes == [(2, 3, 64, 64)]


def test_tiling_is_linear_in_the_denoiser():
    class Sum(Local):
        def __call__(self, *inputs):
            return 2 * Local(1)(*inputs) - Global(3)(*inputs)

    parts = 2 * Tiled(Local(1), 32)(X_T, LOG_SNR) - Tiled(Global(3), 32)(X_T, LOG_SNR)
    torch.testing.assert_close(Tiled(Sum(), 32)(X_T, LOG_SNR), parts)


def test_an_image_does_not_depend_on_the_others():
    inputs = (X_T, LOG_SNR, LABELS, LOW_RES, LEVELS)
    together = Tiled(Global(3), 32, 7)(*inputs)
    for i in range(2):
        alone = Tiled(Global(3), 32, 3)(*(value[i : i + 1] for value in inputs))
        torch.testing.assert_close(alone[0], together[i], rtol=0, atol=1e-12)


def test_a_tiled_denoiser_is_one_and_guidance_goes_inside_or_outside():
    inputs = (X_T, LOG_SNR, LABELS, LOW_RES, LEVELS)
    inside = Tiled(ClassifierFreeGuidance(Global(2), 2.5), 32)
    outside = ClassifierFreeGuidance(Tiled(Global(2), 32), 2.5)
    assert isinstance(inside, Denoiser) and isinstance(outside, Denoiser)
    torch.testing.assert_close(inside(*inputs), outside(*inputs), rtol=0, atol=1e-12)


def test_a_learned_variance_is_tiled_too():
    tiled = Tiled(Local(1, learned_variance=True), 32)
    assert tiled.learned_variance
    torch.testing.assert_close(tiled(X_T, LOG_SNR), Local(1, learned_variance=True)(X_T, LOG_SNR))


def test_samples_are_those_of_the_whole_image_and_noise_belongs_to_it():
    """Neither the number of tiles nor their batches change what a local denoiser makes of the same noise."""

    class Shrink(Local):
        def __call__(self, x_t, log_snr, *others):
            return 0.5 * F.avg_pool2d(x_t, 3, stride=1, padding=1)

    results = [sample(Tiled(Shrink(), size), DDIMScheduler(prediction_type="sample"), X_T, 3) for size in (16, 24, 32, 64)]
    for result in results[1:]:
        torch.testing.assert_close(result, results[0], rtol=0, atol=1e-9)


def test_no_seams():
    """Of a smooth picture, seen by a network that errs differently in every tile: gradients at tile borders are as elsewhere."""

    class Erring(Local):
        def __init__(self):
            super().__init__()
            self.offsets = torch.Generator().manual_seed(5)

        def __call__(self, x_t, *others):
            return x_t + 0.3 * torch.randn(len(x_t), 1, 1, 1, dtype=x_t.dtype, generator=self.offsets)

    ramp = torch.linspace(-1, 1, 256, dtype=torch.float64).expand(1, 3, 256, 256)
    starts = tile_starts(256, 128)
    steps = (Tiled(Erring(), 128)(ramp, LOG_SNR[:1])[0] - ramp[0]).diff(dim=2).abs().amax(dim=(0, 1))
    borders = [edge - 1 for start in starts for edge in (start, start + 128) if 0 < edge < 256]
    assert steps.max() > 0.01  # the tiles do differ,
    assert steps[borders].max() < 1e-12  # and not at their borders;
    assert steps.diff().abs().max() < 0.02  # where they do, the change begins and ends gently


@pytest.mark.parametrize("size, factor", [(30, 4), (4, 4), (34, 8)])
def test_tiles_that_do_not_fit_the_small_image_are_refused(size, factor):
    with pytest.raises(ValueError, match=f"tiles of {size} px can't cover an image of 64 px"):
        tile_starts(64, size, factor)


@pytest.mark.parametrize("size, batch_size", [(0, 1), (8, 0)])
def test_tiles_of_nothing_are_refused(size, batch_size):
    with pytest.raises(ValueError, match="at least 1"):
        Tiled(Local(), size, batch_size)
