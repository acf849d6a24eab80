"""`cascade study`: people choose between real and made pictures."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from pathlib import Path
from typing import TYPE_CHECKING

from cascade.cli.arguments import add_commands, add_place, add_sampling_options, given, natural, positive, seconds, seed
from cascade.cli.progress import Bars, reach, show
from cascade.cli.terminal import put, say

if TYPE_CHECKING:
    from cascade.pipeline import CascadePipeline
    from cascade.stage_sampling import StageSampling

NAME = "study"
HELP = "Let people choose between real and made pictures, and tell how often they are fooled."

EPILOG = """
examples:
  cascade study make photos/ samples/ --out study
  cascade study make drawings:heldout emoji --out study
  cascade study make photos/ sr3=enlarged/ bicubic=others/ --small 64 --out study
  cascade study serve study
  cascade study report study

study/study.html is the same page in one file: send it to people, and give the files that they send back to `report`.
"""


def add_arguments(parser: ArgumentParser) -> None:
    add_commands(
        parser,
        ("make", "Pair real pictures with made ones, and write the page.", _make_options, _make),
        ("serve", "Show the page to people, and store their answers as they come.", _serve_options, _serve),
        ("report", "Print how often people were fooled, by method, beside SR3's rates.", _report_options, _report),
    )


def run(args: Namespace) -> None:
    args.action(args)


def _make_options(parser: ArgumentParser) -> None:
    add = parser.add_argument
    add("real", metavar="REAL", help="real pictures: a folder, an .npz with arr_0, or drawings:heldout")
    text = "folder of made pictures, or a model that makes them; NAME=... says what the report calls it"
    add("made", nargs="+", metavar="MADE", help=text)
    add("--out", type=Path, required=True, metavar="STUDY", help="folder of the study")
    text = "show the real picture made as small as this between the two; a model then enlarges it (default: not shown)"
    add("--small", type=positive, metavar="PX", help=text)
    add("--seconds", type=seconds, default=3.0, metavar="S", help="for which a pair is seen, 0 = until the answer (default 3)")
    text = "real pictures that count, of all classes alike (default 100)"
    add("--num-pictures", type=positive, default=100, metavar="N", help=text)
    add("--per-rater", type=positive, default=50, metavar="N", help="pairs for each person (default 50)")
    add("--practice", type=natural, default=4, metavar="N", help="pairs before, which tell what was right (default 4)")
    text = "pairs in between that nobody who looks gets wrong; who fails one doesn't count (default 4)"
    add("--checks", type=natural, default=4, metavar="N", help=text)
    add("--title", default="Real or made?", metavar="TEXT", help="heading of the page")
    add("--seed", type=seed, default=0, metavar="S", help="of a model's first picture (default 0)")
    add_sampling_options(parser)


def _serve_options(parser: ArgumentParser) -> None:
    add = parser.add_argument
    add("study", type=Path, metavar="STUDY", help="folder of a study")
    add_place(parser, 8000)


def _report_options(parser: ArgumentParser) -> None:
    add = parser.add_argument
    add("study", type=Path, metavar="STUDY", help="folder of a study; what its server stored is read")
    add("answers", type=Path, nargs="*", metavar="FILE", help="answers that people saved from study.html")


def _make(args: Namespace) -> None:
    made: dict[str, Path | CascadePipeline] = {}
    sampling: dict[str, StageSampling] = {}
    for text in args.made:
        before, _, after = text.partition("=")
        source = after or text
        name = before if after else Path(text).name
        if name in made:
            raise ValueError(f"two methods are called {name!r}; call one of them otherwise, as other={source}")
        if Path(source).is_dir() and not _is_model(Path(source)):
            made[name] = Path(source)
        else:
            made[name], sampling = _model(args, source)
    if len([one for one in made.values() if not isinstance(one, Path)]) > 1:
        raise ValueError("two models are given; make the pictures of one by `cascade sample`, and give their folder")
    from cascade.measure.study import make_study

    with Bars() as bars:
        names = ("small", "num_pictures", "per_rater", "practice", "checks", "title", "seed")
        options = given(args, *names) | {"seconds": args.seconds or None}
        study = make_study(args.real, made, args.out, **options, sampling=sampling, on_progress=bars)
    rated = {pair.picture for pair in study.pairs if pair.kind == "rated"}
    put(f"{args.out}: {len(rated)} pictures by {', '.join(study.methods)}, {study.per_rater} pairs for each person")
    put(f"{args.out / 'study.html'} needs no network; `cascade study serve {args.out}` stores answers as they come")


def _is_model(folder: Path) -> bool:
    """Whether a folder is that of a cascade, a stage or a training run rather than of pictures."""
    from cascade.folder import MANIFEST, stage_folder

    return (folder / MANIFEST).is_file() or stage_folder(folder) is not None


def _model(args: Namespace, source: str) -> tuple[CascadePipeline, dict[str, StageSampling]]:
    """The model that is given, and how it is sampled."""
    from cascade.cli.request import Request

    args.model = source
    return Request.of(args, to_the_end=True).load()


def _serve(args: Namespace) -> None:
    from cascade.eval.study.design import ANSWERS
    from cascade.eval.study.server import StudyServer

    with StudyServer(args.study, args.host, args.port) as server:
        say(f"{server.study.title} is served on {server.url}, {reach(args.host)}; Ctrl-C ends it")
        try:
            server.run()
        except KeyboardInterrupt:
            answers, raters = server.answers.counts()
            put(f"{args.study / ANSWERS}: {answers} answers of {raters} people")


def _report(args: Namespace) -> None:
    from cascade.measure.study import report_study

    show(report_study(args.study, args.answers), args.study / "report")
