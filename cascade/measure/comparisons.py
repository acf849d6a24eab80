"""What tables put side by side: samples and held-out images against real ones, published figures, and pictures of all."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from cascade.classes import EMOJI, Vocabulary, imagenet
from cascade.eval.classifier import errors
from cascade.eval.features import FeatureExtractor
from cascade.eval.images import ImageSet, image_array
from cascade.eval.memorisation import Neighbours, nearest_in_features, nearest_in_pixels
from cascade.eval.references import FrechetResult, Reference
from cascade.eval.report import Curve, Picture, Row, Value, number_of
from cascade.eval.scoring import FeatureSet, Scores, feature_set, mean_interval
from cascade.files import cache_folder
from cascade.measure.named import WEIGHTS, classifier_of
from cascade.measure.protocols import Protocol
from cascade.progress import OnProgress, part

SHOWN = 8  # pictures in a row of a report
SHOWN_CLASSES = 12
PIXEL_SIZE = 32  # side at which pictures are compared by their pixels

Featured = tuple[FeatureSet, ImageSet]
"""Pictures and their features."""


def kept_features(
    images: ImageSet, extractor: FeatureExtractor, crop_rule: str | None, on_progress: OnProgress | None = None
) -> FeatureSet:
    """Features of real images, kept in the user's cache and found there again."""
    told = part(on_progress, "features of the reference")
    return feature_set(images, extractor, crop_rule=crop_rule, cache=cache_folder() / "features", on_batch=told)


def reference_features(
    real: ImageSet | Reference, extractor: FeatureExtractor, crop_rule: str | None, on_progress: OnProgress | None
) -> tuple[Reference | FeatureSet, FeatureSet | None]:
    """What samples are measured against, and features of real images where it has any."""
    if isinstance(real, ImageSet):
        found = kept_features(real, extractor, crop_rule, on_progress)
        return found, found
    if real.images is None:
        return real, None
    images = image_array(real.images, name=real.name)
    return real, kept_features(images, extractor, real.provenance.crop_rule, on_progress)


def table_values(scores: Scores, distance: str) -> dict[str, Value]:
    """All that was measured, the distance by the name that a table gives it."""
    return {name.replace(scores.distance_name, distance): value for name, value in scores.values().items()}


def columns_of(rows: Iterable[Row], last: Sequence[str] = ()) -> tuple[str, ...]:
    """Every column that a row has a value in, in the order in which they come; `last` ones at the end."""
    found = dict.fromkeys(name for row in rows for name, value in row.values.items() if value is not None)
    return tuple([name for name in found if name not in last] + [name for name in last if name in found])


def check_vocabulary(protocol: Protocol, classes: Vocabulary | None, num_classes: int | None) -> None:
    """Raise ValueError unless a model's classes are those of the protocol; classes without names must be as many."""
    if protocol.vocabulary == "imagenet" and (num_classes != len(imagenet()) or classes not in (None, imagenet())):
        count = "no classes" if num_classes is None else f"{num_classes:,} others"
        raise ValueError(f"protocol {protocol.name} measures models of ImageNet's 1,000 classes, but this one has {count}")


def differences(protocol: Protocol, num_images: int, frechet: FrechetResult | None) -> list[str]:
    """What of a measurement is not as the protocol has it, in words, so that no published row compares with it; `frechet` is its
    distance, None = none was measured."""
    found = []
    if num_images != protocol.num_images:
        found.append(f"{num_images:,} images, where the protocol has {protocol.num_images:,}")
    if frechet is None:
        return [*found, "no distance was measured"]
    network, weights = WEIGHTS.get(protocol.extractor), frechet.provenance.weights_hash
    if network is not None and weights != network.sha256:
        found.append(f"the extractor's weights have SHA-256 {weights}, the published ones {network.sha256}")
    crop_rule = frechet.reference_provenance.crop_rule
    if crop_rule != protocol.crop_rule:
        found.append(f"the reference's crop rule is {crop_rule or 'not known'}, where the protocol has {protocol.crop_rule}")
    if protocol.reference_file is not None and protocol.reference_sha256 is None:
        found.append("no SHA-256 of the protocol's reference is on record, so ours can't be told to be it")
    elif protocol.reference_sha256 not in (None, frechet.reference_hash):
        found.append(f"the reference has SHA-256 {frechet.reference_hash}, the protocol's {protocol.reference_sha256}")
    return found


def reference_shown(frechet: FrechetResult) -> str:
    """Count and hash of what samples were measured against, for reports."""
    count = "an unknown number of" if frechet.reference_count is None else f"{frechet.reference_count:,}"
    return f"{count} images, SHA-256 {frechet.reference_hash}"


def published_rows(protocol: Protocol, differing: Sequence[str]) -> list[Row]:
    """The published figures of a protocol, marked where they, or ours (`differing`), were measured differently."""
    rows = []
    for row in protocol.published:
        alone = row.evaluator == protocol.evaluator and not row.differs
        note = "; ".join(filter(None, (row.source, f"evaluator: {row.evaluator}", row.differs)))
        rows.append(Row(name=row.name, values=row.values, note=note, comparable=alone and not differing))
    return rows


def not_comparable(protocol: Protocol, differing: Sequence[str]) -> list[str]:
    """The note above published rows where none compares."""
    return [f"No published figure compares with ours: {'; '.join(differing)}."] if differing and protocol.published else []


def beside_drawings(
    train: Featured, heldout: Featured, samples: Featured, asked: np.ndarray, resamples: int
) -> tuple[Mapping[str, Value], Mapping[str, Value], list[Picture]]:
    """What can be said of pictures of the drawings' classes beside distances: what they show, and whether they repeat training.

    Shares of samples, and of held-out drawings, in percent: the asked class named first or among five by the classifier, and
    nearer to a training drawing than 95 % of held-out ones are. Last, the samples closest to training, by features and by pixels.
    """
    found, kinds, values = classifier_of(EMOJI), ("features", "pixels"), []
    assert found is not None
    near = [_neighbours(one, train) for one in (samples, heldout)]
    thresholds = [float(np.percentile(each.distance, 5)) for each in near[1]]
    for (_, images), nearest in zip((samples, heldout), near, strict=True):
        wrong = errors(found[1](images.array()), asked)
        shares = {"class agreement %": ~wrong[0], "among five %": ~wrong[1]}
        for kind, each, threshold in zip(kinds, nearest, thresholds, strict=True):
            shares[f"closer in {kind} %"] = each.distance < threshold
        values.append({name: mean_interval(100.0 * share, resamples) for name, share in shares.items()})
    pictures = [closest(kind, each, samples[1], train[1]) for kind, each in zip(kinds, near[0], strict=True)]
    return values[0], values[1], pictures


def _neighbours(pictures: Featured, train: Featured) -> tuple[Neighbours, Neighbours]:
    """The nearest training drawing of each picture, by features and by pixels."""
    (of_pictures, images), (of_train, real) = pictures, train
    by_pixels = nearest_in_pixels(images.array(), real.array(), size=PIXEL_SIZE)
    return nearest_in_features(of_pictures.features, of_train.features), by_pixels


def closest(kind: str, near: Neighbours, images: ImageSet, real: ImageSet) -> Picture:
    """The samples closest to real pictures, with these."""
    first = np.argsort(near.distance, kind="stable")[:SHOWN]
    return Picture(
        title=f"Closest to training pictures, by {kind}",
        caption="The samples that lie nearest to a training picture, and below each the picture that it is nearest to.",
        rows=(("sample", images.take(first).array()), ("training", real.take(near.index[first]).array())),
    )


def by_class(images: ImageSet, asked: np.ndarray, classes: Vocabulary | None) -> Picture:
    """The first samples of the classes that have most."""
    labels, counts = np.unique(asked, return_counts=True)
    chosen = sorted(labels[np.argsort(-counts, kind="stable")][:SHOWN_CLASSES])
    names = [classes.names[label] if classes is not None else f"class {label}" for label in chosen]
    rows = [images.take(np.flatnonzero(asked == label)[:SHOWN]).array() for label in chosen]
    caption = "The first samples of each class, in the order of their seeds; none was chosen or left out."
    return Picture(title="Samples", caption=caption, rows=tuple(zip(names, rows, strict=True)))


def distance_curve(rows: Iterable[Row], distance: str) -> Curve | None:
    """Distance against evaluations of every row that has both; None where fewer than two have."""
    lines = {}
    for row in rows:
        nfe, found = row.values.get("NFE"), number_of(row.values.get(distance))
        if nfe is not None and found is not None:
            lines[row.name] = [(float(sum(map(float, str(nfe).split("+")))), found)]
    if len(lines) < 2:
        return None
    return Curve(title=f"{distance} against evaluations", x="NFE per image, all stages", y=distance, lines=lines)
