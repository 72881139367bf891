"""What a report shows method by method: curves, belief descent, examples, audit, configuration."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from sidestep.report import figures, tables, views
from sidestep.report.read import Group


@dataclass(frozen=True)
class Descent:
    """The belief curves.  where: the samples and parameters of all but `curve`, which is of validation over epochs."""

    where: str
    curve: str | None
    final: str
    slack: str
    table: tables.Table | None


@dataclass(frozen=True)
class Section:
    """One group.  Figures are SVG; what was not measured is None or empty."""

    label: str
    seeds: list[str]  # what figures and tables average over; examples, audit and configuration are the first one's
    accuracy: str | None
    loss: str | None
    blocks: tables.Table | None
    descent: Descent | None
    examples: list[views.Example]
    audit: views.Audit | None
    toml: str


def sections(groups: Sequence[Group]) -> list[Section]:
    """One a group, with the accuracies on one scale."""
    limits = common_limits([h for group in groups if (h := group.history("val", "accuracy")) is not None])
    return [section(group, limits) for group in groups]


def section(group: Group, limits: tuple[float, float] | None) -> Section:
    first, of = group.first, f"of each block over epochs, {group.label}"
    epochs = [row["epoch"] for row in first.metrics]
    accuracy, loss = group.history("val", "accuracy"), group.history("train_loss")
    return Section(
        label=group.label,
        seeds=[str(run.summary["seed"]) for run in group.runs],
        accuracy=curves(
            f"validation accuracy {of}", epochs, accuracy, "validation accuracy, %", limits=limits, scale=100
        ),
        loss=curves(f"training loss {of}", epochs, loss, "training loss, nats", log=True),
        blocks=tables.by_block(group),
        descent=descent(group, epochs),
        examples=views.examples(first.examples),
        audit=None if first.audit is None else views.audit(first.audit),
        toml=first.toml,
    )


def curves(
    alt: str,
    epochs: Sequence[int],
    values: np.ndarray | None,
    unit: str,
    *,
    scale: float = 1,
    limits: tuple[float, float] | None = None,
    log: bool = False,
) -> str | None:
    """None where no block has numbers."""
    if values is None or not tables.readouts(values).size:
        return None
    return figures.curves(alt, epochs, scale * values, unit, limits, log)


def common_limits(accuracies: Sequence[np.ndarray]) -> tuple[float, float] | None:
    """Of a percent axis that holds all fractions, with a little room; None for none."""
    values = [100 * a[np.isfinite(a)] for a in accuracies if np.isfinite(a).any()]
    if not values:
        return None
    low, high = min(v.min() for v in values), max(v.max() for v in values)
    room = max(0.05 * (high - low), 0.1)
    return float(low - room), float(high + room)


def descent(group: Group, epochs: Sequence[int]) -> Descent | None:
    """From the test set and the parameters judged where the summary has it, else from the last epoch's validation."""
    keys = ("D", "D_population", "C", "e", "e_quantiles", "e_positive")
    where = "test samples, with the parameters that were judged"
    found = {key: values for key in keys if (values := group.final("descent", key)) is not None}
    if "D" not in found:
        where = "validation samples, after the last epoch"
        found = {key: v[:, -1] for key in keys if (v := group.history("val", "descent", key)) is not None}
    # A prediction of certainty has no logarithm.
    found = {key: values for key, values in found.items() if np.isfinite(values).all()}
    if "D" not in found:
        return None
    every = group.history("val", "descent", "D")
    of = f"of each block, {group.label}"
    return Descent(
        where=where,
        curve=curves(f"D {of}, over epochs", epochs, None if every is None else every[:, :, 1:], "D, nats", log=True),
        final=figures.descent(f"D {of}, measured and predicted", found["D"], found.get("D_population")),
        slack=figures.slack(f"slack {of}", found["e_quantiles"].mean(0), found["e_positive"].mean(0)),
        table=tables.descent(found),
    )
