"""`cascade benchmark`: sample by a protocol, score, and print the table beside published figures."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from pathlib import Path

from cascade.cli.arguments import DEFAULT_MODEL, RUN_OPTIONS, add_resamples, add_run_options, given, positive, seed
from cascade.cli.progress import Bars, show
from cascade.cli.request import Request
from cascade.cli.terminal import say
from cascade.measure.protocols import load_protocol, protocol_names
from cascade.runs.record import check_folder

NAME = "benchmark"
HELP = "Sample a model by a protocol, score it, and print the table beside published figures."

EPILOG = """
examples:
  cascade benchmark emoji --protocol emoji-256 --out bench/
  torchrun --nproc-per-node 8 -m cascade benchmark my-imagenet --protocol imagenet-256 \\
      --reference VIRTUAL_imagenet256_labeled.npz --out bench/

The same command goes on where a run was stopped. Report: report.md, report.json and report.html in the folder.
"""


def add_arguments(parser: ArgumentParser) -> None:
    add = parser.add_argument
    add("model", nargs="?", default=DEFAULT_MODEL, metavar="MODEL", help="a cascade (default emoji)")
    add("--protocol", required=True, metavar="NAME", help=f"{', '.join(protocol_names())}; or a YAML file of your own")
    add("--out", type=Path, required=True, metavar="DIR", help="folder for samples and report")
    add("--num-images", type=positive, metavar="N", help="samples (default: the protocol's)")
    add("--seed", type=seed, default=0, metavar="S", help="added to the protocol's seeds (default 0)")
    add("--reference", metavar="REFERENCE", help="real pictures or statistics, where a protocol needs them")
    add("--weights", type=Path, metavar="FILE", help="of the feature network (default: downloaded once, checked)")
    text = "of torchvision's ResNet-50, where the protocol judges by it (default: downloaded once, checked)"
    add("--classifier-weights", type=Path, metavar="FILE", help=text)
    text = "which SR3 stage, by a protocol of super-resolution (default: the one that makes the protocol's size)"
    add("--stage", metavar="NAME", help=text)
    add_resamples(parser)
    add_run_options(parser)


def run(args: Namespace) -> None:
    protocol = load_protocol(args.protocol)
    of_samples = protocol.kind == "samples"
    request = Request.of(args, protocol.size if of_samples else None, to_the_end=not of_samples)
    check_folder(args.out / "samples" if of_samples else args.out)
    cascade, sampling = request.load()
    from cascade.measure.benchmark import benchmark

    with Bars() as bars:
        names = ("num_images", "seed", "reference", "weights", "classifier_weights", "stage", "resamples")
        options = given(args, *names, *RUN_OPTIONS)
        report = benchmark(cascade, protocol, args.out, **options, sampling=sampling, on_progress=bars)
    if report is None:
        say("the share of this process is done; the last process to end scores all samples")
    else:
        show(report, args.out)
