"""The trial of batch sizes: the largest that still pays, within the memory, only for long runs, and a run keeps what it found."""

import json

import pytest
from tiny import base, cascade

from cascade.runs import run, trial
from cascade.runs.run import sample_run
from cascade.runs.trial import FEWEST, fastest_batch_size


@pytest.mark.parametrize(
    ("per_picture", "found"),
    [
        ({1: 1.0, 2: 0.8, 4: 0.7, 8: 0.65}, 8),
        ({1: 1.0, 2: 0.8, 4: 0.79, 8: 0.1}, 2),  # 4 gains a hundredth, so 8 is not tried
        ({1: 1.0, 2: 1.2, 4: 0.1, 8: 0.1}, 1),
    ],
)
def test_a_batch_grows_as_long_as_it_pays(monkeypatch, per_picture, found):
    now = [0.0]

    def make(size):
        now[0] += size * per_picture[size] + (0 if now[0] else 10)  # the first call takes longer

    monkeypatch.setattr(trial.time, "perf_counter", lambda: now[0])
    monkeypatch.setattr(trial, "_has_room", lambda processes: True)
    assert fastest_batch_size(make, 2) == found


def test_a_batch_stays_within_the_memory(monkeypatch):
    made = []
    monkeypatch.setattr(trial, "SHARE", 0.0)
    assert fastest_batch_size(made.append, 1) == 1 and made == [1]


def test_a_long_run_finds_its_batch_size_and_keeps_it(tmp_path, monkeypatch):
    tried = []
    monkeypatch.setattr(run, "FEWEST", 4)
    monkeypatch.setattr(run, "fastest_batch_size", lambda make, count: tried.append(count) or make(3) or 3)
    model, told = cascade(base=base()), []
    options = {"size": 8, "processes": 1}
    for _ in range(2):  # the second goes on, and tries nothing
        made = sample_run(model, tmp_path / "found", num_images=4, **options, on_progress=lambda *one: told.append(one))
    assert tried == [1] and made.plan.batch_size == 3 and [title for title, *_ in told].count("trying batch sizes") == 2
    assert json.loads((tmp_path / "found" / "run.json").read_text())["plan"]["batch_size"] == 3
    given = sample_run(model, tmp_path / "given", num_images=4, batch_size=3, **options)
    assert [path.read_bytes() for path in given.files] == [path.read_bytes() for path in made.files]
    assert sample_run(model, tmp_path / "short", num_images=3, **options).plan.batch_size == 1
    assert tried == [1] and FEWEST > 100
