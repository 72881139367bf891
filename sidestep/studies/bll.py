"""Whether BLL's Kullback-Leibler term and its messages earn anything over greedy cross-entropy, and against backprop.

Bernoulli and Gaussian latents on a multilayer perceptron in four blocks, read linearly and by a learned map, beside the
same blocks with m = 0, local cross-entropy with the same read-out, and backprop with the same activations and with the
usual ones.  To first order in m BLL is greedy cross-entropy (Kappel et al., arXiv:2305.14974, and the test of that
identity), so the controls decide.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from sidestep.report.study import Section
from sidestep.report.tables import Column, Table, fixed, shown
from sidestep.studies import against
from sidestep.studies.rows import ACCURACIES, ACCURACY, by_label, chosen, mean, minus, nats, sizes, spread, table
from sidestep.studies.study import Grid, Part, Row, Study, rates

BERNOULLI, GAUSSIAN, LIFTED = "BLL, Bernoulli", "BLL, Gaussian", "BLL, Gaussian, lifted"
SIGMOID, RELU, LEARNED = "sigmoid", "ReLU", "ReLU, learned read-outs"
FORMS = {
    BERNOULLI: "train bll --family bernoulli",
    GAUSSIAN: "train bll --family gaussian --read-out linear",
    LIFTED: "train bll --family gaussian --read-out lifted",
}
UNMIXED = {f"{name}, m = 0": f"{words} --m 0" for name, words in FORMS.items()}
USUAL = {f"local_ce, {RELU}": "train local_ce", f"backprop, {RELU}": "train backprop"}
OTHERS = {
    f"local_ce, {SIGMOID}": "train local_ce --set model.activation=sigmoid",
    f"local_ce, {LEARNED}": "train local_ce --head mlp --last head",
    f"backprop, {SIGMOID}": "train backprop --set model.activation=sigmoid",
}
SMOOTHED = {f"backprop, {RELU}, smoothing tuned": "train backprop"}
ALIKE = f"{BERNOULLI}, m = 0, all else alike"
FIXED = {
    ALIKE: f"{UNMIXED[f'{BERNOULLI}, m = 0']} --lr 0.002 --likelihood plug-in",
    f"{GAUSSIAN}, sampled, as shipped": f"{FORMS[GAUSSIAN]} --lr 0.002 --likelihood sample",
}
"""What was chosen for m = 1 without its messages; and the likelihood that is a bound, at its own best rate."""
ARMS = {**FORMS, **UNMIXED, **FIXED, **USUAL, **OTHERS, **SMOOTHED}
SAME = {
    BERNOULLI: [f"{BERNOULLI}, m = 0", ALIKE, f"local_ce, {SIGMOID}", f"backprop, {SIGMOID}", f"backprop, {RELU}"],
    GAUSSIAN: [f"{GAUSSIAN}, m = 0", f"local_ce, {RELU}", f"backprop, {RELU}"],
    LIFTED: [f"{LIFTED}, m = 0", f"local_ce, {LEARNED}", f"backprop, {RELU}"],
}
"""A form of BLL, and its controls: what its features go through and how they are read, and backprop as usual."""


def trusted(measure: str, part: str = "test_scaled") -> Callable[[Row], float | None]:
    """A measure of the answer on the test set, after one temperature fitted on validation or raw."""
    return lambda row: ((row.get("uncertainty") or {}).get(part) or {}).get(measure)


PARTS = {"raw": "test", "after temperature": "test_scaled"}
MEASURES = {"NLL": "nll", "Brier": "brier", "ECE, equal mass": "adaptive_ece", "AURC": "aurc"}


def parts(rows: Sequence[Row]) -> list[Part]:
    found = {data: by_label(its, "arm", ARMS) for data, its in by_label(rows, "data").items()}
    return [(answer(data, arms), section(data, arms)) for data, arms in found.items() if arms]


def answer(data: str, arms: Mapping[str, Sequence[Row]]) -> str:
    said: list[str] = []
    for family, controls in SAME.items():
        own = mean(arms.get(family, []))
        gaps = {arm: minus(arms.get(family, []), arms.get(arm, [])) for arm in controls}
        known = {arm: gap for arm, gap in gaps.items() if gap}
        if own is not None and known:
            said.append(f"{family} reaches {100 * own:.2f} %. " + against.said(f"{family} less", known))
            said.append(better(arms, family, [*controls, *SMOOTHED]))
    return (
        f"On {data}: {' '.join(filter(None, said))}" if said else f"On {data} BLL and a control have not both run yet."
    )


def better(arms: Mapping[str, Sequence[Row]], family: str, others: Sequence[str]) -> str:
    """Which others' answers this family's are better than, worse than, or neither; empty where no interval is known."""
    found: dict[str, list[str]] = {"better than": [], "worse than": [], "neither better nor worse than": []}
    for arm in others:
        gaps = [minus(arms[family], arms.get(arm, []), trusted(measure)) for measure in ("nll", "aurc")]
        verdicts = {gap.verdict for gap in gaps if gap and gap.low is not None}
        if verdicts:
            how = {"below": "better than", "above": "worse than"}.get(verdicts.pop()) if len(verdicts) == 1 else None
            found[how or "neither better nor worse than"].append(arm)
    told = [f"{how} {'; '.join(its)}." for how, its in found.items() if its]
    return f"By NLL and AURC after temperature {family} is {' It is '.join(told)}" if told else ""


def section(data: str, arms: Mapping[str, Sequence[Row]]) -> Section:
    further: list[Column] = [chosen(arms)]
    for family in SAME:
        gaps = against.less(arms, family)
        further += against.column(f"less {family}", list(arms), gaps)
    accuracies = table(arms, ACCURACIES, further=[*further, *sizes(arms)])
    return Section(
        data,
        f"{against.PAIRED} Better means lower NLL and AURC after temperature, each told apart: a temperature leaves "
        "every answer as it was, so what it mends was no knowledge. Rates, likelihoods and smoothing were chosen by "
        "accuracy on validation samples of Fashion-MNIST, for MNIST too; smoothing that gains accuracy may cost NLL.",
        [
            ("Accuracy", accuracies),
            *(
                (f"How far answers of {family} and its controls can be trusted, {how}", trust(arms, family, part))
                for family in SAME
                if family in arms
                for how, part in PARTS.items()
            ),
        ],
        against.figure(f"each less {GAUSSIAN} on {data}", against.less(arms, GAUSSIAN)),
    )


def trust(arms: Mapping[str, Sequence[Row]], family: str, part: str) -> Table:
    """Every measure of a form's answers and of its controls', and what these are less it."""
    own = {arm: arms[arm] for arm in (family, *SAME[family], *SMOOTHED) if arm in arms}
    further: list[Column] = []
    for head, measure in MEASURES.items():
        value = trusted(measure, part)
        gaps = against.less(own, family, value)
        further.append((head, [shown(spread(its, value), fixed(4)) for its in own.values()]))
        further.append((f"{head}, less", [against.cell(gaps[arm], nats) if arm in gaps else "" for arm in own]))
    return table(own, [ACCURACY], further=further)


NETWORK = "--model mlp --set model.depth=4 --set model.width=512 --blocks 4 --epochs 10 --augment none"
SMOKE = "--set model.width=32"
FASHION = {"Fashion-MNIST": "--data fashion-mnist"}
BOTH = {**FASHION, "MNIST": "--data mnist"}
FEWER = ("0.001", "0.002", "0.004")
ONLY_RATES = rates("0.0005", "0.001", "0.002", "0.003", "0.004", "0.008")
LIKELIHOODS = {f"rate {lr}, {at}": f"--lr {lr} --likelihood {at}" for lr in FEWER for at in ("sample", "plug-in")}
SMOOTHINGS = {f"rate {lr}, smoothing {s}": f"--lr {lr} --label-smoothing {s}" for lr in FEWER for s in ("0.05", "0.1")}
"""Six trials for everybody, as long as the runs: the rate, or fewer rates by a field of the arm's own."""


def grid(arms: Mapping[str, str], candidates: Mapping[str, str], data: Mapping[str, str] = FASHION) -> Grid:
    return Grid(
        arms,
        NETWORK,
        {"data": data},
        {"cpu": 5, "gpu": 5},
        candidates=candidates,
        trial=FASHION["Fashion-MNIST"],
        smoke=SMOKE,
    )


STUDY = Study(
    "Does BLL earn anything over greedy cross-entropy?",
    [
        grid(FORMS, LIKELIHOODS, BOTH),
        grid(USUAL, ONLY_RATES, BOTH),
        grid(UNMIXED, LIKELIHOODS),
        grid(OTHERS, ONLY_RATES),
        grid(SMOOTHED, SMOOTHINGS),
        Grid(FIXED, NETWORK, {"data": FASHION}, {"cpu": 5, "gpu": 5}, smoke=SMOKE),
    ],
    parts,
)
