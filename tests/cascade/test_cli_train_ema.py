"""`cascade train ema` on a toy run: what it writes, and that a killed run ends with the same snapshots."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from diffusers import DPMSolverMultistepScheduler
from PIL import Image
from safetensors.torch import load_file

from cascade.cli.main import main
from cascade.cli.progress import Progress
from cascade.stages.base import BasePipeline
from cascade.stages.regression import RegressionPipeline
from cascade.stages.training import checkpoint
from cascade.stages.training.ema import PowerAverage
from cascade.stages.training.state import TrainingState

NETWORK = {
    "sample_size": 8,
    "channels": [8],
    "blocks": [1],
    "attention_sizes": [],
    "head_channels": 8,
    "layout": "efficient",
    "norm": "pixel",
}


def lay_out(folder: Path) -> None:
    """A data set of two classes and a recipe with snapshots for it."""
    rng = np.random.default_rng(0)
    for name in ("zebra", "ant"):
        (folder / "data" / name).mkdir(parents=True)
        for i in range(3):
            Image.fromarray(rng.integers(0, 256, (16, 16, 3), dtype=np.uint8)).save(folder / "data" / name / f"{i}.png")
    recipe = {
        "name": "tiny",
        "data": {"source": "data"},
        "network": NETWORK,
        "phases": [{"size": 8, "images": 36, "batch_size": 4}, {"size": 8, "images": 62, "batch_size": 4}],
        "optimization": {"precision": "float32", "learning_rate": 1e-2, "warmup": 0},
        "sampling": {"num_inference_steps": 4},
        "samples": {"every": 1000, "count": 1, "steps": 1},
        "snapshots": {"every": 6},
        "checkpoint_every": 24,
        "keep_checkpoints": 1,
    }
    (folder / "tiny.yaml").write_text(yaml.safe_dump(recipe))


@pytest.fixture
def here(tmp_path, monkeypatch):
    """The current folder, with nothing trained yet."""
    lay_out(tmp_path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A folder with a finished run, never stopped, and the average of width 0.075 that was tracked in it."""
    folder, third, average = tmp_path_factory.mktemp("finished"), [], TrainingState.average
    lay_out(folder)

    def also(self, images_before):
        if not third:
            third.append(PowerAverage(self.network, 0.075))
        average(self, images_before)
        third[0].update(self.network, self.images_seen, self.images_seen - images_before)

    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr(TrainingState, "average", also)
        assert train() == 0
    (folder / "bare").mkdir()
    (folder / "bare/recipe.yaml").write_bytes((folder / "run/recipe.yaml").read_bytes())
    return folder, third[0].weights


@pytest.fixture
def trained(finished, monkeypatch):
    """The current folder, with the finished run; the weights of its third average."""
    monkeypatch.chdir(finished[0])
    return finished[1]


def train(*words: str) -> int:
    return main(["train", "tiny.yaml", "--run", "run", "--workers", "0", *words])


def weights(stage: Path) -> dict[str, torch.Tensor]:
    return load_file(stage / "unet" / "diffusion_pytorch_model.safetensors")


def flat(tensors: dict[str, torch.Tensor]) -> torch.Tensor:
    return torch.cat([tensors[name].flatten().float() for name in sorted(tensors)])


def snapshot_bytes() -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in Path("run/snapshots").rglob("*.*")}


def test_a_stage_of_another_width_is_as_if_it_had_been_tracked(trained, capsys):
    assert main(["train", "ema", "run", "--std", "0.075"]) == 0
    out, err = capsys.readouterr()
    assert out.splitlines()[-1] == "run/ema-0.075" and "width 0.075 of 62 images, from 11 snapshots" in err
    made, tracked, ema = weights(Path("run/ema-0.075")), flat(trained), flat(weights(Path("run/stage")))
    off, rounding = (flat(made) - tracked).norm(), (tracked.half().float() - tracked).norm()
    assert off < 2 * rounding and 5 * off < (ema - tracked).norm()  # it is rounded twice, in snapshots and in the stage
    assert all(value.dtype == torch.float16 for value in made.values())
    pipeline = BasePipeline.from_pretrained("run/ema-0.075")
    assert isinstance(pipeline.scheduler, DPMSolverMultistepScheduler) and pipeline.config["num_inference_steps"] == 4


def test_a_stored_average_comes_back_as_it_is(trained):
    assert main(["train", "ema", "run", "--std", "0.1", "--images", "48", "--export", "early"]) == 0
    stored = load_file("run/snapshots/000000000048/power-0.1.safetensors")
    assert all(torch.equal(value, stored[name]) for name, value in weights(Path("early")).items())


def test_snapshots_come_at_their_interval_and_outlive_checkpoints(trained):
    names = sorted(int(path.name) for path in Path("run/snapshots").iterdir())
    assert names == [8, 12, 20, 24, 32, 36, 44, 48, 56, 60, 62]  # the first step past every multiple of 6, and the end
    assert [path.name for path in checkpoint.folders(Path("run"))] == ["checkpoint-000000000062"]
    tensors, _, _ = checkpoint.load_newest(Path("run"))
    stored = load_file("run/snapshots/000000000062/power-0.05.safetensors")
    assert all(torch.equal(value.half(), stored[name]) for name, value in tensors["power-0.05"].items())


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        (["nothing", "--std", "0.1"], "nothing holds no recipe.yaml, expected the folder of a run"),
        (["run", "--std", "0.5"], "relative width of an average is 0.5, expected more than 0 and at most 0.2887"),
        (["run", "--std", "wide"], "--std"),
        (["run"], "the following arguments are required: --std"),
        (["run", "--std", "0.1", "--images", "30"], "no snapshot of 30 images; near it are 24, 32, 36"),
        (["run", "--std", "0.1", "--export", "data"], "data exists and is not the folder of a stage"),
        (["bare", "--std", "0.1"], "bare holds no snapshots"),
    ],
)
def test_a_wrong_request_is_one_sentence_and_exit_code_2(trained, capsys, words, problem):
    assert main(["train", "ema", *words]) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert problem in error and error.startswith("cascade train ema: ")


def test_a_stopped_run_ends_with_the_same_snapshots(finished, here, capsys, monkeypatch):
    update, stops = Progress.update, [40, 58]

    def stop(self, done, *args):
        update(self, done, *args)
        if self.title == "training" and stops and done >= stops[0]:
            stops.pop(0)
            raise RuntimeError("killed")

    monkeypatch.setattr(Progress, "update", stop)
    assert train() == train() == 1
    assert "run/snapshots/000000000056/state.json" in snapshot_bytes(), "one lies after the checkpoint of 48 images"
    assert train() == 0
    made = snapshot_bytes()
    monkeypatch.chdir(finished[0])
    assert made == snapshot_bytes()


def test_snapshots_after_the_checkpoint_are_forgotten_when_the_recipe_changes(here, monkeypatch):
    assert train("phases=[{size: 8, images: 24, batch_size: 4}]") == 0
    left = Path("run/snapshots/000000000099")
    (Path("run/snapshots/000000000024")).rename(left)
    assert train("snapshots.every=16") == 0
    names = sorted(int(path.name) for path in Path("run/snapshots").iterdir())
    assert names == [8, 12, 20, 32, 48, 62]


def test_a_width_can_be_dropped_but_not_begun_in_the_middle(here, capsys):
    assert train("phases=[{size: 8, images: 24, batch_size: 4}]", "snapshots.stds=[0.1]") == 0
    capsys.readouterr()
    assert train() == 2
    assert "without an average of width 0.05, which can't begin in its middle" in capsys.readouterr().err
    assert train("snapshots=null", "phases=[{size: 8, images: 28, batch_size: 4}]") == 0


def test_a_regression_is_trained_exported_and_averaged(here, capsys):
    words = [
        "network={sample_size: 16, low_res_size: 8, prediction_type: sample, low_res_skip: true, channels: [8], blocks: [1],"
        " attention_sizes: [], head_channels: 8, layout: efficient, norm: pixel}",
        "phases=[{size: 16, images: 24, batch_size: 4}]",
        "objective={kind: regression, label_dropout: 0}",
        "sampling={}",
        "validation={source: data, levels: 1, images: 4}",
        "result=best",
    ]
    assert train(*words) == 0
    stage = RegressionPipeline.from_pretrained("run/stage")
    small = torch.zeros(1, 3, 8, 8)
    assert stage(small, 1, output_type="pt").images.shape == (1, 3, 16, 16)
    assert main(["train", "ema", "run", "--std", "0.1", "--export", "averaged"]) == 0
    assert json.loads(Path("averaged/model_index.json").read_text())["_class_name"] == "RegressionPipeline"


AS_REGRESSION = "objective={kind: regression, loss: l2"


@pytest.mark.parametrize(
    ("setting", "problem"),
    [
        ("snapshots.stds=[0.3]", "stds of snapshots must lie in (0, 0.2887], got [0.3]"),
        ("snapshots.stds=[0.1, 0.1]", "stds of snapshots must name different widths"),
        ("snapshots.stds=[]", "stds of snapshots must name different widths"),
        ("snapshots.every=0", "snapshots.every must be at least 1, got 0"),
        ("objective.kind=guess", "kind of the objective is 'guess'"),
        ("objective.kind=regression", "needs network.prediction_type 'sample'"),
        ("objective.sigmoid_bias=1", "sigmoid_bias belongs to weighting sigmoid"),
        ("objective={loss: l1, l1_above: 0}", "l1_above changes an l2 loss, and loss is l1 already"),
        (f"{AS_REGRESSION}, l1_above: 0}}", "a regression has no noise levels: l1_above must be left out, got 0.0"),
        ("augmentation.clean=1.5", "augmentation clean must lie in [0, 1], got 1.5"),
        ("objective.weighting=sigmoyd", "weighting is 'sigmoyd', expected one of ('none', 'min_snr', 'sigmoid')"),
    ],
)
def test_recipes_that_make_no_sense_are_refused(here, capsys, setting, problem):
    words = ["sampling={}"] if "regression" in setting else []
    if AS_REGRESSION in setting:
        words.append("network={sample_size: 16, low_res_size: 8, prediction_type: sample}")
    assert main(["train", "tiny.yaml", setting, *words]) == 2
    assert problem in capsys.readouterr().err
