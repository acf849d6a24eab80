"""Every Python block of the documents, and every example, runs as it is printed."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")), ROOT / "cascade" / "assets" / "emoji" / "README.md"]
BLOCK = re.compile(r"^```python\n(.*?)^```", re.MULTILINE | re.DOTALL)


def run(*command, cwd: Path) -> str:
    done = subprocess.run([sys.executable, *map(str, command)], cwd=cwd, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.parametrize("page", [page for page in PAGES if BLOCK.search(page.read_text("utf-8"))], ids=lambda page: page.stem)
def test_the_python_of_a_page_runs(page, tmp_path):
    """A page's blocks are one script: later ones use what earlier ones made."""
    script = tmp_path / "page.py"
    script.write_text("\n\n".join(BLOCK.findall(page.read_text("utf-8"))), "utf-8")
    run(script, cwd=tmp_path)


def test_links_between_documents_lead_somewhere():
    for page in PAGES + sorted((ROOT / "docs" / "notes").glob("*.md")) + [ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md"]:
        for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", page.read_text("utf-8")):
            assert (page.parent / target).exists(), f"{page.relative_to(ROOT)} links to {target}"
