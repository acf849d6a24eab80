"""`cascade search-schedule`: the front, the choice, and the model that keeps it."""

import json

import measuring
import pytest
import torch

from cascade import CascadePipeline
from cascade.cli.main import main
from cascade.cli.search_schedule import Candidate, front


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


def test_the_least_distance_within_the_budget_is_kept_as_the_models_default(model, tmp_path):
    words = ["--try-steps", "1,2,3", "--try-schedulers", "ddim,euler", "--max-steps", "2", "--save", str(tmp_path / "new")]
    assert search(model, tmp_path / "out", *words) == 0
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    rows = {row["name"]: row["values"]["distance"] for row in report["rows"]}
    assert len(rows) == 6
    allowed = {name: distance for name, distance in rows.items() if not name.startswith("3 ")}
    (chosen,) = [row["name"] for row in report["rows"] if row["note"] == "chosen"]
    assert rows[chosen] == min(allowed.values())
    steps, kind = chosen.split(" steps, ")
    stage = CascadePipeline.from_pretrained(tmp_path / "new").stages["sr64"]
    assert stage.config["num_inference_steps"] == int(steps)
    assert type(stage.scheduler).__name__ == {"ddim": "DDIMScheduler", "euler": "EulerDiscreteScheduler"}[kind]


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        (["--try-steps", "4,many"], "--try-steps has 'many'"),
        (["--try-schedulers", "best"], "--try-schedulers has 'best'"),
        (["--stage", "sr9"], "--stage is 'sr9', expected one of base, sr64"),
        (["--steps", "4"], "give --try-steps"),
        (["--max-steps", "2"], "--max-steps is 2, but --try-steps begins with 4"),
    ],
)
def test_a_wrong_request_is_one_sentence(model, tmp_path, capsys, words, problem):
    assert search(model, tmp_path / "out", *words) == 2
    out, err = capsys.readouterr()
    assert problem in err and out == "" and len(err.splitlines()) == 1 and not (tmp_path / "out").exists()
