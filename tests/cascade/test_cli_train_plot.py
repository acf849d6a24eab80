"""`cascade train plot`: curves from logs, and the picture they make."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cascade.cli import train_plot
from cascade.cli.main import main
from cascade.cli.train_plot import figure, names_in, points, smoothed
from cascade.stages.training.meter import LEVELS


def write_log(run: Path, reports: int = 60, level: float = 1.0, **changes) -> Path:
    run.mkdir(parents=True)
    with (run / "log.jsonl").open("w") as file:
        for n in range(1, reports + 1):
            loss = level * math.exp(-n / 20)
            record = {
                "images_seen": 100 * n,
                "total_images": 6000,
                "size": 32 if n < 40 else 64,
                "loss": loss,
                "loss_by_log_snr": {name: loss * math.exp(-0.3 * i) for i, name in enumerate(LEVELS) if i},
                "gradient_norm": None if n == 7 else 2 * loss,
                "learning_rate": 1e-4,
                "images_per_second": 20.0,
                "memory_gib": 1.5,
                "skipped_steps": int(n == 7),
                "damaged_pictures": 0,
            }
            file.write(json.dumps({**record, **changes}) + "\n")
            if n % 10 == 0:
                held_out = {"validation_loss": 1.1 * loss, "validation_loss_by_log_snr": {"-3.00": 1.2 * loss, "3.00": loss}}
                file.write(json.dumps({"images_seen": 100 * n, **held_out}) + "\n")
    return run


def lines(drawn, title: str) -> list:
    return next(ax for ax in drawn.axes if ax.get_title(loc="left").startswith(title)).get_lines()


def logs(*runs: Path) -> dict:
    return {run.name: [json.loads(line) for line in (run / "log.jsonl").open()] for run in runs}


def test_smoothing_keeps_constants_straight_lines_and_the_order_of_time():
    images = [0.0, 10, 15, 40, 45, 60, 100]
    assert smoothed(images, [3.0] * 7, 20) == pytest.approx([3.0] * 7)
    even = [10.0 * n for n in range(201)]
    line = smoothed(even, even, 30)
    assert line[100] == pytest.approx(1000), "nothing is moved along the axis"
    values = list(np.random.default_rng(0).normal(size=7))
    mirrored = smoothed([100 - x for x in reversed(images)], values[::-1], 20)[::-1]
    assert smoothed(images, values, 20) == pytest.approx(mirrored)
    assert smoothed(images, values, 0) == values and smoothed([], [], 5) == []
    assert smoothed(images, values, 1e9) == pytest.approx([np.mean(values)] * 7)


def test_smoothing_is_the_weighted_mean_that_it_says():
    images, values = [0.0, 3, 4, 9], [1.0, 5.0, -2.0, 7.0]
    weights = np.exp(-np.abs(np.subtract.outer(images, images)) / 2.5)
    assert smoothed(images, values, 2.5) == pytest.approx(weights @ values / weights.sum(axis=1))


def test_points_pass_over_what_a_line_lacks():
    log = [{"images_seen": 5, "loss": 1.0}, {"images_seen": 6, "v": {"a": 2.0}}, {"images_seen": 7, "loss": None, "v": None}]
    assert points(log, "loss") == ([5.0], [1.0])
    assert points(log, "v", "a") == ([6.0], [2.0]) and points(log, "v", "b") == ([], [])


def test_noise_levels_are_ordered_most_noise_first():
    assert names_in([{"g": dict.fromkeys(reversed(LEVELS), 1.0)}], "g") == list(LEVELS)
    assert names_in([{"g": {"3.00": 1}}, {}, {"g": {"-11.50": 1, "-2.00": 1}}], "g") == ["-11.50", "-2.00", "3.00"]


def test_the_figure_shows_what_the_log_holds(tmp_path):
    drawn = figure(logs(write_log(tmp_path / "a")))
    titles = [ax.get_title(loc="left") for ax in drawn.axes if ax.axison]
    assert titles[:3] == ["loss", "loss on held-out pictures", "gradient norm before clipping"]
    assert any("skipped steps" in title for title in titles) and not any("damaged" in title for title in titles)
    raw, smooth, size_change = lines(drawn, "loss")
    assert raw.get_xdata()[-1] == 6.0, "thousands of images"
    assert raw.get_ydata()[0] == pytest.approx(math.exp(-1 / 20)) and len(smooth.get_xdata()) == 60
    assert size_change.get_xdata()[0] == pytest.approx(3.9)
    assert len(lines(drawn, "gradient norm")[0].get_xdata()) == 59
    levels = lines(drawn, "loss by log-SNR")
    assert [line.get_label() for line in levels] == list(LEVELS[1:])
    brightness = [sum(line.get_color()[:3]) for line in levels]
    assert brightness == sorted(brightness), "most noise darkest"
    assert len(lines(drawn, "loss on held-out pictures by log-SNR")) == 2


def test_runs_are_told_apart_by_colour_and_have_their_levels_on_one_scale(tmp_path):
    runs = [write_log(tmp_path / "a"), write_log(tmp_path / "b", level=10.0)]
    drawn = figure(logs(*runs))
    held_out = lines(drawn, "loss on held-out pictures")
    assert len(held_out) == 2 and len({line.get_color() for line in held_out}) == 2
    legend = drawn.axes[0].get_legend()
    assert [text.get_text() for text in legend.get_texts()] == ["a", "b"]
    first, second = (ax for ax in drawn.axes if ax.get_title(loc="left").startswith("loss by log-SNR"))
    assert first.get_ylim() == second.get_ylim()


def test_the_command_writes_a_png(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_log(Path("runs/a"), reports=3)
    write_log(Path("runs/b"), reports=1)
    assert main(["train", "plot", "runs/a"]) == 0
    assert main(["train", "plot", "runs/a", "runs/b", "--out", "new/two.png"]) == 0
    assert capsys.readouterr().out.split() == ["runs/a/curves.png", "new/two.png"]
    for path in ("runs/a/curves.png", "new/two.png"):
        with Image.open(path) as image:
            assert image.format == "PNG" and image.width > 1000 and np.asarray(image.convert("L")).std() > 5
    assert [path.name for path in Path("new").iterdir()] == ["two.png"]


def test_a_log_from_before_noise_levels_is_drawn_too(tmp_path):
    write_log(tmp_path / "old", loss_by_log_snr=None, memory_gib=None)
    assert len(lines(figure(logs(tmp_path / "old")), "loss")) == 3


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        (["runs/none"], "runs/none holds no log.jsonl with anything in it"),
        (["runs/a", "--out", "curves.svg"], "expected the name of a .png file"),
        (["runs/broken"], "line 1 of runs/broken/log.jsonl is not a line of a training's log"),
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
