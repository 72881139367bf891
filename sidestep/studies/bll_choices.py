"""Which of BLL's choices matter: one of them changed at a time.

The baseline has Bernoulli latents, whose noise is not small as a Gaussian's is, and is else as shipped: a multilayer
perceptron in four blocks on Fashion-MNIST.  Every variant's learning rate is chosen on validation from the same
candidates.  What the divergence and its messages earn over greedy cross-entropy is the study `bll`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from sidestep.report.study import Section
from sidestep.report.tables import fixed
from sidestep.studies import against
from sidestep.studies.rows import ACCURACY, NLL, Measure, chosen, pick, table
from sidestep.studies.study import Grid, Part, Row, Study, rates

BASELINE = "baseline"


class Choice(NamedTuple):
    """One that is made: the baseline's, and the words of what could be instead."""

    baseline: str
    others: Mapping[str, str]
    note: str = ""


CHOICES = {
    "mixing schedule m": Choice(
        "1",
        {
            "0": "--m 0",
            "0.1": "--m 0.1",
            "0.5": "--m 0.5",
            "1 to 0": "--m linear:1:0",
            "1 to 0, cosine": "--m cosine:1:0",
            "0 to 1": "--m linear:0:1",
            "1, climbing for the first half": "--m-warmup 0.5",
        },
        "Bound and gap are those of the last m.",
    ),
    "family": Choice(
        "Bernoulli",
        {
            "Gaussian": "--family gaussian",
            "Gaussian, precision ≥ 1": "--family gaussian --least-precision 1",
            "categorical, 4 states": "--family categorical",
            "Laplace around 0": "--family laplace",
        },
        "A Laplace around 0 says what it says by its scale alone: the family that fits latents with a location least.",
    ),
    "what a message is less": Choice(
        "its mean under the block’s prediction", {"its mean over classes": "--centre classes"}
    ),
    "likelihood": Choice(
        "sampled", {"closed form": "--likelihood closed", "at the mean of rho": "--likelihood plug-in"}
    ),
    "weight of the divergence": Choice("1", {"0.1": "--kl-weight 0.1", "10": "--kl-weight 10"}),
    "where rho is a constant": Choice(
        "nowhere", {"in the divergence": "--detach kl", "in both terms": "--detach both"}
    ),
    "what the next block gets in training": Choice("alpha", {"rho (bootstrapping)": "--bootstrap"}),
    "twin": Choice(
        "mlp, 128 wide",
        {
            "mlp, 16 wide": "--twin-width 16",
            "mlp, 512 wide": "--twin-width 512",
            "linear": "--twin linear",
            "mirror": "--twin mirror",
        },
    ),
    "read-out": Choice(
        "linear", {"lifted": "--read-out lifted", "lifted, at the mean": "--read-out lifted --likelihood plug-in"}
    ),
    "answer": Choice(
        "by the twin’s messages",
        {"mean over 16 draws": "--draws 16", "by the network’s classifier": "--predict classifier"},
    ),
}


def arm(choice: str, other: str) -> str:
    return f"{choice}: {other}"


def diagnosed(name: str, block: int) -> Callable[[Row], float | None]:
    """What `Method.diagnostics` measured at a block with the parameters that were judged."""

    def value(row: Row) -> float | None:
        found = (row.get("diagnostics") or {}).get(name)
        return found[block] if found else None

    return value


COLUMNS: Sequence[Measure] = (
    ACCURACY,
    NLL,
    ("bound, block 1", diagnosed("bound", 0), fixed(4)),
    ("gap, block 1", diagnosed("gap", 0), fixed(4)),
    ("bound, last block", diagnosed("bound", -1), fixed(4)),
    ("gap, last block", diagnosed("gap", -1), fixed(4)),
    ("feedback’s angle, block 1, °", diagnosed("angle", 0), fixed(0)),
)


def parts(rows: Sequence[Row]) -> list[Part]:
    baseline = pick(rows, arm=BASELINE)
    found: dict[str, dict[str, list[Row]]] = {}
    for name, choice in CHOICES.items():
        others = {other: its for other in choice.others if (its := pick(rows, arm=arm(name, other)))}
        if others:
            found[name] = ({choice.baseline: baseline} if baseline else {}) | others
    return [section(name, CHOICES[name], lines) for name, lines in found.items()]


def section(name: str, choice: Choice, lines: Mapping[str, Sequence[Row]]) -> Part:
    heading = f"{name[0].upper()}{name[1:]}"
    gaps = against.less(lines, choice.baseline)
    further = [*against.column(f"less {choice.baseline}", list(lines), gaps), chosen(lines)]
    text = (
        f"{against.PAIRED} Bounds are of validation samples, sampled with a divergence of weight 1; their gaps are "
        f"measured from below. {choice.note}"
    )
    told = against.said(f"{heading}, less {choice.baseline}", gaps)
    return told, Section(heading, text.strip(), [("", table(lines, COLUMNS, name, further))])


BERNOULLI = "--family bernoulli"
WORDS = {BASELINE: BERNOULLI} | {
    arm(name, other): words if "--family" in words else f"{BERNOULLI} {words}"
    for name, c in CHOICES.items()
    for other, words in c.others.items()
}

STUDY = Study(
    "Which of BLL’s choices matter?",
    [
        Grid(
            {name: f"train bll {words}" for name, words in WORDS.items()},
            "--data fashion-mnist --model mlp --set model.depth=4 --set model.width=512 --blocks 4 --epochs 5 "
            "--augment none",
            seeds={"cpu": 3, "gpu": 5},
            candidates=rates("0.001", "0.002", "0.004", "0.008", "0.016"),
            smoke="--set model.width=32",
        )
    ],
    parts,
)
