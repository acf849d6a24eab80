"""Losses whose value is known, and what draws the examples."""

import numpy as np
import pytest
import torch

from cascade.stages.denoiser import PREDICTION_TYPES, from_x0
from cascade.stages.noise import MAX_LOG_SNR, CosineLaw, LogNormalLaw, SR3Law, alpha_bar_of, signal_and_noise
from cascade.stages.training import Augmentation, Data, Objective, Phase, PictureSet, Recipe, TrainingExamples
from cascade.stages.training.examples import numbers
from cascade.stages.training.objective import denoising_loss, weight


def picture_set(size: int = 16, count: int = 10) -> PictureSet:
    pictures = np.random.default_rng(0).integers(0, 256, (count, size, size, 3), dtype=np.uint8)
    return PictureSet(pictures, np.arange(count) % 2, ("cat", "flag"), (True, False))


def recipe(**changes) -> Recipe:
    settings = {
        "name": "test",
        "data": Data(source="none"),
        "network": {"sample_size": 16},
        "phases": (Phase(size=16, images=100, batch_size=4),),
    }
    return Recipe(**{**settings, **changes})


def batch(examples: TrainingExamples, numbers: range) -> dict[str, torch.Tensor]:
    return examples.complete(examples.read(numbers))


class Zero:
    """Predicts zero, so the loss is the size of the target."""

    num_classes, null_label, learned_variance = None, None, False

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
            got = denoising_loss(Zero(prediction_type), examples, Objective(loss=loss))
            torch.testing.assert_close(got, power.flatten(1).mean(dim=1), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(
    ("objective", "of_x0"),
    [
        (Objective(weighting="min_snr"), lambda log_snr: log_snr.exp().clamp(max=5) + 1),
        (Objective(weighting="sigmoid"), lambda log_snr: torch.sigmoid(-log_snr) * log_snr.exp()),
        (Objective(weighting="sigmoid", sigmoid_bias=-2.5), lambda log_snr: torch.sigmoid(-2.5 - log_snr) * log_snr.exp()),
    ],
)
def test_weighted_losses_are_the_same_for_every_target(objective, of_x0):
    """Predictions that mean the same image: the weighted errors of epsilon, v and x0 are one number."""
    examples = {
        name: value.double() if value.is_floating_point() else value
        for name, value in batch(TrainingExamples(picture_set(), recipe(), Phase(size=16, images=100), 2), range(16)).items()
    }
    log_snr = examples["log_snr"] = torch.linspace(-10, 10, 16, dtype=torch.float64)
    guess = torch.full_like(examples["x0"], 0.3)

    class Guess(Zero):
        """Always means the same image, whatever it predicts."""

        def __call__(self, x_t, log_snr, *_):
            return from_x0(guess, self.prediction_type, x_t, log_snr)

    want = (guess - examples["x0"]).square().flatten(1).mean(dim=1) * of_x0(log_snr)
    for prediction_type in PREDICTION_TYPES:
        got = denoising_loss(Guess(prediction_type), examples, objective)
        torch.testing.assert_close(got, want, rtol=1e-4, atol=0)  # predictions are float32


def test_sigmoid_weights_of_the_noise_are_the_sigmoid():
    log_snr = torch.linspace(-20, 20, 81)
    got = weight(Objective(weighting="sigmoid", sigmoid_bias=1.5), "epsilon", log_snr)
    torch.testing.assert_close(got, torch.sigmoid(1.5 - log_snr), rtol=1e-5, atol=0)


def test_above_its_level_an_l2_loss_is_the_plain_l1_one():
    examples = batch(TrainingExamples(picture_set(), recipe(), Phase(size=16, images=100), 2), range(16))
    log_snr = examples["log_snr"] = torch.linspace(-4, 6, 16)
    got = denoising_loss(Zero("sample"), examples, Objective(weighting="min_snr", l1_above=1.0))
    l1 = examples["x0"].abs().flatten(1).mean(dim=1)  # the prediction is zero
    l2 = (log_snr.exp().clamp(max=5) + 1) * examples["x0"].square().flatten(1).mean(dim=1)
    torch.testing.assert_close(got, torch.where(log_snr > 1, l1, l2))
    assert not torch.allclose(l1, l2, rtol=0.05)


REGRESSION = {
    "network": {"sample_size": 16, "low_res_size": 8, "prediction_type": "sample"},
    "objective": Objective(kind="regression", label_dropout=0),
}


def test_a_regression_sees_the_small_image_only_and_its_error_is_that_of_the_image():
    made = recipe(**REGRESSION, augmentation=Augmentation(noise=0.3))
    examples = batch(TrainingExamples(picture_set(), made, made.phases[0], 2), range(4))
    seen = []

    class Mean(Zero):
        """Always predicts grey of value 0.25."""

        num_classes = 2

        def __call__(self, *inputs):
            seen.append(inputs)
            return torch.full_like(inputs[0], 0.25)

    got = denoising_loss(Mean("sample"), examples, made.objective)
    torch.testing.assert_close(got, (examples["x0"] - 0.25).square().mean(dim=(1, 2, 3)))
    ((x_t, log_snr, labels, low_res, aug_level),) = seen
    assert not x_t.any() and x_t.shape == examples["x0"].shape
    assert torch.equal(log_snr, torch.full((4,), -MAX_LOG_SNR)) and torch.equal(log_snr, examples["log_snr"])
    assert torch.equal(low_res, examples["low_res"]) and torch.equal(labels, examples["label"])
    assert torch.equal(aug_level, examples["aug_level"]) and aug_level.max() > 0
    l1 = denoising_loss(Mean("sample"), examples, Objective(kind="regression", loss="l1"))
    torch.testing.assert_close(l1, (examples["x0"] - 0.25).abs().mean(dim=(1, 2, 3)))


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
    drawn = batch(examples, numbers)
    assert (drawn["label"] == 2).float().mean().item() == pytest.approx(0.25, abs=0.03)
    originals = torch.from_numpy(picture_set().pictures).permute(0, 3, 1, 2).float() / 127.5 - 1
    flipped = (drawn["x0"] - originals[drawn["index"]]).abs().amax(dim=(1, 2, 3)) > 1e-6
    is_flag = drawn["index"] % 2 == 1
    assert not flipped[is_flag].any()
    assert flipped[~is_flag].float().mean().item() == pytest.approx(0.5, abs=0.05)


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


def test_clean_is_the_share_of_inputs_without_noise_and_leaves_the_rest_uniform():
    sr3 = recipe(network={"sample_size": 16, "low_res_size": 8}, augmentation=Augmentation(noise=0.5, clean=0.4))
    plain = recipe(network={"sample_size": 16, "low_res_size": 8})
    some, none = (TrainingExamples(picture_set(), r, Phase(size=16, images=1000), 2) for r in (sr3, plain))
    levels = np.array([float(some[n]["aug_level"]) for n in range(600)])
    assert np.mean(levels == 0) == pytest.approx(0.4, abs=0.05)
    left = levels[levels > 0]
    assert left.max() <= 0.5 and left.mean() == pytest.approx(0.25, abs=0.03)
    assert left.std() == pytest.approx(0.5 / 12**0.5, abs=0.01)
    number = int(np.argmax(levels == 0))
    assert torch.equal(some[number]["low_res"], none[number]["low_res"])


def test_a_mixture_is_of_both_reductions_and_changes_no_large_image():
    def examples(reduction):
        made = recipe(network={"sample_size": 16, "low_res_size": 4}, augmentation=Augmentation(reduction=reduction))
        return TrainingExamples(picture_set(), made, Phase(size=16, images=1000), 2)

    area, bilinear, mixture = map(examples, ("area", "bilinear", "mixture"))
    chosen = []
    for n in range(300):
        a, b, m = area[n], bilinear[n], mixture[n]
        assert torch.equal(a["x0"], m["x0"]) and torch.equal(a["x0"], b["x0"])
        blocks = m["x0"].reshape(3, 4, 4, 4, 4)
        assert torch.allclose(a["low_res"], blocks.mean(dim=(2, 4)), atol=1e-6)
        assert torch.allclose(b["low_res"], blocks[:, :, 1:3, :, 1:3].mean(dim=(2, 4)), atol=1e-6)
        chosen.append(torch.equal(m["low_res"], a["low_res"]))
        assert chosen[-1] != torch.equal(m["low_res"], b["low_res"])
    assert np.mean(chosen) == pytest.approx(0.5, abs=0.1)


def test_two_processes_share_the_batches_of_one():
    one = list(numbers(8, 24, 8, 0, 1))
    first, second = list(numbers(8, 24, 8, 0, 2)), list(numbers(8, 24, 8, 1, 2))
    assert one == list(range(8, 24)) and len(first) == 8
    assert [first[:4] + second[:4], first[4:] + second[4:]] == [one[:8], one[8:]]


def test_pictures_of_another_size_are_refused():
    phase = Phase(size=32, images=100)
    with pytest.raises(ValueError, match="the pictures are 16 px, but this stage is trained on 32 px"):
        TrainingExamples(picture_set(), recipe(network={"sample_size": 32}, phases=(phase,)), phase, 2)


def test_a_network_of_details_is_weighted_by_how_much_of_them_is_hidden():
    """Details of std s at log-SNR l count as whole images do at l + 2 ln s: s times the amplitude, s^2 times the power."""
    examples = batch(TrainingExamples(picture_set(), recipe(), Phase(size=16, images=100, batch_size=8), 2), range(8))
    objective = Objective(weighting="min_snr")
    plain, of_details = Zero("sample"), Zero("sample")
    of_details.detail_std = 0.25
    ratio = denoising_loss(of_details, examples, objective) / denoising_loss(plain, examples, objective)
    snr = examples["log_snr"].exp()
    torch.testing.assert_close(ratio, ((snr / 16).clamp(max=5) + 1) / (snr.clamp(max=5) + 1))
    assert ratio.min() < 0.5  # some of these levels hide the details only
