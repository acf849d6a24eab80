"""What the site has beside `docs/`: the repository's other documents, where links of pages lead to them."""

import re
from pathlib import Path, PurePosixPath

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parents[1]
LINK = re.compile(r"(\]\()((?:\.\./)*)([^)#:\s]*)((?:#[^)]*)?\))")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Adds README.md as the front page, and every file outside `docs/` that a page links to."""
    files.append(File.generated(config, "index.md", content=_moved((ROOT / "README.md").read_text("utf-8"))))
    waiting = ["CONTRIBUTING.md", "CHANGELOG.md"]
    for file in files.documentation_pages():
        if file.src_uri != "index.md":
            waiting += _outside(Path(file.abs_src_path or "").read_text("utf-8"), PurePosixPath("docs") / file.src_uri)
    waiting += _outside((ROOT / "README.md").read_text("utf-8"), PurePosixPath("README.md"))
    while waiting:
        name = waiting.pop()
        path = ROOT / name
        if path.is_dir():
            name, path = (f"{name}/README.md", path / "README.md") if _read_me(path) else (f"{name}/index.md", path)
        if files.get_file_from_path(name) is not None or not path.exists():
            continue  # a link that leads nowhere is told by the build itself
        if path.is_dir():
            listed = "\n".join(f"- `{one.name}`" for one in sorted(path.iterdir()) if one.is_file())
            files.append(File.generated(config, name, content=f"# {path.name}/\n\n{listed}\n"))
        elif path.suffix == ".md":
            text = path.read_text("utf-8")
            files.append(File.generated(config, name, content=text))
            waiting += _outside(text, PurePosixPath(name))
        elif path.is_file():
            files.append(File.generated(config, name, abs_src_path=str(path)))
    return files


def on_page_markdown(markdown: str, page: object, config: MkDocsConfig, files: Files) -> str:
    """Links to the repository's files outside `docs/` lead to where the site has them."""
    uri: str = page.file.src_uri  # type: ignore[attr-defined]
    if uri == "index.md":
        return markdown
    inside = (ROOT / "docs" / uri).is_file()
    home = PurePosixPath("docs") / uri if inside else PurePosixPath(uri)

    def led(found: re.Match[str]) -> str:
        target = _place(home, found[2] + found[3])
        if target is None or not found[3]:
            return found[0]
        if target.parts[:1] == ("docs",):
            target = PurePosixPath(*target.parts[1:])
        elif (ROOT / target).is_dir():
            target = target / ("README.md" if _read_me(ROOT / target) else "index.md")
        return f"{found[1]}{_relative(PurePosixPath(uri), target)}{found[4]}"

    return LINK.sub(led, markdown)


def _outside(text: str, home: PurePosixPath) -> list[str]:
    """Files outside `docs/` to which this text, which lies at `home` in the repository, links."""
    places = (_place(home, found[2] + found[3]) for found in LINK.finditer(text) if found[3])
    return [str(place) for place in places if place is not None and place.parts[:1] != ("docs",)]


def _read_me(folder: Path) -> bool:
    """Whether a folder says itself what it is; else the site lists its files."""
    return (folder / "README.md").is_file()


def _place(home: PurePosixPath, link: str) -> PurePosixPath | None:
    """Where in the repository a link leads; None = out of it."""
    parts = list(home.parent.parts)
    for part in PurePosixPath(link).parts:
        if part == "..":
            if not parts:
                return None
            parts.pop()
        else:
            parts.append(part)
    return PurePosixPath(*parts)


def _relative(page: PurePosixPath, target: PurePosixPath) -> str:
    return "../" * len(page.parent.parts) + str(target)


def _moved(text: str) -> str:
    """README's links, from the root of the repository, as the front page has them."""

    def led(found: re.Match[str]) -> str:
        target = PurePosixPath(found[3])
        if target.parts[:1] == ("docs",):
            target = PurePosixPath(*target.parts[1:])
        elif found[3] and (ROOT / target).is_dir():
            target = target / ("README.md" if _read_me(ROOT / target) else "index.md")
        return f"{found[1]}{found[2]}{target if found[3] else ''}{found[4]}"

    return LINK.sub(led, text)
