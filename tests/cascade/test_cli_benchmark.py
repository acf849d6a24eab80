"""`cascade benchmark` and its protocols: the table, the floor, what is not comparable, and how mistakes are answered."""

import json
import re

import measuring
import numpy as np
import pytest
import torch
from PIL import Image
from tiny import SMALL, base, cascade, sr3

from cascade import CascadePipeline
from cascade.classes import EMOJI, imagenet
from cascade.cli.main import main
from cascade.eval.bootstrap import Interval
from cascade.eval.files import file_sha256
from cascade.eval.frechet import frechet_distance
from cascade.eval.references import FrechetResult
from cascade.eval.report import Row
from cascade.eval.statistics import Provenance
from cascade.files import CONFIGS
from cascade.folder import load_stage
from cascade.measure.comparisons import check_vocabulary, differences, distance_curve, published_rows
from cascade.measure.protocols import load_protocol, protocol_names

PROTOCOL = """
name: mine
title: Mine
kind: samples
size: 64
num_images: 50000
labels: balanced
extractor: efficientnet-lite0
distance: distance
reference: drawings:train
crop_rule: drawings
evaluator: theirs
published:
  - {name: Theirs, values: {distance: 3.94}, source: their paper, evaluator: theirs}
  - {name: Others, values: {distance: 1.94}, source: another paper}
  - {name: Balanced, values: {distance: 2.94}, source: a third paper, evaluator: theirs, differs: of each class alike}
"""


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return measuring.model(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture(autouse=True)
def quick(monkeypatch, tmp_path):
    measuring.quick(monkeypatch, tmp_path)
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


def benchmark(model, out, *words):
    options = ["--out", str(out), "--device", "cpu", "--processes", "1", "--steps", "1", "--resamples", "5"]
    return main(["benchmark", str(model), *options, *words])


def files(folder):
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_the_protocols_that_come_with_it_are_sound():
    assert protocol_names() == [
        "emoji-256", "emoji-64", "imagenet-128", "imagenet-128-clean", "imagenet-128-dinov2", "imagenet-256",
        "imagenet-256-clean", "imagenet-256-dinov2", "imagenet-512",
        "imagenet-512-clean", "imagenet-512-dinov2", "imagenet-64", "imagenet-64-edm",
        "photos-256", "sr3-faces-128", "sr3-imagenet-256",
    ]  # fmt: skip
    for name in protocol_names():
        protocol = load_protocol(name)
        assert all(row.source for row in protocol.published)
        assert (protocol.reference is None) == (protocol.reference_file is not None), "one way to come to a reference"
    rows = {row.name: row for row in load_protocol("imagenet-256").published}
    assert rows["SR3, two stages"].values["FID"] == 11.3 and rows["CDM"].values["FID"] == 4.88
    want = {"FID": 3.94, "sFID": 6.14, "IS": 215.84, "precision": 0.83, "recall": 0.53, "NFE": 500}
    assert rows["ADM-G + ADM-U"].values == want
    assert load_protocol("sr3-faces-128").published[-2].values == {"PSNR": 23.04, "SSIM": 0.65, "consistency": 2.68}


def test_distance_is_drawn_against_all_stages_evaluations():
    rows = [
        Row(name="ours", values={"FID": Interval(estimate=5.0, low=4, high=6, confidence=0.95), "NFE": "250 + 25"}),
        Row(name="theirs", values={"FID": 7.49, "NFE": 500}),
        Row(name="unknown cost", values={"FID": 1.0}),
    ]
    assert distance_curve(rows, "FID").lines == {"ours": [(275, 5.0)], "theirs": [(500, 7.49)]}
    assert distance_curve(rows[:1], "FID") is None


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (("kind: samples", "kind: videos"), "kind is 'videos', expected one of samples, super-resolution"),
        (("size: 64", "size: big"), "size is 'big', expected a whole number"),
        (("size: 64", "sise: 64"), "unknown key 'sise'; did you mean 'size'?"),
        (("title: Mine", ""), "title is missing"),
        (("labels: balanced", "labels: most"), "labels is 'most'"),
        (("extractor: efficientnet-lite0", "extractor: vgg"), "extractor is 'vgg', expected one of efficientnet-lite0"),
        (("3.94", "low"), "published.0.values.distance is 'low', expected a number"),
        (("name: mine", "name: yours"), "name is 'yours', expected 'mine'"),
        (("kind: samples", "kind: super-resolution"), "only super-resolution has one, and needs it"),
        (("labels: balanced", "seeds: [3, 3]"), "seeds are [3, 3], expected at least one, none twice"),
        (("labels: balanced", "seeds: [0, 100]"), "sets of 50000 images must not share any"),
    ],
)
def test_a_protocol_file_is_checked(tmp_path, change, problem):
    path = tmp_path / "mine.yaml"
    path.write_text(PROTOCOL.replace(*change, 1))
    with pytest.raises(ValueError, match=re.escape(problem)) as caught:
        load_protocol(str(path))
    assert str(path) in str(caught.value)


def test_emoji_shows_model_and_floor_with_equal_counts_and_resumes(model, tmp_path, capsys):
    out = tmp_path / "bench"
    assert benchmark(model, out, "--protocol", "emoji-64", "--num-images", "8") == 0
    told = capsys.readouterr().out
    assert "EfficientNet-Lite Frechet distance" in told and "not FID" in told and "| FID" not in told
    report = json.loads((out / "report.json").read_text())
    ours, floor, by_glyph = report["rows"]
    assert floor["name"] == "held-out drawings (floor)" and report["details"]["scores"]["seed 0"]["frechet"]["num_samples"] == 8
    assert report["details"]["scores"]["heldout"]["frechet"]["num_samples"] == 8
    found, of_floor = (row["values"]["EfficientNet-Lite Frechet distance"] for row in (ours, floor))
    assert found["estimate"] > of_floor["estimate"] > 0 and found["low"] <= found["estimate"] <= found["high"]
    glyphs = by_glyph["values"]["EfficientNet-Lite Frechet distance"]
    assert glyphs["estimate"] == of_floor["estimate"] and glyphs["high"] != of_floor["high"] and "glyphs" in by_glyph["note"]
    shares = {"class agreement %", "among five %", "closer in features %", "closer in pixels %"}
    assert ours["values"]["NFE"] == "1 + 1" and shares <= set(ours["values"]) and shares <= set(floor["values"])
    labels = report["details"]["run"]["plan"]["labels"]
    assert len(labels) == 8 and set(labels) <= set(measuring.drawings(64, "heldout")[1].tolist())
    before = files(out)
    (out / "samples" / "000003.png").unlink()
    assert benchmark(model, out, "--protocol", "emoji-64", "--num-images", "8") == 0
    assert files(out) == before, "a resumed benchmark ends in the same bytes"


def test_the_page_needs_no_other_file(model, tmp_path):
    assert benchmark(model, tmp_path / "bench", "--protocol", "emoji-64", "--num-images", "5") == 0
    page = (tmp_path / "bench" / "report.html").read_text()
    samples, stages, near = 5, 2 * 5, 2 * 2 * 5
    assert page.count("data:image/png;base64,") == samples + stages + near and not re.search(r"(src|href)=\"(?!data:)", page)
    assert "http" not in page and "held-out drawings (floor)" in page
    text = (tmp_path / "bench" / "report.md").read_text()
    for name in re.findall(r"\]\((pictures/[^)]+)\)", text):
        with Image.open(tmp_path / "bench" / name) as picture:
            assert np.asarray(picture).std() > 0


def test_few_samples_stand_beside_no_published_figure(model, tmp_path, capsys):
    path = tmp_path / "mine.yaml"
    path.write_text(PROTOCOL)
    assert benchmark(model, tmp_path / "bench", "--protocol", str(path), "--num-images", "6") == 0
    out = capsys.readouterr().out
    assert "No published figure compares with ours: 6 images, where the protocol has 50,000." in out
    assert re.search(r"\| Theirs +\| +3.94 .*not comparable: their paper", out)


def decided(tmp_path, changes, **options):
    """Names of the published rows that stand unmarked, and the note about ours."""
    text = PROTOCOL
    for change in changes:
        text = text.replace(*change)
    (tmp_path / "mine.yaml").write_text(text)
    protocol = load_protocol(str(tmp_path / "mine.yaml"))
    of_real = Provenance(extractor="inception-v3", weights_hash="w", resize_mode="clean", crop_rule="drawings")
    given = {"reference_hash": "ab" * 32, "reference_provenance": of_real, "provenance": of_real} | options
    frechet = FrechetResult(distance=1.0, num_samples=9, reference="r", reference_count=None, **given)
    differing = differences(protocol, 50_000, frechet)
    return [row.name for row in published_rows(protocol, differing) if row.comparable], " ".join(differing)


def test_a_published_row_stands_unmarked_only_where_all_agrees(tmp_path):
    assert decided(tmp_path, []) == (["Theirs"], "")
    file = ("reference: drawings:train", "reference_file: theirs.npz")
    known = ("crop_rule:", f"reference_sha256: {'ab' * 32}\ncrop_rule:")
    assert decided(tmp_path, [file, known]) == (["Theirs"], "")
    rows, note = decided(tmp_path, [file, known], reference_hash="cd" * 32)
    assert rows == [] and f"the reference has SHA-256 {'cd' * 32}, the protocol's {'ab' * 32}" in note
    rows, note = decided(tmp_path, [file])
    assert rows == [] and "no SHA-256 of the protocol's reference is on record" in note
    other = Provenance(extractor="inception-v3", weights_hash="w", resize_mode="clean", crop_rule=None)
    rows, note = decided(tmp_path, [], reference_provenance=other)
    assert rows == [] and "the reference's crop rule is not known, where the protocol has drawings" in note
    rows, note = decided(tmp_path, [("efficientnet-lite0", "inception-clean")])
    assert rows == [] and "the extractor's weights have SHA-256 w, the published ones f58cb9b6" in note


def test_adms_reference_of_256_pixels_is_known_by_its_hash():
    assert load_protocol("imagenet-256").reference_sha256.startswith("b3273271")
    assert load_protocol("imagenet-64").reference_sha256 is None
    alone = {row.name for row in load_protocol("imagenet-256").published if row.evaluator == "ADM's" and not row.differs}
    assert {"ADM", "ADM-G + ADM-U", "IDDPM, two stages"} <= alone
    assert not alone & {"Real validation images", "CDM", "JiT-G/16", "RDM, 64 to 256", "PixelFlow-XL/4", "SR3, two stages"}
    assert not any(row.evaluator == load_protocol("sr3-faces-128").evaluator for row in load_protocol("sr3-faces-128").published)


def test_imagenets_protocols_refuse_models_of_other_classes(model, tmp_path, capsys):
    reference = measuring.adm_reference(tmp_path / "VIRTUAL_imagenet64_labeled.npz")
    words = ["--protocol", "imagenet-64", "--num-images", "6", "--reference", str(reference)]
    assert benchmark(model, tmp_path / "bench", *words) == 2
    err = capsys.readouterr().err
    assert "measures models of ImageNet's 1,000 classes, but this one has 75 others" in err and not (tmp_path / "bench").exists()
    check_vocabulary(load_protocol("imagenet-64"), imagenet(), 1000)
    check_vocabulary(load_protocol("imagenet-64"), None, 1000)
    with pytest.raises(ValueError, match="no classes"):
        check_vocabulary(load_protocol("imagenet-64"), None, None)


def test_adms_protocol_has_adms_columns_beside_its_published_rows(model, tmp_path, monkeypatch):
    reference = measuring.adm_reference(tmp_path / "VIRTUAL_imagenet64_labeled.npz")
    text = (CONFIGS / "protocols" / "imagenet-64.yaml").read_text()
    (tmp_path / "imagenet-64.yaml").write_text(text.replace("vocabulary: imagenet\n", ""))
    words = ["--protocol", str(tmp_path / "imagenet-64.yaml"), "--num-images", "6", "--reference", str(reference)]
    assert benchmark(model, tmp_path / "bench", *words) == 0
    report = json.loads((tmp_path / "bench" / "report.json").read_text())
    columns = ["FID", "FID, extrapolated", "sFID", "IS", "KID x 1000", "precision", "recall", "density", "coverage", "NFE"]
    ours, theirs = report["rows"][0], report["rows"][1]
    assert report["columns"] == columns == list(ours["values"])
    assert theirs["values"]["sFID"] == 3.79 and not theirs["comparable"], "six samples stand beside nothing"
    pictures = np.stack([np.asarray(Image.open(path)) for path in sorted((tmp_path / "bench" / "samples").glob("*.png"))])
    spatial = measuring.ADMPooled().all_outputs(pictures).spatial.astype(np.float64)
    with np.load(reference) as file:
        want = frechet_distance(spatial.mean(axis=0), np.cov(spatial, rowvar=False), file["mu_s"], file["sigma_s"])
    assert ours["values"]["sFID"]["estimate"] == pytest.approx(want, rel=1e-6)
    assert f"SHA-256 {file_sha256(reference)}" in (tmp_path / "bench" / "report.md").read_text()
    scores = report["details"]["scores"]["seed 0"]
    assert scores["frechet"]["reference_hash"] == file_sha256(reference)
    assert scores["frechet"]["provenance"]["resize_mode"] == "legacy_tensorflow"


def test_the_stages_of_the_first_samples_are_those_that_led_to_them(model, tmp_path):
    assert benchmark(model, tmp_path / "bench", "--protocol", "emoji-64", "--num-images", "5") == 0
    labels = json.loads((tmp_path / "bench" / "samples" / "run.json").read_text())["plan"]["labels"]
    cascade = CascadePipeline.from_pretrained(model)
    cascade.set_progress_bar_config(disable=True)
    made = cascade([labels[3]], seeds=[3], num_inference_steps=1)
    base, last = (np.asarray(Image.open(tmp_path / "bench" / place / "000003.png")) for place in ("stages/base", "samples"))
    assert np.abs(base.astype(int) - np.asarray(made.stages["base"].images[0])).max() <= 1
    assert np.abs(last.astype(int) - np.asarray(made.images[0])).max() <= 1


def test_of_several_seeds_each_has_a_row_the_least_stands_first_and_the_model_is_loaded_once(model, tmp_path, monkeypatch):
    path = tmp_path / "mine.yaml"
    path.write_text(PROTOCOL.replace("num_images: 50000", "num_images: 4\nseeds: [0, 100, 200]"))
    loaded = []
    monkeypatch.setattr("cascade.pipeline.load_stage", lambda *given: loaded.append(given[1].name) or load_stage(*given))
    assert benchmark(model, tmp_path / "bench", "--protocol", str(path), "--seed", "7") == 0
    report = json.loads((tmp_path / "bench" / "report.json").read_text())
    first, *each = [(row["name"], row["values"].get("distance")) for row in report["rows"] if row["ours"]]
    assert [name for name, _ in each] == ["tiny, seed 7", "tiny, seed 107", "tiny, seed 207"]
    assert first[0] == "tiny, least of 3 seeds"
    assert first[1]["estimate"] == min(found["estimate"] for _, found in each)
    assert len({found["estimate"] for _, found in each}) == 3
    assert loaded == ["base", "sr64"]


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        (["--protocol", "imagenet-1"], "there is no protocol 'imagenet-1'; choose one of emoji-256"),
        (["--protocol", "imagenet-64"], "measures models of ImageNet's 1,000 classes"),
        (["--protocol", "imagenet-256"], "no stage of 'tiny' makes 256x256 images; choose from 16, 64"),
        (["--protocol", "sr3-faces-128"], "needs a reference: a folder of CelebA-HQ"),
        (["--protocol", "emoji-64", "--num-images", "3"], "num_images is 3, but at least 4 are needed"),
        (["--protocol", "emoji-64", "--num-images", "13"], "there are only 12 held-out drawings"),
    ],
)
def test_a_wrong_request_is_one_sentence(model, tmp_path, capsys, words, problem):
    assert benchmark(model, tmp_path / "bench", *words) == 2
    out, err = capsys.readouterr()
    assert problem in err and out == "" and len(err.splitlines()) == 1 and not (tmp_path / "bench").exists()


SUPER = PROTOCOL.replace("kind: samples", "kind: super-resolution\nlow_res_size: 16").replace("labels: balanced\n", "")


def test_a_protocol_of_super_resolution_is_measured_by_the_stage_of_its_sizes(tmp_path, capsys):
    small = SMALL | {"num_classes": len(EMOJI)}
    longer = cascade(EMOJI, base=base(sample_size=16, **small), sr64=sr3(64, 16, **small), sr128=sr3(128, 64, **small))
    longer.save_pretrained(tmp_path / "longer")
    (tmp_path / "mine.yaml").write_text(SUPER)
    words = ["--protocol", str(tmp_path / "mine.yaml"), "--num-images", "2", "--reference", "drawings:heldout"]
    for out, stage in (("a", []), ("b", ["--stage", "sr64"])):
        assert benchmark(tmp_path / "longer", tmp_path / out, *words, *stage) == 0
        assert json.loads((tmp_path / out / "report.json").read_text())["facts"]["stage"] == "sr64"
    capsys.readouterr()
    assert benchmark(tmp_path / "longer", tmp_path / "c", *words, "--stage", "sr128") == 2
    assert "stage 'sr128' makes 128 px from 64 px, but protocol mine is 16 to 64 px" in capsys.readouterr().err
    assert benchmark(tmp_path / "longer", tmp_path / "c", "--protocol", "emoji-64", "--stage", "sr64") == 2
    assert "measures samples of the whole cascade" in capsys.readouterr().err
