"""How a benchmark is measured and what is published of it, as checked YAML files in configs/protocols."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from cascade import typed
from cascade.files import CONFIGS

KINDS = ("samples", "super-resolution")
LABELS = ("balanced", "random", "heldout")
EXTRACTORS = ("efficientnet-lite0", "inception-clean", "inception-tensorflow", "inception-pytorch", "dinov2")
"""Feature networks; `cascade.measure.named.extractor_of` makes them."""
CLASSIFIERS = ("efficientnet-lite0", "resnet50")
"""Judges of ImageNet's classes; `cascade.measure.named.classifier_of` makes them."""


@dataclass(frozen=True, kw_only=True)
class Published:
    """What someone else measured of a model.

    values: By the names of the table's columns.
    source: Where they are published.
    evaluator: Whose program and which reference they come from; those of the protocol's own compare.
    differs: How else they were measured differently; "" = not at all.
    """

    name: str
    values: dict[str, float]
    source: str
    evaluator: str = "not stated"
    differs: str = ""

    def __post_init__(self) -> None:
        if not self.values:
            raise ValueError(f"values of {self.name!r} must map metrics to numbers")


@dataclass(frozen=True, kw_only=True)
class Protocol:
    """How a benchmark is measured.

    name: As the command line calls it, that of its file.
    title: Heading of the report.
    kind: "samples" of a cascade, or "super-resolution" of real images made small.
    size: Side of the images in pixels.
    num_images: How many the published figures are of, or are asked for by default.
    extractor: Feature network, one of `EXTRACTORS`.
    distance: What the distance's column is called.
    reference: Real images, as `cascade.measure.named` names them; None = a file that the user gives.
    reference_file: What that file is and where it is published; None = none is needed.
    reference_sha256: Of that file, where it is published; None = it is not, or there are several.
    evaluator: Whose program and reference this protocol is; published rows of the same one can be compared.
    vocabulary: "imagenet" for models of its 1,000 classes alone; None = any.
    crop_rule: How the real images were cut from their originals.
    classifier: Which of `CLASSIFIERS` judges enlarged images of ImageNet's classes.
    labels: Classes of samples: "balanced", "random" (as `RunPlan` has them), or "heldout": those of the held-out drawings that
        make the floor.
    seeds: First seed of each set of samples; where there are several, each has a row and that of least distance stands first.
    low_res_size: Side of the small images, for super-resolution; None = not that kind.
    notes: What a reader must know.
    published: Rows beside ours.
    """

    name: str
    title: str
    kind: str
    size: int
    num_images: int
    extractor: str
    distance: str
    reference: str | None = None
    reference_file: str | None = None
    reference_sha256: str | None = None
    evaluator: str | None = None
    vocabulary: str | None = None
    crop_rule: str | None = None
    classifier: str = "efficientnet-lite0"
    labels: str = "balanced"
    seeds: tuple[int, ...] = (0,)
    low_res_size: int | None = None
    notes: tuple[str, ...] = ()
    published: tuple[Published, ...] = ()

    def __post_init__(self) -> None:
        for key, known in (
            ("kind", KINDS),
            ("labels", LABELS),
            ("extractor", EXTRACTORS),
            ("classifier", CLASSIFIERS),
            ("vocabulary", (None, "imagenet")),
        ):
            if (value := getattr(self, key)) not in known:
                raise ValueError(f"{key} is {value!r}, expected one of {', '.join(map(str, known))}")
        for key in ("size", "num_images"):
            if getattr(self, key) < 1:
                raise ValueError(f"{key} must be at least 1, got {getattr(self, key)}")
        if not self.seeds or len(set(self.seeds)) < len(self.seeds) or min(self.seeds) < 0:
            raise ValueError(f"seeds are {list(self.seeds)}, expected at least one, none twice and none below 0")
        if any(0 < abs(a - b) < self.num_images for a in self.seeds for b in self.seeds):
            raise ValueError(f"seeds are {list(self.seeds)}, but sets of {self.num_images} images must not share any")
        if len(self.seeds) > 1 and self.labels == "heldout":
            raise ValueError("seeds are several, but protocols with a floor of held-out drawings have one")
        if (self.low_res_size is not None) != (self.kind == "super-resolution"):
            raise ValueError(f"low_res_size is {self.low_res_size}, but only super-resolution has one, and needs it")
        if self.low_res_size is not None and (self.low_res_size < 1 or self.size % self.low_res_size):
            raise ValueError(f"low_res_size is {self.low_res_size}, expected a divisor of size {self.size}")


def protocol_names() -> list[str]:
    """Names of all protocols that come with the package."""
    return sorted(path.stem for path in (CONFIGS / "protocols").glob("*.yaml"))


def load_protocol(name: str) -> Protocol:
    """A protocol that comes with the package, or that of a file whose path ends in .yaml; every key and type is checked. Raises
    ValueError if there is none, or its file says something that a protocol doesn't; it names file and key."""
    path = Path(name) if name.endswith((".yaml", ".yml")) else CONFIGS / "protocols" / f"{name}.yaml"
    if not path.is_file():
        raise ValueError(f"there is no protocol {name!r}; choose one of {', '.join(protocol_names())}, or give a YAML file")
    values = typed.read(path)
    try:
        protocol = typed.build(Protocol, values)
        if protocol.name != path.stem:
            raise ValueError(f"name is {protocol.name!r}, expected {path.stem!r}, that of its file")
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    return protocol
