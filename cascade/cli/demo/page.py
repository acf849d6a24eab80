"""The page of `cascade demo`, in gradio, and its server. The browser is told to load nothing from elsewhere."""

from __future__ import annotations

import html
import json
import os
import tempfile
import threading
from argparse import Namespace
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # before gradio is imported, which would ask the network for its newest version

import gradio as gr
from starlette.middleware import Middleware
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from cascade.cli.demo.making import MOST_PICTURES, Made, Maker, View, saved
from cascade.cli.request import Request

POLICY = (
    "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval'; style-src 'self' 'unsafe-inline'; "
    "img-src 'self' data: blob:; font-src 'self' data:; connect-src 'self'; media-src 'self' blob:; object-src 'none'; "
    "base-uri 'self'; form-action 'self'; frame-ancestors 'none'"
)
_CSS = """
.gradio-container { max-width: min(1180px, 100vw) !important; min-width: 0 !important; margin: 0 auto !important; }
@media (max-width: 700px) { .gradio-container .column { min-width: 0 !important; flex-basis: 100% !important; } }
.status { min-height: 1.5em; margin: 0; } .failed { color: #b3261e; font-weight: 600; }
.dark .failed { color: #ff8a80; }
.stage .grid-wrap, .stage .grid-container { min-height: 0 !important; height: auto !important; max-height: none !important; }
.stage .grid-wrap { padding-top: 2rem; } .stage img { background: #fff; }
#large img { max-height: 70vh; }
"""
_THEME = gr.themes.Default(
    primary_hue="blue", font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"]
).set(
    button_primary_background_fill="#0a58a6", button_primary_background_fill_hover="#084887", button_primary_text_color="#fff",
    button_primary_background_fill_dark="#0a58a6", button_primary_background_fill_hover_dark="#084887",
)  # fmt: skip
_TYPED = ("num_inference_steps", "guidance_scale")


class _Headers:
    """Adds the policy to every reply."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def told(message: Message) -> None:
            if message["type"] == "http.response.start":
                extra = {"content-security-policy": POLICY, "referrer-policy": "no-referrer"}
                message["headers"] = [*message["headers"], *((key.encode(), value.encode()) for key, value in extra.items())]
            await send(message)

        await self.app(scope, receive, told if scope["type"] == "http" else send)


def serve(args: Namespace, request: Request, host: str, port: int, ready: Callable[[str], None]) -> None:
    """Load the model, serve the page, tell its address, and go on until `KeyboardInterrupt`."""
    maker = Maker(args, request)
    with tempfile.TemporaryDirectory(prefix="cascade-demo-") as folder:
        demo = page(maker, Path(folder))
        options: dict[str, Any] = {"server_name": host, "server_port": port, "share": False, "inbrowser": False}
        options |= {"quiet": True, "prevent_thread_lock": True, "ssr_mode": False, "pwa": False, "mcp_server": False}
        options |= {"footer_links": [], "max_file_size": "20mb", "app_kwargs": {"middleware": [Middleware(_Headers)]}}
        options |= {"theme": _THEME, "css": _CSS, "enable_monitoring": False, "show_error": True}
        demo.queue(max_size=64).launch(**options)
        try:
            ready(f"http://{f'[{host}]' if ':' in host else host}:{port}/")
            threading.Event().wait()
        finally:
            demo.close(verbose=False)


def page(maker: Maker, folder: Path) -> gr.Blocks:
    """The page; finished pictures that are looked at are written to `folder`."""
    manifest, cascade = maker.request.manifest, maker.cascade
    names, sizes = list(cascade.stages), maker.sizes
    refining = sizes[1:]
    with gr.Blocks(title=f"cascade: {manifest.name}", analytics_enabled=False, delete_cache=(3600, 3600)) as demo:
        made: gr.State = gr.State({})
        chosen: gr.State = gr.State(None)
        gr.HTML(f"<h1>{html.escape(manifest.name)}</h1><p>{html.escape(_described(maker))}</p>")
        with gr.Row():
            with gr.Column(scale=1, min_width=300):
                with gr.Tab("Make"):
                    query = _class_field(maker)
                    with gr.Row():
                        count = gr.Number(1, label="Pictures", precision=0, minimum=1, maximum=MOST_PICTURES, min_width=90)
                        seed = gr.Number(0, label="Seed", precision=0, minimum=0, min_width=90)
                    start = cascade.sizes[cascade.stages_to()[-1]]
                    size = gr.Dropdown(sizes, value=start, label="Size, px", filterable=False)
                    with gr.Accordion("Steps and guidance", open=False):
                        info = "a number for all stages, or one for each, as base=20,sr256=8; empty = the model's own"
                        steps = gr.Textbox("", label="Steps", info=info)
                        guidance = gr.Textbox("", label="Guidance scale", info="in the same way; 1 = none")
                    with gr.Row():
                        make = gr.Button("Make", variant="primary", min_width=110)
                        stop = gr.Button("Stop", min_width=90)
                with gr.Tab("Enlarge a picture", visible=bool(refining)):
                    own = gr.Image(
                        type="filepath",
                        label="A square picture of your own",
                        sources=["upload", "clipboard"],
                        height=220,
                        elem_id="own",
                    )
                    what = _class_field(maker)
                    with gr.Row():
                        own_seed = gr.Number(0, label="Seed", precision=0, minimum=0, min_width=90)
                        own_size = gr.Dropdown(refining, value=refining[0] if refining else None, label="Size, px",
                                               filterable=False, min_width=90)  # fmt: skip
                    with gr.Row():
                        enlarge = gr.Button("Enlarge", variant="primary", min_width=110)
                        own_stop = gr.Button("Stop", min_width=90)
            with gr.Column(scale=2, min_width=300):
                status = gr.HTML(_status(View()), elem_id="status")
                galleries = [
                    gr.Gallery(label=f"{name}, {cascade.sizes[name]} px", columns=4, fit_columns=False, object_fit="contain",
                               format="png",
                               height="auto", visible=False, allow_preview=False, buttons=[], elem_classes="stage",
                               elem_id=f"stage-{number}", interactive=False)
                    for number, name in enumerate(names)
                ]  # fmt: skip
                with gr.Group(visible=False, elem_id="chosen") as panel:
                    large = gr.Image(label="Chosen", type="filepath", format="png", buttons=["download", "fullscreen"],
                                     interactive=False, elem_id="large")  # fmt: skip
                    command = gr.Textbox(label="Command that makes it", buttons=["copy"], interactive=False, elem_id="command")
                    with gr.Accordion("Settings", open=False):
                        settings = gr.Code(language="json", interactive=False, label="Settings", elem_id="settings")
                    refine = [gr.Button(f"Refine to {to}", visible=False, elem_id=f"refine-{to}") for to in refining]

        looks = [made, status, *galleries]

        def shown(views: Iterator[View], before: Mapping[str, Sequence[Made]], keep: bool) -> Iterator[list[Any]]:
            last: Mapping[str, Sequence[Any]] = {}
            for view in views:
                updates = [_gallery(view, last, name, keep) for name in names]
                last = view.pictures
                yield [{**before, **view.made}, _status(view), *updates]

        def on_make(query: Any, count: Any, seed: Any, size: Any, steps: str, guidance: str, who: gr.Request) -> Any:
            typed = dict(zip(_TYPED, (steps, guidance), strict=True))
            made = maker.make(_session(who), query or "", int(count or 0), int(seed or 0), int(size), typed)
            yield from shown(made, {}, keep=False)

        def on_enlarge(path: Any, query: Any, seed: Any, size: Any, who: gr.Request) -> Any:
            made = maker.enlarge(_session(who), path, query or "", int(seed or 0), int(size))
            yield from shown(made, {}, keep=False)

        def on_refine(to: int) -> Any:
            def refined(one: Made | None, before: dict[str, Sequence[Made]], who: gr.Request) -> Any:
                if one is not None:
                    yield from shown(maker.refine(_session(who), one, to), before, keep=True)

            return refined

        def on_select(number: int) -> Any:
            def selected(made: dict[str, Sequence[Made]], event: gr.SelectData) -> list[Any]:
                pictures, place = made.get(names[number], ()), int(event.index)
                return _choice(pictures[place] if place < len(pictures) else None, folder, refining)

            return selected

        choice = [chosen, panel, large, command, settings, *refine]
        job: dict[str, Any] = {"outputs": looks, "concurrency_id": "model", "concurrency_limit": 1, "show_progress": "hidden"}
        fields = [query, count, seed, size, steps, guidance]
        gr.on([make.click, steps.submit, guidance.submit], on_make, fields, **job)
        enlarge.click(on_enlarge, [own, what, own_seed, own_size], **job)
        for to, button in zip(refining, refine, strict=True):
            button.click(on_refine(to), [chosen, made], **job)
        for number, gallery in enumerate(galleries):
            gallery.select(on_select(number), [made], choice, show_progress="hidden", queue=False)

        def on_stop(who: gr.Request) -> None:
            maker.stop(_session(who))

        for button in (stop, own_stop):
            button.click(on_stop, queue=False)
        demo.unload(on_stop)
    return demo


def _class_field(maker: Maker) -> Any:
    """Where a class is chosen by typing; whatever is typed is checked as the command line checks it."""
    if maker.classes:
        return gr.Dropdown(maker.classes, value=maker.classes[0], label="Class (type to search)", allow_custom_value=True)
    known = maker.cascade.num_classes is not None
    return gr.Textbox("0" if known else "", label="Class, by its index", visible=known)


def _described(maker: Maker) -> str:
    stages = " → ".join(f"{size} px" for size in maker.sizes)
    known = f", {len(maker.classes)} classes" if maker.classes else ""
    return f"{stages}{known}. Everything happens on the machine that serves this page."


def _session(who: gr.Request) -> str:
    return who.session_hash or ""


def _status(view: View) -> str:
    kind, role = ("status failed", "alert") if view.failed else ("status", "status")
    return f'<p class="{kind}" role="{role}">{html.escape(view.status)}</p>'


def _gallery(view: View, last: Mapping[str, Sequence[Any]], name: str, keep: bool) -> Any:
    """How a stage's pictures change from the last view; `keep` = those of a stage that is not at work stay."""
    if name not in view.pictures:
        return gr.update() if keep else gr.update(value=None, visible=False)
    if view.pictures[name] is last.get(name):
        return gr.update()
    return gr.update(value=list(view.pictures[name]), visible=True)


def _choice(one: Made | None, folder: Path, refining: Sequence[int]) -> list[Any]:
    """What is shown of a picture that was clicked; nothing while it is not finished."""
    if one is None:
        return [gr.update()] * (5 + len(refining))
    buttons = [gr.update(visible=to > one.size) for to in refining]
    settings = json.dumps(one.origin.settings, indent=2)
    return [one, gr.update(visible=True), str(saved(one, folder)), one.origin.command, settings, *buttons]
