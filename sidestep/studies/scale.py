"""Whether the simulation predicts real processes, and what it says of many machines: where going only forward loses.

Validation: an MLP of eight layers on 2 and 4 processes of this machine.  Beyond: the same layer, one a machine, which
nobody measured.  Accuracies: how many more epochs block-local learning needs on that network.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from sidestep.report.figures import Line, lines
from sidestep.report.study import Section
from sidestep.report.tables import PERCENT, Column, Table
from sidestep.studies.benches import TIMES
from sidestep.studies.rows import by_label, pick
from sidestep.studies.scale_machines import beyond, churn
from sidestep.studies.scale_predicted import DEVELOPED, validated
from sidestep.studies.study import Grid, Machine, Part, Row, Study

BACKPROP = "backprop"


def parts(rows: Sequence[Row]) -> list[Part]:
    needed = more_epochs(rows)
    return [*validated(rows), *beyond(rows, needed), *accuracies(rows, needed), *churn(rows, needed)]


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
