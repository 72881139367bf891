"""Accuracies read after every epoch, as SID's authors logged theirs: the last ten, the last, the best."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence

from sidestep.report.figures import Line, lines
from sidestep.report.study import Section
from sidestep.report.tables import PERCENT, Column
from sidestep.studies.rows import sizes, table
from sidestep.studies.study import Row


def last_ten(row: Row) -> float:
    return statistics.fmean(row["curve"]["test_accuracy"][-10:])


def deviation(row: Row) -> float | None:
    values = row["curve"]["test_accuracy"][-10:]
    return statistics.stdev(values) if len(values) > 1 else None


def last_epoch(row: Row) -> float:
    return row["curve"]["test_accuracy"][-1]


def best_epoch(row: Row) -> float:
    return max(row["curve"]["test_accuracy"])


COLUMNS = (
    ("last ten epochs, %", last_ten, PERCENT),
    ("sd over those, points", deviation, PERCENT),
    ("last epoch, %", last_epoch, PERCENT),
    ("best epoch on test, %", best_epoch, PERCENT),
)


def section(groups: Mapping[str, Sequence[Row]], drawn: Mapping[str, str], further: Sequence[Column] = ()) -> Section:
    """Groups of at least one row side by side, and over epochs.

    drawn: those that the figure has, and their names in it.
    """
    curves = [
        Line(name, list(range(1, rows[0]["epochs"] + 1)), [100 * v for v in rows[0]["curve"]["test_accuracy"]])
        for arm, name in drawn.items()
        if (rows := groups.get(arm))
    ]
    figures = [("Test accuracy after every epoch.", lines("test accuracy", curves, "epoch", "%"), "")] if curves else []
    return Section(
        "Test accuracy over the last ten epochs",
        "The last epoch of a constant learning rate is a lottery: the mean of ten says more. Nothing is chosen by the "
        "test accuracy; the best epoch on test stands here because the paper reports it. Curves are of the first seed.",
        [("", table(groups, COLUMNS, further=[*further, *sizes(groups)]))],
        figures,
    )
