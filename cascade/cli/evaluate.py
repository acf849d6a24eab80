"""`cascade evaluate`: references, scores of pictures, SR3 stages, and the classifier of drawings."""

from __future__ import annotations

import json
from argparse import ArgumentParser, Namespace
from collections.abc import Callable
from pathlib import Path
from typing import Any

from cascade.cli.arguments import DEFAULT_MODEL, add_sampling_options, positive, seed
from cascade.cli.progress import Progress, say
from cascade.cli.sampling import Request
from cascade.runs import check_folder

NAME = "evaluate"
HELP = "Measure pictures: build references, score sets of pictures, SR3 stages, and train a classifier."

_IMAGES = "a folder of pictures, an .npz with arr_0, drawings:train or drawings:heldout"
_EXTRACTORS = ("efficientnet-lite0", "inception-clean", "inception-tensorflow", "inception-pytorch", "dinov2")


def add_arguments(parser: ArgumentParser) -> None:
    commands = parser.add_subparsers(metavar="WHAT", required=True)
    for name, text, options, action in (
        ("reference", "Measure real pictures once and keep the statistics.", _reference_options, _reference),
        ("images", "Score pictures against real ones.", _images_options, _images),
        ("sr", "Enlarge real pictures made small, and compare with the originals.", _sr_options, _sr),
        ("classifier", "Train a classifier and test it on held-out drawings.", _classifier_options, _classifier),
    ):
        command = commands.add_parser(name, help=text, description=text)
        options(command)
        command.set_defaults(action=action)


def run(args: Namespace) -> None:
    args.action(args)


def _add_extractor(parser: ArgumentParser) -> None:
    parser.add_argument(
        "--extractor",
        choices=_EXTRACTORS,
        default="efficientnet-lite0",
        help="network that describes pictures (default efficientnet-lite0, which needs no download; its distance is not FID)",
    )
    parser.add_argument("--weights", type=Path, metavar="FILE", help="of the extractor (default: downloaded once, checked)")
    parser.add_argument(
        "--crop-rule", metavar="TEXT", help="how the pictures were cut from their originals; only equal ones are compared"
    )
    parser.add_argument("--size", type=positive, metavar="PX", help="side that the pictures must have; drawings are drawn at it")
    parser.add_argument("--device", default="cpu", metavar="D", help="where the extractor runs (default cpu)")


def _reference_options(parser: ArgumentParser) -> None:
    parser.add_argument("images", metavar="IMAGES", help=_IMAGES)
    parser.add_argument("--out", type=Path, required=True, metavar="FILE.npz", help="file of the reference")
    _add_extractor(parser)


def _images_options(parser: ArgumentParser) -> None:
    parser.add_argument("images", metavar="IMAGES", help=_IMAGES)
    parser.add_argument(
        "--reference",
        required=True,
        metavar="REFERENCE",
        help=f"a file of `cascade evaluate reference`, one of ADM's .npz files, or real pictures: {_IMAGES}",
    )
    parser.add_argument("--json", action="store_true", help="print everything as JSON")
    _add_extractor(parser)


def _sr_options(parser: ArgumentParser) -> None:
    parser.add_argument("model", nargs="?", default=DEFAULT_MODEL, metavar="MODEL", help="a cascade (default emoji)")
    parser.add_argument(
        "--images",
        default="drawings:heldout",
        metavar="IMAGES",
        help=f"{_IMAGES}; a folder of class folders says what they show (default drawings:heldout)",
    )
    parser.add_argument("--stage", metavar="NAME", help="which SR3 stage (default: the last)")
    parser.add_argument("-n", "--num-images", type=positive, default=100, metavar="N", help="the first N pictures (default 100)")
    parser.add_argument("--seed", type=seed, default=0, metavar="S", help="of the first picture (default 0)")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder for the pictures and the report")
    parser.add_argument("--no-distance", action="store_true", help="leave the EfficientNet-Lite distance out")
    add_sampling_options(parser)
    parser.set_defaults(size=None)


def _classifier_options(parser: ArgumentParser) -> None:
    parser.add_argument(
        "--samples",
        type=Path,
        metavar="DIR",
        help="train on the pictures of a sampling run alone: the classification accuracy score (default: the training drawings)",
    )
    parser.add_argument("--out", type=Path, metavar="FILE.safetensors", help="keep the weights here")
    parser.add_argument("--epochs", type=positive, default=20, metavar="N", help="(default 20)")
    parser.add_argument("--seed", type=seed, default=0, metavar="S", help="of weights and order (default 0)")


def _reference(args: Namespace) -> None:
    from cascade.sources import crop_rule_of, extractor_of, image_source
    from eval.references import measure
    from eval.statistics import save_statistics

    if args.out.suffix != ".npz":
        raise ValueError(f"--out is {args.out}, expected a file that ends in .npz")
    images, _ = image_source(args.images, size=args.size, minimum=2)
    extractor = extractor_of(args.extractor, args.weights, args.device)
    with Progress("features", "pictures") as progress:
        statistics, made_by = measure(
            images,
            extractor,
            crop_rule=crop_rule_of(args.images, args.crop_rule),
            on_batch=lambda done: progress.update(done, len(images)),
        )
    save_statistics(args.out, statistics, made_by)
    print(f"{args.out}: {statistics.count:,} pictures of {images.size} px, {made_by.extractor} ({made_by.resize_mode})")


def _images(args: Namespace) -> None:
    from cascade.sources import crop_rule_of, extractor_of, feature_cache, image_source, reference_file
    from eval.scoring import FEWEST, measured, score, score_against

    images, _ = image_source(args.images, size=args.size, minimum=2)
    path = Path(args.reference)
    real = reference_file(path, images.size) if path.suffix == ".npz" else None
    reals = None if real is not None else image_source(args.reference, size=images.size, minimum=2)[0]
    extractor = extractor_of(args.extractor, args.weights, args.device)
    crop_rule = crop_rule_of(args.images, args.crop_rule)
    with Progress("features of the pictures", "pictures") as progress:
        samples = measured(images, extractor, crop_rule=crop_rule, on_batch=progress.update)
    if real is not None:
        scores = score_against(samples, real, extractor)
    else:
        assert reals is not None
        rule = crop_rule_of(args.reference, None)
        with Progress("features of the reference", "pictures") as progress:
            theirs = measured(reals, extractor, crop_rule=rule, cache=feature_cache(), on_batch=progress.update)
        scores = score(samples, theirs)
    if len(images) < FEWEST:
        say(f"{len(images):,} pictures are fewer than {FEWEST:,}: this distance stands beside no published one")
    _print_scores(scores, args.json)


def _print_scores(scores: Any, as_json: bool) -> None:
    from dataclasses import asdict

    if as_json:
        print(json.dumps(asdict(scores), indent=2))
        return
    frechet = scores.frechet
    count = "an unknown number of" if frechet.reference_count is None else f"{frechet.reference_count:,}"
    print(f"{scores.distance_name}: {frechet.distance:.4f}")
    if scores.kid is not None:
        print(f"kernel distance x 1000: {1000 * scores.kid.mean:.4f} +- {1000 * scores.kid.std:.4f}")
    if scores.manifold is not None:
        m = scores.manifold
        parts = [f"{name} {getattr(m, name):.4f}" for name in ("precision", "recall", "density", "coverage")]
        print(f"{', '.join(parts)} (k = {m.k})")
    print(f"{frechet.num_samples:,} pictures against {count} of {frechet.reference}")


def _sr(args: Namespace) -> None:
    request = Request.of(args)
    check_folder(args.out)
    from cascade.cli.measuring import sr_report
    from eval.report import table, write_report

    report = sr_report(
        request,
        args.images,
        args.out,
        stage=args.stage,
        num_images=args.num_images,
        first_seed=args.seed,
        with_distance=not args.no_distance,
    )
    write_report(report, args.out)
    print(table(report))
    print(args.out / "report.html")


def _classifier(args: Namespace) -> None:
    import numpy as np

    from cascade.drawings import may_flip
    from cascade.labels import EMOJI
    from cascade.runs import labels_of_run
    from cascade.sources import image_source
    from eval.classifier import (
        ClassifierConfig,
        TrainingSettings,
        class_agreement,
        class_probabilities,
        save_classifier,
        train_classifier,
    )

    config = ClassifierConfig(num_classes=len(EMOJI))
    if args.samples is None:
        images, labels = image_source("drawings:train", size=config.image_size)
    else:
        given = labels_of_run(args.samples)
        images, _ = image_source(str(args.samples))
        if any(label is None or label >= len(EMOJI) for label in given) or len(given) != len(images):
            raise ValueError(f"{args.samples} holds no complete run of the {len(EMOJI)} classes of drawings as PNG files")
        labels = np.array(given, np.int64)
    assert labels is not None
    heldout, real_labels = image_source("drawings:heldout", size=config.image_size)
    assert real_labels is not None
    with Progress("training", "epochs") as progress:
        report: Callable[..., None] = lambda e: progress.update(e.epoch, e.epochs, f"loss {e.loss:.3f}")  # noqa: E731
        model = train_classifier(
            images.array(),
            labels,
            config=config,
            may_flip=np.array([may_flip(name) for name in EMOJI.names]),
            settings=TrainingSettings(epochs=args.epochs, seed=args.seed),
            on_epoch=report,
        )
    found = class_agreement(class_probabilities(model, heldout.array()), real_labels)
    trained_on = f"{len(images):,} {'training drawings' if args.samples is None else 'samples'}"
    print(f"trained on {trained_on}: top-1 {found.top1:.4f}, top-5 {found.top5:.4f} of {found.num_images} held-out drawings")
    if args.out is not None:
        save_classifier(model, args.out, {"heldout_top1": f"{found.top1:.4f}", "heldout_top5": f"{found.top5:.4f}"})
        print(args.out)
