"""From a folder of pictures to a model: what is planned, what is made, and what a mistake is answered with."""

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from cascade import CascadePipeline, fit
from cascade.cli.main import main
from cascade.data.looking import Look, look
from cascade.png import read_chunks
from cascade.training import fit as fitting
from cascade.training import fit_plan, fit_result
from cascade.training.card import quoted
from cascade.training.fit_plan import plan_fit
from cascade.training.recipes import load_recipe

IMAGENET = "packages/cascade-imagenet/cascade_imagenet"
TINY = {"channels": [8, 8, 8], "blocks": [1, 1, 1], "attention_sizes": [], "head_channels": 8}


def found(sides=(300,) * 100, counts=(60, 40), **changes) -> Look:
    names = tuple("abcdefgh"[: len(counts)])
    return replace(Look("pictures", None, True, names, counts, np.array(sides), "", 0), **changes)


def write(folder, count, size=70, seed=0):
    folder.mkdir(parents=True)
    for i in range(count):
        pixels = np.random.default_rng(seed + i).integers(0, 256, (size, size + i % 3, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{i}.png")


@pytest.fixture
def quick(monkeypatch):
    """Every network is tiny, and a machine trains 1000 images a second."""
    for name in ("BASES", "REFINERS"):
        monkeypatch.setattr(fit_plan, name, (fit_plan.NetworkSize("tiny", TINY),))
    monkeypatch.setattr(fit_plan, "seconds_per_image", lambda recipe, classes, phase: 1e-3)


@pytest.mark.parametrize(
    ("sides", "stages"),
    [
        ((70,) * 100, ["base"]),
        ((130,) * 100, ["base", "sr128"]),
        ((300,) * 100, ["base", "sr256"]),
        ((300,) * 76 + (100,) * 24, ["base", "sr256"]),
        ((300,) * 74 + (200,) * 26, ["base", "sr128"]),
        ((600,) * 100, ["base", "sr256", "sr512"]),
        ((1200,) * 100, ["base", "sr256", "sr1024"]),
    ],
)
def test_the_stages_are_those_that_three_quarters_of_the_pictures_allow(quick, sides, stages):
    plan = plan_fit(found(sides), 3600)
    assert [stage.name for stage in plan.stages] == stages
    assert sum(stage.share for stage in plan.stages) == pytest.approx(1)
    for stage in plan.stages:
        size, small = stage.recipe.network["sample_size"], stage.recipe.network.get("low_res_size")
        assert stage.recipe.data.max_damaged >= min(1, 1 - stage.pictures), "what is known to be too small doesn't end the run"
        assert small is None or size // small == stage.recipe.network["patch_size"], "the finest features are of the small size"


def test_the_network_is_the_largest_that_sees_enough_in_its_time_and_that_the_pictures_are_enough_for(monkeypatch):
    rates = {"small": 1000, "medium": 100, "large": 50, "largest": 20}  # images a second

    def seconds(recipe, classes, phase):
        (name,) = (one.name for one in fit_plan.BASES if one.network["channels"] == recipe.network["channels"])
        return 1 / rates[name]

    monkeypatch.setattr(fit_plan, "seconds_per_image", seconds)
    monkeypatch.setattr(fit_plan, "_rate_at_best", lambda pictures, recipe: 1e9)
    monkeypatch.setattr(fit_plan, "training_cost", lambda recipe, classes: SimpleNamespace(parameters=1))
    few, many = found((70,) * 100), found((70,) * 100, (30_000, 10_000))
    chosen = [plan_fit(pictures, time).stages[0].network for pictures in (few, many) for time in (120, 700, 1500, 7200)]
    assert chosen == ["small", "medium", "medium", "medium", "small", "medium", "large", "largest"]


def test_a_time_that_is_too_short_is_answered_with_the_least(quick):
    with pytest.raises(ValueError, match="12 s are too short.* at least 30 s for 200 steps"):
        plan_fit(found((70,) * 100), 12)
    plan_fit(found((70,) * 100), 30)


@pytest.mark.parametrize(
    ("pictures", "problem"),
    [
        (found((300,), (1, 0)), "class 'b' holds no pictures"),
        (found((300,), (1,)), "there is 1 picture in pictures, and a model needs at least 10"),
        (found((300,) * 9, (5, 4)), "there are 9 pictures"),
        (found((0,) * 12, (6, 6)), "none of the 12 pictures in pictures can be read"),
        (found((63, 10) * 6, (6, 6)), "all pictures in pictures are under 64 px, the largest has a shorter side of 63 px"),
        (found((300,) * 7 + (20,) * 5, (6, 6)), "only 58% of the pictures in pictures can be used at 64 px"),
    ],
)
def test_pictures_that_teach_nothing_are_answered_in_a_sentence(pictures, problem):
    with pytest.raises(ValueError, match=problem):
        plan_fit(pictures, 3600)


@pytest.mark.parametrize(("side", "wanted"), [(70, "128"), (130, "256"), (300, None)])
def test_what_a_further_stage_needs_is_said(quick, side, wanted):
    said = [remark for remark in plan_fit(found((side,) * 100), 3600).remarks if "shorter side" in remark]
    asked = f"0% of the pictures have a shorter side of {wanted} px, and a stage of that size needs 75%"
    assert said == ([] if wanted is None else [asked])


def test_few_pictures_are_learned_with_a_word_on_what_that_means(quick):
    ten = plan_fit(found((300,) * 10, (10,)), 3600)
    assert any("10 pictures are few" in remark for remark in ten.remarks)
    assert ten.stages[0].recipe.sampling["guidance_scale"] == 1 and ten.stages[0].recipe.objective.label_dropout == 0
    alone = plan_fit(found((300,) * 12, (4, 4, 4)), 3600)
    assert any("nothing is held out" in remark for remark in alone.remarks)
    assert alone.stages[0].recipe.validation is None and alone.stages[0].recipe.data.hold_out == 0


@pytest.mark.parametrize(
    ("folder", "stage", "objective", "sampled"),
    [
        ("cascade/assets/emoji", "base", "fit/base64", {"num_inference_steps": 30, "guidance_scale": 4.0, "scheduler": "ddpm"}),
        ("cascade/assets/emoji", "sr256", "fit/sr256", {"num_inference_steps": 1, "aug_level": 0.05, "scheduler": "dpm++"}),
        (IMAGENET, "base", "fit/base64", {"num_inference_steps": 30, "guidance_scale": 5.0, "scheduler": "ddpm"}),
        (IMAGENET, "sr256", "tiny-imagenet/sr256", {"num_inference_steps": 4, "aug_level": 0.0, "scheduler": "ddpm"}),
    ],
)
def test_a_stage_goes_on_learning_what_it_learned_and_is_sampled_as_before(folder, stage, objective, sampled):
    beginning = Path(__file__).parents[2] / folder / stage
    sizes = (64, None) if stage == "base" else (256, 64)
    made = fit_plan._recipe(found((300,) * 30, (15, 15)), *sizes, fit_plan._network_in(beginning), beginning)
    wanted = load_recipe(objective).objective
    assert replace(made.objective, label_dropout=0) == replace(wanted, label_dropout=0)
    assert made.sampling.items() >= sampled.items() and made.augmentation.reduction == "area"
    assert made.start_from == str(beginning)


def test_what_a_look_finds(tmp_path):
    write(tmp_path / "cat", 3, 70)
    write(tmp_path / "dog", 2, 20)
    (tmp_path / "dog" / "no.png").write_text("no")
    write(tmp_path / "stray", 1)
    (tmp_path / "stray" / "0.png").rename(tmp_path / "stray.png")
    (tmp_path / "stray").rmdir()
    seen = look(tmp_path)
    assert (seen.class_names, seen.counts, seen.stray, seen.labelled) == (("cat", "dog"), (3, 3), 1, True)
    assert sorted(seen.sides.tolist()) == [0, 20, 20, 70, 70, 70] and "not a picture" in seen.odd
    flat = look(tmp_path / "cat")
    assert (flat.class_names, flat.counts, flat.labelled) == (("",), (3,), False)
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="empty holds no pictures"):
        look(tmp_path / "empty")


class Killed(BaseException):
    """Ends a fit as a signal would that nothing can catch."""


@pytest.fixture
def small(monkeypatch, quick):
    """A fit of the fewest steps and pictures."""
    for home, values in {fit_plan: {"FEWEST_STEPS": 1, "BATCH": 4}, fit_result: {"MOST_SAMPLES": 10, "MOST_ENLARGED": 2}}.items():
        for name, value in values.items():
            monkeypatch.setattr(home, name, value)
    monkeypatch.setattr(fit_result, "SHOWN_OF_EACH", 2)
    short = {"sampling.num_inference_steps": 2, "samples": {"count": 2, "steps": 2}, "validation": {"images": 2, "levels": 1}}
    plain = fit_plan.load_recipe
    monkeypatch.setattr(fit_plan, "load_recipe", lambda name, values: plain(name, short | values))
    monkeypatch.setattr(fitting, "train_stage", lambda recipe, run, *, seconds, refit, **told: _in_images(recipe, run, **told))


def _in_images(recipe, run, **told):
    """As many images as a test has time for, in place of seconds."""
    from cascade.training.stage import train_stage

    phases = tuple(replace(phase, images=4 * (place + 1)) for place, phase in enumerate(recipe.phases))
    recipe = replace(recipe, phases=phases, checkpoint_every=4, samples=replace(recipe.samples, every=100))
    return train_stage(recipe, run, trackers=[], **told)


def test_a_fit_that_is_killed_twice_goes_on_and_ends_with_a_model_its_sheet_and_its_card(tmp_path, small, monkeypatch):
    write(tmp_path / "pictures" / "cat", 60, 130)
    write(tmp_path / "pictures" / "hot_dog", 50, 130, seed=100)
    out, steps, plans = tmp_path / "model", [], []

    def killed_at(stop):
        def told(title, done, total):
            if title in ("training base", "training sr128"):
                steps.append(done)
                if len(steps) == stop:
                    raise Killed

        return told

    for stop in (2, 4):
        with pytest.raises(Killed):
            fit(tmp_path / "pictures", out, time=60, workers=0, on_progress=killed_at(stop), on_plan=plans.append)
        assert not out.exists()
    made = fit(tmp_path / "pictures", out, workers=0, on_progress=killed_at(0), on_plan=plans.append)
    assert [[stage.recipe for stage in plan.stages] for plan in plans] == [[stage.recipe for stage in plans[0].stages]] * 3
    assert made.folder == out and made.seconds > 0 and made.figures.held_out == 11
    assert made.figures.enlarged["sr128"].pictures == 2 and made.figures.samples == 10
    model = CascadePipeline.from_pretrained(out)
    assert model.sizes == {"base": 64, "sr128": 128} and model.classes.names == ("cat", "hot_dog")
    card = (out / "README.md").read_text("utf-8")
    assert "| hot\\_dog | 50 |" in card and "10% of each class were held out" in card and "![Samples](samples.png)" in card
    assert str(tmp_path) not in card + (out / "recipes" / "base.yaml").read_text("utf-8"), "the folders of a machine stay its own"
    assert read_chunks(made.sheet)["Command"].startswith("generate --class 0 --class 1 -n 2 --seed 0 --grid --size 128")
    assert load_recipe(out / "recipes" / "sr128.yaml").network["low_res_size"] == 64
    record = json.loads((made.runs / fitting.RECORD).read_text("utf-8"))
    assert set(record["trained"]) == {"base", "sr128"}
    monkeypatch.setattr(fitting, "train_stage", None)  # nothing is trained anew where all is
    assert fit(tmp_path / "pictures", out, workers=0).folder == out
    with pytest.raises(ValueError, match="holds a fit of the pictures in .*pictures, not .*others"):
        fit("others", out)
    with pytest.raises(ValueError, match="holds a fit in 60 s, not 90"):
        fit(tmp_path / "pictures", out, time=90)
    with pytest.raises(ValueError, match="holds a fit that starts from nothing, not emoji"):
        fit(tmp_path / "pictures", out, start_from="emoji")


def test_a_flat_folder_is_one_class_and_a_model_is_started_from(tmp_path, small):
    write(tmp_path / "flat", 12)
    first = fit(tmp_path / "flat", tmp_path / "first", time=60, workers=0)
    assert CascadePipeline.from_pretrained(first.folder).num_classes is None
    plans, said = [], []
    told = {"on_plan": plans.append, "on_message": said.append}
    second = fit(tmp_path / "flat", tmp_path / "second", time=60, start_from=first.folder, workers=0, **told)
    (stage,) = plans[0].stages
    assert stage.recipe.optimization.learning_rate == fit_plan.FINE_TUNING_RATE and len(stage.recipe.phases) == 1
    assert any("starts from the weights of" in sentence for sentence in said)
    assert "The training started from the weights of first" in (second.folder / "README.md").read_text("utf-8")


def test_a_fit_that_can_not_begin_leaves_nothing_behind(tmp_path, quick, capsys):
    write(tmp_path / "pictures", 3)
    assert main(["fit", str(tmp_path / "pictures"), "--out", str(tmp_path / "model"), "--workers", "0"]) == 2
    assert "there are 3 pictures" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["pictures"]


def test_a_folder_that_holds_another_model_is_left_alone(tmp_path, model):
    before = sorted(path.name for path in model.iterdir())
    with pytest.raises(ValueError, match="holds a model already"):
        fit(tmp_path, model)
    assert sorted(path.name for path in model.iterdir()) == before and not fitting.runs_folder(model).exists()


def test_only_networks_that_can_be_trained_are_started_from(tmp_path, quick):
    with pytest.raises(ValueError, match="there is no model 'nonesuch'"):
        plan_fit(found(), 3600, "nonesuch")


def test_names_in_a_card_are_text():
    assert quoted("my-model - -x") == r"my-model \- \-x"
    assert quoted("a|b\n<script>![x](y)\x1b[31m") == r"a\|b\\n\<script\>\!\[x\]\(y\)\\x1b\[31m"


def test_a_folder_may_have_the_name_of_the_drawings_which_are_none(tmp_path, quick, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    words = ["fit", "drawings", "--out", "model", "--dry-run", "--workers", "0"]
    assert main(words) == 2
    assert "drawings is not a folder of pictures" in capsys.readouterr().err
    write(tmp_path / "drawings" / "cat", 12)
    monkeypatch.setattr("cascade.data.cached_array", lambda *values, **named: pytest.fail("the drawings are drawn"))
    assert main(words) == 0
    assert "12 pictures, 1 classes: cat 12" in capsys.readouterr().out


def test_a_dry_run_says_what_would_be_done(tmp_path, quick, capsys):
    write(tmp_path / "pictures" / "cat", 12)
    words = ["fit", str(tmp_path / "pictures"), "--out", str(tmp_path / "model"), "--dry-run", "--time", "10m", "--workers", "0"]
    assert main(words) == 0
    printed = capsys.readouterr().out
    assert "12 pictures, 1 classes: cat 12" in printed and "base: 64 px, tiny network" in printed
    assert [path.name for path in tmp_path.iterdir()] == ["pictures"]
