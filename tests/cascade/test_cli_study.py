"""`cascade study`: of folders and of a model, and its mistakes."""

import json
import socket

import numpy as np
import pytest
from PIL import Image

from cascade.cli.main import main
from cascade.eval.study.design import PAGE, Study


def picture(path, size=16):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(sum(path.name.encode())).integers(0, 256, (size, size, 3), np.uint8)).save(path)


@pytest.fixture
def real(here):
    for name in ("cat", "hot dog"):
        for number in range(3):
            picture(here / "real" / name / f"{number}.png")
    return here / "real"


def study(*words):
    return main(["study", *map(str, words)])


FEW = ("--practice", 1, "--checks", 1)


def test_a_model_makes_pictures_of_the_classes_of_real_ones_or_enlarges_them(model, real, here, capsys):
    assert study("make", real, model, "--out", "of-classes", *FEW) == 0
    assert "of-classes: 4 pictures by tiny, 4 pairs for each person" in capsys.readouterr().out
    made = Study.read(here / "of-classes")
    assert not made.shows_small and {pair.picture.split("/")[0] for pair in made.pairs} == {"cat", "hot dog"}
    assert (here / "of-classes" / PAGE).is_file()
    assert study("make", real, f"ours={model}", "--small", 8, "--seconds", 0, "--out", "enlarged", *FEW) == 0
    made = Study.read(here / "enlarged")
    assert made.shows_small and made.methods == ("ours",) and made.seconds is None


def test_a_study_of_two_folders_is_answered_and_reported(real, here, capsys):
    for path in real.rglob("*.png"):
        picture(here / "made" / path.relative_to(real))
    assert study("make", "real", "made", "--out", "study", *FEW) == 0
    made = Study.read(here / "study")
    for rater in ("a", "b"):
        answers = [
            {"pair": i, "left": p.made, "chosen": p.made if p.kind == "rated" else p.real, "seconds": 1, "at": ""}
            for i, p in enumerate(made.pairs)
        ]
        (here / f"{rater}.json").write_text(json.dumps({"study": made.id, "rater": rater, "answers": answers}))
    capsys.readouterr()
    assert study("report", "study", "a.json", "b.json") == 0
    printed = capsys.readouterr().out
    assert "| **made** " in printed and " 100 [" in printed and "SR3" in printed and "0 of 2 people failed" in printed
    assert (here / "study" / "report" / "report.html").is_file()


def test_mistakes_are_answered_in_one_sentence(model, real, here, capsys):
    (here / "empty").mkdir()
    picture(here / "one" / "0.png")
    picture(here / "small" / "cat" / "0.png", size=8)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        study("make", real, model, "--out", "fine", *FEW)
        (here / "stranger.json").write_text('{"study": "0123456789abcdef", "rater": "a", "answers": []}')
        capsys.readouterr()
        for words, sentence in (
            (("make", "empty", real, "--out", "x"), "empty holds no images"),
            (("make", "nowhere", real, "--out", "x"), "there is no nowhere"),
            (("make", real, "empty", "--out", "x"), "empty holds no images"),
            (
                ("make", real, "one", "--out", "x", *FEW),
                "1 of 6 real pictures have a made one beside them, at least 3 are needed",
            ),
            (("make", real, "one", "--small", 8, "--out", "x", *FEW), "0 of 6 real pictures have a made one"),
            (("make", real, "small", "--out", "x", "--practice", 0, "--checks", 0), "small has pictures of 8 px"),
            (("make", real, real, f"real={model}", "--out", "x"), "two methods are called 'real'"),
            (("make", real, model, f"b={model}", "--out", "x"), "two models are given"),
            (("make", real, model, "--small", 5, "--out", "x", *FEW), "only squares whose side is a multiple of 5"),
            (("serve", "empty"), "empty is not a study"),
            (("serve", "fine", "--port", taken.getsockname()[1]), "can't be used (Address already in use); choose another port"),
            (("report", "fine"), "nobody has answered the study in fine yet"),
            (("report", "fine", "stranger.json"), "stranger.json: these answers are to another study (0123456789abcdef)"),
            (("report", "fine", "nothing.json"), "there is no file nothing.json"),
        ):
            assert study(*words) == 2, words
            error = capsys.readouterr().err
            assert error.startswith("cascade study") and sentence in error and error.count("\n") == 1, error
    assert not (here / "x").exists()
