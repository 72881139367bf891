"""How much should a block of SID heed the labels (α), in which direction, and how often does it break its own promise?

Proposition 2 of SID bounds how far the last belief is from the target by how far all blocks moved, if no block makes
its own objective worse.  With the slack e signed the bound is an identity (T6); what can fail is e <= 0.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from sidestep.nn.per_block import alphas, remainders
from sidestep.report.build import and_
from sidestep.report.figures import Line, dots, lines, slack
from sidestep.report.study import Section
from sidestep.report.tables import PERCENT, Column, Format, Table, fixed, shown
from sidestep.studies import against
from sidestep.studies.rows import (
    ACCURACY,
    ECE,
    NLL,
    best_on_validation,
    by_label,
    by_seed,
    mean,
    minus,
    nats,
    pick,
    points,
    spread,
    table,
)
from sidestep.studies.statistics import Difference
from sidestep.studies.study import Grid, Part, Row, Study

Arms = Mapping[str, list[Row]]

BLOCKS = 5
DATA = {"MNIST": "--data mnist", "Fashion-MNIST": "--data fashion-mnist"}
CONSTANT = {f"α = {alpha:g}": alpha for alpha in (0.1, 0.25, 0.5, 0.75, 1.0)}
WEIGHTS = {arm: f"{alpha:g}" for arm, alpha in CONSTANT.items()} | {
    "α from 1 to 0.1": "linear:1:0.1",
    "α from 0.1 to 1": "linear:0.1:1",
    "α = 1, 0.5, 0.25, 0.15, 0.1": "1,0.5,0.25,0.15,0.1",
}
MIDDLE, LABELS_ONLY = "α = 0.5", "α = 1"
SMOOTHINGS = ("0.01", "0.05", "0.1")
POOR = {
    "learning rate ÷ 30": "--lr 0.000133",
    "learning rate × 10": "--lr 0.04",
    "third block frozen": "--freeze 2",
}
SHORT = "one epoch"
OPTIMISED = {MIDDLE: "by the recipe", **{arm: arm for arm in (*POOR, SHORT)}}
"""The arms that differ in how well they were optimised, and what they are called beside each other."""


def directed(direction: str, smoothing: str) -> str:
    return f"{direction}’s direction, smoothing {smoothing}"


def parts(rows: Sequence[Row]) -> list[Part]:
    found = {data: by_label(pick(rows, data=data), "arm", ARMS) for data in DATA}
    return [
        *((answer(data, arms), weights(data, arms)) for data, arms in found.items()),
        (identity(rows, found), directions(found)),
        *(("", slacks(data, arms, diverged(rows, data))) for data, arms in found.items()),
    ]


def answer(data: str, arms: Arms) -> str:
    """The α that validation chooses and what it gains over labels alone; the paper's direction beside the code's."""
    tried = {arm: arms[arm] for arm in WEIGHTS if arm in arms}
    sentences: list[str] = []
    if best := best_on_validation(tried):
        reached = {arm: mean(its) or 0.0 for arm, its in tried.items()}
        low, high = min(reached, key=lambda arm: reached[arm]), max(reached, key=lambda arm: reached[arm])
        text = (
            f"On {data} validation chooses “{best}”, with a test accuracy of {shown(spread(tried[best]), PERCENT)} %, "
            f"among {PERCENT(reached[low])} % (“{low}”) to {PERCENT(reached[high])} % (“{high}”)"
        )
        if best != LABELS_ONLY and (gain := minus(tried[best], tried.get(LABELS_ONLY, []))):
            text += f". “{best}” less “{LABELS_ONLY}”, labels only: {points(gain)} points ({gain.verdict})"
        sentences.append(f"{text}.")
    if gaps := turned(arms):
        sentences.append(against.said(f"The paper’s direction less the code’s on {data}", gaps))
    return " ".join(sentences)


# ------------------------------------------------------------------------------------------------------------------- α


def weights(data: str, arms: Arms) -> Section | None:
    tried = {arm: arms[arm] for arm in WEIGHTS if arm in arms}
    if not tried:
        return None
    remain = [fixed(4)(remainders(alphas(WEIGHTS[arm], BLOCKS))[-1]) for arm in tried]
    theirs = [fixed(4)(predicted(its[0])) for its in tried.values()]
    less = ["" if arm == LABELS_ONLY else points(minus(its, tried.get(LABELS_ONLY, []))) for arm, its in tried.items()]
    figures = [("Test accuracy of every run.", dots(f"accuracy by α on {data}", accuracies(tried)), "")]
    constant = {CONSTANT[arm]: its for arm, its in tried.items() if arm in CONSTANT}
    if constant:
        measured = over_alpha("measured", constant, lambda row: row["test_nll"])
        theory = over_alpha("T5", constant, predicted)
        ece = over_alpha("measured", constant, lambda row: row["test_ece"])
        figures += [
            ("Test NLL over constant α.", lines(f"NLL by α on {data}", [measured, theory], "α", "nats"), RANGE),
            ("Test ECE over constant α.", lines(f"ECE by α on {data}", [ece], "α", "ECE"), RANGE),
        ]
    return Section(
        f"α on {data}",
        "r is what T5 says is left of the uniform belief in the last block’s target: a small α smooths as much as r. "
        "NLL by T5 is that of a last block which reaches its target on images whose class is certain. At α = 1 nothing "
        "asks a block to stay near the belief before it.",
        [
            (
                "Constant α, and α that changes from block to block",
                table(
                    tried,
                    (ACCURACY, NLL, ECE),
                    "α",
                    [("r", remain), ("NLL by T5", theirs), ("less α = 1, points", less)],
                ),
            )
        ],
        figures,
    )


RANGE = "Means over seeds, in a band from the least to the greatest."


def predicted(row: Row) -> float:
    """The NLL of a last block that reaches its target (T5)."""
    return row["descent"]["D_population"][-1]


def accuracies(arms: Arms) -> list[tuple[str, list[float]]]:
    return [(arm, list(by_seed(its).values())) for arm, its in arms.items()]


def over_alpha(name: str, arms: Mapping[float, list[Row]], value: Callable[[Row], float]) -> Line:
    found = {alpha: [value(row) for row in its] for alpha, its in arms.items()}
    means = [float(np.mean(values)) for values in found.values()]
    return Line(name, list(found), means, [min(v) for v in found.values()], [max(v) for v in found.values()])


# ----------------------------------------------------------------------------------------------------------- direction


def turned(arms: Arms) -> dict[str, Difference]:
    """Smoothing -> the accuracy of the paper's direction less that of the code's."""
    found = {s: minus(arms.get(directed("paper", s), []), arms.get(directed("code", s), [])) for s in SMOOTHINGS}
    return {f"smoothing {s}": gap for s, gap in found.items() if gap}


def directions(found: Mapping[str, Arms]) -> Section | None:
    both = {
        f"{data}, smoothing {s}": (arms[directed("code", s)], arms[directed("paper", s)])
        for data, arms in found.items()
        for s in SMOOTHINGS
        if directed("code", s) in arms and directed("paper", s) in arms
    }
    if not both:
        return None
    tables: list[tuple[str, Table]] = []
    for head, key, form in (ACCURACY, ("test NLL, nats", "test_nll", fixed(4)), ("test ECE", "test_ece", fixed(4))):
        gaps = [minus(paper, code, key) for code, paper in both.values()]
        columns: list[Column] = [
            ("code", [shown(spread(code, key), form) for code, _ in both.values()]),
            ("paper", [shown(spread(paper, key), form) for _, paper in both.values()]),
            ("paper less code", [points(gap) if key == "test_accuracy" else gap and nats(gap) for gap in gaps]),
        ]
        if made := Table.of(list(both), columns, "smoothing"):
            tables.append((f"{head[0].upper()}{head[1:]}", made))
    gaps = {name: gap for name, (code, paper) in both.items() if (gap := minus(paper, code))}
    return Section(
        "The paper’s direction and the code’s, equally smoothed",
        "The released code minimises KL(t‖p) and KL(p before‖p), the paper both the other way round, which needs a "
        "target without zeros. Both have α = 0.5 here. The paper’s minimiser is no probability of a class given the "
        "image (T5), so its NLL and ECE are not those of a calibrated belief even where it is reached.",
        tables,
        against.figure("test accuracy of the paper’s direction less the code’s", gaps),
    )


# ------------------------------------------------------------------------------------------------------------- descent


def optimised(arms: Arms) -> dict[str, list[Row]]:
    return {name: arms[arm] for arm, name in OPTIMISED.items() if arm in arms}


def diverged(rows: Sequence[Row], data: str) -> dict[str, int]:
    """Arm -> how many of its runs did, where any did."""
    found = [row["labels"]["arm"] for row in rows if "failed" in row and row["labels"].get("data") == data]
    return {arm: found.count(arm) for arm in OPTIMISED if arm in found}


def identity(rows: Sequence[Row], found: Mapping[str, Arms]) -> str:
    """The telescoped relation shows nothing, since it holds whatever was trained; what does show something."""
    gaps = [row["descent"]["identity"] for row in rows if "descent" in row]
    if not gaps:
        return ""
    often = [f"{share(arms[MIDDLE])} on {data}" for data, arms in found.items() if MIDDLE in arms]
    text = (
        f"The telescoped relation of Proposition 2 is an identity (T6): over {len(gaps)} runs, good and poor, its two "
        f"sides differ by at most {max(gaps):.0e} nats, so that it holds shows nothing. What can fail is e ≤ 0, that a "
        "block leaves a sample no worse by its own objective"
    )
    return f"{text}. By the recipe it fails for {and_(often)} of the test samples, by block." if often else f"{text}."


def share(rows: Sequence[Row]) -> str:
    """How often e > 0, from the block where it is least often to the one where it is most."""
    found = averaged(rows, "e_positive")
    return f"{fixed(1, 100)(found.min())} to {fixed(1, 100)(found.max())} %"


def slacks(data: str, arms: Arms, failed: Mapping[str, int]) -> Section | None:
    compared = optimised(arms)
    told = [
        f"{name} {share(its)}, {fixed(3)(averaged(its, 'e_quantiles')[:, -1].max())} nats"
        for name, its in compared.items()
    ]
    told += [f"{arm} diverged in {n} of {n + len(arms.get(arm, []))} runs" for arm, n in failed.items()]
    if not told:
        return None
    return Section(
        f"Descent on {data}, optimised well and poorly",
        "After the last block D = D₀ − Σ (1 − α)/α C + Σ e/α, for any beliefs whatever: what matters is how often and "
        "how large e > 0 is. The share of test samples with e > 0, from the least block to the greatest, and the 95 % "
        f"quantile of e in the worst block: {'; '.join(told)}.",
        [
            (caption, made)
            for caption, key, form in (
                ("D, the distance to the label after each block, nats", "D", fixed(4)),
                ("C, how far each block moved, nats", "C", fixed(4)),
                ("e > 0, % of the test samples, in each block", "e_positive", fixed(1, 100)),
            )
            if compared and (made := by_block(compared, key, form))
        ],
        [
            (
                f"Slack of each block: {name}.",
                slack(f"{name} on {data}", averaged(its, "e_quantiles"), averaged(its, "e_positive")),
                "Quantiles at 5, 25, 50, 75 and 95 %, means over seeds.",
            )
            for name, its in compared.items()
        ],
    )


def averaged(rows: Sequence[Row], key: str) -> np.ndarray:
    """What `measure.descent` found, (K, ...), its mean over runs."""
    return np.mean([row["descent"][key] for row in rows], axis=0)


def by_block(arms: Arms, key: str, form: Format) -> Table | None:
    found = np.array([averaged(its, key) for its in arms.values()]).reshape(len(arms), -1)
    first = BLOCKS + 1 - found.shape[1]  # D is known of the uniform belief too
    return Table.of(
        list(arms), [(str(k), [form(v) for v in column]) for k, column in enumerate(found.T, first)], "optimised"
    )


ARMS = {
    **{arm: f"train sid --epochs 5 --alpha {spec}" for arm, spec in WEIGHTS.items()},
    **{
        directed(direction, s): f"train sid --epochs 5 --alpha 0.5 --direction {direction} --label-smoothing {s}"
        for s in SMOOTHINGS
        for direction in ("code", "paper")
    },
    **{arm: f"train sid --epochs 5 --alpha 0.5 {words}" for arm, words in POOR.items()},
    SHORT: "train sid --epochs 1 --alpha 0.5",
}

STUDY = Study(
    "Which α and which direction serve SID best, and does every block descend?",
    [Grid(ARMS, f"--form shared --model simplecnn --blocks {BLOCKS}", {"data": DATA}, {"cpu": 3})],
    parts,
)
