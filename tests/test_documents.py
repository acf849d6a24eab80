"""Every Python block of the documents, and every example, runs as it is printed."""

import os
import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from itertools import cycle
from pathlib import Path

import pytest
from PIL import Image

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")), ROOT / "cascade" / "assets" / "emoji" / "README.md"]
BLOCK = re.compile(r"^```python\n(.*?)^```", re.MULTILINE | re.DOTALL)


WITH_PYTHON = [page for page in PAGES if BLOCK.search(page.read_text("utf-8"))]


def run(*command, cwd: Path) -> str:
    environment = os.environ | {"OMP_NUM_THREADS": "1"}  # two run side by side
    done = subprocess.run([sys.executable, *map(str, command)], cwd=cwd, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def scripts(tmp_path_factory):
    """The outcome of every page's script and of the examples: two at a time, each on a core of its own, where sampling runs start
    no further processes unless they are told to. Pages that start none share one, as most of their time is that of imports."""
    cores = cycle(sorted(os.sched_getaffinity(0))) if hasattr(os, "sched_getaffinity") else None
    alone = [page for page in WITH_PYTHON if "sample_run(" in page.read_text("utf-8")]
    together = [page for page in WITH_PYTHON if page not in alone]
    with ThreadPoolExecutor(2, initializer=lambda: cores and os.sched_setaffinity(0, {next(cores)})) as pool:  # of a thread
        examples = pool.submit(run_examples, tmp_path_factory.mktemp("examples"))
        parts = [[page] for page in alone] + [together]
        jobs = {page: pool.submit(run_pages, part, tmp_path_factory.mktemp("pages")) for part in parts for page in part[:1]}
        return {"examples": examples} | {page: jobs[part[0]] for part in parts for page in part}


def run_pages(pages: list[Path], folder: Path) -> str:
    """A page's blocks are one script: later ones use what earlier ones made. Page after page, each in a folder of its own."""
    for place, page in enumerate(pages):
        (folder / str(place)).mkdir()
        script = "\n\n".join(BLOCK.findall(page.read_text("utf-8")))
        (folder / str(place) / f"{page.stem}.py").write_text(script, "utf-8")
    if len(pages) == 1:
        return run(f"{pages[0].stem}.py", cwd=folder / "0")
    each = "import os, pathlib, runpy, sys\n"
    each += "for place in sys.argv[1:]:\n    os.chdir(pathlib.Path(place).parent)\n    runpy.run_path(place, run_name='__main__')"
    return run("-c", each, *sorted(folder.glob("*/*.py")), cwd=folder)


@pytest.mark.parametrize("page", WITH_PYTHON, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_the_python_of_a_page_runs(page, scripts):
    scripts[page].result()


def test_links_between_documents_lead_somewhere():
    for page in PAGES + sorted((ROOT / "docs" / "notes").glob("*.md")) + [ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md"]:
        for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", page.read_text("utf-8")):
            assert (page.parent / target).exists(), f"{page.relative_to(ROOT)} links to {target}"


def test_examples_run(scripts):
    assert "Candidate(steps=" in scripts["examples"].result()


def run_examples(tmp_path: Path) -> str:
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
    return run(script, tmp_path / "trained" / "model", small, tmp_path / "measured", 4, cwd=tmp_path)


def test_the_site_is_built_without_a_warning_and_loads_nothing_from_elsewhere(tmp_path):
    """Strictly: a broken link, a page that is in no menu, or a name that the API pages don't find fails."""
    pytest.importorskip("mkdocstrings", reason="the extra docs is not installed")
    run("-m", "mkdocs", "build", "--strict", "--site-dir", tmp_path / "site", cwd=ROOT)
    page = (tmp_path / "site" / "api" / "cascade" / "index.html").read_text("utf-8")
    assert "num_images_per_class" in page and "Make images, class by class" in page
    for path in (tmp_path / "site").rglob("*.html"):
        text = path.read_text("utf-8")
        loaded = re.findall(r'<(?:script|img|iframe)[^>]*\ssrc="(https?:[^"]*)|<link[^>]*\shref="(https?:[^"]*)', text)
        assert not loaded, f"{path.relative_to(tmp_path)} loads {loaded}"
