"""Is SID robust to label noise, or is what helps the smoothing that its objective amounts to?

Every arm sees the same noisy labels, on the validation split too; the test set is clean.  Parallel heads and deep
supervision are trained on the targets that SID's blocks would have if all blocks before them were perfect (T5).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from sidestep.report.figures import Line, descent, lines
from sidestep.report.study import Section
from sidestep.report.tables import PERCENT, Table, fixed, shown
from sidestep.studies import against
from sidestep.studies.curves import last_epoch
from sidestep.studies.rows import ECE, NLL, by_label, mean, minus, nats, points, spread, table
from sidestep.studies.statistics import Difference, difference
from sidestep.studies.study import Grid, Machine, Part, Row, Study

Rates = Mapping[str, Mapping[str, list[Row]]]
"""Noise -> arm -> rows."""

MNIST, CIFAR = "MNIST", "CIFAR-10 (JPEG, quality 95)"
NOISE = {f"{100 * rate:.0f} %": rate for rate in (0.0, 0.2, 0.4, 0.6)}
SID, PARALLEL, DEEP, LOCAL = "SID", "parallel heads", "deep supervision", "local cross-entropy"
BACKPROP, MATCHED, TUNED = "backprop", "backprop, SID’s last smoothing", "backprop, tuned smoothing"
ARMS = {
    SID: "train sid --form shared --alpha 0.5",
    PARALLEL: "train sid --form shared --alpha 0.5 --belief none",
    DEEP: "train deep_supervision --label-smoothing sid:0.5",
    BACKPROP: "train backprop",
    MATCHED: "train backprop --label-smoothing sid:0.5",
    LOCAL: "train local_ce",
}
CONTROLS = (PARALLEL, DEEP, BACKPROP, MATCHED, TUNED, LOCAL)


def selected_epoch(row: Row) -> float:
    return row["test_accuracy"]


def parts(rows: Sequence[Row]) -> list[Part]:
    found: dict[str, dict[str, dict[str, list[Row]]]] = {}
    for data, its in by_label(rows, "data", (MNIST, CIFAR)).items():
        rates = by_label(its, "noise", NOISE)
        found[data] = {
            noise: arms for noise, rate in rates.items() if (arms := by_label(rate, "arm", (SID, *CONTROLS)))
        }
    found = {data: rates for data, rates in found.items() if rates}
    theory = tested({noise: arms for noise, arms in found.get(MNIST, {}).items() if SID in arms})
    return [*((answer(data, rates), accuracy(data, rates)) for data, rates in found.items()), ("", theory)]


def gained(arms: Mapping[str, list[Row]]) -> dict[str, Difference]:
    """What SID has over each control."""
    found = {control: minus(arms.get(SID, []), arms.get(control, [])) for control in CONTROLS}
    return {control: gap for control, gap in found.items() if gap}


def answer(data: str, rates: Rates) -> str:
    found = {noise: gained(arms) for noise, arms in rates.items()}
    gaps = {
        control: {noise: gap[control] for noise, gap in found.items() if control in gap}
        for control in (BACKPROP, TUNED, PARALLEL)
    }
    told = [against.said(f"SID less {control}", gap) for control, gap in gaps.items() if gap]
    if not told:
        return f"On {data} SID and a control have not both run yet."
    text = f"On {data}, by the test accuracy of the selected epoch: {' '.join(told)}"
    # Where it gains over backprop, do the beliefs have a part in it?
    heads = [gaps[PARALLEL][n] for n, gap in gaps[BACKPROP].items() if gap.verdict == "above" and n in gaps[PARALLEL]]
    if heads:
        text += (
            " Of the rates of noise at which SID is above backprop, it is above parallel heads, which have its targets "
            f"and no beliefs, at {sum(gap.verdict == 'above' for gap in heads)} of {len(heads)}."
        )
    return text


def accuracy(data: str, rates: Rates) -> Section:
    text = (
        "The selected epoch is the best by validation labels as noisy as those of training; the last epoch shows what "
        "training to the end costs. Deep supervision smooths each head as T5 says SID does. The tuned smoothing "
        "has the best validation accuracy, for each rate of noise."
    )
    noise, arms = list(rates.items())[-1]
    lost = {arm: mean(its, lambda row: selected_epoch(row) - last_epoch(row)) for arm, its in arms.items()}
    told = "; ".join(f"{fixed(2, 100)(loss)} for {arm}" for arm, loss in lost.items() if loss is not None)
    text += f" From the selected to the last epoch, test accuracy falls at {noise} noise by (points): {told}."
    return Section(
        f"Accuracy on {data}",
        text,
        [(f"{noise} label noise", compared(arms)) for noise, arms in rates.items()],
        [
            *(
                (f"Test accuracy of the {name} epoch.", over_noise(f"{data}, {name} epoch", rates, value), "")
                for name, value in (("selected", selected_epoch), ("last", last_epoch))
            ),
            *(
                drawn
                for noise, arms in rates.items()
                for drawn in against.figure(f"SID less each control on {data} at {noise} noise", gained(arms))
            ),
        ],
    )


def compared(arms: Mapping[str, list[Row]]) -> Table:
    gaps = gained(arms)
    return table(
        {f"{TUNED}: {its[0]['labels']['tuned']}" if arm == TUNED else arm: its for arm, its in arms.items()},
        (
            ("selected epoch, %", selected_epoch, PERCENT),
            ("last epoch, %", last_epoch, PERCENT),
            NLL,
            ECE,
        ),
        further=[("SID less it, points", ["" if arm == SID else points(gaps.get(arm)) for arm in arms])],
    )


def over_noise(alt: str, rates: Rates, value: Callable[[Row], float | None]) -> str:
    series: list[Line] = []
    for arm in (SID, *CONTROLS):
        found = {NOISE[noise]: mean(arms.get(arm, []), value) for noise, arms in rates.items()}
        reached = {rate: 100 * v for rate, v in found.items() if v is not None}
        if reached:
            series.append(Line(arm.removeprefix("backprop, "), list(reached), list(reached.values())))
    return lines(alt, series, "share of labels drawn anew", "test accuracy, %")


# ------------------------------------------------------------------------------------------------------------------ T5


def tested(rates: Rates) -> Section | None:
    """Each block's distance to the clean label beside the one of a block that reaches what its objective asks for."""
    if not rates:
        return None
    told: list[str] = []
    for noise, arms in rates.items():
        off = [f"{gap.mean:+.3f}".replace("-", "−") for gap in distances(arms[SID])]
        told.append(f"{', '.join(off)} at {noise} noise")
    return Section(
        "T5 tested",
        "With labels redrawn at rate q, the probability of the clean class given the image is 1 − q + q/C, as far as "
        "people agree on a digit. So T5 says what each block’s distance D to the clean label would be, if it reached "
        "what its objective asks for: that of (1 − r)P + r/C, r = 0.5 to the power of the block. Measured less "
        f"predicted D after blocks 1, 2, …, in nats: {'; '.join(told)}. Parallel heads and deep supervision have the "
        "same targets, and their D is their NLL.",
        [(f"D on the clean test set at {noise} noise, nats", to_target(arms)) for noise, arms in rates.items()],
        [
            (
                f"SID beside T5 at {noise} noise.",
                descent(f"T5 at {noise}", measured(arms[SID], "D"), measured(arms[SID], "D_population")),
                "Means over seeds.",
            )
            for noise, arms in rates.items()
        ],
    )


def measured(rows: Sequence[Row], key: str) -> np.ndarray:
    """(runs, blocks + 1) of `measure.descent`."""
    return np.array([row["descent"][key] for row in rows])


def distances(rows: Sequence[Row]) -> list[Difference]:
    """For every block, D less what T5 predicts."""
    gaps = measured(rows, "D") - measured(rows, "D_population")
    return [found for column in gaps.T[1:].tolist() if (found := difference(column))]


def to_target(arms: Mapping[str, list[Row]]) -> Table:
    gaps = distances(arms[SID])
    blocks = range(len(gaps))

    def column(arm: str, value: Callable[[Row, int], float | None]) -> list[str | None]:
        return [shown(spread(arms.get(arm, []), lambda row, k=k: value(row, k)), fixed(4)) for k in blocks]

    made = Table.of(
        [str(k + 1) for k in blocks],
        [
            ("T5", [fixed(4)(v) for v in measured(arms[SID], "D_population")[0, 1:]]),
            ("SID", column(SID, lambda row, k: row["descent"]["D"][k + 1])),
            ("SID less T5", [nats(gap) for gap in gaps]),
            *((arm, column(arm, lambda row, k: row["block_test_nll"][k])) for arm in (PARALLEL, DEEP)),
        ],
        "after block",
    )
    assert made is not None
    return made


RATES = {noise: f"--label-noise {rate:g}" for noise, rate in NOISE.items()}
SMOOTHINGS = {smoothing: f"--label-smoothing {smoothing}" for smoothing in ("0.05", "0.1", "0.2", "0.4")}


def grids(common: str, data: Mapping[str, str], seeds: Mapping[Machine, int]) -> list[Grid]:
    variants = {"data": data, "noise": RATES}
    common += " --test epochs"
    return [
        Grid(ARMS, common, variants, seeds),
        Grid({TUNED: "train backprop"}, common, variants, seeds, candidates=SMOOTHINGS),
    ]


STUDY = Study(
    "Is SID robust to label noise, or is it only smoothing?",
    [
        *grids("--model simplecnn --blocks 5 --epochs 6", {MNIST: "--data mnist"}, {"cpu": 3}),
        *grids("--model simplecnn_bn --blocks 5 --epochs 30", {CIFAR: "--data cifar10-jpeg-q95"}, {"gpu": 3}),
    ],
    parts,
)
