"""Validation: the same pictures, noise and noise levels every time, measured with the averaged weights."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from toy import NETWORK, pictures, recipe

from cascade.stages.noise import CosineLaw, add_noise
from cascade.stages.training import Objective, Phase, PictureSet, Validation, checkpoint, train
from cascade.stages.training.processes import accelerator_at
from cascade.stages.training.state import TrainingState
from cascade.stages.training.validation import Validator


def held_out(count=6) -> PictureSet:
    rng = np.random.default_rng(1)
    values = rng.integers(0, 256, (count, 8, 8, 3), dtype=np.uint8)
    return PictureSet(values, np.arange(count) % 2, ("black", "white"), (True, True))


def validated(images=240, **changes):
    return recipe(images, validation=Validation(**{"images": 5, "levels": 3, **changes}))


def begin(folder, made=None):
    return TrainingState.begin(made or validated(), 2, folder, accelerator_at("float32"), lambda message: None)


def test_the_loss_is_that_of_the_averaged_weights_at_even_shares_of_the_law(tmp_path):
    state = begin(tmp_path)
    for weights in (state.network.state_dict(), state.ema.weights):
        for value in weights.values():
            torch.nn.init.normal_(value, std=0.1)
    validator = Validator(state.recipe, held_out(), state.network.null_label)
    before = {name: value.clone() for name, value in state.network.state_dict().items()}
    report = validator(state)
    assert all(torch.equal(value, before[name]) for name, value in state.network.state_dict().items())

    levels = CosineLaw().log_snr(torch.tensor([5 / 6, 3 / 6, 1 / 6], dtype=torch.float64))
    assert list(report.loss_by_log_snr) == pytest.approx(levels.tolist())
    state.network.load_state_dict(state.ema.weights)
    examples = [validator.examples[number] for number in range(5)]
    x0, eps, label = (torch.stack([example[name] for example in examples]) for name in ("x0", "eps", "label"))
    for level, loss in report.loss_by_log_snr.items():
        log_snr = torch.full((5,), level)
        with torch.no_grad():
            v = state.network.eval()(add_noise(x0, eps, log_snr), log_snr, label)
        alpha, sigma = torch.sigmoid(log_snr[0]).sqrt(), torch.sigmoid(-log_snr[0]).sqrt()
        assert loss == pytest.approx((v - (alpha * eps - sigma * x0)).square().mean().item(), rel=1e-5)
    assert report.loss == pytest.approx(np.mean(list(report.loss_by_log_snr.values())))


def test_it_is_the_same_each_time_and_for_every_seed_of_the_training(tmp_path):
    state = begin(tmp_path)
    first = Validator(state.recipe, held_out(), state.network.null_label)(state)
    torch.manual_seed(123)
    assert Validator(replace(state.recipe, seed=9), held_out(), state.network.null_label)(state) == first


def test_nothing_is_flipped_or_dropped_and_each_picture_comes_once(tmp_path):
    made, drawn = replace(recipe(), validation=Validation(images=100)), held_out()
    validator = Validator(made, drawn, null_label=2)
    assert validator.count == 6
    examples = [validator.examples[number] for number in range(6)]
    assert sorted(int(example["index"]) for example in examples) == list(range(6))
    for example in examples:
        index = int(example["index"])
        pixels = (example["x0"].permute(1, 2, 0) * 127.5 + 127.5).numpy()
        assert example["label"] == drawn.labels[index] and np.abs(pixels - drawn.pictures[index]).max() < 1e-4


def test_a_run_validates_on_time_logs_it_and_keeps_the_best_checkpoint(tmp_path, monkeypatch):
    made, seen = replace(validated(every=28), result="best"), []
    losses = iter([0.5, 0.4, 0.1, 0.2, 0.3, 0.6, 0.7, 0.8, 0.9])
    real = Validator.__call__
    monkeypatch.setattr(Validator, "__call__", lambda self, state: replace(real(self, state), loss=next(losses)))
    messages = []
    best = train(made, pictures(), tmp_path, held_out=held_out(), on_validation=seen.append, on_message=messages.append)
    assert [report.images_seen for report in seen] == [32, 56, 88, 112, 144, 168, 200, 224, 240]
    lines = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert [line["images_seen"] for line in lines if "validation_loss" in line] == [report.images_seen for report in seen]
    assert [folder.name[-3:] for folder in checkpoint.folders(tmp_path)] == ["240", "224", "112"]
    assert checkpoint.best_folder(tmp_path).name.endswith("112")
    ema = checkpoint.load(checkpoint.best_folder(tmp_path))[0]["ema"]
    assert all(torch.equal(value, ema[name]) for name, value in best.state_dict().items())
    assert messages == ["the least validation loss was 0.20000, at 112 images"]


def test_a_best_checkpoint_that_is_damaged_is_not_silently_replaced(tmp_path, monkeypatch):
    made, losses = replace(validated(112), result="best"), iter([0.1, 0.2])
    real = Validator.__call__
    monkeypatch.setattr(Validator, "__call__", lambda self, state: replace(real(self, state), loss=next(losses)))
    train(made, pictures(), tmp_path, held_out=held_out())
    (checkpoint.best_folder(tmp_path) / "ema.safetensors").write_text("half")
    with pytest.raises(ValueError, match="checkpoint-000000000056, of the least validation loss, is damaged .*result=last"):
        train(made, pictures(), tmp_path, held_out=held_out())


def test_validation_does_not_change_the_training(tmp_path):
    plain = train(recipe(96), pictures(), tmp_path / "plain")
    other = train(validated(96, every=8), pictures(), tmp_path / "validated", held_out=held_out())
    assert all(torch.equal(value, other.state_dict()[name]) for name, value in plain.state_dict().items())


def test_recipe_and_pictures_go_together(tmp_path):
    for made, given in ((recipe(), held_out()), (validated(), None)):
        with pytest.raises(ValueError, match="one of the two is missing"):
            train(made, pictures(), tmp_path, held_out=given)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"every": 9}, "validation.every must divide checkpoint_every 56, got 9"),
        ({"every": 0}, "validation.every must be at least 1, got 0"),
        ({"levels": 0}, "validation.levels must be at least 1, got 0"),
    ],
)
def test_validations_that_make_no_sense_are_refused(change, words):
    with pytest.raises(ValueError, match=words):
        validated(**change)


def test_a_best_result_needs_a_validation():
    with pytest.raises(ValueError, match="result is 'best', which needs a validation"):
        recipe(result="best", network=NETWORK)


def test_a_regression_is_validated_by_its_psnr(tmp_path):
    """A new network with a low-resolution skip is bicubic enlargement, so its PSNR is known."""
    made = replace(
        validated(levels=1),
        network={**NETWORK, "low_res_size": 4, "prediction_type": "sample", "low_res_skip": True},
        objective=Objective(kind="regression", label_dropout=0),
        phases=(Phase(size=8, images=16, batch_size=8),),
    )
    state = begin(tmp_path, made)
    report = Validator(made, held_out(), state.network.null_label)(state)
    order = held_out().order(0, 0)[:5]
    x0 = torch.from_numpy(held_out().pictures[order]).permute(0, 3, 1, 2).double()
    large = torch.nn.functional.interpolate(torch.nn.functional.avg_pool2d(x0, 2), size=(8, 8), mode="bicubic")
    want = 10 * np.log10(255**2 / (large - x0).square().mean().item())
    assert report.psnr == pytest.approx(want, rel=1e-5) and report.as_record()["validation_psnr"] == report.psnr
    assert list(report.loss_by_log_snr) == [-20.0]
    assert Validator(validated(), held_out(), state.network.null_label)(begin(tmp_path / "diffusion")).psnr is None
