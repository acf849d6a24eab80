"""Every Python block of the documents, and every example, runs as it is printed."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

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


def test_examples_run(tmp_path):
    """One after the other: what the second trains, on pictures that the first made, the third measures."""
    run(ROOT / "examples" / "compose_stages.py", tmp_path / "composed", cwd=tmp_path)
    pictures, small = tmp_path / "pictures", tmp_path / "small"
    small.mkdir()
    for number, name in enumerate(("cat", "dog")):
        (pictures / name).mkdir(parents=True)
        for copy in range(4):
            with Image.open(tmp_path / "composed" / f"{name}.png") as image:
                turned = image.rotate(90 * copy + number)
                turned.save(pictures / name / f"{copy}.png")
                turned.resize((64, 64)).save(small / f"{name}-{copy}.png")
    printed = run(ROOT / "examples" / "train_on_a_folder.py", pictures, tmp_path / "trained", 32, cwd=tmp_path)
    assert "generate --model" in printed
    script = ROOT / "examples" / "benchmark_your_model.py"
    printed = run(script, tmp_path / "trained" / "model", small, tmp_path / "measured", 4, cwd=tmp_path)
    assert "Candidate(steps=" in printed
