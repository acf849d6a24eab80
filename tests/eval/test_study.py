"""Studies of real and made pictures: fool rates, the pairs, the page, and answers that outlive a kill."""

import json
import os
import re
import signal
import sqlite3
import subprocess
import sys
import urllib.error
import urllib.request

import numpy as np
import pytest
from PIL import Image

from cascade.eval.images import image_array, image_folder
from cascade.eval.study.answers import Answer, AnswerStore, answers_of, read_answers
from cascade.eval.study.design import PICTURES, Study, partners, write_study
from cascade.eval.study.fool_rates import fool_rate, study_report
from cascade.eval.study.page import study_page


def raters(rng, people, pictures, each, skill, between_people, between_pictures):
    """Answers of people whose chance to be fooled is logistic in a person's and a picture's own share."""
    person, picture = rng.normal(0, between_people, people), rng.normal(0, between_pictures, pictures)
    who = np.repeat(np.arange(people), each)
    what = np.concatenate([rng.permutation(pictures)[:each] for _ in range(people)])
    return rng.random(len(who)) < 1 / (1 + np.exp(-(skill + person[who] + picture[what]))), who, what


def expected(skill, between_people, between_pictures):
    spread = np.random.default_rng(1).normal(0, np.hypot(between_people, between_pictures), 100_000)
    return np.mean(1 / (1 + np.exp(-(skill + spread))))


@pytest.mark.parametrize(
    "people, pictures, each, skill, spread",
    [(50, 100, 50, -0.4, (0.5, 0.7)), (50, 100, 50, -0.4, (0, 0)), (6, 30, 20, -0.5, (0.4, 0.4)), (30, 60, 30, -3.5, (0.3, 0.3))],
)
def test_raters_of_known_skill_have_rates_within_their_intervals(people, pictures, each, skill, spread):
    """The interval holds the truth in 95 of 100 studies: in at least 52 of these 60, three standard deviations less."""
    truth, held, widths = expected(skill, *spread), 0, []
    for study in range(60):
        answers = raters(np.random.default_rng(study), people, pictures, each, skill, *spread)
        found = fool_rate(*answers, num_resamples=300)
        held += found.low <= truth <= found.high
        widths.append(found.high - found.low)
    assert held >= 52
    if people == 50 and spread == (0, 0):  # independent answers: as wide as a plain binomial share's
        assert np.mean(widths) == pytest.approx(2 * 1.96 * np.sqrt(truth * (1 - truth) / (people * each)), rel=0.1)


def test_a_share_of_nothing_or_all_is_not_certain():
    who, what = np.repeat(np.arange(10), 5), np.tile(np.arange(5), 10)
    none, all_ = fool_rate(np.zeros(50), who, what), fool_rate(np.ones(50), who, what)
    assert none.estimate == none.low == 0 and 0.2 < none.high < 0.7
    assert all_.estimate == all_.high == 1 and all_.low == pytest.approx(1 - none.high)
    with pytest.raises(ValueError, match="at least 2 people"):
        fool_rate(np.ones(5), np.zeros(5), np.arange(5))


def folder(path, names, size=16):
    for number, name in enumerate(names):
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        pixels = np.random.default_rng(number + 100 * len(str(path))).integers(0, 256, (size, size, 3), np.uint8)
        Image.fromarray(pixels).save(path / name)
    return image_folder(path)


def test_partners_have_the_same_name_or_the_same_class(tmp_path):
    real = folder(tmp_path / "real", ["cat/1.png", "cat/2.png", "dog/1.png"])
    named = folder(tmp_path / "named", ["dog/1.jpg", "cat/2.png", "cat/1.png", "eel/1.png"])
    np.testing.assert_array_equal(partners(real, named, by_name=True), [0, 1, 2])
    other = folder(tmp_path / "other", ["cat/x.png", "dog/y.png", "dog/z.png"])
    assert (partners(real, other, by_name=True) == -1).all()
    found = partners(real, other, by_name=False)
    assert sorted(found[:2]) == [-1, 0] and found[2] in (1, 2)
    flat = folder(tmp_path / "flat", ["a.png", "b.png", "c.png"])
    assert sorted(partners(real, flat, by_name=False)) == [0, 1, 2]


@pytest.fixture
def study(tmp_path):
    """Six pictures that count, by two methods, one for practice and two checks."""
    rng = np.random.default_rng(0)
    sets = [image_array(rng.integers(0, 256, (9, 16, 16, 3), np.uint8)) for _ in range(3)]
    names = [f"cat/{i}.png" for i in range(9)]
    made = {"ours": sets[1], "theirs": sets[2]}
    options = {"small": 4, "seconds": 3.0, "per_rater": 5, "practice": 1, "checks": 2}
    return write_study(tmp_path, "Cats <real> or made", sets[0], names, made, **options)


def answered(study, rater, fooled, failed=False):
    """What a page sends of a person who is fooled by these methods."""
    answers = []
    for place, pair in enumerate(study.pairs):
        if pair.kind != "practice":
            wrong = failed if pair.kind == "check" else pair.method in fooled
            chosen = pair.made if wrong else pair.real
            answers.append({"pair": place, "left": pair.real, "chosen": chosen, "seconds": 1.5, "at": "2026-11-27T12:00:00Z"})
    return json.dumps({"study": study.id, "rater": rater, "answers": answers})


def test_a_study_is_read_as_it_was_written_and_neither_page_nor_files_tell_what_is_real(study, tmp_path):
    assert Study.read(tmp_path) == study and Study.read(tmp_path).id == study.id
    kinds = [pair.kind for pair in study.pairs]
    assert kinds == ["practice"] + ["check"] * 2 + ["rated"] * 12 and study.methods == ("ours", "theirs")
    page = study_page(study, tmp_path, served=True)
    assert "Cats &lt;real&gt; or made" in page and "<real>" not in page
    data = json.loads(re.search(r'id="study">(.*?)</script>', page)[1])
    assert [pair["id"] for pair in data["pairs"] if "real" in pair] == [0]  # practice alone
    assert all(pair["pictures"] == sorted(pair["pictures"]) for pair in data["pairs"])
    assert not any(word in page for word in ("ours", "theirs", "cat/"))
    for path in (tmp_path / PICTURES).iterdir():
        with Image.open(path) as image:
            assert not image.info  # no text that says who made it
    small = np.asarray(Image.open(tmp_path / PICTURES / study.pairs[5].small), float)
    large = np.asarray(Image.open(tmp_path / PICTURES / study.pairs[5].real), float)
    assert np.abs(small - large.reshape(4, 4, 4, 4, 3).mean((1, 3))).max() <= 0.5
    alone = study_page(study, tmp_path, served=False)
    assert alone.count("data:image/png;base64,") == len({n for p in study.pairs for n in (p.real, p.made, p.small)})
    policy = re.search(r"Security-Policy\" content=\"(.*?)\"", alone)[1]
    assert "connect-src" not in policy and policy.startswith("default-src")


def test_the_report_counts_by_method_those_who_look(study, tmp_path):
    answers = []
    for rater, fooled in (("a", {"ours"}), ("b", set()), ("c", {"ours", "theirs"})):
        answers += answers_of(study, answered(study, rater, fooled))
    answers += answers_of(study, answered(study, "asleep", {"theirs"}, failed=True))
    report = study_report(study, answers)
    ours, theirs, *published = report.rows
    assert (ours.name, theirs.name) == ("ours", "theirs")
    assert ours.values["fool rate, %"].estimate == pytest.approx(200 / 3)
    assert theirs.values["fool rate, %"].estimate == pytest.approx(100 / 3)
    assert (ours.values["people"], ours.values["pictures"]) == (3, 6)
    assert (ours.values["least fooled person"], ours.values["most"]) == (0, 100)
    assert "1 of 4 people failed" in " ".join(report.notes)
    assert {row.values["fool rate, %"] for row in published} == {54.1, 24.6, 8.9, 29.3, 38.8, 16.8}  # with the small picture
    assert not any(row.comparable for row in published)
    with pytest.raises(ValueError, match="no answer counts: there are 12 by 1 people, and 1 failed"):
        study_report(study, [answer for answer in answers if answer.rater == "asleep"])


def test_answers_that_are_none_are_refused(study, tmp_path):
    fine = json.loads(answered(study, "a", set()))
    assert len(answers_of(study, json.dumps(fine))) == 14
    for change in (
        {"answers": [fine["answers"][0] | {"pair": 99}]},
        {"answers": [fine["answers"][0] | {"pair": True}]},
        {"answers": [fine["answers"][0] | {"chosen": "../study.json"}]},
        {"answers": [fine["answers"][0] | {"seconds": float("nan")}]},
        {"answers": {"pair": 1}},
        {"rater": "<script>"},
        {"rater": 7},
    ):
        with pytest.raises(ValueError, match="not the answers of a study's page"):
            answers_of(study, json.dumps(fine | change))
    for text in ("", "[]", "[" * 100_000, '{"study": "\x1b[31m"}'):
        with pytest.raises(ValueError, match="not the answers of a study's page|another study \\(unknown\\)"):
            answers_of(study, text)
    with pytest.raises(ValueError, match="another study \\(0123456789abcdef\\) than this one"):
        answers_of(study, json.dumps(fine | {"study": "0123456789abcdef"}))
    with pytest.raises(ValueError, match="nobody has answered"):
        read_answers(study, tmp_path)


def test_answers_are_kept_once_and_for_one_study_and_one_server(study, tmp_path):
    store = AnswerStore(study, tmp_path)
    answers = answers_of(study, answered(study, "a", set()))
    store.add(answers)
    store.add([Answer("a", answers[0].pair, answers[0].left, "other", 1.0, "")])
    assert store.counts() == (14, 1) and read_answers(study, tmp_path) == answers  # the first stands, while a server runs
    with pytest.raises(ValueError, match="another server is running"):
        AnswerStore(study, tmp_path)
    store.close()
    saved = tmp_path / "saved.json"
    saved.write_text(answered(study, "b", set()))
    assert len(read_answers(study, tmp_path, [saved, saved])) == 28
    older = Study(title="older", seconds=None, per_rater=5, pairs=study.pairs)
    for attempt in (lambda: AnswerStore(older, tmp_path), lambda: read_answers(older, tmp_path)):
        with pytest.raises(ValueError, match="has answers to another study"):
            attempt()
    with pytest.raises(ValueError, match="holds answers to a study, which a new one would orphan"):
        write_study(tmp_path, "new", image_array(np.zeros((1, 8, 8, 3), np.uint8)), ["a"], {}, small=None, seconds=None,
                    per_rater=1, practice=0, checks=0)  # fmt: skip
    (tmp_path / "answers.sqlite").write_bytes(b"not a database, and longer than the header of one" * 9)
    with pytest.raises(ValueError, match="is not a file of answers"):
        AnswerStore(study, tmp_path)


SERVER = """
import sys
from pathlib import Path
from cascade.eval.study.server import StudyServer
with StudyServer(Path(sys.argv[1]), "127.0.0.1", 0) as server:
    print(server.url, flush=True)
    server.run()
"""


def test_what_the_server_has_confirmed_outlives_its_kill(study, tmp_path):
    process = subprocess.Popen([sys.executable, "-c", SERVER, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    url = process.stdout.readline().strip()

    def post(text, kind="application/json", path="answers"):
        request = urllib.request.Request(url + path, text.encode(), {"Content-Type": kind})
        return urllib.request.urlopen(request, timeout=20).read()

    def status(*args, **options):
        with pytest.raises(urllib.error.HTTPError) as error:
            post(*args, **options)
        return error.value.code

    try:
        page = urllib.request.urlopen(url, timeout=20).read().decode()
        assert page == study_page(study, tmp_path, served=True)
        name = study.pairs[0].real
        assert urllib.request.urlopen(f"{url}pictures/{name}", timeout=20).read() == (tmp_path / PICTURES / name).read_bytes()
        for path in ("study.json", "answers.sqlite", "pictures/../study.json"):  # which say what is real
            with pytest.raises(urllib.error.HTTPError, match="404"):
                urllib.request.urlopen(url + path, timeout=20)
        assert post(answered(study, "a", set())) == b"stored"
        os.kill(process.pid, signal.SIGKILL)  # right after the reply
    finally:
        process.kill()
        process.wait()
    assert len(read_answers(study, tmp_path)) == 14
    process = subprocess.Popen([sys.executable, "-c", SERVER, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    try:
        url = process.stdout.readline().strip()  # the lock of the killed one is not in the way
        assert status("nonsense") == 409 and status(answered(study, "b", set()), kind="text/plain") == 404
        assert status("x" * ((1 << 20) + 1)) == 413
        assert post(answered(study, "a", set())) == b"stored"  # sent again: not counted again
    finally:
        process.kill()
        process.wait()
    with sqlite3.connect(tmp_path / "answers.sqlite") as connection:
        assert connection.execute("SELECT count(*) FROM answers").fetchone() == (14,)


def test_a_folder_that_is_no_study_says_so(study, tmp_path):
    with pytest.raises(ValueError, match="is not a study: there is no study.json"):
        Study.read(tmp_path / "nothing")
    text = (tmp_path / "study.json").read_text()
    for wrong in (text[:-9], "[]", text.replace('"format": 1', '"format": 2'), text.replace(study.pairs[0].real, "../x.png"),
                  text.replace("theirs", "\\u001b[31m")):  # fmt: skip
        (tmp_path / "study.json").write_text(wrong)
        with pytest.raises(ValueError, match="make the study again"):
            Study.read(tmp_path)
