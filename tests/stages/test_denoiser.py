import itertools

import pytest
import torch

from cascade.stages.denoiser import (
    PREDICTION_TYPES,
    Autoguidance,
    ClassifierFreeGuidance,
    Denoiser,
    at_level,
    convert,
    from_x0,
    to_x0,
)
from cascade.stages.noise import add_noise, signal_and_noise
from cascade.stages.unet import UNet

RNG = torch.Generator().manual_seed(0)
X0 = torch.randn(5, 3, 4, 4, dtype=torch.float64, generator=RNG)
EPS = torch.randn(5, 3, 4, 4, dtype=torch.float64, generator=RNG)
LOG_SNR = torch.tensor([-12.0, -3.0, 0.0, 3.0, 12.0], dtype=torch.float64)
X_T = add_noise(X0, EPS, LOG_SNR)
LABELS = torch.arange(5)


def truth(prediction_type):
    """What a perfect denoiser answers: each definition written out."""
    alpha, sigma = (a.view(-1, 1, 1, 1) for a in signal_and_noise(LOG_SNR))
    return {"sample": X0, "epsilon": EPS, "v_prediction": alpha * EPS - sigma * X0}[prediction_type]


class Linear:
    """x_t times the label, with a record of its batches. `null_label` 0."""

    def __init__(self, prediction_type="v_prediction", num_classes=9, null_label=0, gain=1.0, learned_variance=False):
        self.prediction_type, self.num_classes, self.null_label = prediction_type, num_classes, null_label
        self.gain, self.learned_variance, self.batches = gain, learned_variance, []

    def __call__(self, x_t, log_snr, class_labels=None, low_res=None, aug_level=None):
        self.batches.append(len(x_t))
        labels = torch.ones(len(x_t)) if class_labels is None else class_labels
        out = self.gain * x_t * labels.view(-1, 1, 1, 1).to(x_t)
        if low_res is not None:
            out = out + low_res.mean(dim=(1, 2, 3), keepdim=True) + aug_level.view(-1, 1, 1, 1)
        return torch.cat([out, 7 * out], dim=1) if self.learned_variance else out


@pytest.mark.parametrize("source, target", list(itertools.product(PREDICTION_TYPES, repeat=2)))
def test_every_prediction_becomes_every_other(source, target):
    torch.testing.assert_close(convert(truth(source), source, target, X_T, LOG_SNR), truth(target), rtol=0, atol=1e-9)


@pytest.mark.parametrize("prediction_type", PREDICTION_TYPES)
def test_to_x0_and_from_x0_are_inverse(prediction_type):
    torch.testing.assert_close(to_x0(truth(prediction_type), prediction_type, X_T, LOG_SNR), X0, rtol=0, atol=1e-9)
    torch.testing.assert_close(from_x0(X0, prediction_type, X_T, LOG_SNR), truth(prediction_type), rtol=0, atol=1e-9)


def test_v_and_epsilon_convert_at_pure_noise_without_dividing():
    pure = torch.full((5,), -torch.inf)
    torch.testing.assert_close(convert(X0, "v_prediction", "epsilon", EPS, pure), EPS)
    torch.testing.assert_close(to_x0(-X0, "v_prediction", EPS, pure), X0)


def test_an_unknown_prediction_type_is_refused():
    for function in (to_x0, from_x0):
        with pytest.raises(ValueError, match="'noise', expected one of"):
            function(X0, "noise", X_T, LOG_SNR)


def test_guided_denoisers_are_denoisers():
    model = Linear()
    assert isinstance(model, Denoiser)
    assert isinstance(ClassifierFreeGuidance(model, 2.0), Denoiser)
    assert isinstance(Autoguidance(model, model, 2.0), Denoiser)


def test_guidance_identities():
    model = Linear()
    cond, uncond = model(X_T, LOG_SNR, LABELS), model(X_T, LOG_SNR, torch.zeros_like(LABELS))
    for scale, want in [(1.0, cond), (0.0, uncond), (3.0, uncond + 3 * (cond - uncond))]:
        torch.testing.assert_close(ClassifierFreeGuidance(model, scale)(X_T, LOG_SNR, LABELS), want)


def test_scale_one_costs_one_evaluation_and_any_other_two():
    model = Linear()
    ClassifierFreeGuidance(model, 1.0)(X_T, LOG_SNR, LABELS)
    assert model.batches == [5]
    ClassifierFreeGuidance(model, 0.5)(X_T, LOG_SNR, LABELS)
    assert model.batches == [5, 10]


def test_guidance_doubles_every_input():
    model, low_res, level = Linear(), torch.randn(5, 3, 2, 2, dtype=torch.float64, generator=RNG), torch.rand(5).double()
    cond = model(X_T, LOG_SNR, LABELS, low_res, level)
    uncond = model(X_T, LOG_SNR, torch.zeros_like(LABELS), low_res, level)
    guided = ClassifierFreeGuidance(model, 2.0)(X_T, LOG_SNR, LABELS, low_res, level)
    torch.testing.assert_close(guided, 2 * cond - uncond)


@pytest.mark.parametrize("make", [ClassifierFreeGuidance, lambda *a: Autoguidance(a[0], Linear(gain=0.5), *a[1:])])
def test_guidance_acts_inside_its_interval_only(make):
    model = Linear()
    guided = make(model, 2.0, (0.5, 2.0))
    for sigma, acts in [(0.4, False), (0.6, True), (1.9, True), (2.1, False)]:
        log_snr = -2 * torch.full((5,), sigma).log()
        assert acts != torch.equal(guided(X_T, log_snr, LABELS), model(X_T, log_snr, LABELS))


def test_autoguidance_by_the_model_itself_is_the_model():
    model = Linear()
    torch.testing.assert_close(Autoguidance(model, model, 2.5)(X_T, LOG_SNR, LABELS), model(X_T, LOG_SNR, LABELS))


def test_autoguidance_moves_away_from_the_weak_model():
    main, weak = Linear(), Linear(gain=0.5)
    torch.testing.assert_close(Autoguidance(main, weak, 3.0)(X_T, LOG_SNR, LABELS), 2 * main(X_T, LOG_SNR, LABELS))


@pytest.mark.parametrize("prediction_type", PREDICTION_TYPES)
def test_autoguidance_converts_the_weak_models_prediction(prediction_type):
    class Perfect(Linear):
        def __call__(self, *args):
            return truth(self.prediction_type)

    guided = Autoguidance(Perfect("epsilon"), Perfect(prediction_type), 3.0)
    torch.testing.assert_close(guided(X_T, LOG_SNR, LABELS), EPS, rtol=0, atol=1e-9)


def test_guidance_leaves_a_learned_variance_alone():
    model = Linear(learned_variance=True)
    cond = model(X_T, LOG_SNR, LABELS)
    plain = Linear()
    for guided, want in [
        (ClassifierFreeGuidance(model, 2.0), ClassifierFreeGuidance(plain, 2.0)),
        (Autoguidance(model, Linear(gain=0.5), 2.0), Autoguidance(plain, Linear(gain=0.5), 2.0)),
    ]:
        assert guided.learned_variance
        prediction, variance = guided(X_T, LOG_SNR, LABELS).chunk(2, dim=1)
        torch.testing.assert_close(prediction, want(X_T, LOG_SNR, LABELS))
        torch.testing.assert_close(variance, cond[:, 3:])


@pytest.mark.parametrize(
    "wrong, word",
    [
        (lambda: ClassifierFreeGuidance(Linear(null_label=None), 2.0), "label dropout"),
        (lambda: ClassifierFreeGuidance(Linear(), 2.0, (3.0, 1.0)), "empty"),
        (lambda: Autoguidance(Linear(), Linear(num_classes=3), 2.0), "3 classes"),
    ],
)
def test_guidance_that_cannot_be_is_refused(wrong, word):
    with pytest.raises(ValueError, match=word):
        wrong()


def test_scale_one_needs_no_null_label():
    model = Linear(null_label=None)
    torch.testing.assert_close(ClassifierFreeGuidance(model, 1.0)(X_T, LOG_SNR, LABELS), model(X_T, LOG_SNR, LABELS))


@pytest.mark.parametrize("interval", [None, (0.5, 2.0)])
def test_at_a_level_nothing_is_looked_at_and_nothing_changes(interval):
    """Tensors on the meta device have no values: to look at one raises."""
    network = UNet(
        sample_size=16, num_classes=3, prediction_type="sample", channels=[8], blocks=[1], attention_sizes=[], head_channels=8,
        layout="efficient", coarse_below=0.5,
    ).eval()  # fmt: skip
    torch.nn.init.normal_(network.conv_out.weight)
    x_t, labels = torch.randn(2, 3, 16, 16), torch.tensor([0, 2])
    for guided in (ClassifierFreeGuidance(network, 3.0, interval), Autoguidance(network, network, 2.0, interval)):
        for level in (-2.0, -0.5, 0.4, 0.6, 2.0):
            inputs = (x_t, torch.full((2,), level), labels)
            assert torch.equal(at_level(guided, level)(*inputs), guided(*inputs))
    bare = Linear()
    assert at_level(bare, 1.0) is bare
    guided = ClassifierFreeGuidance(Linear(), 3.0, interval)
    on_meta = [value.to("meta") for value in (X_T, LOG_SNR, LABELS)]
    assert at_level(guided, 0.3)(*on_meta).shape == X_T.shape
    if interval is not None:
        with pytest.raises(RuntimeError, match="meta"):
            guided(*on_meta)
