"""Arms side by side over how deep a network is, or in how many blocks: accuracies, their differences, their errors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from sidestep.report.figures import Line, lines
from sidestep.report.tables import PERCENT, Column, Table, shown
from sidestep.studies import against, benches
from sidestep.studies.rows import by_label, mean, minus, names, pick, spread
from sidestep.studies.statistics import Difference
from sidestep.studies.study import Row

Depths = dict[str, list[Row]]
"""Rows by depth, ascending: how many units, modules or blocks."""


def by_depth(rows: Sequence[Row], count: str, arm: str, *, bench: bool = False) -> Depths:
    """An arm's runs, or its benches, by how many of what `count` names it has."""
    found = by_label(pick(rows, arm=arm), count, sorted(names(rows, count), key=int))
    kept = {depth: benches.apart(its)[bench] for depth, its in found.items()}
    return {depth: its for depth, its in kept.items() if its}


def accuracies(arms: Mapping[str, Depths], pairs: Sequence[tuple[str, str]], count: str) -> Table | None:
    """One line a depth: the accuracy of every arm, and of each pair the first less the second."""
    depths = sorted({depth for its in arms.values() for depth in its}, key=int)
    columns: list[Column] = [
        (f"{arm}, %", [shown(spread(its.get(depth, [])), PERCENT) for depth in depths]) for arm, its in arms.items()
    ]
    for a, b in pairs:
        columns += against.column(f"{a} less {b}", depths, lessened(arms, a, b))
    return Table.of(depths, columns, count)


def lessened(arms: Mapping[str, Depths], a: str, b: str) -> dict[str, Difference]:
    found = {depth: minus(its, arms[b].get(depth, [])) for depth, its in arms[a].items()}
    return {depth: gap for depth, gap in found.items() if gap}


def over_depth(title: str, arms: Mapping[str, Depths], count: str) -> list[tuple[str, str, str]]:
    """The errors, which can be told apart near 0, as a section's figures; none where nothing has run."""
    series: list[Line] = []
    for name, its in arms.items():
        found = {int(depth): 100 - 100 * value for depth, rows in its.items() if (value := mean(rows)) is not None}
        if found:
            series.append(Line(name, list(found), list(found.values())))
    return [(title, lines(title, series, count, "test error, %", log_x=True, log_y=True), "")] if series else []
