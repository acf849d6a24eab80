"""`cascade train plot`: curves from logs, and the picture they make."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cascade.cli import train_plot
from cascade.cli.main import main
from cascade.stages.training.meter import LEVELS
from cascade.training.curves import curve, figure


def write_log(run: Path, reports: int = 60, level: float = 1.0, **changes) -> Path:
    run.mkdir(parents=True)
    with (run / "log.jsonl").open("w") as file:
        for n in range(1, reports + 1):
            loss = level * math.exp(-n / 20)
            record = {
                "images_seen": 100 * n,
                "loss": None if n == 7 else loss,
                "loss_by_log_snr": {name: loss * math.exp(-0.3 * i) for i, name in enumerate(LEVELS) if i},
                "learning_rate": 1e-4,
            }
            file.write(json.dumps({**record, **changes}) + "\n")
            if n % 10 == 0:
                file.write(json.dumps({"images_seen": 100 * n, "validation_loss": 1.1 * loss}) + "\n")
    return run


def lines(drawn, title: str) -> list:
    return next(ax for ax in drawn.axes if ax.get_title(loc="left").startswith(title)).get_lines()


def logs(*runs: Path) -> dict:
    return {run.name: [json.loads(line) for line in (run / "log.jsonl").open()] for run in runs}


def test_a_curve_passes_over_what_a_line_lacks_and_averages_many_points():
    log = [{"images_seen": 500, "loss": 1.0}, {"images_seen": 600, "v": {"a": 2.0}}, {"images_seen": 700, "loss": None}]
    assert curve(log, "loss") == ([0.5], [1.0])
    assert curve(log, "v", "a") == ([0.6], [2.0]) and curve(log, "v", "b") == ([], [])
    x, y = curve([{"images_seen": 1000 * n, "loss": float(n)} for n in range(1000)], "loss")
    assert len(x) == 100 and x == y and x[0] == 4.5 and x[-1] == 994.5, "nothing is moved along the axis"


def test_the_figure_shows_what_the_log_holds(tmp_path):
    drawn = figure(logs(write_log(tmp_path / "a")))
    titles = [ax.get_title(loc="left") for ax in drawn.axes if ax.axison]
    assert titles == ["loss", "loss on held-out pictures", "learning rate", "loss by log-SNR\na"]
    (loss,) = lines(drawn, "loss")
    assert len(loss.get_xdata()) == 59 and loss.get_xdata()[-1] == 6.0, "thousands of images"
    assert loss.get_ydata()[0] == pytest.approx(math.exp(-1 / 20))
    levels = lines(drawn, "loss by log-SNR")
    assert [line.get_label() for line in levels] == list(LEVELS[1:])
    brightness = [sum(line.get_color()[:3]) for line in levels]
    assert brightness == sorted(brightness), "most noise darkest"


def test_runs_are_told_apart_by_colour(tmp_path):
    drawn = figure(logs(write_log(tmp_path / "a"), write_log(tmp_path / "b", level=10.0)))
    held_out = lines(drawn, "loss on held-out pictures")
    assert len(held_out) == 2 and len({line.get_color() for line in held_out}) == 2
    assert [text.get_text() for text in drawn.axes[0].get_legend().get_texts()] == ["a", "b"]
    assert [len(lines(drawn, f"loss by log-SNR\n{run}")) for run in "ab"] == [len(LEVELS) - 1] * 2


def test_the_command_writes_a_png(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_log(Path("runs/a"), reports=3)
    write_log(Path("runs/b"), reports=1, loss_by_log_snr=None)  # as a regression, which has no noise levels
    assert main(["train", "plot", "runs/a"]) == 0
    assert main(["train", "plot", "runs/a", "runs/b", "--out", "new/two.png"]) == 0
    assert capsys.readouterr().out.split() == ["runs/a/curves.png", "new/two.png"]
    for path in ("runs/a/curves.png", "new/two.png"):
        with Image.open(path) as image:
            assert image.format == "PNG" and image.width > 1000 and np.asarray(image.convert("L")).std() > 5
    assert [path.name for path in Path("new").iterdir()] == ["two.png"]


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        (["runs/none"], "runs/none holds no log.jsonl with anything in it"),
        (["runs/a", "--out", "curves.svg"], "expected the name of a .png file"),
        (["runs/broken"], "line 1 of runs/broken/log.jsonl is not a line of a training run's log"),
        ([], "the following arguments are required: RUN"),
    ],
)
def test_a_wrong_request_is_one_sentence(tmp_path, capsys, monkeypatch, words, problem):
    monkeypatch.chdir(tmp_path)
    write_log(Path("runs/a"), reports=1)
    Path("runs/broken").mkdir()
    Path("runs/broken/log.jsonl").write_text("{}\n")
    assert main(["train", "plot", *words]) == 2
    error = capsys.readouterr().err
    assert problem in error and error.startswith("cascade train plot: ") and error.count("\n") == 1


def test_without_matplotlib_it_says_what_to_install(tmp_path, capsys, monkeypatch):
    write_log(tmp_path / "a", reports=1)
    monkeypatch.setattr(train_plot, "find_spec", lambda name: None)
    assert main(["train", "plot", str(tmp_path / "a")]) == 1
    assert "matplotlib is not installed" in capsys.readouterr().err and not (tmp_path / "a" / "curves.png").exists()


def test_help_names_the_subcommands(capsys):
    with pytest.raises(SystemExit):
        main(["train", "--help"])
    assert "cascade train plot" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        main(["train", "plot", "--help"])
    assert capsys.readouterr().out.startswith("usage: cascade train plot")
