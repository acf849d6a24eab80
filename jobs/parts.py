"""A large file in parts that travel, and back: `python -m jobs.parts FOLDER/NAME.json OUT` joins and verifies them."""

from __future__ import annotations

import hashlib
import json
import sys
from pathlib import Path

PART = 15 * 2**20
"""Bytes of a part, unless it is said otherwise."""


def split(path: Path, folder: Path, size: int = PART) -> Path:
    """Write `NAME.000`, `NAME.001` ... of at most `size` bytes, and `NAME.json` with their hashes, which is returned.

    `NAME.json` comes last: where it is, everything is.
    """
    whole = hashlib.sha256()
    parts: list[dict[str, str]] = []
    with path.open("rb") as file:
        while content := file.read(size):
            whole.update(content)
            name = f"{path.name}.{len(parts):03d}"
            (folder / name).write_bytes(content)
            parts.append({"name": name, "sha256": hashlib.sha256(content).hexdigest()})
    manifest = folder / f"{path.name}.json"
    manifest.write_text(json.dumps({"name": path.name, "sha256": whole.hexdigest(), "parts": parts}, indent=1) + "\n")
    return manifest


def join(manifest: Path, folder: Path) -> Path:
    """Join the parts that lie beside `NAME.json` into `folder/NAME`, whole or not at all.

    Raises ValueError if a part is missing or another one than was written.
    """
    facts = json.loads(manifest.read_text())
    names = [facts["name"], *(part["name"] for part in facts["parts"])]
    if strange := [name for name in names if Path(name).name != name]:
        raise ValueError(f"{manifest} names {strange[0]!r}, expected names of files beside it")
    folder.mkdir(parents=True, exist_ok=True)
    partial, whole = folder / f".{facts['name']}", hashlib.sha256()
    try:
        with partial.open("wb") as file:
            for part in facts["parts"]:
                path = manifest.parent / part["name"]
                content = path.read_bytes() if path.is_file() else b""
                if hashlib.sha256(content).hexdigest() != part["sha256"]:
                    raise ValueError(f"{path} is {'damaged' if path.is_file() else 'missing'}; bring it again")
                whole.update(content)
                file.write(content)
        if whole.hexdigest() != facts["sha256"]:
            raise ValueError(f"{manifest} doesn't name all parts, or not in their order")
        return partial.replace(folder / facts["name"])
    finally:
        partial.unlink(missing_ok=True)


if __name__ == "__main__":
    print(join(Path(sys.argv[1]), Path(sys.argv[2])))
