"""Differences paired by seed, and what may be said of them: in a cell, in a figure."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from sidestep.report.figures import differences
from sidestep.report.tables import Column
from sidestep.studies.rows import Value, minus, points
from sidestep.studies.statistics import Difference
from sidestep.studies.study import Row

PAIRED = (
    "Differences are paired by seed, with their 95 % interval, each by itself: where nothing differs, one in twenty "
    "leaves out 0."
)
"""Under every table of them: a page makes as many comparisons as it has cells."""


def less(groups: Mapping[str, Sequence[Row]], base: str, value: Value = "test_accuracy") -> dict[str, Difference]:
    """Every other group less this one, where they share a seed."""
    found = {arm: minus(rows, groups.get(base, []), value) for arm, rows in groups.items() if arm != base}
    return {arm: difference for arm, difference in found.items() if difference is not None}


def said(name: str, found: Mapping[str, Difference]) -> str:
    """What the differences say, by verdict: "Less backprop, in points (below): SID −1.00 [−1.2, −0.8]. Above: BLL …."

    Empty where there are none.
    """
    sentences: list[str] = []
    for verdict in dict.fromkeys(gap.verdict for gap in found.values()):
        head = f"{verdict[0].upper()}{verdict[1:]}" if sentences else f"{name}, in points ({verdict})"
        gaps = [f"{line} {points(gap)}" for line, gap in found.items() if gap.verdict == verdict]
        sentences.append(f"{head}: {'; '.join(gaps)}.")
    return " ".join(sentences)


def column(head: str, lines: Sequence[str], found: Mapping[str, Difference]) -> list[Column]:
    """A table's column of differences by its lines' names; none where there are none."""
    return [(f"{head}, points", [cell(found[line]) if line in found else "" for line in lines])] if found else []


def cell(gap: Difference, show: Callable[[Difference], str | None] = points) -> str:
    """A single seed's difference alone, else with its interval and what that says."""
    return str(show(gap)) if gap.low is None else f"{show(gap)}, {gap.verdict}"


def figure(alt: str, found: Mapping[str, Difference]) -> list[tuple[str, str, str]]:
    """The differences beside zero, for `Section.figures`; none where there are none."""
    if not found:
        return []
    rows = [
        (name, 100 * d.mean, d.low and 100 * d.low, d.high and 100 * d.high, [100 * v for v in d.values])
        for name, d in found.items()
    ]
    drawn = differences(alt, rows, "points of test accuracy")
    return [(f"{alt[0].upper()}{alt[1:]}.", drawn, "Dots are seeds, the line their interval.")]
