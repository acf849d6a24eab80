"""One step of the optimizer: parts of a batch add up to the batch, and a gradient that is no number moves nothing."""

from dataclasses import replace
from functools import partial

import pytest
import torch
from toy import NETWORK, optimization, pictures, recipe, weights

from cascade.stages.graphs import Graphs
from cascade.stages.noise import SR3Law
from cascade.stages.training import Augmentation, Objective
from cascade.stages.training import step as step_module
from cascade.stages.training.checkpoint import optimizer_tensors
from cascade.stages.training.examples import ResidentPictures, TrainingExamples
from cascade.stages.training.processes import accelerator_at
from cascade.stages.training.state import TrainingState
from cascade.stages.training.step import RecordedStep, Stepper
from cascade.stages.unet import ResidualBlock


def begin(folder, accelerator=None, dropout=0.0, **changes):
    """A state after a few images, so that the rate is not 0."""
    made = recipe(network={**NETWORK, "dropout": dropout}, optimization=optimization(**changes))
    return TrainingState.begin(made, 2, folder, accelerator or accelerator_at("float32"), lambda message: None)


def parts_of(state, count, size=8):
    """The next batch in `count` parts."""
    numbers = range(state.images_seen, state.images_seen + size)
    return [examples_of(state).read(numbers[place * size // count :][: size // count]) for place in range(count)]


def examples_of(state):
    return TrainingExamples(pictures(), state.recipe, state.recipe.phases[1], state.network.null_label)


def step(state, parts, on_message=pytest.fail):
    return Stepper(state, on_message)(parts, examples_of(state))


def trained(folder, parts, steps=3, **changes):
    state = begin(folder, **changes)
    outcomes = []
    for _ in range(steps):
        outcomes.append(step(state, parts_of(state, parts)))
        state.images_seen += 8
    return weights(state.network), outcomes


def gradient_of(folder, parts):
    """The gradient of a network far from its start, where much of it is 0, on one batch."""
    state = begin(folder)
    torch.manual_seed(0)
    for parameter in state.network.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    batch = parts_of(state, parts)
    for place in range(parts):
        step_module._backward(state, batch, place, examples_of(state))
    return torch.cat([parameter.grad.flatten() for parameter in state.network.parameters()])


@pytest.mark.parametrize("parts", [2, 4, 8])
def test_a_batch_in_parts_is_the_batch_up_to_rounding(tmp_path, parts):
    whole = gradient_of(tmp_path, 1)
    torch.testing.assert_close(gradient_of(tmp_path, parts), whole, rtol=1e-4, atol=1e-6 * whole.abs().max().item())
    (_, of_whole), (_, of_parts) = trained(tmp_path, 1), trained(tmp_path, parts)
    for one, other in zip(of_whole, of_parts, strict=True):
        torch.testing.assert_close(other.losses, one.losses)
        torch.testing.assert_close(other.gradient_norm, one.gradient_norm)
        assert torch.equal(other.log_snr, one.log_snr)


def test_dropout_differs_between_parts_and_is_the_same_in_a_repeated_step(tmp_path):
    state = begin(tmp_path, dropout=0.5)
    torch.nn.init.normal_(state.network.conv_out.weight)
    for name, parameter in state.network.named_parameters():
        if "conv2" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    part = parts_of(state, 2)[0]
    first, again = (step_module._backward(state, [part, part], 0, examples_of(state)) for _ in range(2))
    second = step_module._backward(state, [part, part], 1, examples_of(state))
    assert torch.equal(first, again) and not torch.equal(first, second)


def test_gradient_checkpointing_changes_nothing_dropout_included(tmp_path):
    plain, _ = trained(tmp_path, 2, dropout=0.1)
    checkpointed, _ = trained(tmp_path, 2, dropout=0.1, gradient_checkpointing=True)
    assert torch.equal(checkpointed, plain)


@pytest.mark.slow
def test_compiling_changes_no_result(tmp_path, monkeypatch):
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="eager"))
    plain, _ = trained(tmp_path, 2, dropout=0.1)
    compiled, _ = trained(tmp_path, 2, dropout=0.1, compile=True)
    torch.testing.assert_close(compiled, plain, rtol=0, atol=1e-6)


def test_gradient_checkpointing_and_compile_reach_the_network(tmp_path, monkeypatch):
    calls = []
    monkeypatch.setattr(torch, "compile", lambda block, **options: calls.append(block) or block)
    state = begin(tmp_path, gradient_checkpointing=True, compile=True)
    blocks = [module for module in state.network.modules() if isinstance(module, ResidualBlock)]
    assert state.network.gradient_checkpointing and len(calls) == len(blocks) > 3


def test_the_rate_and_the_betas_are_those_of_the_recipe(tmp_path):
    state = begin(tmp_path, betas=(0.8, 0.95), weight_decay=0.1)
    step(state, parts_of(state, 1))
    (group,) = state.optimizers["optimizer"].param_groups
    assert (group["betas"], group["weight_decay"], group["lr"]) == ((0.8, 0.95), 0.1, state.recipe.learning_rate_at(0))


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("optimizer", ["adam", "muon"])
def test_a_step_that_can_be_recorded_is_the_ordinary_one_up_to_rounding(tmp_path, optimizer, precision):
    """The same losses, and weights that moved in the same direction, with images at both sizes of `coarse_below`."""
    network = {**NETWORK, "dropout": 0.0, "prediction_type": "sample", "coarse_below": 1.0}
    made = recipe(network=network, optimization=optimization(optimizer=optimizer, precision=precision, warmup=0))
    moved, losses = [], []
    for recorded in (False, True):
        accelerator = accelerator_at(precision)
        state = TrainingState.begin(made, 2, tmp_path / str(recorded), accelerator, pytest.fail)
        before, stepper = weights(state.network), Stepper(state, pytest.fail)
        stepper._recorded = RecordedStep(state) if recorded else None
        outcomes = []
        for _ in range(3):
            outcomes.append(stepper(parts_of(state, 1), examples_of(state)))
            state.images_seen += 8
        moved.append(weights(state.network) - before)
        losses.append(torch.stack([outcome.losses for outcome in outcomes]))
        assert (torch.cat([outcome.log_snr for outcome in outcomes]) < 1).float().mean().item() not in (0, 1)
    exact = precision == "float32"
    torch.testing.assert_close(losses[1], losses[0], rtol=1e-4 if exact else 0.02, atol=1e-5 if exact else 0.01)
    likeness = torch.nn.functional.cosine_similarity(*moved, dim=0).item()
    assert likeness > (0.9999 if exact else 0.95)


@pytest.mark.parametrize("low_res_size", [None, 4])
def test_a_step_looks_at_no_value(tmp_path, low_res_size):
    """On the meta device, whose tensors have none: no CUDA device would be waited for, and a graph can be recorded."""
    network = {**NETWORK, "prediction_type": "sample"}
    network |= {"coarse_below": 1.0} if low_res_size is None else {"low_res_size": low_res_size, "aug_level": True}
    made = recipe(
        network=network,
        optimization=optimization(optimizer="muon", precision="bfloat16"),
        objective=Objective(law=SR3Law(), l1_above=1.0, weighting="min_snr"),
        augmentation=Augmentation(noise=0.3, blur=1.0),
    )
    state = TrainingState.begin(made, 2, tmp_path, accelerator_at("bfloat16"), pytest.fail)
    examples = examples_of(state)
    examples.pictures = ResidentPictures(examples.pictures, torch.device("meta"))
    state.network.to("meta")
    step = RecordedStep(state)
    step.graphs = Graphs(torch.device("meta"))
    losses, norm = step(examples.read(range(8)), examples)
    assert losses.device.type == "meta" and losses.shape == (8,) and norm.shape == ()


def test_a_recorded_step_without_a_finite_gradient_moves_nothing(tmp_path):
    state, messages = begin(tmp_path, optimizer="muon"), []
    stepper = Stepper(state, messages.append)
    stepper._recorded = RecordedStep(state)
    stepper(parts_of(state, 1), examples_of(state))
    before = {name: values.clone() for each in state.optimizers.values() for name, values in optimizer_tensors(each).items()}
    values = weights(state.network)
    hook = state.network.conv_out.weight.register_hook(lambda gradient: gradient * float("nan"))
    stepper(parts_of(state, 1), examples_of(state))
    hook.remove()
    after = {name: values for each in state.optimizers.values() for name, values in optimizer_tensors(each).items()}
    assert torch.equal(weights(state.network), values) and state.bad_steps == 1 and len(messages) == 1
    assert all(torch.equal(before[name], after[name]) for name in before)
    stepper(parts_of(state, 1), examples_of(state))
    assert not torch.equal(weights(state.network), values) and state.bad_steps == 0


class Broken:
    """Makes the loss of chosen calls no number, for the examples of one class or for all."""

    def __init__(self, monkeypatch, calls, label=None):
        self.real, self.calls, self.label, self.count = step_module.denoising_loss, calls, label, 0
        monkeypatch.setattr(step_module, "denoising_loss", self)

    def __call__(self, network, batch, *args):
        self.count += 1
        losses = self.real(network, batch, *args)
        if self.count not in self.calls:
            return losses
        chosen = torch.ones_like(losses) if self.label is None else (batch["label"] == self.label).float()
        return losses * (1 + chosen * float("nan")).where(chosen > 0, 1.0)


def test_a_step_without_a_finite_gradient_moves_nothing_and_names_its_pictures(tmp_path, monkeypatch):
    Broken(monkeypatch, {1}, label=0)
    state, messages = begin(tmp_path), []
    before = weights(state.network)
    (part,) = parts_of(state, 1)
    outcome = step(state, [part], messages.append)
    assert torch.equal(weights(state.network), before) and state.bad_steps == 1
    black = part["label"] == 0
    assert torch.equal(outcome.losses.isnan(), black)
    named = zip(part["index"][black], part["log_snr"][black], strict=True)
    expected = ", ".join(f"picture {i} at log-SNR {level:.1f}" for i, level in named)
    assert messages == [f"skipped a step at 0 images: its gradient is not a number; no finite loss for {expected}"]
    step(state, [part])
    assert not torch.equal(weights(state.network), before) and state.bad_steps == 0


def test_several_bad_steps_in_a_row_end_the_run_with_level_and_names(tmp_path, monkeypatch):
    Broken(monkeypatch, {2, 4, 5, 6, 7, 8})
    state, messages = begin(tmp_path), []
    words = r"5 steps in a row, up to 0 images.*no finite loss for picture \d+ at log-SNR -?\d+\.\d, .* and 8 more"
    with pytest.raises(FloatingPointError, match=words):
        for _ in range(8):
            step(state, parts_of(state, 1, size=16), messages.append)
    assert len(messages) == 6


def test_a_gradient_that_overflows_behind_finite_losses_names_the_whole_batch(tmp_path):
    state, messages = begin(tmp_path), []
    state.network.conv_out.weight.register_hook(lambda gradient: gradient * float("inf"))
    step(state, parts_of(state, 1), messages.append)
    assert "its pictures are picture " in messages[0] and messages[0].count("log-SNR") == 8


@pytest.fixture
def scaled(monkeypatch):
    """An accelerator that trains in float16 although this is a CPU, from a scale of the loss at which its gradients overflow."""
    accelerator = accelerator_at("float32")
    accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**30, growth_interval=1000)
    accelerator.native_amp = True
    monkeypatch.setattr(accelerator.state, "_mixed_precision", "fp16")
    return accelerator


def test_float16s_scale_is_searched_for_without_a_word(tmp_path, scaled):
    state = begin(tmp_path / "scaled", scaled)
    before, steps = weights(state.network), 0
    while torch.equal(weights(state.network), before):
        outcome = step(state, parts_of(state, 1))
        steps += 1
    assert step_module.MAX_BAD_STEPS < steps < 25 and outcome.gradient_norm.isfinite()
    assert scaled.scaler.get_scale() == 2.0 ** (30 - steps + 1) and state.bad_steps == 0


def test_the_scale_does_not_change_the_gradient(tmp_path, scaled):
    scaled.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
    state = begin(tmp_path / "scaled", scaled)
    outcome = step(state, parts_of(state, 2))
    scaled.state._mixed_precision = "no"
    _, (other,) = trained(tmp_path / "plain", 2, steps=1)
    torch.testing.assert_close(outcome.gradient_norm, other.gradient_norm, rtol=2e-3, atol=0)
    torch.testing.assert_close(outcome.losses, other.losses, rtol=2e-3, atol=1e-4)


def test_float16_ends_a_run_whose_loss_is_no_number(tmp_path, scaled, monkeypatch):
    Broken(monkeypatch, range(100))
    state = begin(tmp_path, scaled)
    with pytest.raises(FloatingPointError, match="5 steps in a row"):
        for _ in range(5):
            step(state, parts_of(state, 1), lambda message: None)


def test_the_scale_is_part_of_a_checkpoint(tmp_path, scaled):
    state = begin(tmp_path, scaled)
    step(state, parts_of(state, 1))
    state.save()
    scaled.scaler = torch.amp.GradScaler("cpu", init_scale=2.0)
    again = begin(tmp_path, scaled)
    assert again.accelerator.scaler.get_scale() == 2.0**29


def test_a_recipes_parts_divide_every_batch():
    with pytest.raises(ValueError, match="accumulate 3 must divide the batch_size, which is 8 at 4 px"):
        recipe(optimization=optimization(accumulate=3))
    made = recipe(optimization=optimization(accumulate=4))
    assert replace(made).optimization.accumulate == 4
