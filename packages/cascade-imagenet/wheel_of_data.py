"""Builds the wheel of a package that is one folder of data, with nothing but Python's own library (PEP 517 and 427)."""

from __future__ import annotations

import base64
import hashlib
import tomllib
import zipfile
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent


def build_wheel(wheel_directory: str, config_settings: Any = None, metadata_directory: str | None = None) -> str:
    """Write the wheel, uncompressed since weights don't shrink; returns its file's name."""
    project = tomllib.loads((HERE / "pyproject.toml").read_text("utf-8"))["project"]
    package = project["name"].replace("-", "_")
    release = f"{package}-{project['version']}"
    name, info = f"{release}-py3-none-any.whl", f"{release}.dist-info"
    points = "".join(
        f"[{group}]\n" + "".join(f"{key} = {value}\n" for key, value in entries.items())
        for group, entries in project["entry-points"].items()
    )
    texts = {
        "METADATA": _metadata(project),
        "WHEEL": "Wheel-Version: 1.0\nGenerator: wheel_of_data\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        "entry_points.txt": points,
    }
    files = [path for path in sorted((HERE / package).rglob("*")) if path.is_file() and "__pycache__" not in path.parts]
    contents = {path.relative_to(HERE).as_posix(): path for path in files}
    record = ""
    with zipfile.ZipFile(Path(wheel_directory) / name, "w", zipfile.ZIP_STORED) as wheel:
        for place, content in (contents | {f"{info}/{key}": text for key, text in texts.items()}).items():
            data = content.read_bytes() if isinstance(content, Path) else content.encode()
            wheel.writestr(zipfile.ZipInfo(place), data)
            digest = base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b"=").decode()
            record += f"{place},sha256={digest},{len(data)}\n"
        wheel.writestr(zipfile.ZipInfo(f"{info}/RECORD"), record + f"{info}/RECORD,,\n")
    return name


def _metadata(project: dict[str, Any]) -> str:
    heads = {
        "Metadata-Version": "2.4",
        "Name": project["name"],
        "Version": project["version"],
        "Summary": project["description"],
        "License-Expression": project["license"],
        "Requires-Python": project["requires-python"],
        "Description-Content-Type": "text/markdown",
    }
    lines = [f"{key}: {value}" for key, value in heads.items()]
    lines += [f"Requires-Dist: {one}" for one in project["dependencies"]]
    return "\n".join(lines) + "\n\n" + (HERE / project["readme"]).read_text("utf-8")
