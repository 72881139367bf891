"""What the simulation predicts beside what processes of this machine take, of the study of scale."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from sidestep.report.study import Section
from sidestep.report.tables import Column, Table, fixed, significant
from sidestep.studies import benches
from sidestep.studies.rows import pick
from sidestep.studies.study import Part, Row

DEVELOPED = "width 1024, batch 512"
"""The network whose errors were seen while the simulator was written; it is not judged by them."""
ERROR = fixed(1, 100)


def validated(rows: Sequence[Row]) -> list[Part]:
    found = [row for row in pick(rows) if "cores" in row]
    if not found:
        return []
    tables: list[tuple[str, Table]] = []
    worst: dict[str, dict[str, float]] = {"error": {}, "error_plain": {}}
    for row in found:
        entries = row["rows"]
        columns: list[Column] = [
            ("measured, ms", [f"{significant(e['step_ms'])} ({ends(e)})" for e in entries]),
            ("predicted, ms", [significant(e["predicted_ms"]) for e in entries]),
            ("error, %", [ERROR(e["error"]) for e in entries]),
            ("predicted with the plain factor, ms", [significant(e["predicted_plain_ms"]) for e in entries]),
            ("its error, %", [ERROR(e["error_plain"]) for e in entries]),
        ]
        table = Table.of([e["name"] for e in entries], columns, f"{row['ranks']} processes")
        assert table is not None
        network = row["labels"]["network"]
        seen = " (on which the simulator was developed)" if network == DEVELOPED else ""
        tables.append((f"{network}{seen}, {row['ranks']} processes on {row['cores']} cores", table))
        for e in entries if network != DEVELOPED else []:
            for which, its in worst.items():
                its[kind_of(e["name"])] = max(its.get(kind_of(e["name"]), 0.0), abs(e[which]))
    if any(worst.values()):
        told, plain = ("; ".join(f"{kind} {ERROR(error)} %" for kind, error in its.items()) for its in worst.values())
        within = [kind for kind, error in worst["error"].items() if error <= 0.1]
        answer = (
            f"Largest error of a predicted step time where nothing was developed on it: {told}. "
            f"Within 10 %: {', '.join(within) or 'none'}. With the plain factor: {plain}."
        )
    else:
        answer = "What was held out has not run yet."
    text = (
        "Predictions are made of blocks, stages and messages that were timed alone, before; nothing is fitted to "
        "these runs. Beside them goes a factor from the same run, which is no block alone and no link alone: how much "
        "longer work takes where all cores are busy with the like. For it processes do a stage's work, in as many "
        "micro-batches as the row has, and send its messages to each other in no order that a schedule knows, the "
        "first one while the others only answer, and all at once (sidestep/bench/busy.py). The plain factor, of whole "
        "batches without messages, is the same for all rows. "
        f"The simulator was developed on {DEVELOPED}; errors are judged on what was held out. Every time is the "
        f"mean of twelve steps that begin together. {benches.places(found)}"
    )
    return [(answer, Section("Predicted beside measured", text, tables))]


def ends(entry: Mapping[str, Any]) -> str:
    return f"{significant(entry['step_ms_low'])}–{significant(entry['step_ms_high'])}"


def kind_of(name: str) -> str:
    """A way to train, without its number of micro-batches or processes."""
    kind = name.partition(",")[0]
    return "data parallel" if "data parallel" in name else kind
