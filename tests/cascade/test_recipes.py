"""Recipes of papers: their figures and sources, the sizes of their networks, and a small twin of each that trains and samples."""

import importlib.util
import re
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from accelerate import init_empty_weights

from cascade.classes import EMOJI
from cascade.cli.main import main
from cascade.stages.noise import SR3Law
from cascade.stages.training.recipe import REGRESSION
from cascade.stages.unet import UNet
from cascade.training.export import pipeline_of
from cascade.training.forecast import real_step, training_cost
from cascade.training.recipes import load_recipe

CONFIGS = Path(__file__).parents[2] / "configs"
FOLDERS = ("sr3", "cdm", "imagenet")
NAMES = [f"{folder}/{path.stem}" for folder in FOLDERS for path in sorted((CONFIGS / folder).glob("*.yaml"))]
SR3 = [name for name in NAMES if name.startswith("sr3/")]
ABLATIONS = [f"emoji/ablations/{path.stem}" for path in sorted((CONFIGS / "emoji" / "ablations").glob("*.yaml"))]

PUBLISHED = {  # SR3, table A.1; ADM's 64x64 model and EDM2-S have 296 and 280 million, EDM2-XS 125
    "sr3/faces-16-128": 550e6,
    "sr3/imagenet-64-256": 625e6,
    "sr3/faces-64-512": 625e6,
    "sr3/faces-256-1024": 150e6,
    "imagenet/base64": 296e6,
    "imagenet/base64-guide": 125e6,
}


def recipe(name):
    return load_recipe(CONFIGS / f"{name}.yaml")


def parameters(name):
    loaded = recipe(name)
    with init_empty_weights():
        return UNet(**loaded.network, num_classes=loaded.data.classes or None).num_parameters()


@pytest.mark.parametrize("name", PUBLISHED)
def test_networks_have_the_published_number_of_parameters(name):
    assert abs(parameters(name) / PUBLISHED[name] - 1) < 0.05


@pytest.mark.parametrize("name", SR3)
def test_sr3s_figures(name):
    """Section 4: 1M steps of 256, Adam, 10k steps of warm-up, then fixed; dropout for 16 -> 128 alone; no class in any stage."""
    loaded = recipe(name)
    (phase,), o = loaded.phases, loaded.optimization
    assert (phase.batch_size, phase.images / phase.batch_size, o.warmup / phase.batch_size) == (256, 1e6, 1e4)
    assert (o.weight_decay, o.cooldown, loaded.data.classes) == (0, 0, 0)
    assert loaded.network["dropout"] == (0.2 if "faces-16-128" in name else 0)
    assert loaded.data.crop == "area" and phase.size == loaded.network["sample_size"]
    assert name.rpartition("/")[2].startswith(
        ("faces-" if "faces" in name else "imagenet-") + f"{loaded.network['low_res_size']}-{phase.size}"
    )
    regression = loaded.objective.kind == REGRESSION
    assert regression == name.endswith("-regression")
    assert o.learning_rate == (1e-5 if regression else 1e-4)
    if not regression:
        assert loaded.objective.loss == "l1" and loaded.objective.law == SR3Law(num_steps=2000)
        assert loaded.network["prediction_type"] == "epsilon"


@pytest.mark.parametrize("name", [name for name in SR3 if name.endswith("-regression")])
def test_a_regression_is_the_network_of_its_sibling_chosen_by_its_psnr(name):
    one, other = recipe(name), recipe(name.removesuffix("-regression"))
    assert one.network == other.network | {"prediction_type": "sample"}
    assert one.result == "best" and one.objective.loss == "l2"


@pytest.mark.parametrize(
    "chain",
    [
        ("cdm/base32", "cdm/sr64", "cdm/sr128"),
        ("cdm/base32", "cdm/sr64", "cdm/sr256"),
        ("imagenet/base64", "imagenet/sr256", "imagenet/sr1024"),
    ],
)
def test_stages_of_a_cascade_fit_together(chain):
    stages = [recipe(name) for name in chain]
    assert [s.network.get("low_res_size") for s in stages] == [None, *(s.network["sample_size"] for s in stages[:-1])]
    for stage in stages:
        assert stage.data.classes == 1000 and stage.objective.label_dropout == 0.1, (
            "the class goes to every stage, and is dropped"
        )
        assert stage.data.crop == stages[0].data.crop
    assert all(s.augmentation.noise or s.augmentation.blur for s in stages[1:])


def test_the_augmentation_is_cdms():
    """Noise with its level seen at low resolution, blur at 128 and 256 px (sections 3 and 4.4)."""
    low, *high = (recipe(f"cdm/sr{size}") for size in (64, 128, 256))
    assert low.augmentation.noise == 1 and low.network["aug_level"] and not low.augmentation.blur
    assert all(stage.augmentation.blur and not stage.augmentation.noise for stage in high)


def test_the_guide_is_a_smaller_and_less_trained_sibling():
    base, guide = recipe("imagenet/base64"), recipe("imagenet/base64-guide")
    assert (base.objective.law, base.network["prediction_type"]) == (guide.objective.law, guide.network["prediction_type"])
    assert guide.total_images < base.total_images / 8 and parameters("imagenet/base64-guide") < parameters("imagenet/base64") / 2


def test_the_largest_stage_is_trained_on_crops_of_a_size_that_it_can_cut():
    loaded = recipe("imagenet/sr1024")
    assert loaded.phases[0].size == 256 < loaded.network["sample_size"]


@pytest.mark.parametrize("name", NAMES)
def test_every_figure_says_where_it_comes_from(name):
    """Sizes say what the stage is; every other line with a figure says whose it is."""
    for line in (CONFIGS / f"{name}.yaml").read_text().splitlines():
        value, _, comment = line.partition("#")
        key = value.strip("- {").partition(":")[0]
        if re.search(r"\d", value) and key not in ("name", "source", "sample_size", "low_res_size", "classes", "seed", "loss"):
            assert comment.strip(), f"{name}: {line}"


@pytest.mark.parametrize("name", NAMES)
def test_the_remark_on_accumulate_is_right(name):
    """It says how many images are at once in memory on a single process."""
    loaded = recipe(name)
    at_once = loaded.phases[-1].batch_size // loaded.optimization.accumulate
    said = re.search(r"accumulate: .*# (?:ours: (\d+) (?:images|crops) at once|as .*)", (CONFIGS / f"{name}.yaml").read_text())
    assert said and int(said[1] or at_once) == at_once


def twin(name):
    """The recipe with the smallest network of its shape."""
    loaded = recipe(name)
    levels = len(loaded.network["channels"])
    size = loaded.network.get("patch_size", 1) * 2**levels
    low_res_size = loaded.network.get("low_res_size")
    ratio = loaded.network["sample_size"] // low_res_size if low_res_size else 1
    small = {
        "sample_size": size,
        "channels": [8] * levels,
        "blocks": [1] * levels,
        "head_channels": 8,
        "attention_sizes": [min(size // 2, 16)],
    }
    network = loaded.network | small | ({"low_res_size": size // ratio} if low_res_size else {})
    optimization = replace(loaded.optimization, precision="float32", accumulate=1)
    phase = replace(loaded.phases[-1], size=size, batch_size=2)
    return replace(loaded, network=network, optimization=optimization, phases=(phase,))


@pytest.mark.parametrize("name", [*NAMES, *ABLATIONS])
def test_a_small_twin_trains_and_samples(name):
    small = twin(name)
    classes = small.data.classes or None
    real_step(small, classes, small.phases[0], 2)()
    torch.manual_seed(0)
    network = UNet(**small.network, num_classes=classes).eval()
    stage = pipeline_of(network, small)
    stage.set_progress_bar_config(disable=True)
    given = {} if small.network.get("low_res_size") is None else {"image": torch.rand(1, 3, *[small.network["low_res_size"]] * 2)}
    given |= {} if classes is None else {"class_labels": [3]}
    given |= {} if small.objective.kind == REGRESSION else {"num_inference_steps": 2}
    images = stage(**given, output_type="pt").images
    assert images.shape == (1, 3, small.network["sample_size"], small.network["sample_size"]) and images.isfinite().all()


@pytest.fixture(scope="module")
def driver():
    """benchmarks/ablations.py, which is in no package."""
    spec = importlib.util.spec_from_file_location("ablations_driver", CONFIGS.parent / "benchmarks" / "ablations.py")
    sys.modules[spec.name] = module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    yield module
    del sys.modules[spec.name]


@pytest.fixture(scope="module")
def arms(driver):
    """The recipe of every arm of the papers' comparisons."""
    return {
        name: load_recipe(CONFIGS / "emoji" / "ablations" / f"{arm.recipe}.yaml", arm.settings)
        for name, arm in driver.ARMS.items()
    }


def test_arms_of_the_comparisons_differ_in_one_thing_alone(driver, arms):
    """In what their settings name; the regression in its objective."""
    reference = arms[driver.REFERENCE]
    for name, arm in arms.items():
        if arm.network.get("low_res_size"):
            same = ("network", "phases", "optimization", "seed")
            assert [getattr(arm, key) for key in same] == [getattr(reference, key) for key in same], name
            changed = [key for key in ("data", "objective", "augmentation") if getattr(arm, key) != getattr(reference, key)]
            assert len(changed) == (name != driver.REFERENCE), name
    assert {name for table in driver.TABLES for name, _ in table.rows} >= arms.keys() - {driver.BASE}


def test_the_single_model_is_trained_with_the_multiply_adds_of_the_cascade(driver, arms):
    names = (driver.BASE, driver.REFERENCE, driver.SINGLE)
    work = {name: training_cost(arms[name], len(EMOJI)).image.multiply_adds * arms[name].total_images for name in names}
    cascade = work[driver.BASE] + work[driver.REFERENCE]
    assert work[driver.SINGLE] == pytest.approx(cascade, rel=1e-3)
    assert arms[driver.SINGLE].objective == arms[driver.BASE].objective


def test_a_dry_run_shows_sr3s_natural_images(capsys, tmp_path, monkeypatch):
    """625 million parameters within 5 %, and the recipe, on a machine without ImageNet; nothing of that size is allocated."""
    monkeypatch.chdir(tmp_path)
    words = ["optimization.precision=float32", "--dry-run"]
    assert main(["train", str(CONFIGS / "sr3" / "imagenet-64-256.yaml"), *words]) == 0
    told = capsys.readouterr().out
    assert "64 -> 256 px, no classes, 633,534,467 parameters, 256,000,000 images" in told
    assert "# pictures: not here, no classes assumed" in told and "learning_rate: 0.0001" in told
    assert "879.6 GMAC per evaluation at 256 px" in told and "estimated as" in told
