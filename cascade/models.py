"""Names of models: a shipped model, a preset, a folder, or an id on the Hugging Face Hub becomes a folder. Needs no torch."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, TypedDict, Unpack

from cascade import presets
from cascade.folder import MANIFEST, stage_folder
from cascade.stages import saved
from cascade.stages.saved import ModelError

SHIPPED = {"emoji": Path(__file__).parent / "assets" / "emoji"}


def folders() -> dict[str, Path]:
    """Folders of the models that are here by name."""
    return dict(SHIPPED)


class HubOptions(TypedDict, total=False):
    """How a model is looked up on the Hugging Face Hub; arguments of `snapshot_download`."""

    revision: str | None
    cache_dir: str | Path | None
    local_files_only: bool
    token: str | bool | None


def resolve(name_or_path: str | Path, **hub: Unpack[HubOptions]) -> Path:
    """The folder of a model.

    Args:
        name_or_path: The name of a shipped model ("emoji") or a preset, a folder of a cascade, of a base stage, or of the
            training run that made one (./emoji for one of a shipped model's name), or the id of a model on the Hugging Face Hub
            ("someone/something"), of which only json, safetensors and md files are downloaded.
        **hub: For a model on the Hub.

    Raises:
        ModelError: if there is no such model, or it can't be downloaded.
        ValueError: if files of a preset are missing.
    """
    name, path = str(name_or_path), Path(name_or_path).expanduser()
    if name in SHIPPED:
        if not (SHIPPED[name] / MANIFEST).is_file():
            gone = SHIPPED[name] / MANIFEST
            raise ModelError(f"the shipped model {name!r} is missing from this installation: there is no {gone}")
        return SHIPPED[name]
    if path.is_dir():
        return path if (path / MANIFEST).is_file() else stage_folder(path) or path
    if path.exists():
        raise ModelError(f"model {name!r} is a file, expected the folder of a cascade")
    if name in presets.names():
        return presets.assembled(name, resolve)
    if re.fullmatch(saved.HUB_ID, name) and not path.parent.is_dir():
        return saved.download(name, **hub)
    known = ", ".join([*SHIPPED, *presets.names()])
    raise ModelError(f"there is no model {name!r}: it is not a folder, and the models known by name are {known}")


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
