"""A recipe's lengths fitted to a time: they end on time whatever the first guess was, and say what was trained."""

from dataclasses import replace

import pytest
from toy import optimization, recipe

from cascade.stages.training import Phase, Validation
from cascade.stages.training.time_box import CHECKPOINTS, TimeBox, fitted

PHASES = (Phase(size=4, images=60_000, batch_size=16), Phase(size=8, images=100_000, batch_size=32))


def long_recipe(**changes):
    return recipe(phases=PHASES, optimization=optimization(warmup=4000, ema_half_life=50_000, cooldown=0.3), **changes)


def simulated(seconds, guess, truth, pause=0.0, grid=0.0):
    """When a run ends whose images take `truth` seconds in each phase, its recipe then, and the recipes on the way."""
    now, pauses, recipes, given = 0.0, [], [], long_recipe()
    box = TimeBox(given, seconds, guess, clock=lambda: now)
    current, seen = fitted(given, box.factor), 0
    while seen < current.total_images:
        phase = current.phase_at(seen)
        now += truth[phase.size](now) * phase.batch_size
        before, seen = seen, min(seen + phase.batch_size, phase.images)
        if (factor := box.after_step(seen, pauses)) is not None:
            current = fitted(given, factor)
            recipes.append((now, current))
        ended = seen == current.total_images
        if ended or before // current.checkpoint_every < seen // current.checkpoint_every:
            pauses.append(pause)
            if ended or before // current.samples.every < seen // current.samples.every:
                pauses[-1] += grid
            now += pauses[-1]
    return now, current, recipes


@pytest.mark.parametrize("pause, grid", [(0.0, 0.0), (1.0, 9.0)])
@pytest.mark.parametrize("slower", [0.4, 1.0, 3.0])
def test_a_run_ends_on_time_however_wrong_the_first_guess_was(slower, pause, grid):
    truth = {4: lambda now: 0.01 * slower, 8: lambda now: 0.04 * slower}
    end, _, recipes = simulated(300, (0.01, 0.04), truth, pause, grid)
    assert end == pytest.approx(300, rel=0.05) and len(recipes) > 8


def test_a_machine_that_turns_slower_on_the_way_is_noticed():
    truth = {4: lambda now: 0.01, 8: lambda now: 0.03 if now < 150 else 0.05}
    end, _, _ = simulated(300, (0.01, 0.03), truth, pause=0.5, grid=4)
    assert end == pytest.approx(300, rel=0.03)


def test_the_time_is_shared_by_the_phases_as_in_the_recipe():
    exact = {4: lambda now: 0.01, 8: lambda now: 0.04}
    _, made, _ = simulated(220, (0.01, 0.04), exact)  # the whole recipe would take 2,200 s
    assert made.total_images == pytest.approx(10_000, rel=0.02)
    assert made.phases[0].images / made.total_images == pytest.approx(0.6, abs=1e-3)


def test_what_lengths_depend_on_is_fitted_and_nothing_else():
    given = long_recipe(validation=Validation(every=28), checkpoint_every=56_000)
    made = fitted(given, 0.1)
    assert [phase.images for phase in made.phases] == [6000, 10_000]
    assert (made.optimization.warmup, made.optimization.ema_half_life) == (500, 5000)
    assert made.checkpoint_every == 10_000 // CHECKPOINTS and made.samples.every == 4500 and made.validation.every is None
    assert made.learning_rate_at(10_000 - 1500) == pytest.approx(made.optimization.learning_rate / 2)  # half-way the cooldown
    assert fitted(made, 0) == fitted(given, 0) == fitted(fitted(given, 3.7), 0)
    assert fitted(replace(given, seed=1), 0) != fitted(given, 0)
    longer = fitted(given, 3)
    assert longer.total_images == 300_000 and longer.optimization.warmup == 4000 and longer.checkpoint_every == 56_000


def test_a_time_for_hardly_a_step_is_refused_with_the_least():
    """A step takes 0.16 s in the first phase, 1.28 in the second: 0.44 in the mean of all 5,000, so that 20 take 8.8."""
    with pytest.raises(
        ValueError, match="3 s are left for training, enough for 6 steps of toy, expected at least 20; give it 6 s more"
    ):
        TimeBox(long_recipe(), 3, (0.01, 0.04), clock=lambda: 0.0)
    with pytest.raises(ValueError, match="0 s are left for training, enough for 0 steps of toy.*give it 49 s more"):
        TimeBox(long_recipe(), -40, (0.01, 0.04), clock=lambda: 0.0)  # the preparations took longer than all of it
    TimeBox(long_recipe(), 8.9, (0.01, 0.04), clock=lambda: 0.0)


def test_a_run_that_goes_on_is_fitted_to_what_is_left_of_it():
    """An image takes 1 ms in the first phase, 0.6 of the n images, and 4 ms in the second; 40,000 are seen."""
    box = TimeBox(long_recipe(), 6.0, (1e-3, 4e-3), clock=lambda: 0.0, seen=40_000)
    assert box.factor * 100_000 == pytest.approx(40_000 + 6 * 0.99 / 4e-3, rel=1e-3), "6 s of the second phase: the first is over"
    longer = TimeBox(long_recipe(), 600.0, (1e-3, 4e-3), clock=lambda: 0.0, seen=40_000)
    assert longer.factor * 100_000 == pytest.approx((600 * 0.99 / 1e-3 + 40_000) / 2.2, rel=1e-3)
    lenient = TimeBox(long_recipe(), 1.0, (0.01, 0.04), clock=lambda: 0.0, strict=False)
    plan, before = fitted(long_recipe(), lenient.factor), 0
    steps = 0.0
    for phase in plan.phases:
        steps, before = steps + (phase.images - before) / phase.batch_size, phase.images
    assert steps == pytest.approx(20, rel=0.1), "too short a time: the fewest steps are taken"
    over = TimeBox(long_recipe(), -1.0, (1e-3, 4e-3), clock=lambda: 0.0, seen=40_000)
    assert fitted(long_recipe(), over.factor).total_images == 40_001, "no time is left: it ends with the next step"
