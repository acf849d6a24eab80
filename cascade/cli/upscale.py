"""`cascade upscale`: refine pictures that exist already."""

from __future__ import annotations

import json
from argparse import ArgumentParser, Namespace
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cascade import png as pictures
from cascade.cli.arguments import add_model_options, positive, seed
from cascade.cli.request import Request, StageLines
from cascade.cli.terminal import put
from cascade.stages.saved import read_json

if TYPE_CHECKING:
    from PIL.Image import Image

NAME = "upscale"
HELP = (
    "Enlarge square pictures by the refining stages of a model. Each file is called after its source and its size (cat-256.png)."
)


def add_arguments(parser: ArgumentParser) -> None:
    add = parser.add_argument
    add("images", type=Path, nargs="+", metavar="IMAGE", help="square pictures, smaller than what the model makes")
    add("--class", dest="classes", action="append", metavar="C", help="what they show: one class for all, or one for each")
    add("--size", type=positive, metavar="PX", help="stop at the stage that makes this size (default: the last stage)")
    add("--seed", type=seed, default=0, metavar="S", help="of every picture (default 0)")
    add("--out", type=Path, metavar="PATH", help="folder, or a .png or .jpg for a single picture (default: the current folder)")
    add("--json", action="store_true", help="print what was made as JSON instead of the names of the files")
    add_model_options(parser)


def run(args: Namespace) -> None:
    request = Request.of(args, args.size, to_the_end=True)
    labels = _labels(request, args.classes or [], len(args.images))
    paths = [_target(args.out, source, request.size, len(args.images)) for source in args.images]
    sources = [read_square(source, request.size) for source in args.images]
    clash = next((path for path in paths if path.exists() and any(path.samefile(source) for source in args.images)), None)
    if clash is not None:
        raise ValueError(f"{clash} is one of the pictures to enlarge, so it is not replaced; choose another --out")
    pictures.check_targets(paths)
    files = []
    for entry in _enlarged(args, request, zip(args.images, sources, labels, paths, strict=True)):
        files.append(entry)
        if not args.json:
            put(entry["path"])
    if args.json:
        put(*json.dumps({"model": request.manifest.name, "files": files}, indent=2).split("\n"))


def _labels(request: Request, queries: Sequence[str], count: int) -> list[int | None]:
    """Class of every picture; None for a model that is asked without."""
    if len(queries) not in (0, 1, count):
        raise ValueError(f"{len(queries)} classes are given for {count} pictures; give one for all, or one for each")
    if not queries:
        if request.classes is not None and needs_classes(request):
            example = f"--class {request.query(0)}"
            raise ValueError(f"no class is given: {request.manifest.name!r} needs to know what the pictures show, as {example}")
        return [None] * count
    labels: list[int | None] = [request.label(query) for query in queries]
    return labels if len(labels) == count else labels * count


def needs_classes(request: Request) -> bool:
    """Whether a refining stage that may run knows classes, which the base of a model can without it."""
    stages = [stage for stage in request.manifest.up_to(request.size).stages if stage.low_res_size]
    configs = [read_json(request.folder / stage.folder / "unet" / "config.json") for stage in stages]
    return any(config.get("num_classes", 0) is not None for config in configs)


def _target(out: Path | None, source: Path, size: int, count: int) -> Path:
    if out is not None and pictures.is_picture(out):
        if count > 1:
            raise ValueError(f"--out is {out}, but {count} pictures are given; give a folder")
        return out
    return (out or Path()) / f"{source.stem}-{size}.png"


def read_square(path: Path, size: int) -> Image:
    """A picture smaller than `size`, upright, what is transparent laid on white; ValueError if it is not one, or not square."""
    from PIL import Image, ImageOps

    from cascade.eval.pictures import open_picture

    try:
        with open_picture(path) as opened:
            image = ImageOps.exif_transpose(opened).convert("RGBA")
    except FileNotFoundError:
        raise ValueError(f"there is no file {path}") from None
    except Exception as error:  # Pillow's readers raise almost anything at hostile files
        what = f"{path} can't be read as a picture ({type(error).__name__})"
        raise ValueError(f"{what}; expected a PNG, JPEG or the like") from error
    own = f"{path} is {image.width}x{image.height}"
    if image.width != image.height:
        raise ValueError(f"{own}, expected a square picture; crop it first")
    if image.width >= size:
        raise ValueError(f"{own} already, and the model makes {size}x{size}; give a smaller picture")
    return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")


def _enlarged(
    args: Namespace, request: Request, jobs: Iterable[tuple[Path, Image, int | None, Path]]
) -> Iterator[dict[str, Any]]:
    """Run the model on each picture, by source, class and target, and write it; gives what the JSON says of it."""
    cascade, sampling = request.load()
    call: dict[str, Any] = {"seeds": args.seed, "size": request.size, "sampling": sampling, "batch_size": args.batch_size}
    for source, image, label, path in jobs:
        out: Any = cascade.upscale(image, label, callback_on_step_end=StageLines(cascade, str(source)), **call)
        labels = [] if label is None else [label]
        words = ["cascade", "upscale", str(source), *(word for one in labels for word in ("--class", request.query(one)))]
        settings = cascade.described(list(out.stages), sampling, args.batch_size)
        origin = request.origin([*words, "--seed", str(args.seed)], labels, (args.seed,), settings, None)
        pictures.write(path, out.images[0], origin)
        made = {"path": str(path), "source": str(source), "class_index": label, "seed": args.seed, "size": request.size}
        yield made | {"command": origin.command}
