"""Training from Python: what `train_stage` takes, tells and gives, and what a run and a stage know of their classes."""

import json
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

from cascade import BasePipeline, CascadePipeline
from cascade import data as datasets
from cascade.data.folder import Folder
from cascade.folder import stage_folder
from cascade.stages.training import meter
from cascade.training.recipes import load_recipe
from cascade.training.stage import average_stage, train_stage

RECIPE = {
    "name": "tiny",
    "data": {"source": "data"},
    "network": {"sample_size": 8, "channels": [8], "blocks": [1], "attention_sizes": [], "head_channels": 8},
    "phases": [{"size": 8, "images": 16, "batch_size": 4}],
    "optimization": {"precision": "float32", "warmup": 0},
    "sampling": {"num_inference_steps": 2},
    "samples": {"every": 16, "count": 2, "steps": 2},
    "validation": {"source": "held", "images": 4, "levels": 2},
    "snapshots": {"every": 8},
    "checkpoint_every": 8,
}


@pytest.fixture
def here(tmp_path, monkeypatch):
    """The current folder, with pictures of two classes, held-out ones, and a recipe for them."""
    rng = np.random.default_rng(0)
    for folder in ("data", "held"):
        for name in ("zebra", "ant"):
            (tmp_path / folder / name).mkdir(parents=True)
            for i in range(2):
                Image.fromarray(rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)).save(tmp_path / folder / name / f"{i}.png")
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(RECIPE))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(meter, "LOG_EVERY", 2)
    return tmp_path


def test_a_stage_is_trained_without_a_word_and_everything_is_told_to_the_callbacks(here, capfd):
    steps, reports, validations, said = [], [], [], []
    recipe = load_recipe("tiny.yaml", {"optimization.learning_rate": 1e-3})
    made = train_stage(
        recipe,
        trackers=[],
        workers=0,
        on_progress=lambda *step: steps.append(step),
        on_report=reports.append,
        on_validation=validations.append,
        on_message=said.append,
    )
    assert capfd.readouterr() == ("", "")
    assert (made.folder, made.run, made.images_seen) == (Path("runs/tiny/stage"), Path("runs/tiny"), 16)
    assert [step for step in steps if step[0] == "training"] == [("training", done, 16) for done in (4, 8, 12, 16)]
    assert (made.loss, made.validation_loss) == (reports[-1].loss, validations[-1].loss)
    assert said[0].startswith("tiny: 8 px, 2 classes, ")
    assert load_recipe("runs/tiny/recipe.yaml") == recipe
    again = train_stage("tiny.yaml", trackers=[], workers=0)
    assert again == made, "a finished run says what it ended in"


def test_run_stage_and_average_know_the_names_of_the_classes(here):
    made = train_stage("tiny.yaml", "run", "made", trackers=[], workers=0)
    assert made.class_names == ("ant", "zebra") == tuple(json.loads(Path("run/classes.json").read_text()))
    averaged = average_stage("run", 0.1)
    assert averaged.folder == Path("run/ema-0.1") and averaged.snapshots == 2 and averaged.images == 16
    for folder in (made.folder, averaged.folder):
        stage = BasePipeline.from_pretrained(folder)
        assert stage.class_names == ("ant", "zebra")
        stage.save_pretrained("again")
        assert BasePipeline.from_pretrained("again").class_names == ("ant", "zebra")
    CascadePipeline({"base": stage}).save_pretrained("cascade")
    assert CascadePipeline.from_pretrained("cascade").stages["base"].class_names == ("ant", "zebra")


def test_a_stage_without_classes_or_of_data_without_names_has_none(here):
    (here / "data").rename("named")
    for number, name in enumerate(("ant", "zebra")):
        (here / "named" / name).rename(here / "named" / str(number))
    values = {"data.source": "named", "validation": None, "snapshots": None}
    numbers = train_stage(load_recipe("tiny.yaml", values), "numbers", trackers=[], workers=0)
    none = train_stage(load_recipe("tiny.yaml", values | {"data.classes": 0}), "none", trackers=[], workers=0)
    for made in (numbers, none):
        assert made.class_names is None and not (made.run / "classes.json").exists()
        stage = BasePipeline.from_pretrained(made.folder)
        assert stage.class_names is None and "id2label" not in stage.config


def test_a_run_of_other_classes_is_left_alone(here):
    short = load_recipe("tiny.yaml", {"phases.0.images": 8, "validation": None})
    train_stage(short, "run", trackers=[], workers=0)
    (here / "data" / "ant").rename(here / "data" / "bee")
    with pytest.raises(ValueError, match="run holds a run of other classes .ant, bee.; use another folder"):
        train_stage(short, "run", trackers=[], workers=0)


def test_the_data_is_listed_once(here, monkeypatch):
    listed = []
    init = Folder.__init__
    monkeypatch.setattr(Folder, "__init__", lambda self, *given: (listed.append(given[0]), init(self, *given))[1])
    monkeypatch.setattr(datasets, "folder_classes", lambda *_: pytest.fail("listed for its classes alone"))
    train_stage("tiny.yaml", trackers=[], workers=0)
    assert listed == [Path("data"), Path("held")]


def test_what_is_stopped_says_where_it_stands_and_a_second_call_goes_on(here):
    def stop(task, done, total):
        if task == "training" and done == 12:
            raise KeyboardInterrupt("as by a second Ctrl-C")

    with pytest.raises(KeyboardInterrupt, match="second Ctrl-C"):
        train_stage("tiny.yaml", "run", trackers=[], workers=0, on_progress=stop)
    assert stage_folder("run") is None
    said: list[str] = []
    train_stage("tiny.yaml", "run", trackers=[], workers=0, on_message=said.append)
    assert "continued from 8 images" in said
    assert stage_folder("run") == stage_folder("run/stage") == Path("run/stage")


@pytest.mark.parametrize(
    ("values", "problem"),
    [
        ({"network.channels": [9]}, "channels"),
        ({"data.classes": 3}, "data.source 'data' has 2 classes, and data.classes says 3"),
        ({"validation.source": "nowhere"}, "data.source is 'nowhere'"),
        ({"validation.source": None}, "holds no pictures out"),
    ],
)
def test_a_wrong_recipe_is_one_sentence_and_leaves_nothing(here, values, problem):
    with pytest.raises(ValueError, match=problem):
        train_stage(load_recipe("tiny.yaml", values), trackers=[])
    assert not Path("runs").exists()
    with pytest.raises(ValueError, match="'tensorbord' is not a tracker"):
        train_stage("tiny.yaml", trackers=["tensorbord"])


def test_names_of_classes_are_those_of_all_and_no_others(here):
    stage = BasePipeline.from_pretrained(train_stage("tiny.yaml", trackers=[], workers=0).folder)
    with pytest.raises(ValueError, match="id2label names 1 classes, expected 2, each by its index"):
        BasePipeline(stage.unet, stage.scheduler, id2label={0: "ant"})
