"""What the engines are worth: one block at a time, blocks in several processes, equal blocks as one; beside rivals.

Ranks: an MLP of eight layers of width 1024, batch 512, in two blocks on two processes.  Stack: simplecnn with L
belief modules, the naive loop of the published form beside the engines.  Streaming: a residual MLP over depth and cut,
and a ResNet-50; on a GPU also compiled and as CUDA graphs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from sidestep.report.figures import Line, lines
from sidestep.report.study import Section
from sidestep.report.tables import PERCENT, Column, Table, significant
from sidestep.studies import benches
from sidestep.studies.benches import CHECKPOINTED, COMPILED, EAGER, FLOOR, GRAPHS, STEP, TIMES, ratio
from sidestep.studies.depths import by_depth
from sidestep.studies.rows import names, pick
from sidestep.studies.study import Grid, Machine, Part, Row, Study

SID, LOCAL = "SID", "local CE"
STREAMED = {"local_ce (streaming)": LOCAL, CHECKPOINTED: "checkpointing"}
RIVALS = {
    "one_process": "one process",
    "all_threads": "one process, all threads",
    "backprop_all_threads": "backprop, one process, all threads",
    "gpipe": "GPipe",
    "1f1b": "1F1B",
    "zbv": "ZBV",
    "ddp": "data-parallel backprop",
}
"""Of `bench ranks`: the end of its `ratio_to_`, and what it is called here."""


def parts(rows: Sequence[Row]) -> list[Part]:
    return [*ranks(rows), *stack(rows), *streaming(rows)]


def ranks(rows: Sequence[Row]) -> list[Part]:
    """Of every method the last bench of its blocks in several processes; nothing before one has run."""
    found = {arm: its[-1] for arm in names(rows, "arm") if (its := [r for r in pick(rows, arm=arm) if "ranks" in r])}
    if not found:
        return []
    told: list[str] = []
    for arm, row in found.items():
        count = row["ranks"]
        said = [
            f"{ratio(row, f'ratio_to_{key}')} of {name}" for key, name in RIVALS.items() if f"ratio_to_{key}" in row
        ]
        told.append(f"{arm} in {count} processes takes, of a step’s time, {'; '.join(said)}.{won(row)}")
    columns: list[Column] = [("ms a step", [significant(ours(row)["step_ms"]) for row in found.values()])]
    for key, name in RIVALS.items():
        columns.append((f"÷ {name}", [ratio(row, f"ratio_to_{key}") for row in found.values()]))
    columns.append(("all busy ÷ one busy", [ratio(row, "calibration") for row in found.values()]))
    for which, title in ((0, "validation accuracy, %"), (1, "backprop’s, %")):
        columns.append((title, [accuracy(row, which) for row in found.values()]))
    lost = {arm: row["pipeline"] for arm, row in found.items() if "pipeline" in row}
    split: list[Column] = [
        ("pipeline", [p["name"] for p in lost.values()]),
        ("bubble", [TIMES(p["bubble"]) for p in lost.values()]),
        ("small batches", [TIMES(p["small_batches"]) for p in lost.values()]),
        ("the rest", [TIMES(p["engine"]) for p in lost.values()]),
    ]
    first = next(iter(found.values()))
    text = (
        f"One network ({first['model']}, batch {first['batch_size']}, {first['blocks']} blocks), one optimizer, one "
        "machine; every time is over that of the same round, medians with quartiles, and each rival’s is its best "
        f"number of micro-batches. One process has {first['threads']} of the cores, as each of several has; with all "
        "threads it has theirs. Methods have different objectives: a step is not worth the same, so accuracies stand "
        "beside. All busy over one busy is what the same work takes when every process has it; 1 would be cores that "
        f"do not share anything. {benches.places(list(found.values()))}"
    )
    tables = [
        ("Step time of blocks in several processes", Table.of(list(found), columns, "method")),
        ("What the fastest pipeline loses to an even share, as factors", Table.of(list(lost), split, "beside")),
    ]
    kept = [(caption, table) for caption, table in tables if table]
    return [(" ".join(told), Section("Blocks in several processes", text, kept))]


def won(row: Row) -> str:
    """Who is faster by more than the quartiles, the fastest first; nothing where nobody is."""
    faster = [key for key in RIVALS if row.get(f"ratio_to_{key}_low", 0) > 1]
    first, *others = [RIVALS[key] for key in sorted(faster, key=lambda key: -row[f"ratio_to_{key}"])] or [""]
    return first and f" There {first} is the winner" + (f", before {'; '.join(others)}." if others else ".")


def ours(row: Row) -> dict[str, Any]:
    """The entry that all others of a bench are compared with."""
    return next(entry for entry in row["rows"] if entry["name"] == f"{row['method']}, {row['ranks']} processes")


def accuracy(row: Row, which: int) -> str | None:
    values = list(row.get("accuracy", {}).values())
    return PERCENT(values[which]) if len(values) > which and values[which] is not None else None


def stack(rows: Sequence[Row]) -> list[Part]:
    """Over how many modules; nothing before one has been timed."""
    found = {depth: its[-1] for depth, its in by_depth(rows, "modules", SID, bench=True).items()}
    if not found:
        return []
    entries = {depth: {entry["name"]: entry for entry in row["rows"]} for depth, row in found.items()}
    engines = [n for n in next(iter(entries.values())) if not n.startswith(("naive", "extractor"))]
    base = "naive loop, fp32"
    columns: list[Column] = [("naive loop, ms", [significant(its[base]["cascade_ms"]) for its in entries.values()])]
    for name in engines:
        columns.append((f"{name} ÷ that", [ratio(its[name], "cascade_ratio") for its in entries.values()]))
    drawn: list[Line] = []
    for name in engines:
        middle, low, high = (
            [its[name][f"cascade_ratio{end}"] for its in entries.values()] for end in ("", "_low", "_high")
        )
        drawn.append(Line(name, [int(depth) for depth in entries], middle, low, high))
    depth, last = list(entries.items())[-1]
    told = [f"{name} {ratio(last[name], 'cascade_ratio')}" for name in engines]
    text = (
        "The cascade is what is left of a step without the forward, backward and update of its own extractor, in the "
        "same round and precision; the naive loop is the published form in float32. "
        f"{benches.LEAST} {benches.places(list(found.values()))}"
    )
    title = "The cascade’s part of a step"
    figure = (f"{title}.", lines(f"{title}, over modules", drawn, "modules", "÷ the naive loop’s", log_x=True), "")
    steps: list[Column] = []
    for name in next(iter(entries.values())):
        steps.append((f"{name}, ms", [significant(its[name][STEP]) for its in entries.values()]))
        least = [significant(its[name][FLOOR]) if FLOOR in its[name] else None for its in entries.values()]
        steps.append(("least, ms", least))
    shown = [(title, columns), ("A whole step, and the least that it could take", steps)]
    tables = [(caption, table) for caption, its in shown if (table := Table.of(list(entries), its, "modules"))]
    answer = f"With {depth} modules the cascade takes, of the naive loop’s part of a step, {', '.join(told)}."
    return [(answer, Section("Equal blocks computed as one", text, tables, [figure]))]


def streaming(rows: Sequence[Row]) -> list[Part]:
    """Over depth, over how many blocks, and of a ResNet; nothing of what has not been measured."""
    its = pick(rows, arm=LOCAL)
    parts = {
        "units": ("One block at a time, over depth", "A residual MLP with a block a unit."),
        "blocks": ("One block at a time, over how many blocks", f"A residual MLP of {DEEP} units."),
        "residual blocks": (
            "One block at a time, a ResNet-50",
            "Of half its width, a block a residual block with a linear head: one that convolves costs more than it.",
        ),
    }
    return [
        (told if count != "blocks" else "", section)  # the finest cut is told of among the depths
        for count, (heading, text) in parts.items()
        for told, section in benches.by_run(its, list(HOW), count, STREAMED, heading, f"{text} {benches.SEGMENTS}")
    ]


MODULES = {"modules": {str(n): f"--blocks {n}" for n in (10, 25, 50, 100, 200, 400)}}
CHAIN = (
    "--data mnist --model mlp --set model.depth=8 --set model.width=1024 --blocks 2 --batch-size 512 --precision fp32"
)
CPU: Mapping[Machine, int] = {"cpu": 1}
GPU: Mapping[Machine, int] = {"gpu": 1}
HOW = {EAGER: "", COMPILED: "--set compile=true", GRAPHS: "--set cuda_graph=true"}
# Large enough that what Python does for every block, most of it in the optimizer, does not count.
ON_CPU = "--data mnist --model resmlp --set model.width=1024 --batch-size 512"
# Half as wide, so that eight candidates of 256 units lie in memory side by side.
ON_GPU = "--data cifar10-jpeg-q95 --model resmlp --set model.width=512 --batch-size 512 --precision bf16"
DEEP = 64
SMALL = "--set model.depth=3 --set model.width=8 --blocks 3 --set compile=false --set cuda_graph=false"


def units(*depths: int) -> Mapping[str, str]:
    return {str(n): f"--set model.depth={n} --blocks {n}" for n in depths}


def blocks(*counts: int) -> Mapping[str, str]:
    return {str(n): f"--set model.depth={DEEP} --blocks {n}" for n in counts}


def costs(where: str, on: Mapping[Machine, int], run: str, count: str, variants: Mapping[str, str]) -> list[Grid]:
    """Step time and memory of greedy local heads on the residual MLP, run in one way."""
    return benches.grids({LOCAL: "local_ce"}, where, {"run": {run: HOW[run]}, count: variants}, on, SMALL)


STUDY = Study(
    "What is it worth that blocks wait for nobody, or are equal?",
    [
        Grid(
            {LOCAL: "bench ranks local_ce", "SID in trunk form": "bench ranks sid", "BLL": "bench ranks bll"},
            f"{CHAIN} --train --set epochs=3",
            seeds=CPU,
            smoke="--set model.width=16 --set epochs=1 --set batch_size=32 --steps 1",
        ),
        Grid({SID: "bench stack sid --form shared"}, "--data mnist --model simplecnn", MODULES, CPU, smoke="--steps 1"),
        *costs(ON_CPU, CPU, EAGER, "units", units(4, 16, 64)),
        *costs(ON_CPU, CPU, EAGER, "blocks", blocks(1, 4, 16, DEEP)),
        *benches.grids(
            {LOCAL: "local_ce"},
            "--data cifar10-jpeg-q95 --model resnet50 --set model.width=32 --batch-size 128 --head linear",
            {"run": {EAGER: ""}, "residual blocks": {"16": "--blocks 16"}},
            CPU | GPU,
            "--set model.width=4",
        ),
        Grid(
            {SID: "bench stack sid --form shared"},
            f"--data cifar10-jpeg-q95 --model simplecnn --precision bf16 {HOW[GRAPHS]}",
            MODULES,
            GPU,
            smoke="--steps 1 --blocks 3 --set cuda_graph=false",
        ),
        *costs(ON_GPU, GPU, EAGER, "units", units(4, 16, 64, 256)),
        *costs(ON_GPU, GPU, GRAPHS, "units", units(4, 16, 64, 256)),
        *costs(ON_GPU, GPU, EAGER, "blocks", blocks(1, 4, 16, DEEP)),
        *costs(ON_GPU, GPU, GRAPHS, "blocks", blocks(1, 4, 16, DEEP)),
        # Each part is compiled by itself: hundreds take longer than a slot lasts.
        *costs(ON_GPU, GPU, COMPILED, "units", units(4, 16, 64)),
    ],
    parts,
)
