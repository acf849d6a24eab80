"""What the demo does behind its page: the pictures of the command line, views on the way, stops, and mistakes in sentences."""

from argparse import Namespace

import numpy as np
import pytest
import tiny
from PIL import Image

from cascade import png
from cascade.cli.arguments import SAMPLING_OPTIONS
from cascade.cli.demo import making
from cascade.cli.demo.making import Maker, saved
from cascade.cli.main import main
from cascade.cli.request import Request


@pytest.fixture(scope="module")
def maker(tmp_path_factory):
    folder = tmp_path_factory.mktemp("demo") / "tiny"
    tiny.cascade().save_pretrained(folder)
    machine = {"batch_size": None, "device": None, "dtype": None}
    args = Namespace(model=str(folder), **machine, **dict.fromkeys(SAMPLING_OPTIONS))
    return Maker(args, Request.of(args, to_the_end=True))


def last(views):
    *_, view = views
    return view


def test_noise_becomes_a_picture_stage_by_stage_and_clicks_give_what_the_command_gives(maker, here, monkeypatch):
    views, show = [], making._Job.show
    monkeypatch.setattr(making._Job, "show", lambda job, view: (views.append(view), show(job, view)))
    done = last(maker.make("me", "dog", 2, 5, 32, {"num_inference_steps": "base=6", "guidance_scale": "2"}))
    assert list(done.made) == ["base", "sr16", "sr32"] and done.status.startswith("Done") and not done.failed
    assert [view.status for view in views[:6]] == [f"base, 8 px: step {n} of 6, picture 1 of 2" for n in range(1, 7)]
    assert [len(view.pictures["base"]) for view in views[:12]] == [1] * 6 + [2] * 6
    noise, picture = (np.asarray(views[n].pictures["base"][0], float) for n in (0, 5))
    assert np.abs(picture - np.asarray(done.made["base"][0].image)).mean() < 2 < np.abs(noise - picture).mean()
    one = done.made["sr32"][1]
    file = saved(one, here)
    command = png.read_chunks(file)["Command"]
    model = maker.args.model
    assert command == f"generate --class dog --seed 6 --size 32 --steps base=6 --guidance-scale 2 --model {model}"
    assert main([*command.split(), "--out", "again.png"]) == 0
    assert (here / "again.png").read_bytes() == file.read_bytes()
    small = last(maker.make("me", "dog", 2, 5, 8, {"num_inference_steps": "base=6", "guidance_scale": "2"})).made["base"][1]
    for to in (16, 32):  # one click after another
        small = last(maker.refine("me", small, to)).made[f"sr{to}"][0]
    assert small.origin == one.origin and small.image.tobytes() == one.image.tobytes()


def test_a_picture_of_ones_own_is_enlarged_as_by_upscale(maker, here):
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (8, 8, 3), np.uint8)).save(here / "mine.png")
    made = last(maker.enlarge("me", str(here / "mine.png"), "cat", 3, 32)).made["sr32"][0]
    assert made.origin.command == f"cascade upscale mine.png --class cat --seed 3 --size 32 --model {maker.args.model}"
    assert main([*made.origin.command.split()[1:], "--out", "again.png"]) == 0
    assert (here / "again.png").read_bytes() == saved(made, here).read_bytes()


def test_mistakes_are_the_command_lines_sentences(maker, here):
    Image.new("RGB", (9, 7)).save(here / "flat.png")
    (here / "text.png").write_text("no picture")
    for views, sentence in (
        (maker.make("me", "dgo", 1, 0, 8, {}), "unknown class 'dgo' among 3 classes: the closest are 'dog' (1)"),
        (maker.make("me", "", 1, 0, 8, {}), "no class is given"),
        (maker.make("me", "dog", 0, 0, 8, {}), "0 pictures are asked for"),
        (maker.make("me", "dog", 1, -1, 8, {}), "the seed is -1"),
        (maker.make("me", "dog", 1, 0, 8, {"num_inference_steps": "x"}), "--steps"),
        (maker.enlarge("me", None, "dog", 0, 16), "there is no picture"),
        (maker.enlarge("me", str(here / "flat.png"), "dog", 0, 16), "flat.png is 9x7, expected a square picture"),
        (maker.enlarge("me", str(here / "text.png"), "dog", 0, 16), "text.png can't be read as a picture"),
    ):
        view = last(views)
        assert view.failed and sentence in view.status and str(here) not in view.status


def test_a_job_ends_when_it_is_stopped_or_nobody_looks(maker):
    many = {"num_inference_steps": "1000"}
    views = maker.make("me", "dog", 16, 0, 32, many)
    next(views)
    maker.stop("someone else")
    maker.stop("me")
    assert last(views).status == "Stopped."
    views = maker.make("me", "dog", 16, 0, 32, many)
    next(views)
    views.close()  # the browser is gone
    assert last(maker.make("me", "dog", 1, 0, 8, {})).status.startswith("Done")  # not behind 16,000 steps
