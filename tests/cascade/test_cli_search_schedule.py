"""`cascade search-schedule`: the front, the choice, and the model that keeps it."""

import json

import measuring
import numpy as np
import pytest
import torch

from cascade import CascadePipeline
from cascade.cli.main import main
from cascade.eval.images import image_array
from cascade.eval.scoring import feature_set, score
from cascade.measure.schedule_search import AIMS, Candidate, choice, front


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return measuring.model(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture(autouse=True)
def quick(monkeypatch, tmp_path):
    measuring.quick(monkeypatch, tmp_path)
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


def search(model, out, *words):
    options = ["--out", str(out), "--device", "cpu", "--processes", "1", "--num-images", "4", *words]
    return main(["search-schedule", str(model), *options])


def test_the_front_holds_what_nothing_beats():
    facts = [("a", 4, 9.0), ("b", 8, 5.0), ("c", 8, 6.0), ("d", 16, 5.0)]
    made = {name: Candidate(nfe, name, nfe, 0, distance) for name, nfe, distance in facts}
    assert front(list(made.values())) == [made["a"], made["b"]]


def test_of_some_aims_more_is_better():
    low, high = (Candidate(steps, None, 4, 0, value, "recall") for steps, value in ((1, 0.2), (2, 0.7)))
    assert front([low, high]) == [high]


@pytest.mark.parametrize(
    ("aim", "values", "chosen"),
    [
        ("distance", {4: 110.0, 8: 105.0, 16: 100.0, 32: 101.0}, 8),  # 105 is within 5 % of 100
        ("distance", {4: 110.0, 8: 105.1, 16: 100.0, 32: 99.0}, 16),
        ("recall", {4: 0.4, 8: 0.57, 16: 0.6}, 8),
        ("kernel-distance", {4: 1.0, 8: -0.1, 16: -0.2}, 16),  # an unbiased estimate may lie below 0
    ],
)
def test_chosen_are_the_fewest_evaluations_within_five_percent_of_the_best(aim, values, chosen):
    assert choice([Candidate(nfe, None, nfe, 0, value, aim) for nfe, value in values.items()]).steps == chosen


def test_of_equally_many_evaluations_the_better_is_chosen():
    assert choice([Candidate(4, name, 4, 0, value) for name, value in (("ddim", 101.0), ("euler", 100.0))]).scheduler == "euler"


def test_every_aim_is_a_score():
    images = np.random.default_rng(0).integers(0, 256, (6, 12, 12, 3), dtype=np.uint8)
    samples = feature_set(image_array(images), measuring.Pooled(), crop_rule=None)
    assert set(AIMS.values()) == set(score(samples, samples, resamples=0).values())


def test_the_choice_within_the_budget_is_kept_as_the_models_default(model, tmp_path):
    words = ["--try-steps", "1,2,3", "--try-schedulers", "ddim,euler", "--max-steps", "2", "--save", str(tmp_path / "new")]
    assert search(model, tmp_path / "out", *words) == 0
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    rows = {row["name"]: row["values"]["EfficientNet-Lite Frechet distance"] for row in report["rows"]}
    assert len(rows) == 6
    allowed = {name: distance for name, distance in rows.items() if not name.startswith("3 ")}
    (chosen,) = [row["name"] for row in report["rows"] if row["note"] == "chosen"]
    assert rows[chosen] <= 1.05 * min(allowed.values())
    steps, kind = chosen.split(" steps, ")
    stage = CascadePipeline.from_pretrained(tmp_path / "new").stages["sr64"]
    assert stage.config["num_inference_steps"] == int(steps)
    assert type(stage.scheduler).__name__ == {"ddim": "DDIMScheduler", "euler": "EulerDiscreteScheduler"}[kind]


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        (["--try-steps", "4,many"], "argument --try-steps: 'many' is not a whole number"),
        (["--try-schedulers", "best"], "argument --try-schedulers: 'best' is not one of"),
        (["--stage", "sr9"], "--stage is 'sr9', expected one of base, sr64"),
        (["--steps", "4"], "give --try-steps"),
        (["--num-images", "3"], "num_images is 3, but at least 4 samples"),
        (["--max-steps", "2"], "max_steps is 2, but the fewest steps to try are 4"),
    ],
)
def test_a_wrong_request_is_one_sentence(model, tmp_path, capsys, words, problem):
    assert search(model, tmp_path / "out", *words) == 2
    out, err = capsys.readouterr()
    assert problem in err and out == "" and len(err.splitlines()) == 1 and not (tmp_path / "out").exists()
