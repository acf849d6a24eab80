"""The classification accuracy score: how well a classifier that learned from samples alone knows real pictures."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np

from cascade.data import open_pictures
from cascade.data.checking import cores
from cascade.devices import find_device
from cascade.eval.classification_score import Batch, Learner, Training
from cascade.eval.classifier import errors
from cascade.eval.images import ImageSet
from cascade.eval.report import Value
from cascade.eval.scoring import mean_interval
from cascade.files import write_text
from cascade.measure.named import image_source
from cascade.progress import OnProgress, part
from cascade.runs.record import FORMAT, RECORD, begin, check_folder, labels_of_run, plan_of, read_record
from cascade.stages.training import Data
from cascade.stages.training.examples import PictureSource
from cascade.stages.training.odd_pictures import DamagedPicture

STATE, SCORE = "classifier.safetensors", "score.json"


@dataclass(frozen=True)
class ClassificationScore:
    """Percent of real pictures whose class the classifier names first, or among its first five, with 95 % intervals.

    unusable: Real photos that could not be read or were too small, not counted in `num_real`.
    """

    top1: Value
    top5: Value
    samples: str
    real: str
    num_classes: int
    num_samples: int
    num_real: int
    unusable: int
    training: Training


@dataclass(frozen=True)
class _Pictures:
    """Pictures with their classes, int64 [N], and the names by which they are numbered; None = they came as numbers."""

    source: ImageSet | PictureSource
    labels: np.ndarray
    num_classes: int
    names: tuple[str, ...] | None = None

    @property
    def size(self) -> int:
        return self.source.size

    def __len__(self) -> int:
        return len(self.labels)

    def read(self, places: np.ndarray) -> Batch:
        if isinstance(self.source, ImageSet):
            return self.source.take(places).array(), self.labels[places]
        found = {}
        for place in places:
            try:
                found[int(place)] = self.source.read(int(place)).pixels
            except DamagedPicture:
                continue
        pixels = np.array(list(found.values()), np.uint8).reshape(-1, self.size, self.size, 3)
        return pixels, self.labels[list(found)]


def classification_score(
    samples: str | Path,
    real: str | Path,
    out: str | Path,
    *,
    crop: str | None = None,
    size: int | None = None,
    training: Training | None = None,
    device: str | None = None,
    on_progress: OnProgress | None = None,
) -> ClassificationScore:
    """Train a classifier on samples alone, test it on real pictures, and write `score.json`.

    The same call goes on after the last pass where one was stopped, and the same classifier can be tested on other pictures. The
    score of real training pictures in place of samples, as
    many of each class, says what it can be at most.

    Args:
        samples: A sampling run of PNG files, a folder of class folders, an .npz with arr_0 and arr_1, or drawings.
        real: The same, which the samples' model was not trained on. Class folders are numbered in the order of their names, as
            in training, so they fit a run of a model of that many classes.
        out: Folder of the classifier and the score.
        crop: The rule of training ("adm" or "area") by which the photos in class folders are cut to `size`; None = they hold
            square pictures of one size.
        size: Side of the pictures; None = that of the samples.
        training: How it learns; None = a ResNet-50 in 90 passes.
        device: Where it learns; None = on an accelerator if there is one.
        on_progress: Told of each pass and of the test.

    Raises:
        ValueError: if classes are not known or don't fit together, or the folder holds something else.
    """
    out, training = Path(out), training or Training()
    learned = _pictures(str(samples), crop, size)
    tested = _agreed(learned, _pictures(str(real), crop, learned.size), f"{samples}", f"{real}")
    classes = hashlib.sha256(learned.labels.tobytes()).hexdigest()
    settings = {"samples": str(samples), "count": len(learned), "classes sha256": classes, "crop": crop, "size": learned.size}
    record = {"format": FORMAT, "settings": settings | {"training": asdict(training)}}
    check_folder(out)
    learner = Learner(training, learned.num_classes, str(find_device(device)), workers=cores())
    begin(out, record)
    if (out / STATE).is_file():
        learner.go_on(out / STATE)
    while learner.epochs_done < training.epochs:
        learner.learn_epoch(learned, part(on_progress, f"pass {learner.epochs_done + 1} of {training.epochs}"))
        learner.keep(out / STATE)
    told, wrong, done = part(on_progress, "test on real pictures"), [], 0
    for probabilities, labels in learner.probabilities(tested):
        if len(labels):
            wrong.append(np.stack(errors(probabilities, labels)))
        done += len(labels)
        told(done, len(tested))
    if not wrong:
        raise ValueError(f"none of the {len(tested):,} pictures of {real} can be used at {learned.size} px")
    right = 100.0 * ~np.concatenate(wrong, axis=1)
    top1, top5 = (mean_interval(one, resamples=100) for one in right)
    count, named = right.shape[1], (str(samples), str(real))
    score = ClassificationScore(top1, top5, *named, learned.num_classes, len(learned), count, len(tested) - count, training)
    write_text(out / SCORE, json.dumps(asdict(score), indent=2) + "\n")
    return score


def _pictures(text: str, crop: str | None, size: int | None) -> _Pictures:
    """Pictures as a person names them, with their classes; ValueError if these are not known."""
    folder = Path(text).expanduser()
    classes_known = not folder.is_dir() or (folder / RECORD).is_file()
    if crop is not None and not classes_known:
        if size is None:
            raise ValueError(f"photos of {text} are cut by the rule {crop}, which needs the size of the pictures")
        photos = open_pictures(Data(source=text, crop=crop), size)
        labels = np.array([photos.label(place) for place in range(len(photos))], np.int64)
        return _Pictures(photos, labels, len(photos.class_names), photos.class_names)
    images, known = image_source(text, size=size)
    if not classes_known:
        assert images.paths is not None
        parts = [path.relative_to(folder).parts for path in images.paths]
        if min(map(len, parts)) < 2:
            raise ValueError(f"{text} holds pictures outside of class folders, so their classes are not known")
        names = tuple(sorted({one[0] for one in parts}))
        places = {name: place for place, name in enumerate(names)}
        return _Pictures(images, np.array([places[one[0]] for one in parts], np.int64), len(names), names)
    count = None
    if folder.is_dir():
        given, count = labels_of_run(folder), plan_of(read_record(folder) or {}).num_classes
        known = None if count is None else np.array(given)
    if known is None or not np.issubdtype(known.dtype, np.integer) or known.ndim != 1 or known.min(initial=0) < 0:
        raise ValueError(f"{text} doesn't say by numbers from 0 on what its pictures show")
    if len(known) != len(images):
        raise ValueError(f"{text} has {len(images):,} pictures but {len(known):,} classes; is its run complete, as PNG files?")
    return _Pictures(images, known.astype(np.int64), count or int(known.max()) + 1)


def _agreed(samples: _Pictures, real: _Pictures, of_samples: str, of_real: str) -> _Pictures:
    """The real pictures with their classes numbered as those of the samples; ValueError if they show others."""
    count = samples.num_classes
    if samples.names is not None and real.names is not None:
        if others := sorted(set(real.names) - set(samples.names)):
            raise ValueError(f"{of_real} has the class {others[0]!r}, which {of_samples} lacks")
        places = np.array([samples.names.index(name) for name in real.names])
        return replace(real, labels=places[real.labels], names=samples.names)
    if real.names is not None and len(real.names) != count:
        raise ValueError(f"{of_real} has {len(real.names):,} class folders, but {of_samples} shows classes 0 to {count - 1}")
    if real.labels.max() >= count:
        raise ValueError(f"{of_real} shows class {real.labels.max()}, but {of_samples} classes 0 to {count - 1} only")
    return real
