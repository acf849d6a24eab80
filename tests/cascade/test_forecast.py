"""What a dry run tells: multiply-adds and kept memory against counts of another kind, and the words that it tells them in."""

import json
import math
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import yaml

from cascade.cli.main import main
from cascade.stages.noise import CosineLaw
from cascade.stages.training import Data, Objective, Optimization, Phase, Recipe
from cascade.stages.training.recipe import Snapshots
from cascade.stages.training.state import TrainingState
from cascade.stages.unet import Attention, UNet
from cascade.training import forecast as training_costs
from cascade.training.forecast import (
    Speed,
    coarse_share,
    convolution_rate,
    fitting_accumulate,
    forecast,
    median_seconds,
    training_cost,
    training_speed,
)
from cascade.training.recipes import load_recipe

ROOT = Path(__file__).parents[2]

SR3 = {"sample_size": 32, "low_res_size": 8, "channels": [8, 16], "blocks": [1, 2], "attention_sizes": [16], "head_channels": 8}
EFFICIENT = {"sample_size": 32, "channels": [8, 16, 16], "blocks": [1, 1, 2], "attention_sizes": [], "head_channels": 8}
EFFICIENT |= {"layout": "efficient", "norm": "pixel", "patch_size": 2}


def recipe_of(network, size=32, **given):
    optimization = given.pop("optimization", Optimization(precision="float32"))
    phases = (Phase(size=size, images=64, batch_size=8),)
    return Recipe(name="tiny", data=Data(source="nowhere"), network=network, phases=phases, optimization=optimization, **given)


def run(network, size):
    """One image through a real network, as in training."""
    small = None
    if network.config.low_res_size:
        small = torch.randn(1, 3, *[size * network.config.low_res_size // network.config.sample_size] * 2)
    return network(torch.randn(1, 3, size, size), torch.zeros(1), torch.zeros(1, dtype=torch.long), small)


def counted_by_hand(network, size):
    """Multiply-adds from the shapes of every layer's input and output."""
    total = 0

    def conv(layer, inputs, output):
        nonlocal total
        total += output.numel() * layer.in_channels * math.prod(layer.kernel_size)

    def linear(layer, inputs, output):
        nonlocal total
        total += output.numel() * layer.in_features

    def attention(layer, inputs, output):
        nonlocal total
        positions = output.shape[-1] * output.shape[-2]
        total += 2 * positions * positions * output.shape[1]

    for layer in network.modules():
        for kind, hook in ((torch.nn.Conv2d, conv), (torch.nn.Linear, linear), (Attention, attention)):
            if isinstance(layer, kind):
                layer.register_forward_hook(hook)
    with torch.no_grad():
        run(network, size)
    return total


@pytest.mark.parametrize("network", [SR3, EFFICIENT], ids=["sr3", "efficient"])
def test_multiply_adds_are_those_of_the_layers(network):
    cost = training_cost(recipe_of(network, size=16), 3)
    assert cost.evaluation == counted_by_hand(UNet(**network, num_classes=3), 32)
    assert cost.image.multiply_adds == counted_by_hand(UNet(**network, num_classes=3), 16)
    assert cost.parameters == UNet(**network, num_classes=3).num_parameters()


@pytest.mark.parametrize("network", [SR3, EFFICIENT], ids=["sr3", "efficient"])
def test_kept_memory_is_what_autograd_really_keeps(network):
    real, storages = UNet(**network, num_classes=3), {}
    weights = {parameter.data_ptr() for parameter in real.parameters()}

    def pack(tensor):
        if tensor.data_ptr() not in weights:
            storages[tensor.untyped_storage().data_ptr()] = (tensor.untyped_storage().nbytes(), tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        output = run(real, 32)
    assert output.requires_grad
    cost = training_cost(recipe_of(network), 3)
    assert cost.image.activations == pytest.approx(sum(size for size, _ in storages.values()), rel=0.01)
    assert cost.image.checkpointed < 0.5 * cost.image.activations


def test_half_the_memory_of_activations_and_copies_of_the_weights_with_autocast():
    plain = training_cost(recipe_of(EFFICIENT), 3)
    cast = training_cost(recipe_of(EFFICIENT, optimization=Optimization(precision="bfloat16")), 3)
    weights = sum(
        layer.weight.numel()
        for layer in UNet(**EFFICIENT, num_classes=3).modules()
        if isinstance(layer, (torch.nn.Conv2d, torch.nn.Linear))
    )
    assert "casts" not in plain.fixed and cast.fixed["casts"] == 2 * weights
    assert 0.4 < cast.image.activations / plain.image.activations < 0.9
    assert cast.evaluation == plain.evaluation


def test_memory_counts_every_copy_of_the_weights_once():
    cost = training_cost(recipe_of(SR3, snapshots=Snapshots(stds=(0.05, 0.1))), 3)
    assert cost.memory(0, False) == cost.parameters * 4 * (1 + 1 + 2 + 3), "weights, gradients, two moments, three averages"
    for checkpointing in (False, True):
        available = cost.memory(7, checkpointing)
        assert cost.images_within(available, checkpointing) == 7 and cost.images_within(available - 1, checkpointing) == 6
    assert cost.images_within(cost.memory(0, False) / 2, False) == 0


def test_the_costliest_phase_is_the_largest():
    phases = (Phase(size=16, images=64, batch_size=32), Phase(size=32, images=128, batch_size=8))
    assert training_cost(replace(recipe_of(SR3), phases=phases), 3).phase == phases[1]


@pytest.mark.parametrize("below", [-2.0, 0.0, 2.0])
def test_the_share_that_is_denoised_coarsely_is_that_of_the_law(below):
    """Cosine law: log-SNR is -2 ln tan(pi u / 2), below the bound where u > 2 / pi atan(exp(-bound / 2))."""
    network = EFFICIENT | {"prediction_type": "sample", "coarse_below": below}
    recipe = recipe_of(network, objective=Objective(law=CosineLaw()))
    assert coarse_share(recipe, recipe.phases[0]) == pytest.approx(1 - 2 / math.pi * math.atan(math.exp(-below / 2)), abs=1e-3)
    assert coarse_share(recipe, Phase(size=16, images=1)) == 0, "only whole images are"


def test_images_denoised_coarsely_cost_what_their_size_costs():
    network = EFFICIENT | {"prediction_type": "sample", "coarse_below": 0.0}
    mixed = training_cost(recipe_of(network), 3)
    fine, coarse = (training_cost(recipe_of(EFFICIENT, size=size), 3) for size in (32, 16))
    assert mixed.image.multiply_adds == pytest.approx((fine.image.multiply_adds + coarse.image.multiply_adds) / 2, rel=1e-3)
    assert mixed.evaluation == fine.evaluation


def test_a_small_network_is_timed_and_a_large_one_estimated(monkeypatch):
    recipe = recipe_of(EFFICIENT)
    cost = training_cost(recipe, 3)
    timed = training_speed(recipe, 3, cost)
    assert timed.measured_with == 8 and timed.images_per_second > 0
    monkeypatch.setattr(training_costs, "CPU_BYTES", 0)
    monkeypatch.setattr(training_costs, "convolution_rate", lambda *_: 6e9)
    optimization = replace(recipe.optimization, gradient_checkpointing=True)
    for passes, one in ((3, recipe), (4, replace(recipe, optimization=optimization))):
        expected = 6e9 * training_costs.TYPICAL_SHARE / (2 * passes * cost.image.multiply_adds)
        assert training_speed(one, 3, cost) == Speed(pytest.approx(expected), None, 6e9)


def test_the_median_of_calls_leaves_out_the_first_and_heeds_its_limit():
    now = [0.0]

    def calls(*seconds):
        lasting = iter(seconds)

        def call():
            now[0] += next(lasting)

        return call

    assert median_seconds(calls(50, 1, 5, 3), repeats=3, clock=lambda: now[0]) == 3
    assert median_seconds(calls(50, 4), limit=10, clock=lambda: now[0]) == 4, "one counts, however late"


def test_the_rate_is_that_of_the_convolution():
    """A clock that ticks once a reading: every call takes one second."""
    ticks = iter(range(1000))
    assert convolution_rate(torch.float32, torch.device("cpu"), lambda: float(next(ticks))) == 2 * 9 * 256 * 256 * 4 * 32 * 32


@pytest.mark.parametrize(
    ("batch_size", "accumulate", "images", "fitting"), [(256, 8, 32, 8), (256, 8, 31, 16), (6, 1, 2, 3), (8, 1, 0, None)]
)
def test_the_advice_divides_the_batch(batch_size, accumulate, images, fitting):
    assert fitting_accumulate(batch_size, accumulate, images) == fitting


@pytest.fixture
def told(tmp_path, capsys, monkeypatch):
    """What a dry run of a recipe without pictures tells, and its exit code."""
    monkeypatch.chdir(tmp_path)

    def of(*words, **data):
        values = {
            "name": "tiny",
            "data": {"source": "nowhere"} | data,
            "network": SR3,
            "phases": [{"size": 32, "images": 64, "batch_size": 8}],
            "optimization": {"precision": "float32"},
        }
        (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(values))
        code = main(["train", "tiny.yaml", "--dry-run", *words])
        out, err = capsys.readouterr()
        return code, out, err

    return of


def test_a_dry_run_goes_on_without_pictures(told, tmp_path):
    code, out, _ = told(classes=5)
    assert code == 0
    parameters = UNet(**SR3, num_classes=5).num_parameters()
    assert f"# tiny: 8 -> 32 px, 5 classes, {parameters:,} parameters, 64 images" in out
    assert "# pictures: not here, 5 classes assumed, as data.classes says (data.source is 'nowhere'" in out
    assert "GMAC per evaluation at 32 px" in out and "timed in steps of 8 images; 64 images take" in out
    (tmp_path / "told.yaml").write_text(out)
    assert load_recipe("told.yaml") == load_recipe("tiny.yaml")
    assert "no classes assumed" in told()[1]


def test_a_forecast_is_had_in_python_too():
    recipe = recipe_of(SR3)
    told = forecast(recipe)
    assert told.missing is not None and "data.source is 'nowhere'" in told.missing and told.num_classes is None
    assert told.cost == training_cost(recipe, None) and told.device == "cpu" and told.memory > 2**30
    assert told.seconds == recipe.total_images / told.speed.images_per_second


def test_a_recipe_without_classes_trains_a_network_without_them(told, tmp_path):
    assert "no classes, " in told(classes=0)[1]
    recipe = load_recipe("tiny.yaml")
    assert recipe.num_classes(7) is None and TrainingState(recipe, 7, tmp_path).network.num_classes is None


def test_a_recipe_that_contradicts_its_pictures_is_a_mistake(told, tmp_path):
    for name in ("ant", "zebra"):
        (tmp_path / "pictures" / name).mkdir(parents=True)
    code, _, err = told(source="pictures", classes=3)
    assert code == 2 and "data.source 'pictures' has 2 classes, and data.classes says 3" in err


_MEASURE = """
import json, sys
from pathlib import Path
import torch
from cascade.training.forecast import real_step
from tests.cascade.test_forecast import measured_recipe, IMAGES
recipe = measured_recipe(json.loads(sys.argv[1]))
real_step(measured_recipe(False, size=16), 3, measured_recipe(False, size=16).phases[0], 1)()  # loads what every step needs
def peak():  # ru_maxrss begins with the peak of the process that started this one
    return next(int(line.split()[1]) for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM:"))
before = peak()
step = real_step(recipe, 3, recipe.phases[0], IMAGES)
step()
step()
print(peak() - before)
"""
IMAGES = 8


def measured_recipe(checkpointing, size=64):
    network = {"sample_size": 64, "channels": [48, 96, 192], "blocks": [2, 2, 2], "attention_sizes": [16], "head_channels": 48}
    network = network if size == 64 else network | {"channels": [16, 16, 16], "head_channels": 16}
    return recipe_of(network, size, optimization=Optimization(precision="float32", gradient_checkpointing=checkpointing))


@pytest.mark.slow
@pytest.mark.parametrize("checkpointing", [False, True])
def test_the_estimate_of_memory_is_near_the_measured_peak(checkpointing):
    words = [sys.executable, "-c", _MEASURE, json.dumps(checkpointing)]
    measured = 1024 * int(subprocess.run(words, check=True, capture_output=True, text=True, cwd=ROOT).stdout.split()[-1])
    estimated = training_cost(measured_recipe(checkpointing), 3).memory(IMAGES, checkpointing)
    assert 0.85 < estimated / measured < 1.15, (estimated, measured)
