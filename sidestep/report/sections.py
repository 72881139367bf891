"""What a report shows method by method: curves, uncertainty, belief descent, examples, audit, configuration."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import PurePath

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
class Uncertainty:
    """How far answers can be trusted.  Figures are the first run's, the table is of all."""

    where: str  # the samples judged
    bins: int  # that the reliability is drawn in
    temperature: float | None  # of the last block
    reliability: str
    risk: str
    several: bool  # blocks that are read, so that there is a mean of them
    ood: str | None
    outside: str | None  # the samples of another kind
    auroc: float | None  # of the last block
    table: tables.Table | None


@dataclass(frozen=True)
class Deviations:
    """How far predicted deviations can be trusted, of the first run."""

    where: str  # the samples judged
    scaled: bool  # after a factor fitted on the validation split
    coverage: str
    table: tables.Table | None
    items: list[dict[str, str]]  # pictures of single samples: target, mean, deviation


@dataclass(frozen=True)
class Section:
    """One group.  Figures are SVG; what was not measured is None or empty."""

    label: str
    seeds: list[str]  # what figures and tables average over; examples, audit and configuration are the first one's
    judged: str | None  # validation over epochs, by what the epoch is chosen by
    loss: str | None
    diagnostics: dict[str, str]  # by name, over epochs
    blocks: tables.Table | None
    uncertainty: Uncertainty | None
    deviations: Deviations | None
    descent: Descent | None
    examples: list[views.Example]
    audit: views.Audit | None
    toml: str


@dataclass(frozen=True)
class Diagnostic:
    """What `Method.diagnostics` may name."""

    heading: str
    unit: str
    note: str


DIAGNOSTICS = {
    "bound": Diagnostic(
        "Bound",
        "bound, nats",
        "Of each block, on validation samples: the Kullback-Leibler divergence from what it says to what the target "
        "asks of it, and what its own read-out then pays for the label. Not smaller than what it pays alone: of "
        "a linear read-out for every sample, of another, where it is estimated by sampling, in expectation.",
    ),
    "gap": Diagnostic(
        "How tight the bound is",
        "gap, nats",
        "The bound less the read-out’s own negative log-likelihood, the latent summed out. Estimated by importance "
        "sampling, which errs towards too small a gap.",
    ),
    "angle": Diagnostic(
        "Feedback",
        "degrees",
        "The angle between what teaches a block’s features and the gradient that backpropagation would send there: at "
        "90° the feedback knows nothing of the weights ahead.",
    ),
    "weight_angle": Diagnostic(
        "Weight transport",
        "degrees",
        "The angle between a block’s feedback weights and the transposed ones of the block ahead: at 90° nothing of "
        "them came back.",
    ),
}


def diagnostic(name: str) -> Diagnostic:
    """How one is told; one that a method of the reader’s own names, by that name."""
    return DIAGNOSTICS.get(name, Diagnostic(name, name, ""))


def sections(groups: Sequence[Group]) -> list[Section]:
    """One a group, with the accuracies on one scale."""
    key, unit, scale = (
        ("nll", "validation loss, nats", 1) if by_loss(groups) else ("accuracy", "validation accuracy, %", 100)
    )
    values = [group.history("val", key) for group in groups]
    limits = common_limits([scale * h for h in values if h is not None])
    figures = [
        curves(
            f"{unit.partition(',')[0]} of each block over epochs, {group.label}",
            [row["epoch"] for row in group.first.metrics],
            h,
            unit,
            limits=limits,
            scale=scale,
        )
        for group, h in zip(groups, values, strict=True)
    ]
    return [section(group, figure) for group, figure in zip(groups, figures, strict=True)]


def by_loss(groups: Sequence[Group]) -> bool:
    """Whether the runs are judged by their likelihood, as those of a text or of numbers are."""
    return any(f"{part}_loss" in groups[0].first.summary for part in ("val", "test"))


def section(group: Group, judged: str | None) -> Section:
    first, of = group.first, f"of each block over epochs, {group.label}"
    epochs = [row["epoch"] for row in first.metrics]
    return Section(
        label=group.label,
        seeds=[str(run.summary["seed"]) for run in group.runs],
        judged=judged,
        loss=losses(f"training loss {of}", epochs, group.history("train_loss")),
        diagnostics=diagnostics(group, epochs),
        blocks=tables.by_block(group),
        uncertainty=uncertainty(group),
        deviations=deviations(group),
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


def diagnostics(group: Group, epochs: Sequence[int]) -> dict[str, str]:
    """What the method's theory speaks of, those with numbers."""
    found: dict[str, str] = {}
    for name in group.first.metrics[-1].get("diagnostics", {}) if epochs else ():
        alt = f"{name} of each block over epochs, {group.label}"
        if svg := curves(alt, epochs, group.history("diagnostics", name), diagnostic(name).unit):
            found[name] = svg
    return found


def losses(alt: str, epochs: Sequence[int], values: np.ndarray | None) -> str | None:
    """On a logarithmic axis, but for the likelihood of a density, which may be above 1."""
    return curves(alt, epochs, values, "training loss, nats", log=values is not None and not (values <= 0).any())


def common_limits(series: Sequence[np.ndarray]) -> tuple[float, float] | None:
    """Of an axis that holds all values, with a little room; None for none."""
    values = [a[np.isfinite(a)] for a in series if np.isfinite(a).any()]
    if not values:
        return None
    low, high = min(v.min() for v in values), max(v.max() for v in values)
    room = max(0.05 * (high - low), 0.01)
    return float(low - room), float(high + room)


def uncertainty(group: Group) -> Uncertainty | None:
    """From the first run's uncertainty.json; None where it has none, or where the network diverged."""
    found = group.first.uncertainty
    if found is None or None in found["curves"]["reliability"][-1]["confidence"]:
        return None
    drawn, after, other = found["curves"], found["temperature"], found.get("ood")
    t, unit = None if after is None else after["T"][-1], found.get("unit", "samples")
    bins = {"raw": drawn["reliability"][-1]} | ({} if t is None else {f"T = {t:.2f}": drawn["reliability_at_T"]})
    risks = [[np.nan] * len(drawn["coverage"]) if risk is None else risk for risk in drawn["risk"]]
    several = sum(risk is not None for risk in drawn["risk"]) > 1
    return Uncertainty(
        where=f"{found['samples']:,} {'validation' if found['split'] == 'val' else 'test'} {unit}",
        bins=len(bins["raw"]["share"]),
        temperature=t,
        reliability=figures.reliability(
            f"accuracy over confidence, {group.label}",
            [figures.Line(name, each["confidence"], each["accuracy"]) for name, each in bins.items()],
        ),
        risk=figures.risk_coverage(
            f"wrong answers over coverage, {group.label}",
            drawn["coverage"],
            np.array(risks, dtype=float),
            np.array(drawn["mean"]["risk"], dtype=float) if several else None,
        ),
        ood=other
        and figures.confidences(
            f"confidence inside and outside, {group.label}", drawn["inside"][-1], drawn["outside"][-1]
        ),
        outside=other and f"{other['samples']:,} test {unit} of {PurePath(other['data']).name}",
        auroc=other and found["ood_auroc"][-1],
        several=several,
        table=tables.uncertainty(group),
    )


def deviations(group: Group) -> Deviations | None:
    """From the first run's deviations.json; None where it has none."""
    found = group.first.deviations
    if found is None:
        return None
    shares = 100 * np.array(found["coverage"][-1])  # (parts, levels)
    levels = [100 * level for level in found["levels"]]
    return Deviations(
        where=f"{found['samples']:,} {'validation' if found['split'] == 'val' else 'test'} samples",
        scaled=found["scale"][-1] is not None,
        coverage=figures.coverage(f"coverage by predicted deviation, {group.label}", shares, levels),
        table=tables.deviations(found),
        items=found["items"],
    )


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
