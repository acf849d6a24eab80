"""What tables put side by side: samples and held-out images against real ones, published figures, and pictures of all."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from cascade.classes import EMOJI, Vocabulary
from cascade.eval.features import FeatureExtractor
from cascade.eval.images import ImageSet, image_array
from cascade.eval.report import Curve, Picture, Row, Value, number_of
from cascade.eval.scoring import FeatureSet, Scores, feature_set, mean_interval
from cascade.measure.named import classifier_of, feature_cache
from cascade.measure.protocols import Protocol
from cascade.progress import OnProgress, part

if TYPE_CHECKING:
    from cascade.eval.memorisation import Neighbours
    from cascade.eval.references import Reference

SHOWN = 8  # pictures in a row of a report
SHOWN_CLASSES = 12
PIXEL_SIZE = 32  # side at which pictures are compared by their pixels


def features_of(
    images: ImageSet,
    extractor: FeatureExtractor,
    crop_rule: str | None,
    what: str,
    on_progress: OnProgress | None,
    kept: bool = False,
) -> FeatureSet:
    """Features of images, which `what` names for the progress; `kept` in the user's cache."""
    told, cache = part(on_progress, f"features of {what}"), feature_cache() if kept else None
    return feature_set(images, extractor, crop_rule=crop_rule, cache=cache, on_batch=told)


def reference_features(
    real: ImageSet | Reference, extractor: FeatureExtractor, crop_rule: str | None, on_progress: OnProgress | None
) -> tuple[Reference | FeatureSet, FeatureSet | None]:
    """What samples are measured against, and features of real images where it has any."""
    if isinstance(real, ImageSet):
        found = features_of(real, extractor, crop_rule, "the reference", on_progress, kept=True)
        return found, found
    if real.images is None:
        return real, None
    images = image_array(real.images, name=real.name)
    return real, features_of(images, extractor, real.provenance.crop_rule, "the reference", on_progress, kept=True)


def table_values(scores: Scores, distance: str) -> dict[str, Value]:
    """All that was measured, the distance by the name that a table gives it."""
    return {distance if name == scores.distance_name else name: value for name, value in scores.values().items()}


def columns_of(rows: Iterable[Row], last: Sequence[str] = ()) -> tuple[str, ...]:
    """Every column that a row has a value in, in the order in which they come; `last` ones at the end."""
    found = dict.fromkeys(name for row in rows for name, value in row.values.items() if value is not None)
    return tuple([name for name in found if name not in last] + [name for name in last if name in found])


def published_rows(protocol: Protocol, apart: bool) -> tuple[Row, ...]:
    """The published figures of a protocol; `apart` if ours can't stand beside any."""
    return tuple(
        Row(
            name=row.name,
            values=dict(row.values),
            note="; ".join(filter(None, (row.source, row.protocol))),
            comparable=row.comparable and not apart,
        )
        for row in protocol.published
    )


class Drawings:
    """What can be said of pictures of the drawings' classes beside distances: what they show, and whether they repeat training.

    Args:
        train: The training drawings, features and pictures.
        heldout: Drawings that no model has seen.
    """

    def __init__(self, train: tuple[FeatureSet, ImageSet], heldout: tuple[FeatureSet, ImageSet]) -> None:
        self.train = train
        self.thresholds = [float(np.percentile(near.distance, 5)) for near in self.neighbours(*heldout)]

    def neighbours(self, features: FeatureSet, images: ImageSet) -> tuple[Neighbours, Neighbours]:
        """The nearest training drawing of each picture, by features and by pixels."""
        from cascade.eval.memorisation import nearest_in_features, nearest_in_pixels

        of_train, train = self.train
        by_pixels = nearest_in_pixels(images.array(), train.array(), size=PIXEL_SIZE)
        return nearest_in_features(features.features, of_train.features), by_pixels

    def values(self, features: FeatureSet, images: ImageSet, asked: np.ndarray, resamples: int) -> dict[str, Value]:
        """Shares in percent: the asked class named first or among five by the classifier, and nearer to training than 95 % of
        held-out drawings are."""
        from cascade.eval.classifier import errors

        found = classifier_of(EMOJI)
        assert found is not None
        wrong = errors(found[1](images.array()), asked)
        shares = {"class agreement %": ~wrong[0], "among five %": ~wrong[1]}
        near = self.neighbours(features, images)
        for name, each, threshold in zip(("features", "pixels"), near, self.thresholds, strict=True):
            shares[f"closer in {name} %"] = each.distance < threshold
        return {name: mean_interval(100.0 * share, resamples) for name, share in shares.items()}

    def pictures(self, features: FeatureSet, images: ImageSet) -> list[Picture]:
        """The samples closest to training drawings, with these, by features and by pixels."""
        by_features, by_pixels = self.neighbours(features, images)
        return [_closest("features", by_features, images, self.train[1]), _closest("pixels", by_pixels, images, self.train[1])]


def closest_in_features(features: FeatureSet, images: ImageSet, real: FeatureSet, real_images: ImageSet) -> Picture:
    """The samples closest to real pictures by features, with these."""
    from cascade.eval.memorisation import nearest_in_features

    return _closest("features", nearest_in_features(features.features, real.features), images, real_images)


def _closest(kind: str, near: Neighbours, images: ImageSet, real: ImageSet) -> Picture:
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


def cost_values(cost: Mapping[str, Mapping[str, int]]) -> tuple[dict[str, Value], str]:
    """NFE as a table has it, one number per stage, and the multiply-adds of an image in words."""
    work = sum(stage["multiply_adds"] for stage in cost.values())
    nfe = " + ".join(str(stage["nfe"]) for stage in cost.values())
    return {"NFE": nfe or None}, f"{work / 1e9:,.3g} G multiply-adds each" if cost else ""
