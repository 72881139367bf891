"""The tables of a report, as text: what was not measured in any row has no column."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from sidestep.report.read import Group, Spread

Format = Callable[[float], str]
Column = tuple[str, Sequence[str | None]]
"""A heading, and a cell a row: None where nothing was measured."""


@dataclass(frozen=True)
class Table:
    """head: one text a column; the first column names the row.  words: how many columns, from the left, hold words."""

    head: Sequence[str]
    rows: Sequence[Sequence[str]]
    words: int = 1

    @classmethod
    def of(cls, names: Sequence[str], columns: Sequence[Column], name: str) -> Table | None:
        """From columns, without those that hold nothing; None if none is left."""
        kept = [(head, cells) for head, cells in columns if any(cell is not None for cell in cells)]
        rows = [
            [row, *(c if (c := cells[i]) is not None else "not measured" for _, cells in kept)]
            for i, row in enumerate(names)
        ]
        return cls([name, *(head for head, _ in kept)], rows) if kept else None


def fixed(digits: int, scale: float = 1) -> Format:
    return lambda value: f"{scale * value:.{digits}f}".replace("-", "−")


def significant(value: float) -> str:
    """Three significant figures, or all digits before the point."""
    return f"{value:#.3g}".rstrip(".") if abs(value) < 999.5 else f"{value:,.0f}"


def whole(value: float) -> str:
    return f"{value:,.0f}"


def prefixed(value: float) -> str:
    """Three significant figures and k, M, G or T."""
    for factor, prefix in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= factor:
            return f"{significant(value / factor)} {prefix}"
    return significant(value)


PERCENT = fixed(2, 100)
JUDGED: tuple[tuple[str, str, Format], ...] = (
    ("test_accuracy", "test accuracy, %", PERCENT),
    ("test_nll", "test NLL, nats", fixed(4)),
    ("test_brier", "test Brier", fixed(4)),
    ("test_ece", "test ECE", fixed(4)),
    ("test_rmse", "test RMSE", fixed(4)),
    ("test_bits_per_character", "bits a character", fixed(4)),
    ("val_accuracy", "val. accuracy, %", PERCENT),
)
UNCERTAINTY: tuple[tuple[str, str, Format], ...] = (
    ("T", "T", fixed(3)),
    ("accuracy", "accuracy, %", PERCENT),
    ("nll", "NLL, nats", fixed(4)),
    ("brier", "Brier", fixed(4)),
    ("ece", "ECE", fixed(4)),
    ("adaptive_ece", "adaptive ECE", fixed(4)),
    ("aurc", "AURC", fixed(4)),
    ("ood_auroc", "OOD AUROC", fixed(4)),
)
SIZES: tuple[tuple[str, str, Format], ...] = (
    ("params", "parameters", whole),
    ("aux_params", "auxiliary", whole),
    ("flops_per_sample", "FLOPs, training", prefixed),
    ("inference_flops_per_sample", "FLOPs, inference", prefixed),
)
TRAINED: tuple[tuple[str, str, Format], ...] = (
    ("samples_per_second", "samples per second", whole),
    ("step_ms", "step, ms", fixed(2)),
    ("peak_activation_mb", "peak activations, MiB", fixed(2)),
    ("peak_rss_mb", "process’s peak memory, MiB", whole),
)


def shown(spread: Spread | None, form: Format) -> str | None:
    if spread is None:
        return None
    return form(spread.mean) + ("" if spread.deviation is None else f" ± {form(spread.deviation)}")


def headline(groups: Sequence[Group]) -> Table | None:
    """What each method reached, and how large it is."""
    columns: list[Column] = [(head, [shown(group.spread(key), form) for group in groups]) for key, head, form in JUDGED]
    columns += [(head, [mean(group, key, form) for group in groups]) for key, head, form in SIZES]
    if len({len(group.runs) for group in groups}) > 1:
        columns.insert(0, ("seeds", [str(len(group.runs)) for group in groups]))
    return Table.of([group.label for group in groups], columns, "method")


def in_training(groups: Sequence[Group]) -> Table | None:
    """Speed while the runs trained, and memory, which the page says how to read."""
    columns = [(head, [shown(group.spread(key), form) for group in groups]) for key, head, form in TRAINED]
    return Table.of([group.label for group in groups], columns, "method")


def mean(group: Group, key: str, form: Format) -> str | None:
    found = group.spread(key)
    return None if found is None else form(found.mean)


def by_block(group: Group) -> Table | None:
    """The test measures of every block with a read-out; None where only one has."""
    found = group.final("block_test_nll")
    if found is None or (read := readouts(found)).size < 2:
        return None
    columns: list[Column] = []
    for key, head, form in JUDGED:
        values = group.final(f"block_{key}")
        if key.startswith("test_") and values is not None:
            columns.append((head, [shown(Spread.of(values[:, k].tolist()), form) for k in read]))
    return Table.of([str(k + 1) for k in read], columns, "block")


def deviations(found: Mapping[str, Any]) -> Table | None:
    """Likelihoods of every block with a read-out, from a run's deviations.json."""
    heads = {
        "nll": "NLL, nats",
        "scale": "factor",
        "nll_scaled": "with it",
        "nll_constant": "one deviation",
        "nll_per_number": "one a number",
    }
    read = [k for k, value in enumerate(found["nll"]) if value is not None]
    known = [key for key in heads if key in found and found[key][read[-1]] is not None]
    columns: list[Column] = [(heads[key], [fixed(4)(found[key][k]) for k in read]) for key in known]
    return Table.of([str(k + 1) for k in read], columns, "block")


def readouts(values: np.ndarray) -> np.ndarray:
    """The indices of the blocks that have numbers, from (..., K)."""
    return np.flatnonzero(np.isfinite(values).all(axis=tuple(range(values.ndim - 1))))


def descent(found: dict[str, np.ndarray]) -> Table | None:
    """The belief curves of `measure.descent`, their means over runs, before the first and after every block."""
    blocks = range(found["D"].shape[1])
    columns: list[Column] = []
    for key, head, form in (
        ("D", "D", fixed(4)),
        ("D_population", "D predicted", fixed(4)),
        ("C", "C", fixed(4)),
        ("e", "mean slack e", fixed(4)),
        ("e_positive", "e > 0, %", fixed(1, 100)),
    ):
        if key in found:
            values = found[key].mean(0)
            before = len(blocks) - len(values)  # what belongs to a block says nothing of the uniform belief
            columns.append((head, [""] * before + [form(v) for v in values]))
    return Table.of(["0 (uniform)", *map(str, blocks[1:])], columns, "after block")


def uncertainty(group: Group) -> Table | None:
    """How far the last block's answer and the mean of several can be trusted; None unless all runs measured it.

    Data of another kind have a column where they are the same for all runs.
    """
    found = [run.uncertainty for run in group.runs if run.uncertainty is not None]
    if len(found) < len(group.runs):
        return None
    others = {one.get("ood", {}).get("data") for one in found}
    each = [answers(one) for one in found]
    names = [name for name in each[0] if all(name in rows for rows in each)]
    columns: list[Column] = []
    for key, head, form in UNCERTAINTY:
        if key == "ood_auroc" and len(others) > 1:
            continue
        has = [key in each[0][name] for name in names]
        spreads = [Spread.over([rows[name].get(key) for rows in each]) for name in names]
        columns.append((head, [shown(s, form) if own else "" for s, own in zip(spreads, has, strict=True)]))
    return Table.of(names, [(head, cells) for head, cells in columns if any(cells)], "answer")


def answers(found: dict[str, Any]) -> dict[str, dict[str, float | None]]:
    """From uncertainty.json: rows of measures by their names, those at a temperature where the answer has one."""
    rows: dict[str, dict[str, float | None]] = {}
    several = sum(value is not None for value in found["accuracy"]) > 1
    for name in ("last block", "mean of blocks")[: 1 + several]:
        for suffix, part in (("", found), (" at T", found["temperature"])):
            if part is not None:
                # Lists hold a measure of every block.
                last = {key: value[-1] for key, value in part.items() if isinstance(value, list)}
                row = last if name == "last block" else part["mean"]
                if row.get("T", 1) is not None:
                    rows[name + suffix] = row
    return rows


def costs(rows: Sequence[dict[str, Any]]) -> Table | None:
    """Methods side by side, timed in turn."""

    def column(key: str, form: Format) -> list[str | None]:
        return [None if row.get(key) is None else form(row[key]) for row in rows]

    def ranged(key: str, form: Format) -> list[str | None]:
        ends = zip(column(key, form), column(f"{key}_low", form), column(f"{key}_high", form), strict=True)
        # Backprop's ratio to itself has no range.
        own = [row.get(f"{key}_low") == row.get(f"{key}_high") for row in rows]
        return [v if alone or not (a and b) else f"{v} ({a}–{b})" for alone, (v, a, b) in zip(own, ends, strict=True)]

    columns: list[Column] = [
        ("step ÷ backprop’s", ranged("ratio_to_backprop", fixed(2))),
        ("step, ms", ranged("step_ms", significant)),
        ("peak activations, MiB", column("peak_activation_mb", significant)),
        *((head, column(key, form)) for key, head, form in SIZES),
    ]
    if len({row.get("blocks") for row in rows}) > 1:
        columns.insert(0, ("blocks", column("blocks", whole)))
    return Table.of([row["method"] for row in rows], columns, "method")


def runs(groups: Sequence[Group]) -> Table:
    """Every run by itself."""
    each = [(group, run) for group in groups for run in group.runs]
    columns: list[Column] = [
        ("seed", [str(run.summary["seed"]) for _, run in each]),
        ("parameters judged", [run.summary.get("selected") for _, run in each]),
        ("folder", [run.name for _, run in each]),
    ]
    for key, head, form in (*JUDGED, *TRAINED[:2]):
        values = [run.summary.get(key) for _, run in each]
        columns.append((head, [None if v is None else form(v) for v in values]))
    table = Table.of([group.label for group, _ in each], columns, "method")
    assert table is not None
    return Table(table.head, table.rows, words=4 if "parameters judged" in table.head else 3)


def provenance(groups: Sequence[Group]) -> Table:
    """What the runs were made with; values that differ between runs stand beside each other."""
    summaries = [run.summary for group in groups for run in group.runs]
    rows: list[list[str]] = []
    for key, name in (
        ("commit", "commit of sidestep"),
        ("torch", "torch"),
        ("device", "device"),
        ("precision", "precision"),
        ("threads", "threads"),
        ("train_samples", "training samples"),
        ("seed", "seeds" if len(summaries) > 1 else "seed"),
    ):
        values = dict.fromkeys(str(s[key]) for s in summaries if s.get(key) is not None)
        if values:
            rows.append([name, ", ".join(values)])
    return Table([], rows, words=2)
