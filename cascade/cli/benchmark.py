"""`cascade benchmark`: sample by a protocol, score, and print the table beside published figures."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace, RawDescriptionHelpFormatter
from pathlib import Path

from cascade.cli.arguments import DEFAULT_MODEL, add_resamples, add_sampling_options, positive, seed
from cascade.cli.errors import Failure
from cascade.cli.progress import say
from cascade.cli.sampling import Request
from cascade.measure.protocols import protocol_names, protocol_path
from cascade.runs.processes import add_process_options
from cascade.runs.run import check_folder

NAME = "benchmark"
HELP = "Sample a model by a protocol, score it, and print the table beside published figures."

_TEXT = """
examples:
  cascade benchmark emoji --protocol emoji-256 --out bench/
  torchrun --nproc-per-node 8 -m cascade benchmark my-imagenet --protocol imagenet-256 \\
      --reference VIRTUAL_imagenet256_labeled.npz --out bench/

The same command goes on where a run was stopped. Report: report.md, report.json and report.html in the folder.
"""


def add_arguments(parser: ArgumentParser) -> None:
    parser.formatter_class = RawDescriptionHelpFormatter
    parser.epilog = _TEXT
    parser.add_argument("model", nargs="?", default=DEFAULT_MODEL, metavar="MODEL", help="a cascade (default emoji)")
    parser.add_argument(
        "--protocol", required=True, metavar="NAME", help=f"{', '.join(protocol_names())}; or a YAML file of your own"
    )
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder for samples and report")
    parser.add_argument("--num-images", type=positive, metavar="N", help="samples (default: the protocol's)")
    parser.add_argument("--seed", type=seed, default=0, metavar="S", help="added to the protocol's seeds (default 0)")
    parser.add_argument("--reference", metavar="REFERENCE", help="real pictures or statistics, where a protocol needs them")
    parser.add_argument("--weights", type=Path, metavar="FILE", help="of the feature network (default: downloaded once, checked)")
    add_resamples(parser)
    add_sampling_options(parser)
    add_process_options(parser)
    parser.set_defaults(size=None)


def run(args: Namespace) -> None:
    protocol_path(args.protocol)
    request = Request.of(args)
    from cascade.measure.protocols import load_protocol

    protocol = load_protocol(args.protocol)
    count = args.num_images or protocol.num_images
    if protocol.kind == "samples":
        args.size = protocol.size
        request = Request.of(args)
        check_folder(args.out / "samples")
    from cascade.eval.report import table
    from cascade.eval.report_files import write_report
    from cascade.measure.samples import samples_report
    from cascade.measure.sr_report import SROptions, sr_report

    if protocol.kind == "super-resolution":
        source = args.reference or protocol.reference
        if source is None:
            raise ValueError(f"protocol {protocol.name} needs --reference: {protocol.reference_file}")
        options = SROptions(
            images=source,
            num_images=count,
            seed=args.seed,
            extractor=protocol.extractor,
            weights=args.weights,
            crop_rule=protocol.crop_rule,
            resamples=args.resamples,
        )
        report = sr_report(request, options, args.out, protocol)
    else:
        made = samples_report(
            protocol,
            request,
            args.out,
            num_images=count,
            first_seed=args.seed,
            reference=args.reference,
            weights=args.weights,
            resamples=args.resamples,
        )
        if made is None:
            say("the share of this process is done; the last process to end scores all samples")
            return
        report = made
    try:
        write_report(report, args.out)
    except OSError as error:
        raise Failure(f"the report could not be written to {args.out}: {error.strerror or error}") from error
    print(table(report))
    for note in report.notes:
        print(f"- {note}")
    print(args.out / "report.html")
