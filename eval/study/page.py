"""The page on which a person answers, for the server or as one file that needs no network."""

import base64
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from cascade.eval.study.design import PICTURES, Study

TASKS = {
    True: "Which is the better large version of the small picture?",
    False: "Which of the two is the real picture?",
}
"""What is asked, with the small picture shown and without, as in SR3's tasks 1 and 2 (arXiv:2104.07636, section 4)."""


def study_page(study: Study, folder: Path, *, served: bool) -> str:
    """The whole page. It says which picture is real for practice pairs alone.

    `served`: Pictures come from the server and answers go to it; else the page holds its pictures, and answers are saved as a
    file. The browser is forbidden any other connection.
    """
    methods = {method: number for number, method in enumerate(study.methods)}
    pictures = {name: number for number, name in enumerate(dict.fromkeys(pair.picture for pair in study.pairs))}
    pairs: list[dict[str, Any]] = []
    for place, pair in enumerate(study.pairs):
        shown: dict[str, Any] = {"id": place, "kind": pair.kind, "pictures": sorted((pair.real, pair.made)), "small": pair.small}
        shown |= {"picture": pictures[pair.picture], "method": methods.get(pair.method, 0)}
        pairs.append(shown | ({"real": pair.real} if pair.kind == "practice" else {}))
    names = sorted({name for pair in study.pairs for name in (pair.real, pair.made, pair.small) if name is not None})
    data = {
        "id": study.id,
        "seconds": study.seconds,
        "perRater": study.per_rater,
        "methods": len(methods),
        "pairs": pairs,
        "sources": None if served else {name: _inline(folder / PICTURES / name) for name in names},
    }
    policy = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; base-uri 'none'; form-action 'none'; "
    policy += "img-src 'self' data:; connect-src 'self'" if served else "img-src data:"
    templates = Environment(loader=FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=StrictUndefined)
    kinds = {kind: any(pair.kind == kind for pair in study.pairs) for kind in ("practice", "check")}
    texts = {"policy": policy, "task": TASKS[study.shows_small], "kinds": kinds}
    return templates.get_template("page.html").render(study=study, data=data, **texts)


def _inline(path: Path) -> str:
    return "data:image/png;base64," + base64.b64encode(path.read_bytes()).decode()
