"""`cascade evaluate`: scores that are known beforehand, references, SR3 stages, and how mistakes are answered."""

import json
import re
import sys
from html.parser import HTMLParser

import measuring
import numpy as np
import pytest
import torch
from PIL import Image

from benchmarks import drawings_classifier
from cascade import CascadePipeline
from cascade.classes import EMOJI
from cascade.cli.main import main
from cascade.eval.bootstrap import Interval
from cascade.eval.classifier import class_probabilities, errors, load_classifier
from cascade.eval.files import file_sha256
from cascade.eval.frechet import frechet_distance
from cascade.eval.images import BATCH, balanced_choice, image_array
from cascade.eval.page import page
from cascade.eval.paired import psnr
from cascade.eval.report import Curve, Picture, Report, Row, contact_sheet, shown, table
from cascade.eval.report_files import as_json
from cascade.measure import check
from cascade.measure.super_resolution import bicubic, enlarged, evaluate_sr, low_resolution, paired_values
from cascade.stages.regression import RegressionPipeline


@pytest.fixture(autouse=True)
def quick(monkeypatch, tmp_path):
    measuring.quick(monkeypatch, tmp_path)
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


def folder(path, count=12, size=32, seed=0):
    path.mkdir()
    for i, pixels in enumerate(np.random.default_rng(seed).integers(0, 256, (count, size, size, 3), dtype=np.uint8)):
        Image.fromarray(pixels).save(path / f"{i:03d}.png")
    return path


def one_sentence(capsys, code, *words):
    assert main(["evaluate", *words]) == code
    out, err = capsys.readouterr()
    assert out == "" and len([line for line in err.splitlines() if line.startswith("cascade evaluate: ")]) == 1
    return err


def test_a_set_against_itself_has_distance_zero_and_full_overlap(tmp_path, capsys):
    images = str(folder(tmp_path / "a"))
    assert main(["evaluate", "images", images, "--reference", images, "--json"]) == 0
    out, err = capsys.readouterr()
    scores = json.loads(out)
    assert scores["frechet"]["distance"] == pytest.approx(0, abs=1e-6)
    assert scores["manifold"]["precision"] == scores["manifold"]["recall"] == scores["manifold"]["coverage"] == 1
    assert scores["distance_name"] == "EfficientNet-Lite Frechet distance"
    assert "12 pictures are fewer than 50,000" in err


def test_a_kept_reference_gives_the_distance_of_its_pictures(tmp_path, capsys):
    a, b = (str(folder(tmp_path / name, seed=seed)) for seed, name in enumerate("ab"))
    kept = str(tmp_path / "b.npz")
    assert main(["evaluate", "reference", b, "--out", kept]) == 0
    assert "12 pictures of 32 px, efficientnet-lite0" in capsys.readouterr().out
    found = []
    for reference in (b, kept):
        assert main(["evaluate", "images", a, "--reference", reference, "--json"]) == 0
        found.append(json.loads(capsys.readouterr().out)["frechet"]["distance"])
    assert found[0] > 0 and found[1] == pytest.approx(found[0], rel=1e-9)


def test_samples_against_adms_file_and_a_reference_kept_by_inception_have_sfid(tmp_path, capsys):
    pictures = measuring.drawings(64, "heldout")[0]
    np.savez(tmp_path / "samples.npz", arr_0=pictures)
    np.savez(tmp_path / "real.npz", arr_0=measuring.drawings(64, "train")[0])
    published, kept = measuring.adm_reference(tmp_path / "adm.npz"), tmp_path / "kept.npz"
    network = ["--extractor", "inception-tensorflow"]
    assert main(["evaluate", "reference", str(tmp_path / "real.npz"), "--out", str(kept), *network]) == 0
    capsys.readouterr()
    found = []
    for reference in (published, kept):
        assert main(["evaluate", "images", str(tmp_path / "samples.npz"), "--reference", str(reference), *network, "--json"]) == 0
        found.append(json.loads(capsys.readouterr().out))
    assert found[0]["sfid"] == pytest.approx(found[1]["sfid"], rel=1e-4) and found[0]["sfid"] > 0
    assert found[0]["intervals"]["sFID"]["low"] <= found[0]["sfid"] <= found[0]["intervals"]["sFID"]["high"]
    assert found[0]["manifold"] is not None and found[1]["manifold"] is None, "ADM's file holds pictures, ours statistics"


def test_figures_of_published_samples_stand_beside_their_evaluators(tmp_path, capsys, monkeypatch):
    # A stand-in for ADM's two files, and figures that are computed here from its features.
    pictures, reference = measuring.drawings(64, "heldout")[0], measuring.adm_reference(tmp_path / "VIRTUAL.npz")
    np.savez(tmp_path / "samples.npz", arr_0=pictures, arr_1=np.arange(len(pictures)))
    of_samples = measuring.ADMPooled().all_outputs(pictures)
    of_real = measuring.ADMPooled().all_outputs(measuring.drawings(64, "train")[0])
    within = np.sort(np.linalg.norm(of_real.pooled[:, None] - of_real.pooled, axis=2), axis=1)[:, 3]
    precision = (np.linalg.norm(of_samples.pooled[:, None] - of_real.pooled, axis=2) <= within).any(axis=1).mean()
    p = of_samples.probabilities.astype(np.float64)
    with np.load(reference) as file:
        distances = [
            frechet_distance(part.mean(axis=0), np.cov(part, rowvar=False), file[mean], file[cov])
            for part, mean, cov in ((of_samples.pooled, "mu", "sigma"), (of_samples.spatial, "mu_s", "sigma_s"))
        ]
    want = {
        "IS": np.exp((p * np.log(p / p.mean(axis=0))).sum(axis=1).mean()),
        "FID": distances[0],
        "sFID": distances[1],
        "precision": precision,
    }
    figures = {name: check.Figure(value, 1e-5 * abs(value) + 1e-9) for name, value in want.items()}
    monkeypatch.setattr(check, "FIGURES", figures)
    words = ["evaluate", "check", str(tmp_path / "samples.npz"), str(reference), "--device", "cpu"]
    assert main(words) == 0
    out = capsys.readouterr().out
    assert out.count(": agrees (within ") == 4 and f"SHA-256 {file_sha256(reference)}" in out
    monkeypatch.setattr(check, "FIGURES", figures | {"FID": check.Figure(1.01 * distances[0], 1e-3 * distances[0])})
    assert main(words) == 1
    out, err = capsys.readouterr()
    assert out.count("DIFFERS") == 1 and "are not those of ADM's evaluator" in err
    one_sentence(capsys, 2, "check", str(tmp_path / "samples.npz"), str(tmp_path / "samples.npz"))


def test_the_figures_of_adms_samples_are_those_that_its_readme_prints():
    printed = {"IS": 215.837, "FID": 3.94256, "sFID": 6.1404, "precision": 0.8265, "recall": 0.5309}
    assert {name: figure.value for name, figure in check.FIGURES.items()} == printed
    assert all(figure.tolerance <= 0.002 * figure.value for figure in check.FIGURES.values())


def test_an_archive_scores_as_its_pictures(tmp_path, capsys):
    a, b = folder(tmp_path / "a"), str(folder(tmp_path / "b", seed=1))
    np.savez(tmp_path / "a.npz", arr_0=np.stack([np.asarray(Image.open(path)) for path in sorted(a.iterdir())]))
    found = []
    for images in (str(a), str(tmp_path / "a.npz")):
        assert main(["evaluate", "images", images, "--reference", b]) == 0
        found.append(capsys.readouterr().out)
    assert found[0] == found[1] and found[0].startswith("EfficientNet-Lite Frechet distance: ")


def test_an_sr3_stage_stands_beside_regression_bicubic_and_originals(tmp_path, capsys):
    model, regression = str(measuring.model(tmp_path / "tiny")), measuring.regression(tmp_path / "regression")
    words = ["evaluate", "sr", model, "-n", "3", "--steps", "1", "--device", "cpu", "--resamples", "9"]
    words += ["--regression", str(regression), "--out", str(tmp_path / "sr")]
    assert main(words) == 0
    report = json.loads((tmp_path / "sr" / "report.json").read_text())
    rows = {row["name"]: row["values"] for row in report["rows"]}
    assert list(rows) == ["tiny, sr64", "regression", "bicubic", "originals"]
    distance = "EfficientNet-Lite Frechet distance"
    kernel = "kernel distance x 1000"
    errors_ = ["top-1 error", "top-5 error"]
    assert report["columns"] == ["PSNR", "SSIM", "consistency", distance, kernel, *errors_], "three pictures: no extrapolation"
    pictures, labels = measuring.drawings(64, "heldout")
    chosen = balanced_choice(labels, len(labels), 3)
    pictures, labels = pictures[chosen], labels[chosen]
    small = low_resolution(pictures, 16)
    assert rows["bicubic"]["PSNR"]["estimate"] == pytest.approx(psnr(bicubic(small, 64), pictures).mean(), rel=1e-12)
    assert rows["bicubic"]["PSNR"]["low"] <= rows["bicubic"]["PSNR"]["estimate"] <= rows["bicubic"]["PSNR"]["high"]
    assert rows["bicubic"]["PSNR"]["estimate"] > rows["tiny, sr64"]["PSNR"]["estimate"] > 0, "an untrained stage makes noise"
    stage = RegressionPipeline.from_pretrained(regression)
    inputs = zip(map(Image.fromarray, small), labels, strict=True)
    made = np.stack([np.asarray(stage(image, [int(label)]).images[0]) for image, label in inputs])
    assert rows["regression"]["PSNR"]["estimate"] == pytest.approx(psnr(made, pictures).mean(), rel=1e-6)
    classifier, _ = load_classifier()
    wrong = errors(class_probabilities(classifier, pictures), labels)[0].mean()
    assert rows["originals"]["top-1 error"]["estimate"] == pytest.approx(wrong) and "PSNR" not in rows["originals"]
    assert len(list((tmp_path / "sr" / "outputs").iterdir())) == len(list((tmp_path / "sr" / "regression").iterdir())) == 3
    out = capsys.readouterr().out
    assert "| **bicubic** " in out and "[" in out
    kept = (tmp_path / "sr" / "report.json").read_bytes()
    (tmp_path / "sr" / "outputs" / "000001.png").unlink()
    assert main(words) == 0 and (tmp_path / "sr" / "report.json").read_bytes() == kept


@pytest.mark.parametrize(
    ("prepare", "problem"),
    [
        (lambda p: p / "none", "is not a stage; give the folder of a RegressionPipeline"),
        (lambda p: measuring.regression(p / "small", low_res_size=8), "is of 8 to 64 px, but the SR3 stage of 16 to 64 px"),
        (lambda p: measuring.model(p / "again") / "sr64", "does not describe the RegressionPipeline"),
    ],
)
def test_a_folder_that_is_no_fitting_regression_is_one_sentence(tmp_path, capsys, prepare, problem):
    model = str(measuring.model(tmp_path / "tiny"))
    words = ["sr", model, "-n", "2", "--device", "cpu", "--regression", str(prepare(tmp_path)), "--out", str(tmp_path / "sr")]
    assert problem in one_sentence(capsys, 2, *words) and not (tmp_path / "sr").exists()


def test_an_evaluation_of_sr3_holds_a_batch_of_images_at_a_time(tmp_path):
    held, originals = [], np.random.default_rng(0).integers(0, 256, (3 * BATCH, 16, 16, 3), dtype=np.uint8)

    def noted(images):
        held.append(len(images))
        return images

    real = image_array(originals).mapped(noted, 16)
    small = real.mapped(lambda images: low_resolution(images, 4), 4)
    sizes = []

    def enlarge(images, labels, seeds):
        sizes.append(len(images))
        return [image.resize((16, 16)) for image in images]

    made = enlarged(enlarge, small, None, tmp_path / "out", seed=0, batch_size=5, on_progress=lambda *_: None)
    assert max(held) == max(sizes) == 5 and sum(sizes) == len(made) == len(made.paths) == 3 * BATCH
    values = paired_values(made, real, small, 0)
    assert max(held) == BATCH
    assert values["PSNR"] == pytest.approx(psnr(made.array(), originals).mean(), rel=1e-12)


def test_pictures_are_chosen_of_all_classes_alike(tmp_path):
    drawings = measuring.drawings(64, "heldout")[0]
    for i, name in enumerate(["cat"] * 7 + ["dog"] * 3 + ["fruit"] * 2):
        (tmp_path / "real" / name).mkdir(parents=True, exist_ok=True)
        Image.fromarray(drawings[i]).save(tmp_path / "real" / name / f"{i:02d}.png")
    model = CascadePipeline.from_pretrained(measuring.model(tmp_path / "tiny"))
    options = {"images": tmp_path / "real", "num_images": 6, "resamples": 0, "sampling": model.sampling(num_inference_steps=1)}
    asked = []
    model.upscale = lambda images, labels, *args, **kwargs: (
        asked.extend(labels) or CascadePipeline.upscale(model, images, labels, *args, **kwargs)
    )
    report = evaluate_sr(model, tmp_path / "sr", **options)
    assert sorted(EMOJI.names[label] for label in asked) == ["cat"] * 2 + ["dog"] * 2 + ["fruit"] * 2
    assert "of all classes alike" in report.facts["images"]


def archive(path, labels):
    np.savez(path, arr_0=measuring.drawings(64, "heldout")[0][: len(labels)], arr_1=np.array(labels))
    return path


def test_the_classes_of_an_archive_are_those_of_a_cascade_without_names(tmp_path):
    model = CascadePipeline.from_pretrained(measuring.model(tmp_path / "tiny"))
    nameless = CascadePipeline({name: stage for name, stage in model.stages.items()}, name="nameless")
    assert nameless.classes is None and nameless.num_classes == len(EMOJI)
    options = {"num_images": 3, "resamples": 0, "extractor": None, "sampling": nameless.sampling(num_inference_steps=1)}
    asked = []
    nameless.upscale = lambda images, labels, *args, **kwargs: (
        asked.extend(labels) or CascadePipeline.upscale(nameless, images, labels, *args, **kwargs)
    )
    evaluate_sr(nameless, tmp_path / "sr", images=archive(tmp_path / "a.npz", [7, 3, 74]), **options)
    assert sorted(asked) == [3, 7, 74]
    with pytest.raises(ValueError, match=r"classes of .*b.npz are 3 to 75, but 'nameless' has classes 0 to 74"):
        evaluate_sr(nameless, tmp_path / "sr2", images=archive(tmp_path / "b.npz", [7, 3, 75]), **options)


def test_low_resolution_of_even_blocks_is_their_mean():
    image = np.zeros((1, 4, 4, 3), np.uint8)
    image[0, :2, :2] = [[[10] * 3, [20] * 3], [[30] * 3, [40] * 3]]
    assert low_resolution(image, 2)[0, :, :, 0].tolist() == [[25, 0], [0, 0]]
    assert (bicubic(np.full((1, 2, 2, 3), 77, np.uint8), 8) == 77).all()


@pytest.mark.parametrize(
    ("prepare", "words", "problem"),
    [
        (lambda p: (p / "a").mkdir(), [], "a holds no images"),
        (lambda p: None, [], "there is no "),
        (lambda p: folder(p / "a", count=3), [], "holds 3 images, but at least 4 are needed"),
        (lambda p: (folder(p / "a") / "000.png").write_text("no picture"), [], "000.png is not an image"),
        (lambda p: (folder(p / "a") / "notes.txt").touch(), [], "notes.txt is not an image"),
        (lambda p: folder(p / "a", size=16), [], "is 32x32, expected 16x16"),
        (lambda p: folder(p / "a"), ["--extractor", "vgg"], "argument --extractor"),
    ],
)
def test_pictures_that_cannot_be_scored_are_named(tmp_path, capsys, prepare, words, problem):
    prepare(tmp_path)
    reference = str(folder(tmp_path / "b", seed=1))
    assert problem in one_sentence(capsys, 2, "images", str(tmp_path / "a"), "--reference", reference, *words)


def test_statistics_by_clean_fids_name_need_inception_and_a_network(tmp_path, capsys, monkeypatch):
    def offline(*args, **options):
        raise OSError("no route to host")

    monkeypatch.setattr("urllib.request.urlopen", offline)
    words = ["images", str(folder(tmp_path / "a")), "--reference", "cleanfid:cifar10:test"]
    assert "is measured by Inception, so --extractor must be" in one_sentence(capsys, 2, *words)
    err = one_sentence(capsys, 1, *words, "--extractor", "inception-clean")
    assert "cifar10_clean_test_32.npz is not in" in err and "could not be downloaded" in err


def test_a_reference_of_another_crop_rule_is_refused(tmp_path, capsys):
    a, kept = str(folder(tmp_path / "a")), str(tmp_path / "kept.npz")
    assert main(["evaluate", "reference", a, "--out", kept, "--crop-rule", "lanczos"]) == 0
    capsys.readouterr()
    err = one_sentence(capsys, 2, "images", a, "--reference", kept, "--crop-rule", "box")
    assert "the reference has crop rule lanczos but the samples box" in err


@pytest.mark.parametrize("words", [[], ["images"], ["pictures"]])
def test_what_to_evaluate_must_be_said(capsys, words):
    assert "--help" in one_sentence(capsys, 2, *words)


def test_a_missing_package_is_named_with_its_extra(tmp_path, capsys, monkeypatch):
    monkeypatch.undo()  # the real extractor
    monkeypatch.setitem(sys.modules, "efficientnet_lite_pytorch", None)
    a = str(folder(tmp_path / "a"))
    assert "pip install 'cascade-diffusion[eval]'" in one_sentence(capsys, 2, "images", a, "--reference", a)


def test_weights_of_a_wrong_hash_and_no_network_are_one_sentence(tmp_path, capsys, monkeypatch):
    monkeypatch.undo()  # the real extractor
    a, weights = str(folder(tmp_path / "a")), tmp_path / "inception.pt"
    weights.write_bytes(b"something else")
    words = ["images", a, "--reference", a, "--extractor", "inception-tensorflow"]
    assert "has SHA-256" in one_sentence(capsys, 2, *words, "--weights", str(weights))

    def offline(*args, **options):
        raise OSError("no route to host")

    monkeypatch.setattr("urllib.request.urlopen", offline)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    assert "could not be downloaded" in one_sentence(capsys, 1, *words)


def test_a_table_can_be_read_as_plain_text():
    rows = (
        Row(name="ours", values={"FID": 3.94159, "IS": None}, note="now", ours=True),
        Row(name="theirs", values={"FID": 11.3, "IS": 215.84}, note="paper", comparable=False),
    )
    lines = table(Report(title="t", facts={}, columns=("FID", "IS"), rows=rows)).splitlines()
    assert len({len(line) for line in lines}) == 1
    assert [cell.strip() for cell in lines[2].split("|")[1:-1]] == ["**ours**", "3.942", "-", "now"]
    assert [cell.strip() for cell in lines[3].split("|")[1:-1]] == ["theirs", "11.3", "215.8", "not comparable: paper"]


def test_an_interval_stands_beside_its_value_in_the_table_and_as_numbers_in_json():
    value = Interval(estimate=3.94159, low=3.8, high=4.0832, confidence=0.95)
    assert shown(value) == "3.942 [3.80, 4.08]"
    assert shown(Interval(estimate=142.34, low=129.2, high=155.9, confidence=0.95)) == "142.3 [129, 156]"
    report = Report(title="t", facts={}, columns=("FID",), rows=(Row(name="ours", values={"FID": value}, ours=True),))
    assert "3.942 [3.80, 4.08]" in table(report)
    assert json.loads(as_json(report))["rows"][0]["values"]["FID"] == {
        "estimate": 3.94159, "low": 3.8, "high": 4.0832, "confidence": 0.95,
    }  # fmt: skip
    assert "<small>[3.80, 4.08]</small>" in page(report) and "<span>[3.80, 4.08]</span>" in page(report)


def test_a_contact_sheet_puts_every_picture_in_its_place_equally_large():
    small = np.arange(12, dtype=np.uint8).reshape(1, 2, 2, 3)
    sheet = contact_sheet([np.full((2, 4, 4, 3), 10, np.uint8), small, np.full((1, 3, 3, 3), 20, np.uint8)])
    assert sheet.shape == (19, 12, 3)
    assert (sheet[:4, :4] == 10).all() and (sheet[:4, 8:] == 10).all() and (sheet[16:, :3] == 20).all()
    assert all((sheet[8 + y, x] == small[0, y // 2, x // 2]).all() for y in range(4) for x in range(4))
    assert (sheet[4:8] == 255).all() and (sheet[:4, 4:8] == 255).all() and (sheet[8:12, 4:] == 255).all()
    assert (sheet[12:16] == 255).all() and (sheet[16:, 3:] == 255).all()


class Balance(HTMLParser):
    """Whether every element that is opened is closed, in order."""

    def __init__(self):
        super().__init__()
        self.open, self.sources = [], []

    def handle_starttag(self, tag, attrs):
        self.sources += [value for name, value in attrs if name in ("src", "href")]
        if tag not in ("meta", "img"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def test_a_page_is_sound_and_says_what_it_is_given_as_text():
    curve = Curve(title="curve", x="NFE", y="distance", lines={"a<b": [(4, 9.0), (8, 5.0)], "one": [(4, 1.0)]})
    picture = Picture(title="p", caption="c & d", rows=(("x<y", np.zeros((1, 2, 2, 3), np.uint8)),))
    rows = (Row(name="<script>", values={"FID": 1.0}),)
    text = page(Report(title="t", facts={"k": "v"}, columns=("FID",), rows=rows, pictures=(picture,), curve=curve))
    checked = Balance()
    checked.feed(text)
    assert checked.open == [] and "<script>" not in text and "a&lt;b" in text and "c &amp; d" in text and "x&lt;y" in text
    assert len(checked.sources) == 1 and checked.sources[0].startswith("data:image/png;base64,")
    xs = [float(x) for x in re.findall(r'<circle cx="([\d.]+)"', text)]
    ys = [float(y) for y in re.findall(r'cy="([\d.]+)"', text)]
    assert xs[0] == xs[2] < xs[1] and ys[0] < ys[1] < ys[2], "more steps to the right, less distance below"


def test_a_classifier_is_trained_on_drawings_or_on_samples_alone_and_kept(tmp_path, capsys):
    kept, run = tmp_path / "kept.safetensors", tmp_path / "run"
    found, count = drawings_classifier.measure(out=kept, epochs=1)
    assert (count, found.num_images) == (24, 12)
    assert load_classifier(kept)[1]["heldout_top1"] == f"{found.top1:.4f}"
    words = ["--num-images", "3", "--steps", "1", "--device", "cpu", "--processes", "1", "--out", str(run)]
    assert main(["sample", str(measuring.model(tmp_path / "tiny")), *words]) == 0
    assert drawings_classifier.measure(run, epochs=1)[1] == 3
    (run / "000001.png").unlink()
    with pytest.raises(ValueError, match="holds no complete run"):
        drawings_classifier.measure(run, epochs=1)
    with pytest.raises(ValueError, match="holds no run.json"):
        drawings_classifier.measure(folder(tmp_path / "a"), epochs=1)
