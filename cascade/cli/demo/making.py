"""What the page of `cascade demo` does: pictures made stage by stage and shown meanwhile, as the command line makes them."""

from __future__ import annotations

import threading
from argparse import Namespace
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cascade.cli.errors import verdict
from cascade.cli.request import Request
from cascade.cli.upscale import needs_classes, read_square

if TYPE_CHECKING:
    from PIL.Image import Image
    from torch import Tensor

    from cascade.png import Origin

MOST_PICTURES = 16
_SECONDS_BETWEEN_VIEWS = 0.15


@dataclass(frozen=True, eq=False)
class Made:
    """A finished picture, what it says of itself, and all that it takes to refine it.

    pixels: [3, size, size] in [-1, 1], unrounded, as the next stage takes it.
    typed: Options of sampling as they were typed.
    ran: Stages that made it.
    source: Name of the user's file that it was enlarged from; None = it was made from noise.
    """

    image: Image
    origin: Origin
    pixels: Tensor
    label: int | None
    seed: int
    size: int
    typed: Mapping[str, str]
    ran: tuple[str, ...]
    source: str | None


@dataclass(frozen=True)
class View:
    """What the page shows: by stage the pictures that are finished or at work, how far it is, and what went wrong."""

    pictures: Mapping[str, Sequence[Image]] = field(default_factory=dict)
    made: Mapping[str, Sequence[Made]] = field(default_factory=dict)
    status: str = ""
    failed: bool = False


class _Stopped(Exception):
    """Raised in the callback of a call that is to end."""


@dataclass(eq=False)
class _Job:
    """A thread's work and its newest view, which other threads wait for."""

    stop: threading.Event = field(default_factory=threading.Event)
    view: View = field(default_factory=View)
    ended: bool = False
    news: threading.Event = field(default_factory=threading.Event)

    def show(self, view: View) -> None:
        self.view = view
        self.news.set()


class Maker:
    """A loaded model and the jobs on it, one at a time; mistakes and failures become sentences of a view.

    Args:
        args: Of `cascade demo`, with every option of `add_model_options`.
        request: What they ask for.
    """

    def __init__(self, args: Namespace, request: Request) -> None:
        self.args, self.request = args, request
        self.cascade, _ = request.load()
        self.cascade.set_progress_bar_config(disable=True)
        self.sizes = list(request.sizes.values())
        self.classes = [] if request.classes is None else [request.query(label) for label in range(len(request.classes))]
        self._one_at_a_time = threading.Lock()
        self._jobs: dict[str, _Job] = {}

    def make(self, session: str, query: str, count: int, seed: int, size: int, typed: Mapping[str, str]) -> Iterator[View]:
        """Pictures of a class; `typed` are options of sampling by their names, as they would be typed, "" = not given."""

        def work(job: _Job) -> None:
            request = self._asked(size, typed)
            if not 1 <= count <= MOST_PICTURES:
                raise ValueError(f"{count} pictures are asked for, expected 1 to {MOST_PICTURES}")
            if not 0 <= seed < 2**63:
                raise ValueError(f"the seed is {seed}, expected a whole number from 0 to 2^63 - 1")
            if not query and request.classes is not None:
                raise ValueError(f"no class is given: choose or type one, as {request.query(0)}")
            label = request.label(query) if query else None
            self._run(job, request, None, label, [seed + i for i in range(count)], typed)

        yield from self._shown(session, work)

    def refine(self, session: str, made: Made, size: int) -> Iterator[View]:
        """A picture that was made here, refined to a larger size: the same as if that had been asked for at once."""

        def work(job: _Job) -> None:
            request = self._asked(size, made.typed)
            self._run(job, request, made.pixels[None], made.label, [made.seed], made.typed, made.ran, made.source)

        yield from self._shown(session, work)

    def enlarge(self, session: str, path: str | None, query: str, seed: int, size: int) -> Iterator[View]:
        """A picture of the user's own."""

        def work(job: _Job) -> None:
            if path is None:
                raise ValueError("there is no picture to enlarge; drop one, or choose a file")
            request, file = self._asked(size, {}), Path(path)
            try:
                image = read_square(file, size)
            except ValueError as error:
                raise ValueError(str(error).replace(str(file), file.name)) from error
            if not query and needs_classes(request):
                raise ValueError(f"no class is given: {request.manifest.name!r} needs to know what the picture shows")
            label = request.label(query) if query else None
            self._run(job, request, image, label, [seed], {}, (), file.name)

        yield from self._shown(session, work)

    def stop(self, session: str) -> None:
        """End the job of this session after the step that runs."""
        if job := self._jobs.get(session):
            job.stop.set()

    def _asked(self, size: int, typed: Mapping[str, str]) -> Request:
        """The checked request of these options, as the command line checks it."""
        given = {name: text.strip() or None for name, text in typed.items()}
        return Request.of(Namespace(**{**vars(self.args), **given}), size)

    def _shown(self, session: str, work: Any) -> Iterator[View]:
        """The views of a job, the newest one now and then, until it ends; when nobody looks any more it is stopped."""
        job = _Job()

        def run() -> None:
            try:
                with self._one_at_a_time:
                    work(job)
            except _Stopped:
                job.show(replace(job.view, status="Stopped."))
            except BaseException as error:  # whatever it is, people see the sentence that the command line has for it
                job.show(replace(job.view, status=" ".join(verdict(error)[1].split()), failed=True))
            finally:
                job.ended = True
                job.news.set()

        self.stop(session)
        self._jobs[session] = job
        thread = threading.Thread(target=run, daemon=True)
        thread.start()
        try:
            while not job.ended:
                job.news.wait()
                job.news.clear()
                yield job.view
                job.stop.wait(_SECONDS_BETWEEN_VIEWS)
            yield job.view
        finally:
            job.stop.set()
            if self._jobs.get(session) is job:
                del self._jobs[session]

    def _run(
        self,
        job: _Job,
        request: Request,
        images: Any,
        label: int | None,
        seeds: list[int],
        typed: Mapping[str, str],
        ran: tuple[str, ...] = (),
        source: str | None = None,
    ) -> None:
        """The stages up to the request's size one after the other, the first of them on `images` (None for the base)."""
        settings = {key: value for key, value in request.settings.items() if value is not None}
        sampling = self.cascade.sampling(**settings)
        labels = None if label is None else [label] * len(seeds)
        names = self.cascade.stages_to(request.size)
        for name in names if images is None else names[names.index(self.cascade.entry(images)) :]:
            common: dict[str, Any] = {"seeds": seeds, "sampling": sampling, "output_type": "pt", "size": self.cascade.sizes[name]}
            common |= {"callback_on_step_end": _Watch(self, job, name, seeds, sampling), "batch_size": self.args.batch_size}
            if images is None:
                out = self.cascade(labels, num_images_per_class=1 if labels else len(seeds), **common)
            else:
                out = self.cascade.upscale(images, labels, name, **common)
            images, ran = out.images, (*ran, name)
            settings = self.cascade.described(ran, sampling, self.args.batch_size)
            finished = []
            for pixels, picture, seed in zip(images, _pil(images), seeds, strict=True):
                origin = self._origin(request, label, seed, settings, source, self.cascade.sizes[name])
                finished.append(Made(picture, origin, pixels, label, seed, self.cascade.sizes[name], typed, ran, source))
            pictures = {**job.view.pictures, name: [one.image for one in finished]}
            job.show(View(pictures, {**job.view.made, name: finished}, job.view.status))
        job.show(replace(job.view, status="Done. Click a picture to refine it, or to see the command that makes it."))

    def _origin(
        self, request: Request, label: int | None, seed: int, settings: Mapping[str, Any], source: str | None, size: int
    ) -> Origin:
        """What a picture says of itself: the command line that makes it, above all."""
        labels = [] if label is None else [label]
        words = ["generate"] if source is None else ["cascade", "upscale", source]
        words += [*(word for one in labels for word in ("--class", request.query(one))), "--seed", str(seed)]
        return request.origin(words, labels, (seed,), settings, size)


class _Watch:
    """A callback that shows what a stage has come to, and ends it when the job is stopped."""

    def __init__(self, maker: Maker, job: _Job, stage: str, seeds: list[int], sampling: Any) -> None:
        self.job, self.stage, self.count = job, stage, len(seeds)
        self.pictures: list[Image] = []
        self.before = dict(job.view.pictures)
        self.size = maker.cascade.sizes[stage]
        pipeline = maker.cascade.stages[stage]
        self.steps = sampling[stage].num_inference_steps or pipeline.config.get("num_inference_steps")
        self.begun = 0

    def __call__(self, pipeline: Any, step: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        if self.job.stop.is_set():
            raise _Stopped
        latents = tensors["latents"]
        if step == 0:
            self.begun = len(self.pictures)
        spread = latents.flatten(1).std(1).clamp(min=1).view(-1, 1, 1, 1)  # noise as some schedulers have it is far louder
        self.pictures[self.begun :] = _pil(latents / spread)
        of = f", picture {min(self.begun + 1, self.count)} of {self.count}" * (self.count > 1)
        steps = f" of {self.steps}" if self.steps and step < self.steps else ""
        status = f"{self.stage}, {self.size} px: step {step + 1}{steps}{of}"
        self.job.show(View({**self.before, self.stage: list(self.pictures)}, self.job.view.made, status))
        return {}


def _pil(images: Tensor) -> list[Image]:
    """Pictures of [B, 3, H, W] in [-1, 1], rounded as those that a call gives."""
    from cascade.stages.stage import as_output

    return list(as_output(images.detach().float().cpu().clamp(-1, 1), "pil"))


def saved(made: Made, folder: Path) -> Path:
    """The picture's file in this folder, called as the command line calls it."""
    from cascade import png

    name = Path(made.source).stem if made.source else "-".join(made.origin.class_names) or "image"
    safe = "".join(letter if letter.isalnum() else "-" for letter in name)[:60]
    path = folder / f"{safe}-seed{made.seed}-{made.size}.png"
    with suppress(FileNotFoundError):
        path.unlink()
    png.write(path, made.image, made.origin)
    return path
