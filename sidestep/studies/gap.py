"""How far isolated blocks are from backprop on the same network, and whether more epochs close the gap or open it.

Trunk SID, local cross-entropy with the same heads, deep supervision and backprop on a narrow ResNet-18 in four blocks.
What is no method's own (augmentation, cut, heads, averaged parameters) is the same for all; each method's learning rate
is chosen on validation from the same candidates at the same budget.  How SID's own settings were found: `gap-trials`.

All settings were chosen on CIFAR-10.  A second protocol chooses them on Fashion-MNIST for Fashion-MNIST, and is named
apart: see `NOTES`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from sidestep.report.figures import Line, lines
from sidestep.report.study import Section
from sidestep.report.tables import Column
from sidestep.studies import against
from sidestep.studies.rows import HOWEVER_READ, Value, by_label, by_seed, chosen, names, points, read_out, sizes, table
from sidestep.studies.statistics import Difference, paired
from sidestep.studies.study import Grid, Machine, Part, Row, Study

SID, BACKPROP, LOCAL, DEEP = "SID", "backprop", "local_ce", "deep supervision"
WIDE = "backprop, wider: as many FLOPs as SID"
HEADS = "--head-depth 2"
ARMS = {
    SID: f"train sid {HEADS}",
    BACKPROP: "train backprop",
    WIDE: "train backprop",
    LOCAL: f"train local_ce {HEADS} --last head",
    DEEP: f"train deep_supervision {HEADS} --last head",
}
NARROW = [arm for arm in ARMS if arm != WIDE]
CIFAR_10, FASHION_MNIST = "CIFAR-10", "Fashion-MNIST"
TUNED = f"{FASHION_MNIST}, tuned on it"
NOTES = {
    FASHION_MNIST: "All settings were chosen on CIFAR-10.",
    TUNED: "Every method’s rate and smoothing were chosen on Fashion-MNIST; SID’s alpha is the one chosen on CIFAR-10. "
    "This protocol was decided on after three seeds of the one above had been read on the test set, with SID below "
    "backprop.",
}
"""What has to be known of a protocol beside its table."""
READ_OUTS: Mapping[str, Value] = {
    "last block": "test_accuracy",
    "averaged logits": read_out("mean"),
    "gate fitted on validation": read_out("gate"),
}


def parts(rows: Sequence[Row]) -> list[Part]:
    found: dict[str, dict[str, dict[str, list[Row]]]] = {}
    for data, its in by_label(rows, "data").items():
        budgets = by_label(its, "epochs", names(rows, "epochs"))
        found[data] = {n: arms for n, budget in budgets.items() if (arms := by_label(budget, "arm", ARMS))}
    return [(answer(data, budgets), section(data, budgets)) for data, budgets in found.items() if budgets]


def gaps(arms: Mapping[str, Sequence[Row]]) -> dict[str, Difference]:
    """SID's answer less backprop's, less local_ce's in each of the three ways to read it, less deep supervision's."""
    own = by_seed(arms.get(SID, []))
    others = {
        **{arm: by_seed(arms.get(arm, [])) for arm in (BACKPROP, WIDE)},
        **{f"{LOCAL}, {how}": by_seed(arms.get(LOCAL, []), value) for how, value in READ_OUTS.items()},
        DEEP: by_seed(arms.get(DEEP, [])),
    }
    found = {name: paired(own, other) for name, other in others.items()}
    return {name: gap for name, gap in found.items() if gap}


def answer(data: str, budgets: Mapping[str, Mapping[str, Sequence[Row]]]) -> str:
    """Of the largest budget that says something; the tables have them all."""
    for epochs, arms in reversed(list(budgets.items())):
        if found := gaps(arms):
            return against.said(f"On {data} after {epochs}, SID less its controls", found)
    return f"On {data} SID and a control have not both run yet."


def section(data: str, budgets: Mapping[str, Mapping[str, Sequence[Row]]]) -> Section:
    tables = []
    for epochs, arms in budgets.items():
        cells: list[Column] = [
            ("SID less it", sid_less(arms, "test_accuracy")),
            ("on validation", sid_less(arms, "val_accuracy")),
            chosen(arms),
        ]
        tables.append((f"After {epochs}", table(arms, HOWEVER_READ, further=[*cells, *sizes(arms)])))
    figures = [("The gap over the budget.", svg, "")] if (svg := over_budget(data, budgets)) else []
    last, arms = list(budgets.items())[-1]
    text = (
        f"{NOTES.get(data, '')} {against.PAIRED} It is over seeds: all read the same test set, while every seed holds "
        "out a validation split of its own. "
        "Short runs flatter local learning: read them over the budget."
    )
    return Section(
        data,
        text.strip(),
        tables,
        [*figures, *against.figure(f"SID less each control on {data} after {last}", gaps(arms))],
    )


def sid_less(arms: Mapping[str, Sequence[Row]], value: str) -> list[str]:
    own = by_seed(arms.get(SID, []), value)
    return ["" if arm == SID else points(paired(own, by_seed(its, value))) or "" for arm, its in arms.items()]


def over_budget(data: str, budgets: Mapping[str, Mapping[str, Sequence[Row]]]) -> str | None:
    """Each method's accuracy less backprop's over epochs, in its interval; None of a single budget."""
    series: list[Line] = []
    for arm in ARMS:
        found = {
            float(epochs.split()[0]): gap
            for epochs, arms in budgets.items()
            if arm != BACKPROP and (gap := paired(by_seed(arms.get(arm, [])), by_seed(arms.get(BACKPROP, []))))
        }
        if len(found) > 1:
            drawn = list(found.values())
            # A single pair has no interval: its band is its mean.
            low = [100 * (gap.mean if gap.low is None else gap.low) for gap in drawn]
            high = [100 * (gap.mean if gap.high is None else gap.high) for gap in drawn]
            series.append(Line(arm, list(found), [100 * gap.mean for gap in drawn], low, high))
    return lines(f"gap over budget on {data}", series, "epochs", "points less backprop", zero=True) if series else None


RECIPE = "--optimizer adamw --weight-decay 0.05 --schedule onecycle --warmup 0.3"
NETWORK = "--model resnet18 --set model.width=16 --blocks 4"
CIFAR, FASHION = ("--data cifar10-jpeg-q95", "--data fashion-mnist")
RATES = ("0.016", "0.032")
SMOOTHED = {f"rate {lr}, smoothing {s}": f"--lr {lr} --label-smoothing {s}" for lr in RATES for s in ("0", "0.1")}
ALPHAS = ("1", "linear:1:0.5")
WEIGHTS = {f"rate {lr}, alpha {a}": f"--lr {lr} --alpha {a}" for lr in RATES for a in ALPHAS}
"""What is tried: a rate by a field of the method's own, four trials for everybody.

SID and backprop were tried at 0.004 and 0.008 first, and every doubling gained: so the rates went up for everybody.
"""
SOFTENED = {
    f"rate {lr}, smoothing {s}": f"--lr {lr} --alpha {ALPHAS[-1]}{more}"
    for lr in RATES
    for s, more in (("0", ""), ("0.1", " --label-smoothing 0.1"))
}
"""SID's where it is tuned on what all others are, with the alpha that was best on CIFAR-10."""


def grids(
    data: Mapping[str, str],
    epochs: Sequence[int],
    seeds: Mapping[Machine, int],
    arms: Sequence[str] = tuple(ARMS),
    tried_on: str = CIFAR,
    weights: Mapping[str, str] = WEIGHTS,
) -> list[Grid]:
    """Arms, each with its candidates, SID's being `weights`, which are tried at five epochs for every budget."""
    budgets = {f"{n} epochs": f"--epochs {n}" for n in epochs}
    return [
        Grid(
            {arm: ARMS[arm]},
            f"{RECIPE} {NETWORK}" if arm != WIDE else f"{RECIPE} {NETWORK} --set model.width=24",
            {"data": data, "epochs": budgets},
            seeds,
            candidates=weights if arm == SID else SMOOTHED,
            trial=f"{tried_on} --epochs 5",
            smoke="--set model.width=8",
        )
        for arm in arms
    ]


STUDY = Study(
    "How far are isolated blocks from strong backprop?",
    [
        *grids({CIFAR_10: CIFAR}, (5, 10), {"cpu": 3}),
        *grids({FASHION_MNIST: FASHION}, (5, 10), {"cpu": 5, "gpu": 5}, NARROW),
        *grids({TUNED: FASHION}, (10,), {"cpu": 5, "gpu": 5}, NARROW, FASHION, SOFTENED),
        *grids({CIFAR_10: CIFAR}, (5, 10, 30, 100), {"gpu": 3}),
    ],
    parts,
)
