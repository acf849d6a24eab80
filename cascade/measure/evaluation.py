"""Sets of pictures measured: scores against real ones, references that are kept, and the classifier of drawings."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from cascade.data import crops, open_pictures
from cascade.data.checking import cores, read_pixels
from cascade.devices import find_device
from cascade.eval.images import ImageStream
from cascade.eval.references import Reference, load_reference, measure
from cascade.eval.scoring import MANIFOLD_K, Scores, feature_set, score
from cascade.eval.statistics import save_measurement
from cascade.measure.comparisons import reference_features
from cascade.measure.named import check_named, check_reference, crop_rule_of, extractor_of, image_source, reference_source
from cascade.progress import OnProgress, part
from cascade.stages.training import Data
from cascade.stages.training.odd_pictures import DamageLog


def evaluate(
    images: str | Path,
    reference: str | Path,
    *,
    extractor: str = "efficientnet-lite0",
    weights: Path | None = None,
    size: int | None = None,
    crop_rule: str | None = None,
    resamples: int = 100,
    device: str | None = None,
    on_progress: OnProgress | None = None,
) -> Scores:
    """Score pictures against real ones.

    Args:
        images: As `cascade.measure.named.image_source` takes them.
        reference: As `cascade.measure.named.reference_source` takes it.
        extractor: The network that describes pictures, one of `cascade.measure.protocols.EXTRACTORS`.
        weights: Its file; None = its own, or downloaded once.
        size: Side that the pictures must have, at which drawings are drawn; None = that of the first, drawings at 256.
        crop_rule: How the pictures were cut from their originals; only equal ones are compared.
        resamples: Redrawn sets behind the 95 % intervals of means; 0 = no intervals and no extrapolation.
        device: Where the extractor runs; None = on an accelerator if there is one.
        on_progress: Told of features and intervals.

    Raises:
        ValueError: if there are no such pictures, too few, or the two sides are not comparable.
        ConnectionError: if weights or statistics must be downloaded and can't be.
    """
    images, reference = str(images), str(reference)
    check_named(images)
    check_reference(reference, extractor)
    network = extractor_of(extractor, weights, str(find_device(device)))
    found, _ = image_source(images, size=size, minimum=MANIFOLD_K + 1)
    real = reference_source(reference, image_size=found.size, extractor=extractor)
    told = part(on_progress, "features of the pictures")
    samples = feature_set(found, network, crop_rule=crop_rule_of(images, crop_rule), on_batch=told)
    theirs, of_images = reference_features(real, network, crop_rule_of(reference, None), on_progress)
    return score(samples, theirs, of_images, resamples=resamples, on_resample=part(on_progress, "extrapolation"))


@dataclass(frozen=True)
class BuiltReference:
    """A reference that was kept; the side of its pictures; and a table of photos that could not be used, "" = none."""

    reference: Reference
    size: int
    odd: str = ""


def build_reference(
    images: str | Path,
    out: Path,
    *,
    crop: str | None = None,
    extractor: str = "efficientnet-lite0",
    weights: Path | None = None,
    size: int | None = None,
    crop_rule: str | None = None,
    device: str | None = None,
    on_progress: OnProgress | None = None,
) -> BuiltReference:
    """Measure real pictures once and keep the statistics in `out`, an .npz.

    Args:
        images: As `evaluate` takes them; with `crop` photos, named as `data.source` in a recipe.
        crop: The rule of training ("adm" or "area") by which photos are cut to `size`; it names the crop rule itself.
        extractor, weights, size, crop_rule, device, on_progress: As of `evaluate`.

    Raises:
        ValueError, ConnectionError: As of `evaluate`.
    """
    if out.suffix != ".npz":
        raise ValueError(f"the reference's file is {out}, expected one that ends in .npz")
    if crop and (not size or crop_rule):
        raise ValueError("crop needs the size of the pictures, and names their crop rule itself: leave crop_rule out")
    network = extractor_of(extractor, weights, str(find_device(device)))
    if crop is None or size is None:
        found = image_source(str(images), size=size, minimum=2)[0]
        told = part(on_progress, "features")
        rule = crop_rule_of(str(images), crop_rule)
        save_measurement(out, measure(found, network, crop_rule=rule, on_batch=lambda n: told(n, len(found))))
        return BuiltReference(load_reference(out), found.size)
    told = part(on_progress, "cutting and features")
    photos = open_pictures(Data(source=str(images), crop=crop), size, told)
    log = DamageLog(photos, max_damaged=1.0)
    cut = ImageStream(size, read_pixels(photos, cores(), log, told))  # never on the disk: all of ImageNet at 256 px are 252 GB
    save_measurement(out, measure(cut, network, crop_rule=crops.crop_rule(crop).recorded))
    return BuiltReference(load_reference(out), size, log.table())
