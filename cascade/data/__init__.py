"""Pictures to learn from, as they come in the world: drawings, folders of photos, parquet and tar shards, the Hub."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np

from cascade.classes import EMOJI
from cascade.data.crops import crop_rule
from cascade.data.drawings import DRAWINGS, MAY_FLIP, cached_array
from cascade.data.folder import (
    FEWEST_TO_HOLD_OUT,
    Folder,
    Listing,
    Part,
    Photos,
    folder_classes,
    held_out_places,
    renumbered,
    splits,
)
from cascade.data.numbering import all_classes
from cascade.data.shards import HUB, ShardSet, shard_paths
from cascade.files import Progress
from cascade.stages.training import Data, PictureSet
from cascade.stages.training.examples import PictureSource


def class_names(data: Data, progress: Progress = lambda done, total: None) -> tuple[str, ...]:
    """Names of the classes in the data, in the order of their labels.

    Raises:
        ValueError: if there is no such data or crop rule, or it has no classes.
    """
    crop_rule(data.crop)
    if data.source in DRAWINGS:
        return EMOJI.names
    if folder := source_folder(data.source):
        return all_classes(folder_classes(folder, data.classes != 0), data.classes)
    return listing(data, progress).class_names


def open_pictures(data: Data, size: int, progress: Progress = lambda done, total: None) -> PictureSource:
    """The data as square pictures of one size. Photos are read when they are asked for, drawings are drawn now.

    Args:
        data: Which, and how they are made square.
        size: Side of the pictures in pixels.
        progress: Called while drawings are drawn or shards looked through.

    Raises:
        ValueError: if there is no such data, or it has no labelled pictures.
        ConnectionError: if it lies on the Hub, which can't be reached.
        OSError: if the user's cache can't be written.
    """
    rule = crop_rule(data.crop)
    if data.source not in DRAWINGS:
        found = listing(data, progress)
        if data.hold_out:
            found = Part(found, np.setdiff1d(np.arange(len(found.labels)), held_out_places(found, data.hold_out)))
        return Photos(found, size, rule.crop)
    pictures, labels = cached_array(size, DRAWINGS[data.source], progress=progress, every=data.every)
    return PictureSet(pictures, labels, EMOJI.names, MAY_FLIP)


def open_held_out(
    data: Data, source: str | None, trained: PictureSource, progress: Progress = lambda done, total: None
) -> PictureSource:
    """Pictures that are not trained on, of the size of the training's, made square by the same rule, and of its classes, or
    some of them, unless `data.classes` is 0.

    Args:
        data: What is trained on.
        source: Where the held-out pictures are, as `Data.source`; None = those that the training's source holds out itself.
        trained: The opened pictures of `data`.
        progress: As in `open_pictures`.

    Raises:
        ValueError: if there is no such data, the source holds nothing out, or its classes are not the training's.
    """
    if source is None and isinstance(trained, Photos) and isinstance(trained.listing, Part):
        whole = trained.listing.whole
        places = held_out_places(whole, data.hold_out)
        if not len(places):
            raise ValueError(
                f"data.hold_out {data.hold_out:g} holds nothing out: no class of {data.source} has {FEWEST_TO_HOLD_OUT} pictures;"
                " name some as validation.source, or leave the validation out"
            )
        return replace(trained, listing=Part(whole, places))
    source = source or held_out_source(data.source)
    if source is None:
        raise ValueError(
            f"data.source {data.source!r} holds no pictures out for the validation; name some as validation.source, or set"
            " data.hold_out"
        )
    found = open_pictures(replace(data, source=source, hold_out=0.0), trained.size, progress)
    if data.classes == 0:
        return found
    if isinstance(found, Photos) and set(found.class_names) < set(trained.class_names):  # not all classes are held out
        renumbered(found.listing, trained.class_names)
    if found.class_names != trained.class_names:
        raise ValueError(
            f"the {len(found.class_names)} classes of {source} are not the {len(trained.class_names)} of {data.source}, in number"
            " or name; hold out pictures of the classes that are trained"
        )
    return found


def source_folder(source: str) -> Path | None:
    """The folder of class folders that a source means: itself, or the part to train on of a data set. None = it is no folder."""
    folder = Path(source).expanduser()
    return splits(folder).get("train", folder) if folder.is_dir() else None


def held_out_source(source: str) -> str | None:
    """What a source itself holds out, as a source: the other drawings, or the part of a data set for validation, without one that
    for tests; None = nothing."""
    if source in DRAWINGS:
        return "drawings:heldout" if DRAWINGS[source] == "train" else None
    parts = splits(folder) if (folder := Path(source).expanduser()).is_dir() else {}
    found = parts.get("validation", parts.get("test"))
    return None if found is None else str(found)


def listing(data: Data, progress: Progress) -> Listing:
    """What photos the data has, those held out among them. Arguments and errors as in `open_pictures`."""
    if folder := source_folder(data.source):
        found: Listing = Folder(folder, data.classes != 0)
        return renumbered(found, all_classes(found.class_names, data.classes))
    paths = shard_paths(data.source, progress)
    if not paths:
        raise ValueError(
            f"data.source is {data.source!r}, expected 'drawings', a folder with one folder of pictures for each class, or"
            f" shards, as 'set/train-*.tar', 'set/train-*.parquet' or '{HUB}owner/name/data/train-*.parquet'"
        )
    found = ShardSet(paths, data.source, data.label, progress)
    return renumbered(found, all_classes(found.class_names, data.classes))
