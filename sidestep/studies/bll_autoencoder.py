"""How far the deviations of an autoencoder can be trusted that learns block by block.

Fashion-MNIST; the answer is a mean and a deviation for every pixel.  Beside BLL the same network by backprop and by
greedy local decoders like BLL's, and each network's own means with one deviation for all pixels, or one for each pixel.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from sidestep.measure.regression import LEVELS
from sidestep.report.figures import coverage
from sidestep.report.study import Section
from sidestep.report.tables import PERCENT, Column, Table, fixed
from sidestep.studies import against
from sidestep.studies.rows import Measure, by_label, chosen, mean, minus, nats, sizes, table
from sidestep.studies.statistics import Difference, paired
from sidestep.studies.study import Grid, Part, Row, Study, rates

BLL, BACKPROP = "BLL", "backprop"
DECODER = "--head-width 32"  # as wide as the network's own last layers; of 128 the decoders cost four times the network
LATENT = f"train bll --family gaussian {DECODER}"
ARMS = {
    BLL: LATENT,
    "BLL, m = 0": f"{LATENT} --m 0",
    "local_ce": f"train local_ce {DECODER} --last head",
    BACKPROP: "train backprop",
}


def told(name: str) -> Callable[[Row], Any]:
    """What `measure.regression.deviations` has of the network's answer."""
    return lambda row: (row.get("deviations") or {}).get(name)


SCALED = told("nll_scaled")
CONSTANTS = {"one deviation for all pixels": told("nll_constant"), "one for each pixel": told("nll_per_number")}
COLUMNS: Sequence[Measure] = (
    ("NLL, nats a pixel", told("nll"), fixed(4)),
    ("factor", told("scale"), fixed(3)),
    ("NLL with it", SCALED, fixed(4)),
    *((f"NLL, {name}", value, fixed(4)) for name, value in CONSTANTS.items()),
    ("RMSE", "test_rmse", fixed(4)),
)


def parts(rows: Sequence[Row]) -> list[Part]:
    arms = by_label(rows, "arm", ARMS)
    return [(answer(arms), likelihood(arms)), ("", covered(arms))] if arms else []


def answer(arms: Mapping[str, Sequence[Row]]) -> str:
    """What BLL's deviations are worth beside constants, and beside other methods' deviations."""
    own = arms.get(BLL, [])
    reached = mean(own, SCALED)
    if reached is None:
        return "BLL has not run yet."
    said = [f"With one factor fitted on validation BLL pays {fixed(4)(reached)} nats a pixel."]
    beside = {f"its means with {name}": paired_within(own, value) for name, value in CONSTANTS.items()}
    beside |= {arm: minus(own, its, SCALED) for arm, its in arms.items() if arm != BLL}
    gaps = [f"{name} {against.cell(gap, nats)}" for name, gap in beside.items() if gap]
    return " ".join(said + ([f"BLL less: {'; '.join(gaps)}. Less is better."] if gaps else []))


def paired_within(rows: Sequence[Row], value: Callable[[Row], float | None]) -> Difference | None:
    """The likelihood with the network's own deviations less that with others, of the same runs."""
    return paired(*({row["seed"]: v for row in rows if (v := of(row)) is not None} for of in (SCALED, value)))


def likelihood(arms: Mapping[str, Sequence[Row]]) -> Section:
    gaps = against.less(arms, BACKPROP, SCALED)
    less: list[Column] = (
        [("less backprop", [against.cell(gaps[arm], nats) if arm in gaps else "" for arm in arms])] if gaps else []
    )
    return Section(
        "Likelihood",
        "Pixels are 0 to 1, each byte spread evenly over its own width; a density may be above 1 and its NLL below 0. "
        f"Factor and constants are fitted on the validation split. Of the NLL with the factor: {against.PAIRED}",
        [("", table(arms, COLUMNS, further=[*less, chosen(arms), *sizes(arms)]))],
    )


def covered(arms: Mapping[str, Sequence[Row]]) -> Section | None:
    """How often the truth lies where it was said to, by predicted deviation; None of no deviations."""
    tables: list[tuple[str, Table]] = []
    figures: list[tuple[str, str, str]] = []
    levels = [100 * level for level in LEVELS]
    for arm, rows in arms.items():
        kept = [row for row in rows if told("coverage")(row)]
        if not kept:
            continue
        shares = np.mean([told("coverage")(row) for row in kept], axis=0)  # (parts, levels)
        deviations = np.mean([told("deviation")(row) for row in kept], axis=0)  # (parts,)
        columns: list[Column] = [("mean deviation", [fixed(4)(v) for v in deviations])]
        columns += [
            (f"within the central {level:.0f} %, %", [PERCENT(v) for v in shares[:, k]])
            for k, level in enumerate(levels)
        ]
        if made := Table.of([str(k + 1) for k in range(len(shares))], columns, "tenth, by predicted deviation"):
            tables.append((arm, made))
        drawn = coverage(f"coverage by predicted deviation, {arm}", 100 * shares, levels)
        figures.append((f"{arm}.", drawn, "Grey lines are where the shares should be."))
    text = (
        "All pixels of the test set in ten parts by predicted deviation, after the factor; means over seeds. A pixel "
        "that is always black is spread over the width of its byte: of such, where the deviation is right, 39, 74 and "
        "100 % lie in the central 50, 80 and 95 % of a Gaussian, so the first parts cannot reach the grey lines."
    )
    return Section("Coverage", text, tables, figures) if tables else None


STUDY = Study(
    "How far can the deviations of an autoencoder be trusted that learns block by block?",
    [
        Grid(
            ARMS,
            "--data fashion-mnist --target inputs --model autoencoder --blocks 4 --epochs 5 --augment none",
            seeds={"cpu": 3, "gpu": 5},
            candidates=rates("0.01", "0.03", "0.1"),
            smoke="--set model.width=8",
        )
    ],
    parts,
)
