"""`cascade evaluate`: references, scores of pictures, SR3 stages, and the classifier of drawings."""

from __future__ import annotations

import json
from argparse import ArgumentParser, Namespace
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from cascade.cli.arguments import DEFAULT_MODEL, add_resamples, add_sampling_options, positive, seed
from cascade.cli.progress import Progress, say
from cascade.cli.sampling import Request
from cascade.runs.run import check_folder

if TYPE_CHECKING:
    from cascade.eval.images import ImageSet

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


def _add_network(parser: ArgumentParser) -> None:
    """Which network describes pictures, and how they were cut."""
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


def _add_extractor(parser: ArgumentParser) -> None:
    _add_network(parser)
    parser.add_argument("--size", type=positive, metavar="PX", help="side that the pictures must have; drawings are drawn at it")
    parser.add_argument("--device", default="cpu", metavar="D", help="where the extractor runs (default cpu)")


def _reference_options(parser: ArgumentParser) -> None:
    parser.add_argument("images", metavar="IMAGES", help=_IMAGES)
    parser.add_argument("--out", type=Path, required=True, metavar="FILE.npz", help="file of the reference")
    parser.add_argument(
        "--crop",
        choices=("adm", "area"),
        help="IMAGES are photos, named as data.source in a recipe: cut to --size by this rule, that of training",
    )
    _add_extractor(parser)


def _images_options(parser: ArgumentParser) -> None:
    parser.add_argument("images", metavar="IMAGES", help=_IMAGES)
    parser.add_argument(
        "--reference",
        required=True,
        metavar="REFERENCE",
        help="a file of `cascade evaluate reference`, ADM's .npz or another of mu and sigma, cleanfid:NAME or cleanfid:NAME:SPLIT"
        f" (statistics that clean-fid publishes), or real pictures: {_IMAGES}",
    )
    add_resamples(parser)
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
    parser.add_argument("--regression", type=Path, metavar="DIR", help="a regression stage of the same sizes, measured too")
    parser.add_argument("--no-distance", action="store_true", help="leave the distance to the originals out")
    _add_network(parser)
    add_resamples(parser)
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
    from cascade.eval.references import build_reference
    from cascade.measure.named import crop_rule_of, extractor_of, image_source

    if args.out.suffix != ".npz":
        raise ValueError(f"--out is {args.out}, expected a file that ends in .npz")
    if args.crop and (not args.size or args.crop_rule):
        raise ValueError("--crop needs the --size of the pictures, and names their crop rule itself: leave --crop-rule out")
    extractor = extractor_of(args.extractor, args.weights, args.device)
    with Progress("features", "pictures") as progress, ExitStack() as stack:
        if args.crop:
            images, rule = stack.enter_context(_cut(args))
        else:
            images, rule = image_source(args.images, size=args.size, minimum=2)[0], crop_rule_of(args.images, args.crop_rule)
        made = build_reference(
            args.out,
            images,
            extractor,
            crop_rule=rule,
            on_batch=lambda done: progress.update(done, len(images)),
        )
    described = f"{made.provenance.extractor} ({made.provenance.resize_mode})"
    print(f"{args.out}: {made.count:,} pictures of {images.size} px, {described}, SHA-256 {made.file_hash}")


@contextmanager
def _cut(args: Namespace) -> Iterator[tuple[ImageSet, str | None]]:
    """The photos as square pictures, for a while in a file beside the reference; and the name of their rule."""
    from cascade.data import open_pictures
    from cascade.data.checking import cores, keep_pixels
    from cascade.eval.images import image_array
    from cascade.eval.references import ADM_CROP_RULE
    from cascade.stages.training import Data

    args.out.parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(prefix=".cutting-", dir=args.out.parent) as folder:
        with Progress("cutting") as progress:
            photos = open_pictures(Data(source=args.images, crop=args.crop), args.size, progress.update)
            pixels, log = keep_pixels(photos, Path(folder) / "pictures", cores(), progress.update)
        if table := log.table():
            say(table)
        yield image_array(pixels, name=args.images, minimum=2), ADM_CROP_RULE if args.crop == "adm" else "area-centre"


def _images(args: Namespace) -> None:
    from cascade.eval.images import ImageSet, image_array
    from cascade.eval.scoring import FEWEST_FOR_PUBLISHED, MANIFOLD_K
    from cascade.measure.comparisons import features_of, scored
    from cascade.measure.named import crop_rule_of, extractor_of, image_source, reference_source

    images, _ = image_source(args.images, size=args.size, minimum=MANIFOLD_K + 1)
    crop_rule = crop_rule_of(args.images, args.crop_rule)
    real = reference_source(args.reference, image_size=images.size, extractor=args.extractor, minimum=MANIFOLD_K + 1)
    extractor = extractor_of(args.extractor, args.weights, args.device)
    samples = features_of(images, extractor, crop_rule, "features of the pictures")
    if isinstance(real, ImageSet):
        rule = crop_rule_of(args.reference, None)
        theirs = features_of(real, extractor, rule, "features of the reference", kept=True)
        scores = scored(samples, theirs, theirs, args.resamples)
    else:
        of_images = None
        if real.images is not None:
            pictures = image_array(real.images, name=real.name)
            of_images = features_of(pictures, extractor, real.provenance.crop_rule, "features of the reference", kept=True)
        scores = scored(samples, real, of_images, args.resamples)
    if len(images) < FEWEST_FOR_PUBLISHED:
        few = f"{len(images):,} pictures are fewer than {FEWEST_FOR_PUBLISHED:,}"
        say(f"{few}: this distance stands beside no published one")
    _print_scores(scores, args)


def _print_scores(scores: Any, args: Namespace) -> None:
    from dataclasses import asdict

    from cascade.eval.report import shown

    if args.json:
        print(json.dumps(asdict(scores), indent=2))
        return
    frechet = scores.frechet
    count = "an unknown number of" if frechet.reference_count is None else f"{frechet.reference_count:,}"
    for name, value in scores.values().items():
        print(f"{name}: {shown(value)}")
    print(f"{frechet.num_samples:,} pictures against {count} of {frechet.reference}, SHA-256 {frechet.reference_hash}")
    if args.resamples:
        print(f"in brackets: 95 % intervals from {args.resamples} bootstrap resamples")


def _sr(args: Namespace) -> None:
    request = Request.of(args)
    check_folder(args.out)
    from cascade.eval.report import table
    from cascade.eval.report_files import write_report
    from cascade.measure.sr_report import SROptions, sr_report

    options = SROptions(
        images=args.images,
        stage=args.stage,
        regression=args.regression,
        num_images=args.num_images,
        seed=args.seed,
        extractor=None if args.no_distance else args.extractor,
        weights=args.weights,
        crop_rule=args.crop_rule,
        resamples=args.resamples,
    )
    report = sr_report(request, options, args.out)
    write_report(report, args.out)
    print(table(report))
    print(args.out / "report.html")


def _classifier(args: Namespace) -> None:
    import numpy as np

    from cascade.classes import EMOJI
    from cascade.data.drawings import may_flip
    from cascade.eval.classifier import ClassifierConfig, class_agreement, class_probabilities, save_classifier
    from cascade.measure.named import image_source
    from cascade.runs.run import labels_of_run
    from cascade.training.classifier import TrainingSettings, train_classifier

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

        def report(e: Any) -> None:
            progress.update(e.epoch, e.epochs, f"loss {e.loss:.3f}")

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
