"""Losses whose value is known, and what draws the examples."""

import numpy as np
import pytest
import torch

from stages.denoiser import PREDICTION_TYPES, from_x0
from stages.noise import CosineLaw, LogNormalLaw, SR3Law, add_noise, alpha_bar_of, signal_and_noise
from stages.training import Augmentation, Objective, Phase, PictureSet, Recipe, TrainingExamples
from stages.training.data import Numbers
from stages.training.ema import EMA
from stages.training.objective import denoising_loss


def picture_set(size: int = 16, count: int = 10) -> PictureSet:
    pictures = np.random.default_rng(0).integers(0, 256, (count, size, size, 3), dtype=np.uint8)
    return PictureSet(pictures, np.arange(count) % 2, ("cat", "flag"), (True, False))


def recipe(**changes) -> Recipe:
    settings = {
        "name": "test",
        "data": "none",
        "network": {"sample_size": 16},
        "phases": (Phase(size=16, images=100, batch_size=4),),
    }
    return Recipe(**{**settings, **changes})


def batch(examples: TrainingExamples, numbers: range) -> dict[str, torch.Tensor]:
    return torch.utils.data.default_collate([examples[n] for n in numbers])


class Zero:
    """Predicts zero, so the loss is the size of the target."""

    num_classes = null_label = None

    def __init__(self, prediction_type: str) -> None:
        self.prediction_type = prediction_type

    def __call__(self, x_t, *_):
        return torch.zeros_like(x_t)


def test_loss_of_a_zero_prediction_is_the_power_of_the_target():
    examples = batch(TrainingExamples(picture_set(), recipe(), Phase(size=16, images=100), 2), range(8))
    alpha, sigma = (a[:, None, None, None] for a in signal_and_noise(examples["log_snr"]))
    targets = {
        "epsilon": examples["eps"],
        "sample": examples["x0"],
        "v_prediction": alpha * examples["eps"] - sigma * examples["x0"],
    }
    for prediction_type, target in targets.items():
        for loss, power in (("l1", target.abs()), ("l2", target.square())):
            got = denoising_loss(Zero(prediction_type), examples, loss)
            torch.testing.assert_close(got, power.flatten(1).mean(dim=1), rtol=1e-3, atol=1e-4)


def test_min_snr_is_the_same_loss_for_every_target():
    examples = batch(TrainingExamples(picture_set(), recipe(), Phase(size=16, images=100), 2), range(16))
    x_t, log_snr = add_noise(examples["x0"], examples["eps"], examples["log_snr"]), examples["log_snr"]
    guess = torch.full_like(x_t, 0.3)

    class Guess(Zero):
        """Always means the same image, whatever it predicts."""

        def __call__(self, x_t, log_snr, *_):
            return from_x0(guess, self.prediction_type, x_t, log_snr)

    want = (guess - examples["x0"]).square().flatten(1).mean(dim=1) * (log_snr.exp().clamp(max=5) + 1)
    calm = log_snr.abs() < 10  # beyond, float32 can't turn one target into another
    for prediction_type in PREDICTION_TYPES:
        got = denoising_loss(Guess(prediction_type), examples, "l2", "min_snr")
        torch.testing.assert_close(got[calm], want[calm], rtol=1e-2, atol=0)


def test_examples_are_a_function_of_their_number():
    make = lambda: TrainingExamples(picture_set(), recipe(augmentation=Augmentation()), Phase(size=16, images=100), 2)  # noqa: E731
    forward, backward = make(), make()
    there = [forward[n] for n in range(25)]
    back = [backward[n] for n in reversed(range(25))][::-1]
    for one, other in zip(there, back, strict=True):
        assert one.keys() == other.keys()
        assert all(torch.equal(one[key], other[key]) for key in one)


def test_every_epoch_shows_every_picture_once_in_another_order():
    examples = TrainingExamples(picture_set(), recipe(), Phase(size=16, images=100), 2)
    epochs = [[examples.picture_index(n) for n in range(e * 10, e * 10 + 10)] for e in range(3)]
    assert all(sorted(epoch) == list(range(10)) for epoch in epochs)
    assert epochs[0] != epochs[1] != epochs[2]


def test_label_dropout_and_flips_come_at_their_rate_and_flags_stay():
    numbers = range(4000)
    examples = TrainingExamples(picture_set(), recipe(objective=Objective(label_dropout=0.25)), Phase(size=16, images=9999), 2)
    drawn = [examples[n] for n in numbers]
    assert sum(e["label"] == 2 for e in drawn) / 4000 == pytest.approx(0.25, abs=0.03)
    originals = torch.from_numpy(picture_set().pictures).permute(0, 3, 1, 2).float() / 127.5 - 1
    flipped = np.array([not torch.allclose(e["x0"], originals[e["index"]]) for e in drawn])
    is_flag = np.array([int(e["index"]) % 2 == 1 for e in drawn])
    assert not flipped[is_flag].any()
    assert flipped[~is_flag].mean() == pytest.approx(0.5, abs=0.05)


def test_noise_levels_of_any_stretch_follow_the_law():
    examples = TrainingExamples(
        picture_set(), recipe(objective=Objective(law=LogNormalLaw(mean=-1, std=2))), Phase(size=16, images=9), 2
    )
    log_sigma = torch.stack([-examples[n]["log_snr"] / 2 for n in range(1000, 1300)])
    assert log_sigma.mean() == pytest.approx(-1, abs=0.05) and log_sigma.std() == pytest.approx(2, abs=0.1)


def test_sr3_law_is_uniform_in_alpha_bar_inside_a_bin():
    law = SR3Law()
    u = (7 + torch.linspace(0, 0.999, 50, dtype=torch.float64)) / law.num_steps
    alpha_bar = alpha_bar_of(law.log_snr(u))
    steps = alpha_bar.diff()
    assert (steps < 0).all()
    torch.testing.assert_close(steps, steps.mean().expand_as(steps), rtol=1e-6, atol=0)


def test_smaller_phases_see_less_noise():
    def levels(size: int) -> torch.Tensor:
        examples = TrainingExamples(picture_set(), recipe(objective=Objective(law=CosineLaw())), Phase(size=size, images=99), 2)
        return torch.stack([examples[n]["log_snr"] for n in range(1, 40)])

    torch.testing.assert_close(levels(8) - levels(16), torch.full((39,), 2 * float(np.log(2))), rtol=0, atol=1e-4)


def test_low_resolution_input_is_the_block_mean_of_its_crop():
    sr3 = recipe(network={"sample_size": 16, "low_res_size": 4}, phases=(Phase(size=8, images=100),))
    examples = TrainingExamples(picture_set(), sr3, sr3.phases[0], 2)
    corners = set()
    for n in range(60):
        example = examples[n]
        want = example["x0"].reshape(3, 2, 4, 2, 4).mean(dim=(2, 4))
        torch.testing.assert_close(example["low_res"], want)
        corners.add(float(example["x0"][0, 0, 0]))
        assert example["aug_level"] == 0
    assert len(corners) > 20  # crops from many places


def test_noise_of_the_augmentation_has_the_power_of_its_level():
    sr3 = recipe(network={"sample_size": 16, "low_res_size": 8}, augmentation=Augmentation(noise=0.5))
    plain = recipe(network={"sample_size": 16, "low_res_size": 8})
    noisy, clean = (TrainingExamples(picture_set(), r, Phase(size=16, images=100), 2) for r in (sr3, plain))
    levels, ratios = [], []
    for n in range(300):
        a, b = noisy[n], clean[n]
        angle = a["aug_level"] * np.pi / 2
        levels.append(float(a["aug_level"]))
        ratios.append(((a["low_res"] - angle.cos() * b["low_res"]).square().mean() / angle.sin() ** 2).item())
    assert max(levels) <= 0.5 and np.mean(levels) == pytest.approx(0.25, abs=0.03)
    assert np.mean(ratios) == pytest.approx(1, abs=0.03)


def test_two_processes_share_the_batches_of_one():
    one = list(Numbers(8, 24, 8, 0, 1))
    first, second = list(Numbers(8, 24, 8, 0, 2)), list(Numbers(8, 24, 8, 1, 2))
    assert one == list(range(8, 24)) and len(first) == len(Numbers(8, 24, 8, 0, 2)) == 8
    assert [first[:4] + second[:4], first[4:] + second[4:]] == [one[:8], one[8:]]


def test_moving_average_of_a_constant_and_of_a_step():
    network = torch.nn.Linear(1, 1, bias=False)
    network.weight.data.fill_(0)
    ema = EMA(network, half_life=1000, ramp=float("inf"))
    network.weight.data.fill_(1)
    for seen in range(100, 1100, 100):
        ema.update(network, seen, 100)
    assert ema.weights["weight"].item() == pytest.approx(0.5)  # after one half-life
    ramped = EMA(network, half_life=10**9, ramp=0.1)
    network.weight.data.fill_(2)
    ramped.update(network, 1000, 100)  # half-life 100
    assert ramped.weights["weight"].item() == pytest.approx(1.5)


def test_pictures_of_another_size_are_refused():
    with pytest.raises(ValueError, match="the pictures are 16 px, and this stage trains on 32 px"):
        TrainingExamples(picture_set(), recipe(network={"sample_size": 32}), Phase(size=32, images=100), 2)
