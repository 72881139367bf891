"""Whether the simulation predicts real processes, and what it says of many machines: where going only forward loses.

Validation: an MLP of eight layers on 2 and 4 processes of this machine.  Beyond: the same layer, one a machine, which
nobody measured.  Accuracies: how many more epochs block-local learning needs on that network.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import product
from typing import Any

from sidestep.report.figures import Line, lines
from sidestep.report.study import Section
from sidestep.report.tables import PERCENT, Column, Format, Table, fixed, significant
from sidestep.studies import benches
from sidestep.studies.benches import TIMES
from sidestep.studies.rows import by_label, pick
from sidestep.studies.study import Grid, Machine, Part, Row, Study

BLOCKS, BACKPROP = "blocks", "backprop"
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
DEVELOPED = "width 1024, batch 512"
"""The network whose errors were seen while the simulator was written; it is not judged by them."""
ERROR = fixed(1, 100)


def parts(rows: Sequence[Row]) -> list[Part]:
    needed = more_epochs(rows)
    return [*validated(rows), *beyond(rows, needed), *accuracies(rows, needed), *churn(rows, needed)]


# ------------------------------------------------------------------ predicted beside measured


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


# ------------------------------------------------------------------ extrapolation


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


# ------------------------------------------------------------------ accuracy


def more_epochs(rows: Sequence[Row]) -> list[float]:
    """How many times as many epochs local learning needs for equal validation accuracy, by seed.

    The accuracy is the highest that both reach.
    """
    local, back = (
        {row["seed"]: row["curve"]["val_accuracy"] for row in pick(rows, arm=arm)} for arm in ("local CE", BACKPROP)
    )
    found: list[float] = []
    for seed in sorted(local.keys() & back.keys()):
        target = min(max(local[seed]), max(back[seed]))
        found.append(reached(local[seed], target) / reached(back[seed], target))
    return found


def reached(curve: Sequence[float], target: float) -> float:
    """The epochs until an accuracy, a straight line between two of them."""
    n = next(k for k, value in enumerate(curve) if value >= target)
    if n == 0:
        return 1.0
    return n + (target - curve[n - 1]) / (curve[n] - curve[n - 1])


def accuracies(rows: Sequence[Row], needed: Sequence[float]) -> list[Part]:
    if not needed:
        return []
    arms = by_label(rows, "arm", ("local CE", BACKPROP))
    curves = [
        Line(
            arm,
            list(range(1, len(its[0]["curve"]["val_accuracy"]) + 1)),
            [100 * v for v in its[0]["curve"]["val_accuracy"]],
        )
        for arm, its in arms.items()
    ]
    answer = (
        "To the highest validation accuracy that both reach, local CE takes "
        f"{TIMES(sum(needed) / len(needed))} times as many epochs as backprop, in the mean of {len(needed)} seeds "
        f"({', '.join(map(TIMES, sorted(needed)))})."
    )
    columns: list[Column] = [
        ("seeds", [str(len(its)) for its in arms.values()]),
        (
            "best validation accuracy, %",
            [", ".join(PERCENT(max(r["curve"]["val_accuracy"])) for r in its) for its in arms.values()],
        ),
    ]
    table = Table.of(list(arms), columns, "method")
    assert table is not None
    text = (
        "On the network that was measured, of eight blocks. Beyond that it is extrapolation too, and the bolder one. A "
        "curve that is flat where the other one ends moves the number of epochs by much: so what many machines win or "
        "lose is told for the least and for the most of the seeds."
    )
    figure = (
        "Validation accuracy of the first seed.",
        lines("validation accuracy over epochs", curves, "epoch", "%"),
        "",
    )
    return [(answer, Section("Steps to equal accuracy", text, [("", table)], [figure]))]


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


CHAIN = "--data mnist --model mlp --set model.depth=8 --precision fp32"
ON: Mapping[Machine, int] = {"cpu": 1}
NETWORKS = {
    DEVELOPED: f"{CHAIN} --set model.width=1024 --batch-size 512",
    "width 512, batch 1024": f"{CHAIN} --set model.width=512 --batch-size 1024",
}

STUDY = Study(
    "Does the simulation predict real processes, and what does it say of many machines?",
    [
        Grid(
            {
                "2 processes": "bench scale local_ce --ranks 2 --blocks 2",
                "4 processes": "bench scale local_ce --ranks 4 --blocks 4",
            },
            variants={"network": NETWORKS},
            seeds=ON,
            smoke="--set model.width=16 --set batch_size=32 --steps 1",
        ),
        Grid(
            {"many machines": "bench scale local_ce --machines 1024 --blocks 8"},
            f"{CHAIN} --set model.width=1024 --batch-size 1024 --threads 1",
            seeds=ON,
            smoke="--set model.width=16 --set batch_size=32 --machines 8",
        ),
        Grid(
            {"local CE": "train local_ce", BACKPROP: "train backprop"},
            # At a constant rate: a schedule that ends low has every run reach its best late, however fast it learns.
            f"{CHAIN} --set model.width=1024 --batch-size 512 --blocks 8 --epochs 8 --schedule constant",
            seeds={"cpu": 3},
            smoke="--set model.width=16",
        ),
    ],
    parts,
)
