"""SR3 stages measured as the paper did: real images made small, enlarged again, and compared with themselves."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from cascade.classes import EMOJI, Vocabulary, imagenet
from cascade.data.drawings import DRAWINGS
from cascade.eval.classifier import errors
from cascade.eval.features import FeatureExtractor
from cascade.eval.images import Images, ImageSet, area_downsample, balanced_choice, image_folder
from cascade.eval.paired import consistency, psnr, ssim
from cascade.eval.references import FrechetResult
from cascade.eval.report import Picture, Report, Row, Value
from cascade.eval.report_files import write_report
from cascade.eval.scoring import FeatureSet, feature_set, inception_score_of, mean_interval, score
from cascade.files import Batch, Progress
from cascade.folder import StageEntry, load_stage
from cascade.measure.comparisons import SHOWN, columns_of, differences, not_comparable, published_rows, reference_shown
from cascade.measure.named import Classify, classifier_of, crop_rule_of, extractor_of, image_source
from cascade.measure.protocols import CLASSIFIERS, Protocol
from cascade.pipeline import CascadePipeline
from cascade.progress import OnProgress, part
from cascade.runs.record import FORMAT, begin, check_folder, model_hash
from cascade.runs.share import image_name, without_bars
from cascade.stage_sampling import Sampling, StageSampling
from cascade.stages.stage import default_batch_size

Enlarge = Callable[[list[Image.Image], list[int] | None, list[int]], list[Image.Image]]
"""Small images, the class of each (None for a model without classes) and the seed of each, to large images."""


@dataclass(frozen=True)
class _Measuring:
    """What the images of a row are measured against, and how: real images, their classes, and the small ones made of them."""

    name: str
    originals: ImageSet
    low_res: ImageSet
    labels: list[int] | None
    extractor: FeatureExtractor | None
    reference: FeatureSet | None
    classifier: tuple[str, Classify] | None
    crop_rule: str | None
    resamples: int

    def values(self, images: ImageSet) -> tuple[dict[str, Value], FrechetResult | None]:
        """Of outputs, and the distance with all that it depends on."""
        paired = paired_values(images, self.originals, self.low_res, self.resamples)
        if self.extractor is None or self.reference is None:
            return paired | self._errors(images), None
        features = feature_set(images, self.extractor, crop_rule=self.crop_rule)
        scores = score(features, self.reference, resamples=self.resamples)
        return paired | scores.values() | self._errors(images), scores.frechet

    def of_originals(self) -> dict[str, Value]:
        """Of the originals themselves: what does not compare them with themselves."""
        score_alone = None if self.reference is None else inception_score_of(self.reference)
        found: dict[str, Value] = {} if score_alone is None else {"IS": score_alone.mean}
        return found | self._errors(self.originals)

    def _errors(self, images: ImageSet) -> dict[str, Value]:
        if self.classifier is None or self.labels is None:
            return {}
        return error_values(images, self.labels, self.classifier[1], self.resamples)


def evaluate_sr(
    cascade: CascadePipeline,
    out: str | Path,
    *,
    images: str | Path = "drawings:heldout",
    stage: str | None = None,
    by_steps: Sequence[int] = (),
    num_images: int = 100,
    seed: int = 0,
    regression: Path | None = None,
    extractor: str | None = "efficientnet-lite0",
    weights: Path | None = None,
    crop_rule: str | None = None,
    classifier: str | None = None,
    classifier_weights: Path | None = None,
    resamples: int = 100,
    sampling: Sampling | None = None,
    batch_size: int | None = None,
    protocol: Protocol | None = None,
    on_progress: OnProgress | None = None,
) -> Report:
    """Make real images small, enlarge them by an SR3 stage, by regression and by bicubic interpolation, compare, and report.

    Args:
        cascade: The model.
        out: Folder of the report; the stage's pictures are kept in `outputs/` (`outputs-4/` of 4 steps), those of a regression in
            `regression/`.
        images: Real images, as `cascade.measure.named.image_source` takes them; a folder of class folders says what they show.
        stage: Name of the stage; None = the last.
        by_steps: Numbers of steps in which it is sampled, each a row of its own; () = one row, as `sampling` says.
        num_images: How many images, of all classes alike (`cascade.eval.images.balanced_choice`).
        seed: Of the first image; image i has seed + i.
        regression: Folder of SR3's regression baseline; None = no row of it.
        extractor: Feature network of the distance; None = no distance.
        weights, crop_rule, resamples: As of `cascade.evaluate`.
        classifier: Judge of ImageNet's classes, one of `cascade.measure.protocols.CLASSIFIERS`; None = the protocol's, without
            one EfficientNet-Lite0.
        classifier_weights: Its file; None = its own, or downloaded once.
        sampling, batch_size: As of `cascade.sample_run`.
        protocol: Whose sizes must be kept and whose published rows are shown; None = no one's.
        on_progress: Told of the images that are enlarged.

    Raises:
        ValueError: if model, images and protocol don't fit together.
        ConnectionError: if weights must be downloaded and can't be.
    """
    out, device, name = Path(out), str(cascade.device), sr_stage(cascade, stage)
    size, small = cascade.sizes[name], int(cascade.stages[name].low_res_size)
    if protocol is not None and (size, small) != (protocol.size, protocol.low_res_size):
        wanted = f"{protocol.low_res_size} to {protocol.size}"
        raise ValueError(f"stage {name!r} makes {size} px from {small} px, but protocol {protocol.name} is {wanted} px")
    network = None if extractor is None else extractor_of(extractor, weights, device)
    every, known = image_source(str(images), size=size)
    chosen = balanced_choice(groups_of(every, known), len(every), num_images)
    real = every.take(chosen)
    asks = cascade.stages[name].unet.num_classes is not None
    classes, labels = _shown(cascade, asks, str(images), every, known, chosen)
    judge_name = classifier or (protocol.classifier if protocol else CLASSIFIERS[0])
    judge = classifier_of(classes, device, judge_name, classifier_weights) if labels is not None else None
    if (classifier or classifier_weights) and (judge is None or classes == EMOJI):
        raise ValueError(f"the classifier {judge_name} judges ImageNet's classes, but nothing says which of them {images} shows")
    chosen_steps = _by_steps(name, sampling, by_steps)
    makers = {what: by_stage(cascade, name, one, batch_size) for what, one in chosen_steps.items()}
    settings = cascade.described([name], sampling, batch_size) | {"stage": name, "seed": seed, "images": real.source_hash()}
    if by_steps:
        settings["by_steps"] = list(by_steps)
    if regression is not None:
        makers["regression"] = by_regression(cascade, name, regression)
        settings["regression"] = model_hash(regression)
    threads = torch.get_num_threads()
    if "threads" in settings:  # those with which the run began, as other ones may make other bits
        settings["threads"] = (check_folder(out) or {}).get("settings", {}).get("threads", threads)
    record = {"format": FORMAT, "model": {"name": cascade.name, "sha256": model_hash(cascade)}, "settings": settings}
    begin(out, record)
    low_res = real.mapped(lambda originals: low_resolution(originals, small), small)
    step = batch_size or default_batch_size(device, size)
    made, given = {}, labels if asks else None
    try:
        torch.set_num_threads(settings.get("threads", threads))
        for what, maker in makers.items():
            told = part(on_progress, f"enlarging: {what}")
            made[what] = enlarged(maker, low_res, given, out / what, seed=seed, batch_size=step, on_progress=told)
    finally:
        torch.set_num_threads(threads)
    interpolated = low_res.mapped(lambda images: bicubic(images, size), size)
    counts = zip(chosen_steps, by_steps or (None,), strict=True)
    titles = {what: f"{cascade.name}, {name}{_in_steps(count)}" for what, count in counts}
    sets = {titles.get(what, what): one for what, one in made.items()} | {"bicubic": interpolated}
    text, rule = str(images), crop_rule_of(str(images), crop_rule)
    reference = None if network is None else feature_set(real, network, crop_rule=rule)
    how = _Measuring(text, real, low_res, labels, network, reference, judge, rule, resamples)
    report = _report(how, sets, regression, protocol, record)
    write_report(report, out)
    return report


def _report(
    how: _Measuring, sets: dict[str, ImageSet], regression: Path | None, protocol: Protocol | None, record: dict[str, Any]
) -> Report:
    """Every set of large images measured and shown, above the originals and what is published."""
    rows, frechet = [], None
    for what, one in sets.items():
        values, frechet = how.values(one)
        rows.append(Row(name=what, values=values, note=f"{len(one):,} images", ours=True))
    rows.append(Row(name="originals", values=how.of_originals(), note="the images themselves", ours=True))
    differing = differences(protocol, len(how.originals), frechet) if protocol else []
    rows += published_rows(protocol, differing) if protocol else ()
    network, classifier = how.extractor, how.classifier and how.classifier[0]
    model, settings, small = record["model"], record["settings"], how.low_res.size
    facts = {
        "model": f"{model['name']}, SHA-256 {model['sha256']}",
        "stage": settings["stage"],
        "images": f"{len(how.originals):,} of {how.name}, of all classes alike, averaged over blocks to {small} px",
        "seeds": f"from {settings['seed']}",
        "reference": frechet and f"the originals, {reference_shown(frechet)}",
        "regression": regression and f"{regression.name}, SHA-256 {settings['regression']}",
        "extractor": network and f"{network.name} ({network.resize_mode}), SHA-256 {network.weights_hash}",
        "classifier": classifier,
    }
    notes = (
        "PSNR, in dB, SSIM and consistency, the squared error to the input after averaging down in 1e-5, are means over images.",
        classifier and f"Errors are those of {classifier}; SR3's are of a ResNet-50 whose weights it doesn't name.",
        "In brackets: 95 % intervals of what as many other images would have on average." if how.resamples else None,
        *((*not_comparable(protocol, differing), *protocol.notes) if protocol else ()),
    )
    shown = {"input": how.low_res, **sets, "original": how.originals}
    caption = "The first images, shown equally large; the input is what all others start from."
    first = np.arange(min(SHOWN, len(how.originals)))
    pictures = tuple((what, images.take(first).array()) for what, images in shown.items())
    return Report(
        title=protocol.title if protocol else f"{model['name']}, {settings['stage']}: {small} to {how.originals.size} px",
        facts={key: text for key, text in facts.items() if text},
        columns=columns_of(rows),
        rows=tuple(rows),
        notes=tuple(filter(None, notes)),
        pictures=(Picture(title="Pictures", caption=caption, rows=pictures),),
        details={"run": record},
    )


def sr_stage(cascade: CascadePipeline, name: str | None) -> str:
    """The stage of this name that refines images; None = the last one. Raises ValueError if there is none."""
    found = [stage for stage, pipeline in cascade.stages.items() if getattr(pipeline, "low_res_size", None)]
    if not found:
        raise ValueError(f"{cascade.name!r} has no stage that refines images")
    if name is not None and name not in found:
        raise ValueError(f"{name!r} is not a stage of {cascade.name!r} that refines images; these are {', '.join(found)}")
    return name or found[-1]


def low_resolution(originals: Images, size: int) -> Images:
    """Originals averaged over blocks and rounded to 8 bits, uint8 [N, size, size, 3]."""
    return area_downsample(originals, size).round().astype(np.uint8)


def bicubic(low_res: Images, size: int) -> Images:
    """Images enlarged by Pillow's bicubic filter, uint8 [N, size, size, 3]."""
    return np.stack([np.asarray(Image.fromarray(one).resize((size, size), Image.Resampling.BICUBIC)) for one in low_res])


def by_stage(cascade: CascadePipeline, stage: str, sampling: Sampling | None, batch_size: int | None) -> Enlarge:
    """What a stage of a cascade makes of small images."""

    def enlarge(images: list[Image.Image], labels: list[int] | None, seeds: list[int]) -> list[Image.Image]:
        size = cascade.sizes[stage]
        with without_bars(cascade):
            made: Any = cascade.upscale(images, labels, stage, seeds, size=size, sampling=sampling, batch_size=batch_size)
        return made.images

    return enlarge


def by_regression(cascade: CascadePipeline, name: str, folder: Path) -> Enlarge:
    """What SR3's regression baseline in a folder makes of small images, beside an SR3 stage of the same sizes, where and in the
    number type in which that runs. Raises ValueError if the folder holds no such stage."""
    beside, home = cascade.stages[name], folder.resolve()
    size, small = beside.size, beside.low_res_size
    if not (folder / "model_index.json").is_file():
        raise ValueError(f"{folder} is not a stage; give the folder of a RegressionPipeline, which holds a model_index.json")
    entry = StageEntry("regression", home.name, "RegressionPipeline", size, small)
    stage: Any = load_stage(home.parent, entry, beside.unet.dtype)
    if (stage.size, stage.low_res_size) != (size, small):
        made = f"{stage.low_res_size} to {stage.size} px"
        raise ValueError(f"the regression in {folder} is of {made}, but the SR3 stage of {small} to {size} px")
    stage.to(beside.device)
    stage.set_progress_bar_config(disable=True)

    def enlarge(images: list[Image.Image], labels: list[int] | None, seeds: list[int]) -> list[Image.Image]:
        return stage(images, labels if stage.unet.num_classes is not None else None).images

    return enlarge


def enlarged(
    enlarge: Enlarge, low_res: ImageSet, labels: list[int] | None, out: Path, *, seed: int, batch_size: int, on_progress: Progress
) -> ImageSet:
    """Large images, each kept as a PNG in `out` as soon as it is there; existing ones are not made again.

    Image i has seed + i; `batch_size` consecutive ones are made together, always the same. Nothing else may lie in `out`.
    """
    files = [out / image_name(i) for i in range(len(low_res))]
    with Batch() as batch:
        for start in range(0, len(low_res), batch_size):
            block = range(start, min(start + batch_size, len(low_res)))
            on_progress(start, len(low_res))
            if all(files[i].is_file() for i in block):
                continue
            small = [Image.fromarray(one) for one in low_res.take(np.array(block)).array()]
            made = enlarge(small, None if labels is None else [labels[i] for i in block], [seed + i for i in block])
            for i, image in zip(block, made, strict=True):
                with batch.file(files[i]) as file:
                    image.save(file, format="PNG")
    on_progress(len(low_res), len(low_res))
    return image_folder(out)


def paired_values(outputs: ImageSet, originals: ImageSet, low_res: ImageSet, resamples: int) -> dict[str, Value]:
    """PSNR in dB, SSIM and SR3's consistency in 1e-5 of outputs against their originals, means over images."""
    columns: dict[str, list[np.ndarray]] = {"PSNR": [], "SSIM": [], "consistency": []}
    for made, real, small in zip(outputs.batches(), originals.batches(), low_res.batches(), strict=True):
        for column, one in zip(columns.values(), (psnr(made, real), ssim(made, real), consistency(made, small)), strict=True):
            column.append(one)
    return {name: mean_interval(np.concatenate(parts), resamples) for name, parts in columns.items()}


def error_values(outputs: ImageSet, labels: list[int], classify: Classify, resamples: int) -> dict[str, Value]:
    """Shares of outputs whose class a classifier does not name first, or among its first five."""
    asked, wrong, done = np.array(labels), [], 0
    for batch in outputs.batches():
        wrong.append(np.stack(errors(classify(batch), asked[done : done + len(batch)])))
        done += len(batch)
    top1, top5 = np.concatenate(wrong, axis=1)
    return {"top-1 error": mean_interval(top1, resamples), "top-5 error": mean_interval(top5, resamples)}


def groups_of(images: ImageSet, known: np.ndarray | None) -> Any:
    """What each image shows, as far as it matters for a balanced choice: the known classes, else the folder that it lies in."""
    if known is not None and len(known) == len(images):
        return known
    return None if images.paths is None else [path.parent.name for path in images.paths]


def _by_steps(name: str, sampling: Sampling | None, by_steps: Sequence[int]) -> dict[str, Sampling | None]:
    """How the stage of this name is sampled in each of these numbers of steps, by the folder of the pictures; () = in one way."""
    if not by_steps:
        return {"outputs": sampling}
    if len(set(by_steps)) < len(by_steps) or min(by_steps) < 1:
        raise ValueError(f"by_steps are {list(by_steps)}, expected different numbers of at least 1")
    own = (sampling or {}).get(name, StageSampling())
    return {f"outputs-{steps}": {name: replace(own, num_inference_steps=steps)} for steps in by_steps}


def _in_steps(steps: int | None) -> str:
    return "" if steps is None else f", {steps} step{'s' * (steps > 1)}"


def _shown(
    cascade: CascadePipeline, asks: bool, text: str, images: ImageSet, known: np.ndarray | None, chosen: np.ndarray
) -> tuple[Vocabulary | None, list[int] | None]:
    """Classes that a classifier chooses among, and which of them the chosen images show: of ImageNet where the stage asks for no
    class and folders are named by WordNet ids, else of the model; no labels where nothing says so and the stage asks for none.
    """
    if not asks and images.paths is not None:
        folders = [images.paths[int(place)].parent.name for place in chosen]
        if set(folders) <= set(imagenet().wordnet_ids):
            return imagenet(), [imagenet().index(folder) for folder in folders]
    return cascade.classes, labels_of(cascade, asks, text, images, known, chosen)


def labels_of(
    cascade: CascadePipeline, asks: bool, text: str, images: ImageSet, known: np.ndarray | None, chosen: np.ndarray
) -> list[int] | None:
    """What the chosen images show: known of drawings and archives, else by the name of the folder that each lies in; None where
    neither says so and the stage asks for none."""
    if cascade.classes is None and cascade.num_classes is None:
        return None
    try:
        if known is not None and len(known) == len(images) and (text not in DRAWINGS or cascade.classes in (None, EMOJI)):
            return _checked_labels(cascade, text, known[chosen])
        if images.paths is None:
            raise ValueError(f"{images.name} doesn't say what its images show, which {cascade.name!r} must know")
        classes = cascade.classes or Vocabulary.from_names([f"class {i}" for i in range(cascade.num_classes or 0)])
        return [classes.index(images.paths[int(place)].parent.name) for place in chosen]
    except ValueError:
        if asks:
            raise
        return None


def _checked_labels(cascade: CascadePipeline, text: str, labels: np.ndarray) -> list[int]:
    count = cascade.num_classes or len(cascade.classes or ())
    if not np.issubdtype(labels.dtype, np.integer) or labels.ndim != 1 or labels.min() < 0 or labels.max() >= count:
        span = f"{labels.min()} to {labels.max()}" if labels.dtype.kind in "iuf" else f"of type {labels.dtype}"
        raise ValueError(f"the classes of {text} are {span}, but {cascade.name!r} has classes 0 to {count - 1}")
    return [int(label) for label in labels]
