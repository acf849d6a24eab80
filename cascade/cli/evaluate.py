"""`cascade evaluate`: references, scores of pictures, and SR3 stages."""

from __future__ import annotations

import json
from argparse import ArgumentParser, Namespace
from pathlib import Path

from cascade.cli.arguments import DEFAULT_MODEL, add_commands, add_resamples, add_sampling_options, given, positive, seed
from cascade.cli.progress import Bars, show
from cascade.cli.request import Request
from cascade.cli.terminal import put, say
from cascade.measure.protocols import CLASSIFIERS, EXTRACTORS, load_protocol
from cascade.runs.record import check_folder

NAME = "evaluate"
HELP = "Measure pictures: build references, score sets of pictures and SR3 stages."

_IMAGES = "a folder of pictures, an .npz with arr_0, drawings:train or drawings:heldout"
_NETWORK = ("extractor", "weights", "crop_rule", "size", "device")


def add_arguments(parser: ArgumentParser) -> None:
    add_commands(
        parser,
        ("reference", "Measure real pictures once and keep the statistics.", _reference_options, _reference),
        ("images", "Score pictures against real ones.", _images_options, _images),
        ("check", "Measure samples that ADM publishes, and tell whether the figures are ADM's.", _check_options, _check),
        ("cas", "Train a classifier on samples alone, and test it on real pictures.", _cas_options, _cas),
        ("sr", "Enlarge real pictures made small, and compare with the originals.", _sr_options, _sr),
    )


def run(args: Namespace) -> None:
    args.action(args)


def _add_network(parser: ArgumentParser) -> None:
    """Which network describes pictures, and how they were cut."""
    add = parser.add_argument
    text = "network that describes pictures (default efficientnet-lite0, which needs no download; its distance is not FID)"
    add("--extractor", choices=EXTRACTORS, default="efficientnet-lite0", help=text)
    add("--weights", type=Path, metavar="FILE", help="of the extractor (default: downloaded once, checked)")
    add("--crop-rule", metavar="TEXT", help="how the pictures were cut from their originals; only equal ones are compared")


def _add_extractor(parser: ArgumentParser) -> None:
    _add_network(parser)
    parser.add_argument("--size", type=positive, metavar="PX", help="side that the pictures must have; drawings are drawn at it")
    parser.add_argument("--device", default="cpu", metavar="D", help="where the extractor runs (default cpu)")


def _reference_options(parser: ArgumentParser) -> None:
    add = parser.add_argument
    add("images", metavar="IMAGES", help=_IMAGES)
    add("--out", type=Path, required=True, metavar="FILE.npz", help="file of the reference")
    text = "IMAGES are photos, named as data.source in a recipe: cut to --size by this rule, that of training"
    add("--crop", choices=("adm", "area"), help=text)
    _add_extractor(parser)


def _images_options(parser: ArgumentParser) -> None:
    add = parser.add_argument
    add("images", metavar="IMAGES", help=_IMAGES)
    add(
        "--reference",
        required=True,
        metavar="REFERENCE",
        help="a file of `cascade evaluate reference`, ADM's .npz or another of mu and sigma, cleanfid:NAME or cleanfid:NAME:SPLIT"
        f" (statistics that clean-fid publishes), or real pictures: {_IMAGES}",
    )
    add_resamples(parser)
    add("--json", action="store_true", help="print everything as JSON")
    _add_extractor(parser)


def _check_options(parser: ArgumentParser) -> None:
    add = parser.add_argument
    add("samples", metavar="SAMPLES", help="admnet_guided_upsampled_imagenet256.npz of guided-diffusion")
    add("reference", metavar="REFERENCE", help="VIRTUAL_imagenet256_labeled.npz of guided-diffusion")
    add("--weights", type=Path, metavar="FILE", help="of NVIDIA's TorchScript Inception (default: downloaded once, checked)")
    add("--device", metavar="D", help="where it runs (default: an accelerator if there is one)")


def _cas_options(parser: ArgumentParser) -> None:
    add = parser.add_argument
    text = "a sampling run of PNG files, a folder of class folders, an .npz with arr_0 and arr_1, drawings:train or :heldout"
    add("samples", metavar="SAMPLES", help=text)
    add("real", metavar="REAL", help="the same, of pictures that the model was not trained on")
    add("--out", type=Path, required=True, metavar="DIR", help="folder for classifier and score; the same command goes on there")
    add("--crop", choices=("adm", "area"), help="class folders hold photos: cut them to --size by this rule, that of training")
    add("--size", type=positive, metavar="PX", help="side of the pictures (default: that of the samples)")
    text = "what learns: torchvision's ResNet-50, as in papers, or a small network for small pictures (default resnet50)"
    add("--network", choices=("resnet50", "small"), default="resnet50", help=text)
    add("--epochs", type=positive, default=90, metavar="N", help="passes over the samples (default 90)")
    add("--batch-size", type=positive, default=256, metavar="N", help="samples in a step (default 256)")
    add("--seed", type=seed, default=0, metavar="S", help="of weights, order and crops (default 0)")
    add("--device", metavar="D", help="where it learns (default: an accelerator if there is one)")


def _sr_options(parser: ArgumentParser) -> None:
    add = parser.add_argument
    add("model", nargs="?", default=DEFAULT_MODEL, metavar="MODEL", help="a cascade (default emoji)")
    text = f"{_IMAGES}; a folder of class folders says what they show (default drawings:heldout)"
    add("--images", default="drawings:heldout", metavar="IMAGES", help=text)
    add("--stage", metavar="NAME", help="which SR3 stage (default: the last)")
    add("--by-steps", type=_counts, default=(), metavar="N,N", help="sample it in each of these numbers of steps, as 1,4,16")
    add("--protocol", metavar="P", help="whose published rows are shown, as photos-256")
    add("-n", "--num-images", type=positive, default=100, metavar="N", help="pictures, of all classes alike (default 100)")
    add("--seed", type=seed, default=0, metavar="S", help="of the first picture (default 0)")
    add("--out", type=Path, required=True, metavar="DIR", help="folder for the pictures and the report")
    add("--regression", type=Path, metavar="DIR", help="a regression stage of the same sizes, measured too")
    add("--no-distance", action="store_true", help="leave the distance to the originals out")
    text = "judge of ImageNet's classes (default: the protocol's, else efficientnet-lite0)"
    add("--classifier", choices=CLASSIFIERS, help=text)
    text = "of torchvision's ResNet-50 (default: downloaded once, checked)"
    add("--classifier-weights", type=Path, metavar="FILE", help=text)
    _add_network(parser)
    add_resamples(parser)
    add_sampling_options(parser)


def _counts(text: str) -> tuple[int, ...]:
    return tuple(positive(word) for word in text.split(","))


def _reference(args: Namespace) -> None:
    from cascade.measure.evaluation import build_reference

    with Bars() as bars:
        made = build_reference(args.images, args.out, **given(args, "crop", *_NETWORK), on_progress=bars)
    if made.odd:
        say(made.odd)
    reference, network = made.reference, made.reference.provenance
    described = f"{network.extractor} ({network.resize_mode}), SHA-256 {reference.file_hash}"
    put(f"{args.out}: {reference.count:,} pictures of {made.size} px, {described}")


def _images(args: Namespace) -> None:
    from dataclasses import asdict

    from cascade.eval.report import shown
    from cascade.eval.scoring import FEWEST_FOR_PUBLISHED
    from cascade.measure.comparisons import reference_shown
    from cascade.measure.evaluation import evaluate

    with Bars() as bars:
        scores = evaluate(args.images, args.reference, **given(args, "resamples", *_NETWORK), on_progress=bars)
    frechet = scores.frechet
    if frechet.num_samples < FEWEST_FOR_PUBLISHED:
        few = f"{frechet.num_samples:,} pictures are fewer than {FEWEST_FOR_PUBLISHED:,}"
        say(f"{few}: this distance stands beside no published one")
    if args.json:
        put(*json.dumps(asdict(scores), indent=2).split("\n"))
        return
    for name, value in scores.values().items():
        put(f"{name}: {shown(value)}")
    put(f"{frechet.num_samples:,} pictures against {frechet.reference}: {reference_shown(frechet)}")
    if args.resamples:
        put("in brackets: 95 % intervals of what as many other pictures of the same kind would have on average")


def _check(args: Namespace) -> None:
    from cascade.measure.check import check_against_adm

    with Bars() as bars:
        found = check_against_adm(args.samples, args.reference, **given(args, "weights", "device"), on_progress=bars)
    for figure in found.figures:
        verdict = "agrees" if figure.agrees else "DIFFERS"
        within = f"within {figure.published.tolerance:g}"
        put(f"{figure.name}: {figure.ours:.6g} here, {figure.published.value:g} by ADM's evaluator: {verdict} ({within})")
    put(f"{found.num_samples:,} samples, SHA-256 of their pixels {found.samples_hash}; reference, SHA-256 {found.reference_hash}")
    if not found.agrees:
        raise RuntimeError("this program's figures are not those of ADM's evaluator, or the files are others")


def _cas(args: Namespace) -> None:
    check_folder(args.out)
    from cascade.eval.classification_score import Training
    from cascade.eval.report import shown
    from cascade.measure.classification_score import classification_score

    training = Training(**given(args, "network", "epochs", "batch_size", "seed"))
    with Bars() as bars:
        options = given(args, "samples", "real", "out", "crop", "size", "device")
        found = classification_score(**options, training=training, on_progress=bars)
    unusable = f", {found.unusable:,} more could not be used" if found.unusable else ""
    put(f"classification accuracy score: top-1 {shown(found.top1)} %, top-5 {shown(found.top5)} %")
    put(f"of {found.num_real:,} real pictures{unusable}, in brackets 95 % intervals of as many others")
    learned = f"{found.num_samples:,} samples of {found.num_classes:,} classes in {training.epochs:,} passes"
    put(f"by {training.network} that learned from {learned}; read it beside the score of as many real training pictures")


def _sr(args: Namespace) -> None:
    protocol = None if args.protocol is None else load_protocol(args.protocol)
    request = Request.of(args, to_the_end=True)
    check_folder(args.out)
    cascade, sampling = request.load()
    from cascade.measure.super_resolution import evaluate_sr

    with Bars() as bars:
        names = ("images", "stage", "by_steps", "num_images", "seed", "regression", "weights", "crop_rule", "resamples")
        options = given(args, *names, "classifier", "classifier_weights", "batch_size") | {"protocol": protocol}
        options["extractor"] = None if args.no_distance else args.extractor
        report = evaluate_sr(cascade, args.out, **options, sampling=sampling, on_progress=bars)
    show(report, args.out)
