"""The page of every recipe key is what the code says, and it says something of each."""

import importlib.util
import re
from pathlib import Path

import pytest

DOCS = Path(__file__).parents[1] / "docs"


@pytest.fixture(scope="module")
def page():
    spec = importlib.util.spec_from_file_location("recipe_reference", DOCS / "recipe_reference.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.page()


def test_the_page_is_current(page):
    told = "docs/recipe-reference.md is not what the code says; run `python docs/recipe_reference.py`"
    assert (DOCS / "recipe-reference.md").read_text("utf-8") == page, told


def test_every_key_is_told(page):
    rows = [re.split(r"(?<!\\) \| ", line) for line in page.splitlines() if line.startswith("| `")]
    assert len(rows) > 70
    untold = [row[0] for row in rows if not row[-1].strip(" |") and "objective.law" not in row[0]]
    assert not untold, "their docstrings say nothing of them"
