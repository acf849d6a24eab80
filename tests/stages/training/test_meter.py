"""What a run measures of itself: bins that partition the examples, and averages that no sharing of the work can change."""

import math
import time
from dataclasses import replace

import pytest
import torch

from cascade.stages.noise import CosineLaw, LogNormalLaw, SR3Law
from cascade.stages.training import Objective, Phase, Recipe
from cascade.stages.training import meter as report
from cascade.stages.training.meter import LEVEL_EDGES, LEVELS, Meter, Report
from cascade.stages.training.recipe import Data

RECIPE = Recipe(name="n", data=Data(source="d"), network={"sample_size": 8}, phases=(Phase(size=8, images=10_000, batch_size=8),))


def examples(count: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(count, generator=generator) + 0.1, torch.randn(count, generator=generator) * 6


def measured(meter: Meter, *batches: tuple[torch.Tensor, torch.Tensor], norm: float = 1.0, images_seen: int = 800) -> Report:
    for losses, log_snr in batches:
        meter.observe(losses, log_snr)
    made = meter.step(torch.tensor(norm), images_seen, RECIPE.phases[0], close=True)
    assert made is not None
    return made


def test_every_noise_level_has_one_bin_and_the_bins_rise():
    assert len(set(LEVELS)) == len(LEVELS) == len(LEVEL_EDGES) + 1 and list(LEVEL_EDGES) == sorted(LEVEL_EDGES)
    assert LEVELS[:2] == ("below -8", "-8 to -6") and LEVELS[-2:] == ("6 to 8", "above 8")
    values = {-20.0: 0, 20.0: len(LEVEL_EDGES)}
    for i, edge in enumerate(LEVEL_EDGES):
        values |= {edge: i + 1, math.nextafter(edge, -math.inf): i}
    for value, place in values.items():
        got = measured(Meter(RECIPE, 0), (torch.tensor([0.5]), torch.tensor([value], dtype=torch.float64)))
        assert got.loss_by_log_snr == {LEVELS[place]: 0.5}, value


def test_the_bins_average_to_the_loss():
    losses, log_snr = examples(500)
    got = measured(Meter(RECIPE, 0), (losses, log_snr))
    bins = torch.bucketize(log_snr, torch.tensor(LEVEL_EDGES), right=True)
    counts = bins.bincount(minlength=len(LEVELS)).tolist()
    assert sum(counts) == 500
    assert got.loss == pytest.approx(losses.mean().item())
    for name, value in got.loss_by_log_snr.items():
        assert value == pytest.approx(losses[bins == LEVELS.index(name)].mean().item())
    weighted = sum(got.loss_by_log_snr.get(name, 0) * n for name, n in zip(LEVELS, counts, strict=True)) / 500
    assert weighted == pytest.approx(got.loss)


@pytest.mark.parametrize("law", [CosineLaw(), CosineLaw(size=256), LogNormalLaw(), SR3Law()])
def test_every_law_fills_several_bins(law):
    log_snr = law.log_snr(torch.linspace(0.001, 0.999, 1000, dtype=torch.float64)).float()
    got = measured(Meter(RECIPE, 0), (torch.ones(1000), log_snr))
    assert len(got.loss_by_log_snr) >= 6 and set(got.loss_by_log_snr.values()) == {1.0}


def test_a_regression_has_a_loss_and_no_noise_levels():
    network = {"sample_size": 8, "low_res_size": 4, "prediction_type": "sample"}
    regression = replace(RECIPE, network=network, objective=Objective(kind="regression"))
    got = measured(Meter(regression, 0), examples(8))
    assert got.loss > 0 and got.loss_by_log_snr == {}


@pytest.mark.parametrize("share", [1, 3, 250])
def test_processes_and_parts_of_a_batch_report_what_the_whole_would(share):
    """Averages count examples, not batches: two processes, unequal parts, bins that only one of them met."""
    losses, log_snr = examples(500)
    whole = measured(Meter(RECIPE, 0), (losses, log_snr), norm=0.7)

    sent: list[torch.Tensor] = []
    other = Meter(RECIPE, 0, lambda values: sent.append(values) or values[None])
    measured(other, (losses[share:], log_snr[share:]), norm=0.7)
    mine = Meter(RECIPE, 0, lambda values: torch.stack([values, *sent]))
    got = measured(
        mine, (losses[: share // 2], log_snr[: share // 2]), (losses[share // 2 : share], log_snr[share // 2 : share]), norm=0.7
    )

    assert got.loss == pytest.approx(whole.loss) and got.gradient_norm == pytest.approx(0.7)
    assert got.loss_by_log_snr == pytest.approx(whole.loss_by_log_snr)
    assert (got.skipped_steps, got.images_seen, got.learning_rate) == (0, 800, RECIPE.learning_rate_at(800))


def test_what_is_no_number_is_left_out_and_counted():
    meter = Meter(RECIPE, 0)
    meter.observe(torch.tensor([1.0, math.nan, 3.0]), torch.tensor([0.5, 0.5, 5.0]))
    assert meter.step(torch.tensor(math.inf), 8, RECIPE.phases[0]) is None
    got = measured(meter, (torch.tensor([2.0]), torch.tensor([0.5])), norm=4.0)
    assert got.loss == pytest.approx(2.0) and got.loss_by_log_snr == {"0 to 2": 1.5, "4 to 6": 3.0}
    assert got.gradient_norm == 4.0 and got.skipped_steps == 1
    nothing = measured(meter, (torch.tensor([math.nan]), torch.tensor([0.0])), norm=math.nan)
    assert math.isnan(nothing.loss) and math.isnan(nothing.gradient_norm)
    assert nothing.loss_by_log_snr == {} and nothing.skipped_steps == 1


def test_a_report_is_due_every_so_many_steps_at_the_end_and_on_demand(monkeypatch):
    monkeypatch.setattr(report, "LOG_EVERY", 3)
    meter, phase, one = Meter(RECIPE, 0), RECIPE.phases[0], torch.ones(())

    def due(images_seen: int, close: bool = False) -> bool:
        meter.observe(torch.ones(8), torch.zeros(8))
        return meter.step(one, images_seen, phase, close) is not None

    assert [due(8 * n) for n in range(1, 7)] == [False, False, True, False, False, True]
    assert [due(56), due(64, close=True), due(72), due(80), due(88)] == [False, True, False, False, True]
    assert due(10_000), "the end of the training"


def test_the_speed_leaves_out_what_is_no_training(monkeypatch):
    now = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    meter = Meter(RECIPE, 400)
    now[0] += 4.0
    with meter.paused():
        now[0] += 50.0
    now[0] += 6.0
    assert measured(meter, examples(8), images_seen=800).images_per_second == pytest.approx(400 / 10)
    now[0] += 2.0
    assert measured(meter, examples(8), images_seen=900).images_per_second == pytest.approx(100 / 2)


def test_damaged_pictures_are_summed_over_processes_and_forgotten_after_the_report():
    meter = Meter(RECIPE, 0, lambda values: torch.stack([values, values]))
    meter.observe(*examples(8), damaged=2)
    meter.observe(*examples(8), damaged=1)
    assert measured(meter, examples(8)).damaged_pictures == 6
    assert measured(meter, examples(8)).damaged_pictures == 0


def test_memory_is_that_of_the_largest_process():
    here = Meter(RECIPE, 0, lambda values: torch.stack([values, values * 0 + 1000.0]))
    assert measured(here, examples(8)).memory_gib == 1000.0
    assert 0.01 < measured(Meter(RECIPE, 0), examples(8)).memory_gib < 100
