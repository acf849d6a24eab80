"""`cascade demo`: a page on which pictures are made, refined and enlarged by clicks."""

from __future__ import annotations

import socket
from argparse import ArgumentParser, Namespace
from contextlib import suppress

from cascade.cli.arguments import DEFAULT_MODEL, SAMPLING_OPTIONS, add_machine_options, add_place
from cascade.cli.progress import reach
from cascade.cli.request import Request
from cascade.cli.terminal import say

NAME = "demo"
HELP = "Make, refine and enlarge pictures on a page in the browser."

EPILOG = """
examples:
  cascade demo
  cascade demo my-model --port 7861

The page is served to this machine alone unless --host says otherwise, and loads nothing from elsewhere. Needs the extra `demo`:
pip install 'cascade-diffusion[demo]', in a checkout pip install -c constraints.txt -e '.[demo]'
"""


def add_arguments(parser: ArgumentParser) -> None:
    text = "an installed model, a folder, or a Hub id (default emoji)"
    parser.add_argument("model", nargs="?", default=DEFAULT_MODEL, metavar="MODEL", help=text)
    add_place(parser, 7860)
    add_machine_options(parser)


def run(args: Namespace) -> None:
    vars(args).update(dict.fromkeys(SAMPLING_OPTIONS))
    request = Request.of(args, to_the_end=True)
    port = _free(args.host, args.port)
    from cascade.eval.pictures import open_no_other_formats

    try:
        from cascade.cli.demo.page import serve
    except ModuleNotFoundError as error:
        if error.name != "gradio":
            raise
        raise ValueError("the demo needs gradio: pip install 'cascade-diffusion[demo]', or '.[demo]' in a checkout") from None

    def ready(url: str) -> None:
        say(f"{request.manifest.name} is served on {url}, {reach(args.host)}; Ctrl-C ends it")

    open_no_other_formats()  # gradio opens what is dropped on the page
    with suppress(KeyboardInterrupt):
        serve(args, request, args.host, port, ready)


def _free(host: str, port: int) -> int:
    """The port, or a free one for 0; ValueError if it can't be listened on."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            reason = error.strerror or str(error)
            raise ValueError(f"port {port} of {host} can't be used ({reason}); choose another by --port or --host") from error
        return int(probe.getsockname()[1])
