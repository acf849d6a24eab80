"""Names of models become folders: a shipped model, an installed model package, a preset, a folder, or an id on the Hugging Face
Hub. Needs no torch."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypedDict, Unpack

from cascade import presets
from cascade.folder import MANIFEST, stage_folder
from cascade.stages import saved
from cascade.stages.saved import ModelError

SHIPPED = {"emoji": Path(__file__).parent / "assets" / "emoji"}
PACKAGES = "cascade.models"
"""Group of the entry points by which an installed package offers models: a model's name, and the top-level package that is its
folder of data, with `cascade.json` in it: `imagenet = "cascade_imagenet"`. The package is found, never imported."""


def folders() -> dict[str, Path]:
    """Folders of the models that are here by name: shipped ones, and those that exactly one installed package offers."""
    offers = packaged()
    counts = Counter(offer.name for offer in offers)
    alone = {one.name: one.folder for one in offers if one.folder is not None and counts[one.name] == 1}
    return SHIPPED | {name: folder for name, folder in alone.items() if name not in SHIPPED}


class HubOptions(TypedDict, total=False):
    """How a model is looked up on the Hugging Face Hub; arguments of `snapshot_download`."""

    revision: str | None
    cache_dir: str | Path | None
    local_files_only: bool
    token: str | bool | None


def resolve(name_or_path: str | Path, **hub: Unpack[HubOptions]) -> Path:
    """The folder of a model.

    Args:
        name_or_path: The name of a shipped model ("emoji"), of one in an installed package, or of a preset, a folder of a
            cascade, of a base stage, or of the training run that made one (./emoji where a model has that name), or the id of a
            model on the Hugging Face Hub ("someone/something"), of which only json, safetensors and md files are downloaded.
        **hub: For a model on the Hub.

    Raises:
        ModelError: if there is no such model, it can't be downloaded, its package is broken, or two packages offer it.
        ValueError: if files of a preset are missing.
    """
    name, path = str(name_or_path), Path(name_or_path).expanduser()
    if name in SHIPPED:
        if not (SHIPPED[name] / MANIFEST).is_file():
            gone = SHIPPED[name] / MANIFEST
            raise ModelError(f"the shipped model {name!r} is missing from this installation: there is no {gone}")
        return SHIPPED[name]
    offers = [] if len(path.parts) > 1 else packaged(name)
    if offers:
        return _only(offers)
    if path.is_dir():
        return path if (path / MANIFEST).is_file() else stage_folder(path) or path
    if path.exists():
        raise ModelError(f"model {name!r} is a file, expected the folder of a cascade")
    if name in presets.names():
        return presets.assembled(name, resolve)
    if re.fullmatch(saved.HUB_ID, name) and not path.parent.is_dir():
        return saved.download(name, **hub)
    known = ", ".join([*SHIPPED, *sorted({offer.name for offer in packaged()}), *presets.names()])
    raise ModelError(f"there is no model {name!r}: it is not a folder, and the models known by name are {known}")


@dataclass(frozen=True)
class Offer:
    """A model that an installed package offers: its name, the package and its version, and the folder; None = not there."""

    name: str
    package: str
    folder: Path | None


def packaged(name: str | None = None) -> list[Offer]:
    """Models that installed packages offer, all or those of one name. No code of a package is run."""
    from importlib.machinery import PathFinder
    from importlib.metadata import entry_points

    offers = []
    for point in entry_points(group=PACKAGES) if name is None else entry_points(group=PACKAGES, name=name):
        spec = PathFinder.find_spec(point.value) if point.value.isidentifier() else None
        places = [] if spec is None else list(spec.submodule_search_locations or ())
        package = f"{point.dist.name} {point.dist.version}" if point.dist else point.value
        offers.append(Offer(point.name, package, Path(places[0]) if places else None))
    return offers


def _only(offers: list[Offer]) -> Path:
    """The folder of a model that packages offer; ModelError if two do, or it is not there."""
    offer, *others = offers
    if others:
        packages = " and ".join(sorted(one.package for one in offers))
        raise ModelError(f"model {offer.name!r} is offered by {packages}; uninstall all but one, or give the folder of one")
    if offer.folder is None or not (offer.folder / MANIFEST).is_file():
        what = "the package that it names" if offer.folder is None else str(offer.folder / MANIFEST)
        raise ModelError(f"the package {offer.package} of model {offer.name!r} is broken: {what} is not there; install it again")
    return offer.folder


def upload(folder: Path, repo_id: str, **options: Any) -> str:
    """Upload a model's folder to the Hugging Face Hub as "someone/something"; returns its address there.

    `options` are `private` and `token` of the repository, and `commit_message`, `revision` and `create_pr` of the upload. Raises
    ConnectionError if the Hub can't be reached or refuses.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError

    api = HfApi(token=options.pop("token", None))
    try:
        repository = api.create_repo(repo_id, private=options.pop("private", None), exist_ok=True).repo_id
        return str(api.upload_folder(folder_path=folder, repo_id=repository, **options))
    except (HfHubHTTPError, OSError) as error:
        raise ConnectionError(f"{repo_id!r} could not be uploaded to the Hugging Face Hub ({saved.reason(error)})") from error
