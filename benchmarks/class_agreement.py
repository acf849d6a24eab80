"""Whether pictures of a cascade show the classes of ImageNet that they were asked for, beside real ones treated the same way.

    python benchmarks/class_agreement.py imagenet --real data/tiny-imagenet-200/val --num-images 400 --guidance 3 --out agreement/

For the pictures of every stage: how often EfficientNet-Lite0, choosing among the model's classes, names the asked one first or
among its first five, and the Frechet distance of its features (not FID) to as many real pictures. Real pictures are of the base's
size, and enlarged by the same stages: another set of them is the ceiling of agreement and the floor of the distance. Pictures are
kept in `--out`, and the same command goes on with them. Prints a table in Markdown.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from cascade import CascadePipeline
from cascade.data import open_pictures
from cascade.eval.classifier import errors
from cascade.eval.features import FeatureExtractor
from cascade.eval.images import image_array
from cascade.eval.report import Value, shown
from cascade.eval.scoring import feature_set, mean_interval, score
from cascade.measure.named import classifier_of, extractor_of
from cascade.stages.training import Data

CHUNK = 4
RESAMPLES = 200

Pictures = dict[str, np.ndarray]
"""Of every stage, uint8 [N, S, S, 3]."""


def balanced_labels(count: int, classes: int) -> np.ndarray:
    """Every class as often as the others, up to one, int64 [count]."""
    return np.arange(count) % classes


def real_pictures(source: str, ids: tuple[str, ...], size: int, labels: np.ndarray, skip: int) -> np.ndarray:
    """Real pictures of these labels, the first ones of each class after `skip` of them, uint8 [N, size, size, 3]."""
    found = open_pictures(Data(source=source), size)
    places = {label: [i for i in range(len(found)) if found.class_names[found.label(i)] == ids[label]] for label in set(labels)}
    taken = dict.fromkeys(places, skip)
    pictures = []
    for label in labels:
        pictures.append(found.read(places[label][taken[label]]).pixels)
        taken[label] += 1
    return np.stack(pictures)


def kept(path: Path, count: int, make: Callable[[range], Pictures]) -> Pictures:
    """What `make` makes of all places, in chunks that are kept in the folder, so that a stopped run goes on."""
    path.mkdir(parents=True, exist_ok=True)
    chunks = []
    for start in range(0, count, CHUNK):
        file = path / f"{start:06}.npz"
        if not file.is_file():
            np.savez(path / "partial.npz", **make(range(start, min(start + CHUNK, count))))
            (path / "partial.npz").replace(file)
        with np.load(file) as arrays:
            chunks.append(dict(arrays))
    return {stage: np.concatenate([chunk[stage] for chunk in chunks]) for stage in chunks[0]}


def as_uint8(images: np.ndarray) -> np.ndarray:
    return (images * 255).round().astype(np.uint8)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("model")
    add("--real", required=True, help="labelled real pictures, as data.source of a recipe; twice --num-images of them are needed")
    add("--num-images", type=int, default=200)
    add("--steps", type=int, help="of the base")
    add("--guidance", type=float, help="of the base")
    add("--dtype", default="float32")
    add("--out", type=Path, required=True)
    args = parser.parse_args()
    cascade = CascadePipeline.from_pretrained(args.model, dtype=args.dtype)
    cascade.set_progress_bar_config(disable=True)
    assert cascade.classes is not None and cascade.classes.wordnet_ids, "a model of ImageNet's classes is needed"
    base, *later = cascade.stages
    settings = {"num_inference_steps": args.steps, "guidance_scale": args.guidance}
    chosen = {name: {base: value} for name, value in settings.items() if value is not None}
    labels = balanced_labels(args.num_images, len(cascade.classes))

    def sampled(places: range) -> Pictures:
        out = cascade([int(labels[i]) for i in places], seeds=list(places), output_type="np", **chosen)
        return {name: as_uint8(stage.images) for name, stage in out.stages.items()}

    def enlarged(real: np.ndarray) -> Callable[[range], Pictures]:
        def make(places: range) -> Pictures:
            small = real[places.start : places.stop]
            if not later:
                return {base: small}
            out = cascade.upscale(list(small), [int(labels[i]) for i in places], later[0], seeds=list(places), output_type="np")
            return {base: small} | {name: as_uint8(stage.images) for name, stage in out.stages.items()}

        return make

    ids, size = cascade.classes.wordnet_ids, cascade.sizes[base]
    per_class = -(-args.num_images // len(ids))
    first, second = (real_pictures(args.real, ids, size, labels, skip) for skip in (0, per_class))
    told = "-".join(f"{name}{value:g}" for name, value in settings.items() if value is not None) or "defaults"
    sets = {f"{cascade.name}, {told}": kept(args.out / told, args.num_images, sampled)}
    sets["real pictures"] = kept(args.out / "real", args.num_images, enlarged(second))
    reference = kept(args.out / "reference", args.num_images, enlarged(first))
    judge, network = classifier_of(cascade.classes), extractor_of("efficientnet-lite0", None, "cpu")
    assert judge is not None
    print(f"{args.num_images} pictures each; {judge[0]}; in brackets 95 % intervals\n")
    print("| pictures | stage | top-1 | top-5 | distance | extrapolated |\n| --- | --- | --- | --- | --- | --- |")
    for name, stages in sets.items():
        for stage, images in stages.items():
            top1, top5 = (~wrong for wrong in errors(judge[1](images), labels))
            values = [mean_interval(one, RESAMPLES) for one in (top1, top5)] + distances(images, reference[stage], network)
            print(f"| {name} | {stage} | " + " | ".join(map(shown, values)) + " |", flush=True)


def distances(images: np.ndarray, reference: np.ndarray, network: FeatureExtractor) -> list[Value]:
    """The distance, and that of infinitely many pictures as far as these tell."""
    samples, real = (feature_set(image_array(one), network, crop_rule=None) for one in (images, reference))
    found = score(samples, real, resamples=RESAMPLES, overlaps=False)
    own = found.values()[found.distance_name]
    return [own, own if found.extrapolated is None else found.extrapolated]


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
