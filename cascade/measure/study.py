"""Studies in which people choose between real and made pictures: of two folders, or of a model and a reference."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from cascade.eval.images import ImageSet, balanced_choice, image_array, image_folder
from cascade.eval.report import Report
from cascade.eval.report_files import write_report
from cascade.eval.study.answers import read_answers
from cascade.eval.study.design import PAGE, Study, partners, write_study
from cascade.eval.study.fool_rates import study_report
from cascade.eval.study.page import study_page
from cascade.files import write_text
from cascade.measure.named import image_source
from cascade.measure.super_resolution import groups_of, labels_of, low_resolution
from cascade.pipeline import CascadePipeline
from cascade.progress import OnProgress, part
from cascade.runs.share import without_bars
from cascade.stage_sampling import Sampling
from cascade.stages.stage import default_batch_size


def make_study(
    real: str | Path,
    made: Mapping[str, str | Path | CascadePipeline],
    out: str | Path,
    *,
    title: str = "Real or made?",
    small: int | None = None,
    seconds: float | None = 3.0,
    num_pictures: int = 100,
    per_rater: int = 50,
    practice: int = 4,
    checks: int = 4,
    seed: int = 0,
    sampling: Sampling | None = None,
    on_progress: OnProgress | None = None,
) -> Study:
    """Make a study as SR3 had it (arXiv:2104.07636): people tell real pictures from made ones, or fail to.

    Args:
        real: Real pictures, as `cascade.evaluate` takes them: a folder, an .npz, or "drawings:heldout".
        made: By the name of a method a folder of pictures, or a cascade that makes them. Those of a folder are shown beside the
            real one of the same path below its folder; without `small`, where the names don't match, beside any of the same
            class. A cascade enlarges small real pictures with `small`, and makes pictures of the same classes without.
        out: The study's folder: study.json, pictures/, and study.html, which needs no network.
        title: Heading of its page.
        small: Side of the small picture that is shown between the two, the real one's average (SR3's task 1); None = none is
            (its task 2).
        seconds: For which a pair is seen; None = until the answer.
        num_pictures: Real pictures that count, of all classes alike; fewer if there are fewer.
        per_rater: Pairs that each person rates.
        practice, checks: Pairs before that tell what was right, and pairs in between that nobody who looks gets wrong.
        seed: Of the first picture of a cascade; picture i has seed + i.
        sampling: How a cascade's stages are sampled.
        on_progress: Told of the pictures that a cascade makes.

    Raises:
        ValueError: if there are too few pictures, they don't fit together, or the folder holds answers.
    """
    if not made:
        raise ValueError("no made pictures are given; name a folder of them, or a model")
    if not str(title).isprintable():
        raise ValueError(f"the title is {title!r}, expected one line that can be shown")
    every, known = image_source(str(real))
    found = {name: one if isinstance(one, CascadePipeline) else image_folder(Path(one)) for name, one in made.items()}
    sets = {name: one for name, one in found.items() if isinstance(one, ImageSet)}
    beside = {name: partners(every, one, by_name=small is not None) for name, one in sets.items()}
    usable = np.flatnonzero(np.all([np.full(len(every), True), *(places >= 0 for places in beside.values())], axis=0))
    least = practice + checks + 1
    if len(usable) < least:
        what = f"{len(usable)} of {len(every)} real pictures have a made one beside them, at least {least} are needed"
        raise ValueError(f"{what}: {practice} for practice, {checks} for checks and one that counts")
    groups = groups_of(every, known)
    shows = None if groups is None else np.asarray(groups)[usable]
    chosen = usable[balanced_choice(shows, len(usable), practice + checks + num_pictures)]
    shown = every.take(chosen)
    others = {name: one.take(beside[name][chosen]) for name, one in sets.items()}
    for name, one in found.items():
        if isinstance(one, CascadePipeline):
            refining = [stage for stage in one.stages.values() if getattr(stage, "low_res_size", None)]
            asks = small is None or any(stage.unet.num_classes is not None for stage in refining)
            labels = labels_of(one, asks, str(real), every, known, chosen)
            others[name] = _made(one, shown, labels, small, seed, sampling, part(on_progress, f"pictures by {name}"))
    study = write_study(
        Path(out),
        title,
        shown,
        _names(every, chosen),
        {name: others[name] for name in made},
        small=small,
        seconds=seconds,
        per_rater=per_rater,
        practice=practice,
        checks=checks,
    )
    write_text(Path(out) / PAGE, study_page(study, Path(out), served=False))
    return study


def report_study(folder: str | Path, answers: list[Path] | tuple[Path, ...] = ()) -> Report:
    """Fool rates of a study by method, beside SR3's; written to `report/` in its folder.

    Args:
        folder: Of the study; what its server stored is read, while it runs too.
        answers: Files that people saved from the page.

    Raises:
        ValueError: if there are no answers that count, or some are to another study.
    """
    folder = Path(folder)
    study = Study.read(folder)
    report = study_report(study, read_answers(study, folder, answers))
    write_report(report, folder / "report")
    return report


def _names(images: ImageSet, chosen: np.ndarray) -> list[str]:
    if images.paths is None:
        return [f"{images.name} {place}" for place in chosen]
    return [images.paths[place].relative_to(images.name).as_posix() for place in chosen]


def _made(
    cascade: CascadePipeline,
    real: ImageSet,
    labels: list[int] | None,
    small: int | None,
    seed: int,
    sampling: Sampling | None,
    told: Any,
) -> ImageSet:
    """What a cascade makes: of the real pictures made small, or of their classes alone."""
    step = default_batch_size(cascade.device, real.size)
    made = []
    for start in range(0, len(real), step):
        told(start, len(real))
        places = np.arange(start, min(start + step, len(real)))
        classes = None if labels is None else [labels[place] for place in places]
        seeds = [seed + int(place) for place in places]
        call: dict[str, Any] = {"seeds": seeds, "size": real.size, "sampling": sampling, "output_type": "np"}
        with without_bars(cascade):
            if small is None:
                count = len(places) if classes is None else 1
                out: Any = cascade(classes, num_images_per_class=count, **call)
            else:
                reduced = low_resolution(real.take(places).array(), small)
                out = cascade.upscale(list(reduced), classes, **call)
        made.append((np.asarray(out.images) * 255).round().astype(np.uint8))
    told(len(real), len(real))
    return image_array(np.concatenate(made), name=cascade.name)
