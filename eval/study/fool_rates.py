"""How often people take a made picture for the real one, and the report that says so."""

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from cascade.eval.bootstrap import CONFIDENCE, Interval, student_quantile
from cascade.eval.report import Report, Row, Value
from cascade.eval.study.answers import Answer
from cascade.eval.study.design import Study

_SOURCE = "arXiv:2104.07636, human evaluation: bars of its figures, quoted second-hand"
_FACES, _NATURAL = "faces, 16 to 128 px", "ImageNet, 64 to 256 px"
PUBLISHED = {  # fool rate in %, by whether the small picture is shown
    True: (
        ("SR3", _FACES, 54.1), ("PULSE", _FACES, 24.6), ("FSRGAN", _FACES, 8.9), ("Regression", _FACES, 29.3),
        ("SR3", _NATURAL, 38.8), ("Regression", _NATURAL, 16.8),
    ),
    False: (
        ("SR3", _FACES, 47.4), ("PULSE", _FACES, 33.7), ("FSRGAN", _FACES, 15.2), ("Regression", _FACES, 15.3),
        ("SR3", _NATURAL, 39.0), ("Regression", _NATURAL, 13.4),
    ),
}  # fmt: skip


def fool_rate(fooled: NDArray, raters: NDArray, pictures: NDArray, *, num_resamples: int = 2000) -> Interval:
    """Share of answers that were fooled, with an interval for other people and other pictures of the same kind.

    People and pictures are drawn anew with replacement, each alone, always the same; the variance of the share is
    V(people) + V(pictures) - V(answers), since either draw counts the chance of a single answer once (Cameron, Gelbach & Miller
    2011, eq. 2.13, with the bootstrap for each term). Drawing both at once would count it three times (Owen 2007, theorem 3).
    The interval is Wilson's with the number of answers that would be as certain if they were independent, and Student's quantile
    for the fewer of people and pictures; it lies in [0, 1] and doesn't vanish at 0 or 1.

    Args:
        fooled: Whether the made picture was taken for real, bool [N].
        raters, pictures: Who answered, and about which picture, [N], of any type that has an order.
        num_resamples: Draws of people, and of pictures.

    Raises:
        ValueError: if there are fewer than 2 people or pictures.
    """
    fooled = np.asarray(fooled, np.float64)
    count, rate = len(fooled), float(fooled.mean())
    people, shown = len(np.unique(raters)), len(np.unique(pictures))
    if people < 2 or shown < 2:
        raise ValueError(f"an interval needs at least 2 people and 2 pictures, got {people} and {shown}")
    rng = np.random.default_rng(0)
    variance = _redrawn(fooled, raters, num_resamples, rng) + _redrawn(fooled, pictures, num_resamples, rng)
    variance -= rate * (1 - rate) / count
    floor = rate * (1 - rate) / count  # no answers are more certain than independent ones
    certain = count * floor / max(variance, floor) if floor else float(min(count, people, shown))
    z = student_quantile(min(people, shown) - 1)
    centre = (rate + z**2 / (2 * certain)) / (1 + z**2 / certain)
    reach = z / (1 + z**2 / certain) * math.sqrt(rate * (1 - rate) / certain + z**2 / (4 * certain**2))
    low, high = min(max(centre - reach, 0.0), rate), max(min(centre + reach, 1.0), rate)
    return Interval(estimate=rate, low=low, high=high, confidence=CONFIDENCE)


def _redrawn(fooled: NDArray, groups: NDArray, num_resamples: int, rng: np.random.Generator) -> float:
    """Variance of the share when whole groups of answers are drawn anew."""
    _, group = np.unique(groups, return_inverse=True)
    counts = np.bincount(group)
    sums = np.bincount(group, fooled)
    weights = rng.multinomial(len(counts), np.full(len(counts), 1 / len(counts)), num_resamples)
    unbiased = len(counts) / (len(counts) - 1)
    return float(np.var(weights @ sums / (weights @ counts))) * unbiased


def study_report(study: Study, answers: Sequence[Answer]) -> Report:
    """Fool rates in % by method beside SR3's, of those who passed every attention check that they came to.

    Raises:
        ValueError: if no answer of such a person counts.
    """
    pairs = study.pairs
    failed = {a.rater for a in answers if pairs[a.pair].kind == "check" and a.chosen != pairs[a.pair].real}
    rated = [answer for answer in answers if pairs[answer.pair].kind == "rated"]
    counted = [answer for answer in rated if answer.rater not in failed]
    everyone = len({answer.rater for answer in answers})
    if not counted:
        left_out = f", and {len(failed)} failed attention checks" if failed else ""
        raise ValueError(f"no answer counts: there are {len(rated)} by {everyone} people{left_out}")
    rows, details = [], {}
    for method in study.methods:
        mine = [answer for answer in counted if pairs[answer.pair].method == method]
        if mine:
            values, details[method] = _measured(study, mine)
            rows.append(Row(name=method, values=values, note=f"{len(mine):,} answers", ours=True))
    task = "the small picture shown (SR3's task 1)" if study.shows_small else "without the small picture (SR3's task 2)"
    for name, what, rate in PUBLISHED[study.shows_small]:
        rows.append(Row(name=f"{name}, {what}", values={"fool rate, %": rate}, note=_SOURCE, comparable=False))
    exposure = "until the answer" if study.seconds is None else f"for {study.seconds:g} s"
    times = np.array([answer.seconds for answer in counted])
    notes = (
        "The fool rate is how often the made picture is taken for the real one; 50 % = they can't be told apart.",
        "In brackets: 95 % intervals for other people and other pictures of the same kind.",
        f"{len(failed)} of {everyone} people failed an attention check; none of their answers count.",
        "SR3's rates are of other pictures and other people, 50 people of 50 pairs each. Its text has only that faces come close"
        " to 50 %, natural pictures close to 40 %, and that no GAN passes 34 %; the bars' figures are quoted second-hand.",
    )
    facts = {
        "study": f"{study.title}, {study.id}",
        "task": f"{task}, pairs seen {exposure}",
        "pairs": f"{len({p.picture for p in pairs if p.kind == 'rated'})} pictures, {study.per_rater} for each person",
        "people": f"{len({answer.rater for answer in counted})} whose answers count",
        "time of an answer": f"{np.median(times):.2f} s, the median",
    }
    return Report(
        title=f"Fool rates: {study.title}",
        facts=facts,
        columns=("fool rate, %", "people", "pictures", "least fooled person", "most", "least fooling picture", "most fooling"),
        rows=tuple(rows),
        notes=notes,
        details=details,
    )


def _measured(study: Study, answers: Sequence[Answer]) -> tuple[dict[str, Value], dict[str, dict[str, float]]]:
    """The table's values for a method in %, and its rates by person and by picture."""
    fooled = np.array([answer.chosen == study.pairs[answer.pair].made for answer in answers])
    raters = np.array([answer.rater for answer in answers])
    pictures = np.array([study.pairs[answer.pair].picture for answer in answers])
    by_rater, by_picture = _shares(fooled, raters), _shares(fooled, pictures)
    rate: Value = 100 * float(fooled.mean())
    if min(len(by_rater), len(by_picture)) > 1:
        found = fool_rate(fooled, raters, pictures)
        ends = {key: 100 * getattr(found, key) for key in ("estimate", "low", "high")}
        rate = Interval(confidence=found.confidence, **ends)
    values: dict[str, Value] = {"fool rate, %": rate, "people": float(len(by_rater)), "pictures": float(len(by_picture))}
    values |= {"least fooled person": min(by_rater.values()), "most": max(by_rater.values())}
    values |= {"least fooling picture": min(by_picture.values()), "most fooling": max(by_picture.values())}
    return values, {"by person": by_rater, "by picture": by_picture}


def _shares(fooled: NDArray, groups: NDArray) -> dict[str, float]:
    """Fool rate in % of each group."""
    return {str(group): 100 * float(fooled[groups == group].mean()) for group in np.unique(groups)}
