"""What the simulation says of many machines, which nobody measured, and of machines that end, of the study of scale."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import product
from typing import Any

from sidestep.report.figures import Line, lines
from sidestep.report.study import Section
from sidestep.report.tables import PERCENT, Column, Format, Table, significant
from sidestep.studies.benches import TIMES
from sidestep.studies.rows import pick
from sidestep.studies.study import Part, Row

BLOCKS = "blocks"
CALLED = {
    "blocks": "local CE in blocks",
    "GPipe": "GPipe",
    "1F1B": "1F1B",
    "ZBV": "ZBV",
    "data parallel": "data parallel",
    "DiLoCo": "DiLoCo",
}
"""The ways to train that a row has, and what they are called here."""
WIRES = (
    "On wires as they are, blocks send as engines/dist_wire does, a head and then pieces of at most 1 MB, each of "
    "which is asked for when the one before has arrived, so that a message of 4 MB takes six ways there and back, "
    "however much lies ahead; pipelines send as torch does over gloo, where a message leaves once its receiver has "
    "asked for it, which takes a way too; sums ask ahead, and pay every message's way once. On wires that ask ahead no "
    "message waits until it is asked for: what better code could gain, for everybody."
)


def beyond(rows: Sequence[Row], needed: Sequence[float]) -> list[Part]:
    """What nobody measured; nothing before it was computed.

    needed: how many times as many steps, by seed: what is lost and won is told for the least and for the most.
    """
    found = [row for row in pick(rows) if "kept" in row]
    if not found:
        return []
    entries: list[dict[str, Any]] = found[-1]["rows"]
    tables: list[tuple[str, Table]] = []
    factors = extremes(needed)
    wires = list(dict.fromkeys(e["wire"] for e in entries))
    lost: dict[tuple[str, float], list[str]] = {(wire, factor): [] for wire in wires for factor in factors}
    for wire, ranks in product(wires, dict.fromkeys(e["ranks"] for e in entries)):
        own = [e for e in entries if (e["wire"], e["ranks"]) == (wire, ranks)]
        columns: list[Column] = [(called, [or_too_few(e[way]) for e in own]) for way, called in CALLED.items()]
        rivals = [fastest(e) for e in own]
        ratios = [e[way] / e[BLOCKS] for e, way in zip(own, rivals, strict=True)]
        columns.append(("fastest rival ÷ blocks", [TIMES(ratio) for ratio in ratios]))
        columns.append(("which is", [CALLED[way] for way in rivals]))
        for factor in factors:
            ends_as = ["loses" if ratio < factor else "wins" for ratio in ratios]
            columns.append((f"only forward, in {TIMES(factor)} times as many steps", ends_as))
            lost[wire, factor] += [
                f"{ranks:,} machines at {e['network']} ({CALLED[way]}, {TIMES(ratio)})"
                for e, way, ratio in zip(own, rivals, ratios, strict=True)
                if ratio < factor
            ]
        table = Table.of([e["network"] for e in own], columns, "bandwidth, round trip")
        assert table is not None
        tables.append((f"{ranks:,} machines, wires {wire}, ms a step: extrapolation", table))
    network = "1 Gb/s, 20 ms"
    shown = [e for e in entries if (e["network"], e["wire"]) == (network, wires[0])]
    drawn = [
        Line(called, [e["ranks"] for e in own], [e[way] for e in own])
        for way, called in CALLED.items()
        if len(own := [e for e in shown if e[way] is not None]) > 1
    ]
    title = f"Step time over machines at {network} there and back, wires {wires[0]}, extrapolated"
    figures = [(f"{title}.", lines(title, drawn, "machines", "ms a step", log_x=True, log_y=True), "")] if drawn else []
    if not needed:
        counted = {1.0: "counting only the time of a step"}
    else:
        which = ["the least of", "the most of"] if len(factors) == 2 else ["by all of"]
        counted = {
            factor: f"counting {TIMES(factor)} times as many steps ({end} {len(needed)} seeds)"
            for factor, end in zip(factors, which, strict=True)
        }
    answer = " ".join(
        verdict(f"On wires {wire}, {counted[factor]}", its, len(entries) // len(wires))
        for (wire, factor), its in lost.items()
    )
    row = found[-1]
    text = (
        f"Extrapolation from one block ({significant(row['block_ms'])} ms of work, {significant(row['message_kb'])} KB "
        f"of messages, {significant(row['parameters_kb'])} KB of parameters), one a machine, so a network of as many "
        "blocks. Whether a network of so many blocks learns at all block by block was not measured. Data parallel and "
        "DiLoCo keep the whole network on every machine; data parallel adds up gradients by a ring or by halves, "
        "whichever is faster, while backward goes on. DiLoCo takes the mean of all parameters every "
        f"{row['synchronised_every']} steps, and is assumed to need no more of them than backprop, which is generous. "
        f"A rival wins where its step takes less than those that it is spared. {WIRES}"
    )
    return [(answer, Section("Many machines: extrapolation", text, tables, figures))]


def extremes(needed: Sequence[float]) -> list[float]:
    """How many times as many steps, at least and at most; as many where nobody knows."""
    return list(dict.fromkeys([min(needed), max(needed)])) if needed else [1.0]


def verdict(counted: str, lost: Sequence[str], of: int) -> str:
    if not lost:
        return f"{counted}, going only forward loses nowhere, by extrapolation."
    return (
        f"{counted}, going only forward loses, by extrapolation, on {len(lost)} of {of}, and wins on the others: it "
        f"loses on {'; '.join(lost)}."
    )


def or_too_few(value: float | None, show: Format = significant) -> str | None:
    return "a sample is too few" if value is None else show(value)


def fastest(entry: Mapping[str, Any]) -> str:
    """The fastest way but going only forward."""
    return min((way for way in CALLED if way != BLOCKS and entry[way] is not None), key=lambda way: entry[way])


def churn(rows: Sequence[Row], needed: Sequence[float]) -> list[Part]:
    """What is left of a step's speed where machines end; `needed` as of `beyond`."""
    found = [row for row in pick(rows) if "kept" in row]
    if not found:
        return []
    entries: list[dict[str, Any]] = found[-1]["kept"]
    lives = list(dict.fromkeys(e["life"] for e in entries))
    machines = list(dict.fromkeys(e["ranks"] for e in entries))
    share = {(e["ranks"], e["life"]): PERCENT(e["goodput"]) for e in entries}
    columns: list[Column] = [(f"a machine lives {life}", [share[n, life] for n in machines]) for life in lives]
    table = Table.of([f"{n:,}" for n in machines], columns, "machines")
    assert table is not None
    tables = [("", table)]
    every = [e for e in found[-1]["rows"] if "goodput" in e]
    counts: list[str] = []
    for wire, life in product(dict.fromkeys(e["wire"] for e in every), lives):
        made, lost = by_way([e for e in every if e["wire"] == wire], life, extremes(needed))
        tables.append((f"a machine lives {life}, wires {wire}: extrapolation", made))
        counts += [f"{life}, wires {wire}, {TIMES(factor)} times as many steps: on {n}" for factor, n in lost.items()]
    text = (
        "The share of time, in %, that goes into steps which are kept, where the end of any machine makes all go back "
        "to the last checkpoint, saved in 1 s (assumed) as often as is best, and start anew in 8 s: so it is with this "
        "engine, and with pipelines and data parallelism by torch. The first table counts no more than that. By way to "
        "train there is work of a step at least between two checkpoints; and blocks have to fill their chain after "
        "every start, which is what going only forward loses beside pipelines, whose every step has it. DiLoCo goes on "
        "without a machine that ends: it loses one replica's round, and a mean of fewer is taken to be worth as much "
        "by the replica. What a start loads from elsewhere is not counted, of any."
    )
    begun = "Where machines end, going only forward loses, by extrapolation, by life: "
    answer = f"{begun}{'; '.join(counts)}." if counts else ""
    return [(answer, Section("Machines that end: extrapolation", text, tables))]


def by_way(entries: Sequence[Mapping[str, Any]], life: str, factors: Sequence[float]) -> tuple[Table, dict[float, str]]:
    """What is kept by way to train; and, by how many times as many steps blocks take, on how many they lose."""
    kept = [kept_an_hour(e, life) for e in entries]
    rivals = [max((way for way in its if way != BLOCKS), key=lambda way, its=its: its[way]) for its in kept]
    pairs = [(its[BLOCKS], its[way]) for its, way in zip(kept, rivals, strict=True)]
    columns: list[Column] = [
        (f"{called}, %", [or_too_few(e["goodput"][life][way], PERCENT) for e in entries])
        for way, called in CALLED.items()
    ]
    columns.append(("steps kept an hour, blocks", [hourly(own) for own, _ in pairs]))
    columns.append(("most of a rival", [hourly(most) for _, most in pairs]))
    columns.append(("which is", [CALLED[way] for way in rivals]))
    lost: dict[float, str] = {}
    for factor in factors:
        ends_as = ["loses" if own < factor * most else "wins" if own else "neither" for own, most in pairs]
        columns.append((f"only forward, in {TIMES(factor)} times as many steps", ends_as))
        lost[factor] = f"{ends_as.count('loses')} of {len(ends_as)}"
    table = Table.of([f"{e['ranks']:,}, {e['network']}" for e in entries], columns, "machines, bandwidth, round trip")
    assert table is not None
    return table, lost


def hourly(steps: float) -> str:
    return significant(steps) if steps >= 0.01 else "fewer than 0.01"


def kept_an_hour(entry: Mapping[str, Any], life: str) -> dict[str, float]:
    """Steps, by way to train, of those that have a sample a machine."""
    return {way: 3.6e6 * share / entry[way] for way, share in entry["goodput"][life].items() if share is not None}
