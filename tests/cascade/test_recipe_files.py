"""A recipe file says what it says, survives a round trip, and every mistake in it is answered by its key and file."""

from pathlib import Path

import pytest
import yaml

from cascade.schedulers import SCHEDULERS
from cascade.stages.noise import CosineLaw, LogNormalLaw, SR3Law
from cascade.stages.sampling import Run
from cascade.stages.training import Data, Recipe, Validation
from cascade.stages.unet import UNet
from cascade.training.export import pipeline_of
from cascade.training.recipes import load_recipe, recipe_to_dict, recipe_to_yaml

ROOT = Path(__file__).parents[2]
RECIPES = sorted(path for path in (ROOT / "configs").rglob("*.yaml") if path.parent.name not in ("presets", "protocols"))

MINIMAL = {
    "name": "tiny",
    "data": {"source": "drawings"},
    "network": {"sample_size": 16, "channels": [8, 16], "blocks": [1, 1], "attention_sizes": [], "head_channels": 8},
    "phases": [{"size": 8, "images": 100}, {"size": 16, "images": 200, "batch_size": 4}],
}


def write(folder: Path, text: str) -> Path:
    path = folder / "recipe.yaml"
    path.write_text(text)
    return path


@pytest.fixture
def minimal(tmp_path):
    return write(tmp_path, yaml.safe_dump(MINIMAL))


def test_a_minimal_recipe_takes_every_default_from_its_class(minimal):
    recipe = load_recipe(minimal)
    assert recipe == Recipe(name="tiny", data=Data(source="drawings"), network=MINIMAL["network"], phases=recipe.phases)
    assert [(p.size, p.images, p.batch_size) for p in recipe.phases] == [(8, 100, 32), (16, 200, 4)]


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: str(path.relative_to(ROOT)))
def test_shipped_recipes_load_and_survive_a_round_trip(path, tmp_path):
    recipe = load_recipe(path)
    assert load_recipe(write(tmp_path, recipe_to_yaml(recipe))) == recipe
    assert recipe.name == str(path.relative_to(ROOT / "configs").with_suffix("")), (
        "the run's folder is named as the recipe's file"
    )


def test_there_are_recipes_for_the_shipped_cascade():
    assert {path.name for path in RECIPES} >= {"base64.yaml", "sr256.yaml"}


@pytest.mark.parametrize(
    ("text", "law"),
    [
        ("{kind: cosine, size: 256}", CosineLaw(size=256)),
        ("{kind: sr3, num_steps: 100, beta_end: 2e-2}", SR3Law(num_steps=100, beta_end=0.02)),
        ("{kind: log_normal, mean: -1}", LogNormalLaw(mean=-1.0)),
    ],
)
def test_the_noise_law_is_known_by_its_kind_and_survives_a_round_trip(minimal, tmp_path, text, law):
    recipe = load_recipe(minimal, [f"objective.law={text}"])
    assert recipe.objective.law == law
    assert load_recipe(write(tmp_path, recipe_to_yaml(recipe))).objective.law == law
    assert recipe_to_dict(recipe)["objective"]["law"]["kind"] == law.kind


@pytest.mark.parametrize("number", ["8e-4", "8.0e-4", "0.0008", "8E-04", "+8e-4"])
def test_numbers_with_exponents_are_numbers(minimal, number):
    """PyYAML's YAML 1.1 reads 8e-4 as a text."""
    assert load_recipe(minimal, [f"optimization.learning_rate={number}"]).optimization.learning_rate == 0.0008


def test_overrides_reach_inner_keys_and_places_in_lists(minimal):
    recipe = load_recipe(
        minimal, ["phases.1.images=1e3", "network.dropout=0.1", "data.flip=false", "objective.loss=l1", "seed=7"]
    )
    assert (recipe.total_images, recipe.network["dropout"], recipe.data.flip, recipe.objective.loss, recipe.seed) == (
        1000,
        0.1,
        False,
        "l1",
        7,
    )
    assert isinstance(recipe.total_images, int)


def test_sampling_takes_the_settings_of_the_stage(minimal):
    assert load_recipe(minimal, ["sampling={num_inference_steps: 20, guidance_scale: 2}"]).sampling == {
        "num_inference_steps": 20,
        "guidance_scale": 2.0,
    }
    refining = load_recipe(minimal, ["network.low_res_size=4", "sampling.aug_level=0.1"])
    assert refining.sampling == {"aug_level": 0.1}


@pytest.mark.parametrize("name", SCHEDULERS)
def test_sampling_names_the_scheduler_by_its_short_name(minimal, name):
    recipe = load_recipe(minimal, [f"sampling={{scheduler: {name}, num_inference_steps: 20}}"])
    assert recipe.sampling == {"scheduler": name, "num_inference_steps": 20}
    stage = pipeline_of(UNet(**recipe.network, num_classes=2), recipe)
    assert type(stage.scheduler).__name__ == SCHEDULERS[name] and stage.config["num_inference_steps"] == 20
    assert stage.scheduler.config.prediction_type == stage.unet.prediction_type
    few, many = (Run.of(stage.scheduler, steps).log_snr[0] for steps in (20, 40))
    assert few == pytest.approx(many)  # both begin at the noisiest level


def test_without_a_name_it_is_dpm_solver(minimal):
    recipe = load_recipe(minimal)
    assert type(pipeline_of(UNet(**recipe.network, num_classes=2), recipe).scheduler).__name__ == "DPMSolverMultistepScheduler"


@pytest.mark.parametrize(
    ("override", "problem"),
    [
        ("optimization.learing_rate=1", "unknown key 'optimization.learing_rate'; did you mean 'learning_rate'?"),
        ("optimisation.precision=float32", "unknown key 'optimisation'; did you mean 'optimization'?"),
        ("network.chanels=[8]", "did you mean 'channels'?"),
        ("network.num_classes=3", "unknown key 'network.num_classes'"),
        ("phases.0.iamges=3", "unknown key 'phases.0.iamges'; did you mean 'images'?"),
        ("objective.law={kind: cosin}", "objective.law.kind is 'cosin', expected one of cosine, sr3, log_normal"),
        ("objective.law=cosine", "objective.law.kind is 'cosine'"),
        ("objective.law={kind: cosine, mean: 1}", "unknown key 'objective.law.mean'"),
        ("sampling.aug_level=0.1", "unknown key 'sampling.aug_level'"),
        ("sampling.unet=3", "unknown key 'sampling.unet'"),
        ("sampling.scheduler=ddpn", "sampling.scheduler is 'ddpn', expected one of ddpm, ddim,"),
        ("sampling.scheduler=[ddpm]", "sampling.scheduler is a list, expected one of ddpm, ddim,"),
        ("optimization.learning_rate=fast", "optimization.learning_rate is 'fast', expected a number"),
        ("optimization.warmup=1.5", "optimization.warmup is 1.5, expected a whole number"),
        ("seed=true", "seed is True, expected a whole number"),
        ("data.flip=1", "data.flip is 1, expected true or false"),
        ("name=3", "name is 3, expected text"),
        ("name=", "name is empty, expected text"),
        ("network.channels=8", "network.channels is 8, expected a list"),
        ("network.channels=[8, wide]", "network.channels.1 is 'wide', expected a whole number"),
        ("network=[]", "network is a list, expected a mapping"),
        ("phases=3", "phases is 3, expected a list"),
        ("phases=[{size: 8}]", "phases.0.images is missing"),
        ("phases.0.size=7", "phases.0.size is 7, expected at most network.sample_size 16 and divisible by 2"),
        ("phases.1.size=32", "phases.1.size is 32, expected at most"),
        ("network.low_res_size=5", "phases.0.size is 8, which is not a whole number of pixels in the 5 px image"),
        ("objective.loss=l3", "loss is 'l3'"),
        ("phases.5.size=3", "'5' is not a place in a list of 2"),
        ("name.first=3", "name is 'tiny', which holds no further keys"),
        ("learning_rate", "expected key=value"),
        ("seed=[1", "not YAML"),
    ],
)
def test_a_mistake_is_answered_by_its_key_and_what_was_expected(minimal, override, problem):
    with pytest.raises(ValueError) as caught:
        load_recipe(minimal, [override])
    assert problem in str(caught.value)
    assert override.partition("=")[0] in str(caught.value)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("name: [", "can't be read as YAML"),
        ("- a\n- b", "holds a list, expected a mapping"),
        ("", "holds empty"),
        ("name: a\nname: b", "the key name is given twice"),
        ("data: {source: drawings}\nnetwork: {sample_size: 8}\nphases: []", "name is missing"),
        ("name: a\ndata: {source: drawings}\nnetwork: {}\nphases: [{size: 8, images: 8}]", "network.sample_size is missing"),
        ("name: !!python/object/apply:os.getcwd []", "can't be read as YAML"),
        ("name: \x00", "can't be read as YAML"),
    ],
)
def test_a_file_that_is_no_recipe_is_named(tmp_path, text, problem):
    path = write(tmp_path, text)
    with pytest.raises(ValueError) as caught:
        load_recipe(path)
    assert str(path) in str(caught.value) and problem in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(ValueError, match="there is no recipe .*nothing.yaml"):
        load_recipe(tmp_path / "nothing.yaml")


def test_a_shipped_recipe_is_found_by_name_from_anywhere_and_a_file_of_that_name_wins(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shipped = load_recipe("emoji/base64")
    assert shipped == load_recipe(ROOT / "configs" / "emoji" / "base64.yaml") == load_recipe("emoji/base64.yaml")
    Path("emoji").mkdir()
    write(Path("emoji"), yaml.safe_dump(MINIMAL)).rename("emoji/base64")
    assert load_recipe("emoji/base64").name == "tiny"
    with pytest.raises(ValueError, match="there is no recipe emoji/base46: did you mean 'emoji/base64'?"):
        load_recipe("emoji/base46")
    with pytest.raises(ValueError, match="there is no recipe presets/adm-256"):
        load_recipe("presets/adm-256")


def test_overrides_are_a_mapping_too(minimal):
    values = {"phases.1.images": 1000, "optimization.betas": (0.9, 0.999), "validation": None}
    assert load_recipe(minimal, values) == load_recipe(
        minimal, ["phases.1.images=1e3", "optimization.betas=[0.9, 0.999]", "validation=null"]
    )
    with pytest.raises(ValueError, match="with data.flp=False: unknown key 'data.flp'; did you mean 'flip'"):
        load_recipe(minimal, {"data.flp": False})


TRAINING = [
    "optimization.betas=[0.9, 0.999]",
    "optimization.accumulate=4",
    "optimization.precision=float16",
    "optimization.gradient_checkpointing=true",
    "optimization.compile=true",
    "start_from=somewhere/stage",
    "validation={source: held/out, images: 64, levels: 5, every: 2000}",
    "keep_checkpoints=3",
    "result=best",
]


def test_what_the_training_loop_takes_survives_a_round_trip(minimal, tmp_path):
    recipe = load_recipe(minimal, TRAINING)
    assert recipe.optimization.betas == (0.9, 0.999) and recipe.validation == Validation(
        source="held/out", images=64, levels=5, every=2000
    )
    assert load_recipe(write(tmp_path, recipe_to_yaml(recipe))) == recipe
    for key in ("validation", "start_from"):
        assert getattr(load_recipe(minimal, [*TRAINING, "result=last", f"{key}=null"]), key) is None


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ("validation.sorce=x", "unknown key 'validation.sorce'; did you mean 'source'"),
        ("validation.levels=many", "validation.levels is 'many', expected a whole number"),
        ("validation=5", "validation is 5, expected a mapping"),
        ("optimization.acumulate=2", "did you mean 'accumulate'"),
        ("optimization.betas=0.9", "optimization.betas is 0.9, expected a list"),
        ("optimization.betas=[0.9]", r"betas must be two numbers in \[0, 1\), got \[0.9\]"),
        ("optimization.betas=[0.9, high]", "optimization.betas.1 is 'high', expected a number"),
        ("optimization.accumulate=0", "accumulate must be at least 1, got 0"),
        ("keep_checkpoints=0", "keep_checkpoints must be at least 1, got 0"),
        ("start_form=x", "did you mean 'start_from'"),
        ("result=newest", "result is 'newest', expected one of"),
    ],
)
def test_mistakes_in_what_the_training_loop_takes_are_answered(minimal, setting, words):
    with pytest.raises(ValueError, match=words):
        load_recipe(minimal, [setting])
