"""`cascade export`: a model in a format that others run."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from importlib.util import find_spec
from pathlib import Path

from cascade.cli.arguments import positive
from cascade.cli.terminal import put

NAME = "export"
HELP = "Write a model's networks as ONNX, to run without torch."

EPILOG = """
examples:
  cascade export emoji --format onnx --out emoji-onnx/
  python examples/onnx_cascade.py emoji-onnx cat cat.png

Each file is checked against torch before the folder appears. Needs onnx and onnxruntime: pip install 'cascade-diffusion[onnx]'.
"""


def add_arguments(parser: ArgumentParser) -> None:
    add = parser.add_argument
    add("model", metavar="MODEL", help="a shipped or installed model, a folder, or an id on the Hugging Face Hub")
    add("--format", choices=("onnx",), default="onnx", help="of the files (default onnx)")
    add("--size", type=positive, metavar="PX", help="only the stages that make pictures of this size (default: all)")
    add("--out", type=Path, required=True, metavar="DIR", help="folder of the files; an earlier export in it is replaced")


def run(args: Namespace) -> None:
    if missing := [name for name in ("onnx", "onnxruntime") if find_spec(name) is None]:
        raise ValueError(f"cascade export needs {' and '.join(missing)}: pip install 'cascade-diffusion[onnx]'")
    from cascade.cli.progress import silence_libraries
    from cascade.onnx_export import export_onnx
    from cascade.pipeline import CascadePipeline

    silence_libraries()
    put(export_onnx(CascadePipeline.from_pretrained(args.model, dtype="float32", size=args.size), args.out))
