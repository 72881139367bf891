"""Rows of a study, picked by their labels and put side by side.  What several pages show is written here once."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence

from sidestep.report.read import Spread
from sidestep.report.tables import PERCENT, Column, Format, Table, fixed, prefixed, shown, significant, whole
from sidestep.studies.statistics import Difference, paired
from sidestep.studies.study import Row

Value = str | Callable[[Row], float | None]
"""A number of a row: its key, or a function."""
Measure = tuple[str, Value, Format]
"""A column of means: its head, what they are of, and how they are written."""


def pick(rows: Sequence[Row], **labels: str) -> list[Row]:
    """The rows that have these labels, did not fail, and are no trial of a candidate."""
    return [
        row
        for row in rows
        if "failed" not in row
        and "trial" not in row["labels"]
        and all(row["labels"].get(label) == value for label, value in labels.items())
    ]


def names(rows: Sequence[Row], label: str) -> list[str]:
    """The values of a label, in the order of the rows."""
    return list(dict.fromkeys(row["labels"][label] for row in rows if label in row["labels"]))


def by_label(rows: Sequence[Row], label: str, values: Iterable[str] | None = None) -> dict[str, list[Row]]:
    """`pick` for each of these values of a label, by default all that rows have; none for which there is nothing."""
    values = names(rows, label) if values is None else values
    return {value: its for value in values if (its := pick(rows, **{label: value}))}


def value_of(row: Row, value: Value) -> float | None:
    return row.get(value) if isinstance(value, str) else value(row)


def by_seed(rows: Sequence[Row], value: Value = "test_accuracy") -> dict[int, float]:
    """seed -> value, without the rows that have none."""
    found = {int(row["seed"]): value_of(row, value) for row in rows}
    return {seed: v for seed, v in found.items() if v is not None}


def spread(rows: Sequence[Row], value: Value = "test_accuracy") -> Spread | None:
    """The mean over rows, and their standard deviation."""
    values = list(by_seed(rows, value).values())
    return Spread.of(values) if values else None


def mean(rows: Sequence[Row], value: Value = "test_accuracy") -> float | None:
    values = list(by_seed(rows, value).values())
    return statistics.fmean(values) if values else None


def minus(a: Sequence[Row], b: Sequence[Row], value: Value = "test_accuracy") -> Difference | None:
    """Paired by seed."""
    return paired(by_seed(a, value), by_seed(b, value))


def best_on_validation(tried: Mapping[str, Sequence[Row]]) -> str | None:
    """The name of the best mean validation accuracy, over the seeds that all have of which there are rows."""
    found = {name: accuracies for name, rows in tried.items() if (accuracies := by_seed(rows, "val_accuracy"))}
    seeds = sorted(set[int].intersection(*map(set[int], found.values()))) if found else []
    return max(found, key=lambda name: statistics.fmean(found[name][seed] for seed in seeds)) if seeds else None


def points(found: Difference | None) -> str | None:
    """A difference of fractions in percentage points, with its interval: "−0.31 [−0.52, −0.10]"."""
    if found is None:
        return None
    text = f"{100 * found.mean:+.2f}"
    if found.low is not None and found.high is not None:
        text += f" [{100 * found.low:+.2f}, {100 * found.high:+.2f}]"
    return text.replace("-", "−")


def nats(found: Difference) -> str:
    """A difference with its interval: "+0.0123 [+0.0100, +0.0146]"."""
    interval = "" if found.low is None or found.high is None else f" [{found.low:+.4f}, {found.high:+.4f}]"
    return f"{found.mean:+.4f}{interval}".replace("-", "−")


def table(
    groups: Mapping[str, Sequence[Row]],
    columns: Sequence[Measure] = (),
    name: str = "method",
    further: Sequence[Column] = (),
) -> Table:
    """One line a group: how many seeds, mean ± standard deviation of each column, and further cells as they come."""
    lines = list(groups.values())
    found: list[Column] = [("seeds", [str(len({row.get("seed") for row in rows})) for rows in lines])]
    found += [(head, [shown(spread(rows, value), form) for rows in lines]) for head, value, form in columns]
    made = Table.of(list(groups), [*found, *further], name)
    assert made is not None
    return made


ACCURACY: Measure = ("test accuracy, %", "test_accuracy", PERCENT)
NLL: Measure = ("NLL, nats", "test_nll", fixed(4))
ECE: Measure = ("ECE", "test_ece", fixed(4))


def read_out(how: str, part: str = "test", measure: str = "accuracy") -> Callable[[Row], float | None]:
    """The accuracy of a network read by its last block, the mean of all, or a gate; None where it has one read-out."""
    return lambda row: ((row.get("readouts") or {}).get(part, {}).get(how) or {}).get(measure)


ACCURACIES: Sequence[Measure] = (
    ACCURACY,
    ("averaged logits, %", read_out("mean"), PERCENT),
    ("gate, %", read_out("gate"), PERCENT),
)
"""The columns of a table in which networks are read in every way there is."""
HOWEVER_READ: Sequence[Measure] = (*ACCURACIES, NLL, ECE)
"""The same, and the last block's NLL and ECE."""


def reads(rows: Sequence[Row], how: str) -> dict[int, float]:
    """seed -> test accuracy, read by the last block, the mean of all, or a gate; {} of a network with one read-out."""
    return by_seed(rows) if how == "last" else by_seed(rows, read_out(how))


def chosen(groups: Mapping[str, Sequence[Row]]) -> Column:
    """The candidate that every group's arm was run with."""
    return "chosen on validation", [rows[0]["labels"].get("tuned", "") for rows in groups.values()]


def sizes(groups: Mapping[str, Sequence[Row]]) -> list[Column]:
    """Parameters, FLOPs and memory of a group's first row: all of it, and without what the method added.

    FLOPs deployed are those of the answer alone, with all read-outs those of every block's.
    """

    def column(value: Callable[[Row], float | None], form: Format) -> list[str | None]:
        found = [value(rows[0]) if rows else None for rows in groups.values()]
        return [None if v is None else form(v) for v in found]

    return [
        ("parameters", column(lambda row: row["params"], whole)),
        ("without heads", column(lambda row: row["params"] - row["aux_params"], whole)),
        ("FLOPs to train a sample", column(lambda row: row.get("flops_per_sample"), prefixed)),
        ("peak activations, MiB", column(lambda row: row.get("peak_activation_mb"), significant)),
        ("FLOPs deployed", column(lambda row: row["inference_flops_per_sample"], prefixed)),
        ("all read-outs", column(lambda row: row["readouts_flops_per_sample"], prefixed)),
        ("network alone", column(lambda row: row["network_flops_per_sample"], prefixed)),
    ]
