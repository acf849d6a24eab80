"""`cascade train` and `cascade data`: from a recipe and pictures to a stage that a cascade takes."""

import errno
import json
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from diffusers import DPMSolverMultistepScheduler
from PIL import Image
from safetensors.torch import load_file

from cascade import CascadePipeline
from cascade import data as datasets
from cascade.cli.main import main
from cascade.cli.progress import Progress, duration
from cascade.data import drawings
from cascade.folder import Manifest, StageEntry
from cascade.stages.base import BasePipeline
from cascade.stages.noise import CosineLaw, CosineSchedule, LogNormalLaw, SR3Law, log_snr_of_alpha_bar
from cascade.stages.training import checkpoint
from cascade.stages.training import meter as report
from cascade.stages.training.recipe import Data, Phase, Recipe
from cascade.stages.unet import UNet
from cascade.training.export import pipeline_of
from cascade.training.recipes import load_recipe

NETWORK = {
    "sample_size": 8,
    "channels": [8, 8],
    "blocks": [1, 1],
    "attention_sizes": [],
    "head_channels": 8,
    "layout": "efficient",
    "norm": "pixel",
}


@pytest.fixture
def here(tmp_path, monkeypatch):
    """The current folder, with a data set of two classes and a recipe for it; the loop reports every second step."""
    rng = np.random.default_rng(0)
    for name in ("zebra", "ant"):
        (tmp_path / "data" / name).mkdir(parents=True)
        for i in range(3):
            Image.fromarray(rng.integers(0, 256, (16, 16, 3), dtype=np.uint8)).save(tmp_path / "data" / name / f"{i}.png")
    recipe = {
        "name": "tiny/base8",
        "data": {"source": "data"},
        "network": NETWORK,
        "phases": [{"size": 8, "images": 32, "batch_size": 4}],
        "optimization": {"precision": "float32", "learning_rate": 1e-2, "warmup": 0},
        "sampling": {"num_inference_steps": 4},
        "checkpoint_every": 8,
    }
    (tmp_path / "base8.yaml").write_text(yaml.safe_dump(recipe))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(report, "LOG_EVERY", 2)
    return tmp_path


def weights(stage: Path) -> dict[str, torch.Tensor]:
    return load_file(stage / "unet" / "diffusion_pytorch_model.safetensors")


def test_a_training_ends_in_a_stage_with_the_averaged_weights(here, capsys):
    assert main(["train", "base8.yaml"]) == 0
    out, err = capsys.readouterr()
    run = here / "runs" / "tiny" / "base8"
    assert out.splitlines()[-1] == "runs/tiny/base8/stage"
    assert "tiny/base8: 8 px, 2 classes" in err and "training: 32 of 32 images" in err and "loss" in err
    tensors, state, _ = checkpoint.load_newest(run)
    made = weights(run / "stage")
    assert state["images_seen"] == 32
    assert all(torch.equal(made[name], tensors["ema"][name].half()) and made[name].dtype == torch.float16 for name in made)
    assert load_recipe(run / "recipe.yaml") == load_recipe("base8.yaml")
    assert [json.loads(line)["images_seen"] for line in (run / "log.jsonl").read_text().splitlines()] == [8, 16, 24, 32]

    Manifest("tiny", None, (StageEntry("stage", "stage", "BasePipeline", 8),)).write(run)
    cascade = CascadePipeline.from_pretrained(run)
    stage = cascade.stages["stage"]
    assert isinstance(stage.scheduler, DPMSolverMultistepScheduler) and stage.config["num_inference_steps"] == 4
    assert cascade(class_labels=[1], seeds=[0]).images[0].size == (8, 8)


def test_a_refining_stage_is_trained_on_whole_pictures_and_says_so(here, capsys):
    words = [
        "network.sample_size=16",
        "network.low_res_size=8",
        "network.aug_level=true",
        "augmentation.noise=0.5",
        "phases.0.images=8",
    ]
    assert main(["train", "base8.yaml", *words, "--run", "r", "--export", "made"]) == 0
    assert "8 -> 16 px" in capsys.readouterr().err
    assert json.loads(Path("made/model_index.json").read_text())["_class_name"] == "SR3Pipeline"
    assert not Path("r/stage").exists()


def test_ctrl_c_says_how_to_go_on_and_the_result_is_that_of_an_uninterrupted_training(here, capsys, monkeypatch):
    update, stopped = Progress.update, []

    def stop_once(self, done, total, *further):
        update(self, done, total, *further)
        if self.title == "training" and done >= 16 and not stopped:
            stopped.append(done)
            raise KeyboardInterrupt

    monkeypatch.setattr(Progress, "update", stop_once)
    assert main(["train", "base8.yaml", "--run", "a"]) == 1
    err = capsys.readouterr().err
    assert err.splitlines()[-1] == "cascade train: stopped; the same command goes on from the last checkpoint in a"
    assert not Path("a/stage").exists()
    assert main(["train", "base8.yaml", "--run", "a"]) == 0
    assert "continued from" in capsys.readouterr().err
    assert main(["train", "base8.yaml", "--run", "b"]) == 0
    one, other = weights(Path("a/stage")), weights(Path("b/stage"))
    assert one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def test_going_on_with_another_recipe_says_what_changed(here, capsys):
    assert main(["train", "base8.yaml", "phases.0.images=8"]) == 0
    capsys.readouterr()
    assert main(["train", "base8.yaml", "phases.0.images=16"]) == 0
    assert "phases.0.images was 8, is now 16" in capsys.readouterr().err
    assert load_recipe("runs/tiny/base8/recipe.yaml").total_images == 16


def test_a_run_of_another_network_is_left_alone(here, capsys):
    assert main(["train", "base8.yaml", "phases.0.images=8"]) == 0
    before = Path("runs/tiny/base8/recipe.yaml").read_text()
    assert main(["train", "base8.yaml", "network.channels=[8, 16]"]) == 2
    assert "holds a run with network.channels [8, 8], not [8, 16]" in capsys.readouterr().err
    assert Path("runs/tiny/base8/recipe.yaml").read_text() == before


def test_a_dry_run_shows_the_whole_recipe_and_leaves_nothing(here, capsys):
    before = sorted(here.rglob("*"))
    assert main(["train", "base8.yaml", "--dry-run", "optimization.learning_rate=1e-4"]) == 0
    told = capsys.readouterr().out
    Path("told.yaml").write_text(told)
    assert load_recipe("told.yaml") == load_recipe("base8.yaml", ["optimization.learning_rate=1e-4"])
    assert "parameters" in told
    Path("told.yaml").unlink()
    assert sorted(here.rglob("*")) == before


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        (["nothing.yaml"], "there is no recipe nothing.yaml: it may be one of "),
        (["base8.yaml", "optimization.learing_rate=1"], "did you mean 'learning_rate'"),
        (["base8.yaml", "data.source=drawing"], "data.source is 'drawing', expected 'drawings', a folder"),
        (["base8.yaml", "data.source=data/ant"], "holds no folders"),
        (["base8.yaml", "network.channels=[8, 9]"], "channels"),
        (["base8.yaml", "network.sample_size=32", "phases.0.size=32"], "16 pictures in a row can't be used (6 too small)"),
        (["base8.yaml", "--export", "data"], "data exists and is not the folder of a stage"),
        ([], "the following arguments are required: CONFIG"),
    ],
)
def test_a_wrong_request_is_one_sentence_and_exit_code_2(here, capsys, words, problem):
    assert main(["train", *words]) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert problem in error and error.startswith("cascade train: ")
    assert not list(here.rglob("stage"))


def test_a_picture_that_cannot_be_used_is_named_once_and_the_training_goes_on(here, capsys):
    Path("data/ant/1.png").write_text("no picture")
    assert main(["train", "base8.yaml"]) == 0
    told = capsys.readouterr().err
    assert told.count("data/ant/1.png is not a picture: skipped") == 1
    assert "kind           count  first           rule" in told  # the table at the end


def test_a_loss_that_is_no_number_is_a_failure(here, capsys):
    assert main(["train", "base8.yaml", "optimization.learning_rate=1e30", "optimization.clip_norm=1e30"]) == 1
    assert "no finite gradient" in capsys.readouterr().err


def test_a_full_disk_at_the_end_loses_nothing(here, capsys, monkeypatch):
    def full(self, folder, **options):
        (Path(folder) / "half").write_text("half")
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(BasePipeline, "save_pretrained", full)
        assert main(["train", "base8.yaml"]) == 1
    assert "runs/tiny/base8/stage: No space left on device" in capsys.readouterr().err
    assert sorted(path.name for path in Path("runs/tiny/base8").iterdir() if "stage" in path.name) == []
    assert main(["train", "base8.yaml"]) == 0, "the training itself is not repeated"
    assert "continued from 32 images" in capsys.readouterr().err


def test_an_earlier_stage_is_replaced_whole(here):
    assert main(["train", "base8.yaml", "phases.0.images=8", "--run", "a", "--export", "s"]) == 0
    before = weights(Path("s"))
    Path("s/left-over").write_text("")
    assert main(["train", "base8.yaml", "--run", "b", "--export", "s"]) == 0
    assert any(not torch.equal(value, before[name]) for name, value in weights(Path("s")).items())
    assert sorted(path.name for path in Path("s").iterdir()) == ["model_index.json", "scheduler", "unet"]
    assert [path.name for path in here.iterdir() if path.name.startswith(".s")] == []


def test_a_folder_of_pictures_is_reduced_by_area_and_labelled_by_name(here):
    recipe = load_recipe("base8.yaml", ["data.crop=area"])
    found = datasets.open_pictures(recipe.data, recipe.picture_size)
    assert found.class_names == ("ant", "zebra") and [found.label(i) for i in range(6)] == [0, 0, 0, 1, 1, 1]
    with Image.open("data/zebra/0.png") as image:
        whole = np.asarray(image).astype(float)
    mean = whole.reshape(8, 2, 8, 2, 3).mean(axis=(1, 3))
    assert np.abs(found.read(3).pixels - mean).max() <= 0.5


@pytest.mark.parametrize("law", [CosineLaw(size=64), CosineLaw(size=256), LogNormalLaw(), SR3Law(num_steps=200, beta_end=0.05)])
def test_the_default_scheduler_has_the_noise_levels_of_the_law(law):
    """Its alpha_bar are those of the law at even times; beyond 1e-4 of a variance's end the schedule is cut."""
    recipe = Recipe(name="n", data=Data(source="d"), network=NETWORK, phases=(Phase(size=8, images=8),))
    object.__setattr__(recipe.objective, "law", law)
    pipeline = pipeline_of(UNet(**NETWORK, num_classes=2), recipe)
    got = log_snr_of_alpha_bar(pipeline.scheduler.alphas_cumprod.double())
    if isinstance(law, SR3Law):
        expected = law.log_snr(torch.arange(1, 201, dtype=torch.float64) / 200)
    else:
        size = law.size if isinstance(law, CosineLaw) else 64
        expected = CosineSchedule(size=size).log_snr(torch.arange(1, 1001, dtype=torch.float64) / 1000)
    clear = expected.abs() < 7
    assert clear.sum() > 100
    assert (got - expected)[clear].abs().max() < 1e-2
    assert pipeline.scheduler.config.prediction_type == "v_prediction"


def test_the_drawings_are_read_at_the_size_that_is_trained(monkeypatch):
    asked = []

    def cached_array(size, split, progress=None, every=1):
        asked.append((size, split))
        return np.zeros((2, size, size, 3), np.uint8), np.array([0, 11])

    monkeypatch.setattr(datasets, "cached_array", cached_array)
    for name in ("base64", "sr256"):
        recipe = load_recipe(f"emoji/{name}")
        found = datasets.open_pictures(recipe.data, recipe.picture_size)
        assert len(found.class_names) == 75 and not found.may_flip[found.class_names.index("arrow")]
    assert asked == [(64, "train"), (256, "train")]


def test_data_writes_the_drawings(here, capsys, monkeypatch):
    few = drawings.drawings("heldout")[:3]
    monkeypatch.setattr(drawings, "drawings", lambda split: few)
    monkeypatch.setattr(drawings, "_in_processes", lambda function, items, **_: map(function, items))
    assert main(["data", "emoji", "--out", "pack", "--size", "16", "--split", "heldout"]) == 0
    assert "3 pictures of 16x16" in capsys.readouterr().out
    files = sorted(Path("pack/heldout").rglob("*.png"))
    assert [path.stem for path in files] == sorted(drawing.name for drawing in few)
    with Image.open(files[0]) as image:
        assert image.size == (16, 16)
    assert main(["data", "emoji", "--out", "pack", "--size", "32"]) == 2
    assert "another size" in capsys.readouterr().err
    assert main(["data", "emoji", "--out", "data"]) == 2
    assert main(["data", "emoji", "--out", "x", "--size", "0"]) == 2
    assert main(["data", "imagenet", "--out", "x"]) == 2


def test_plain_progress_says_little_and_always_the_end(capsys):
    with Progress("data") as progress:
        for done in range(1, 101):
            progress.update(done, 100, "well")
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1 and lines[0].startswith("data: 100 of 100 pictures") and lines[0].endswith("well")


def test_a_terminal_gets_a_bar(capsys, monkeypatch):
    monkeypatch.setattr("cascade.cli.progress.on_terminal", lambda: True)
    with Progress("data") as progress:
        for done in (3, 50, 100):
            progress.update(done, 100, "loss 0.5")
    assert "100/100" in capsys.readouterr().err


@pytest.mark.parametrize(("seconds", "words"), [(12.4, "12 s"), (90, "2 min"), (3600, "60 min"), (7300, "2 h 2 min")])
def test_times_as_people_say_them(seconds, words):
    assert duration(seconds) == words
