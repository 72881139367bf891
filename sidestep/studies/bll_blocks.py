"""How BLL stands depth, and how many blocks there are and where they are cut.

Residual multilayer perceptrons on Fashion-MNIST: 4 to 64 units, a block each; and 16 units in 2 to 16 blocks of equal
size, or in four of which three are as small as can be, at the input or at the output.  Latents are Gaussian.  With
noise as small as by default messages change next to nothing, so that larger noise is an arm of its own.
"""

from __future__ import annotations

from collections.abc import Sequence

from sidestep.report.study import Section
from sidestep.report.tables import PERCENT, Column, Table, shown
from sidestep.studies import against
from sidestep.studies.depths import accuracies, by_depth, lessened, over_depth
from sidestep.studies.rows import by_label, minus, names, pick, spread
from sidestep.studies.study import Grid, Part, Row, Study, rates

BLL, GREEDY, BACKPROP = "BLL", "local_ce", "backprop"
LOCAL = {
    BLL: "train bll --family gaussian",
    "BLL, precision ≥ 1": "train bll --family gaussian --least-precision 1",
    GREEDY: "train local_ce --last head",
}
DEPTHS = (4, 16, 64)
CUT = 16
"""Units of the network that is cut in every way."""
EVEN = {f"{k} blocks": f"--blocks {k}" for k in (2, 4, 8, 16)}
ENDS = {
    "4 blocks, three at the input": "--at block1,block2,block3",
    "4 blocks, three at the output": f"--at block{CUT - 3},block{CUT - 2},block{CUT - 1}",
}


def parts(rows: Sequence[Row]) -> list[Part]:
    return [*deeper(rows), *cut(rows)]


def deeper(rows: Sequence[Row]) -> list[Part]:
    """What the answer says of depth, and its section; nothing before it has run."""
    arms = {arm: found for arm in (*LOCAL, BACKPROP) if (found := by_depth(rows, "units", arm))}
    if not arms:
        return []
    told = [
        against.said(f"{arm} less backprop", {f"{depth} units": gap for depth, gap in gaps.items()})
        for arm in LOCAL
        if arm in arms and BACKPROP in arms and (gaps := lessened(arms, arm, BACKPROP))
    ]
    pairs = [(arm, BACKPROP) for arm in LOCAL if arm in arms and BACKPROP in arms]
    pairs += [(BLL, GREEDY)] if {BLL, GREEDY} <= arms.keys() else []
    table = accuracies(arms, pairs, "units")
    section = Section(
        "Depth",
        f"A block a unit. {against.PAIRED}",
        [("", table)] if table else [],
        over_depth("Test error over units.", arms, "units"),
    )
    return [(" ".join(told), section)]


def cut(rows: Sequence[Row]) -> list[Part]:
    """As `deeper`, of one network cut in every way; backprop is the same at each."""
    cuts = names(rows, "cut")
    whole = pick(rows, arm=BACKPROP, units=str(CUT))
    found = {arm: by_label(its, "cut", cuts) for arm, its in by_label(rows, "arm", LOCAL).items()}
    found = {arm: its for arm, its in found.items() if its}
    if not found:
        return []
    columns: list[Column] = [
        (f"{arm}, %", [shown(spread(its.get(where, [])), PERCENT) for where in cuts]) for arm, its in found.items()
    ]
    told: list[str] = []
    for arm, its in found.items():
        gaps = {where: gap for where, cells in its.items() if (gap := minus(cells, whole))}
        columns += against.column(f"{arm} less backprop", cuts, gaps)
        told.append(against.said(f"With {CUT} units, {arm} less backprop", gaps))
    table = Table.of(cuts, columns, "cut")
    text = f"One network of {CUT} units."
    if reached := shown(spread(whole), PERCENT):
        text += f" Backprop, the same at every cut, reaches {reached} %."
    return [(" ".join(filter(None, told)), Section("Blocks", text, [("", table)] if table else []))]


NETWORK = "--data fashion-mnist --model resmlp --set model.width=128 --batch-size 256 --epochs 5 --augment none"
UNITS = {"units": {str(n): f"--set model.depth={n} --blocks {n}" for n in DEPTHS}}
CANDIDATES = rates("0.0003", "0.001", "0.003")
SMOKE = "--set model.width=16"

STUDY = Study(
    "How does BLL stand depth, and where should a network be cut?",
    [
        Grid(
            {**LOCAL, BACKPROP: "train backprop"},
            NETWORK,
            UNITS,
            {"cpu": 3, "gpu": 5},
            candidates=CANDIDATES,
            smoke=SMOKE,
        ),
        Grid(
            LOCAL,
            f"{NETWORK} --set model.depth={CUT}",
            {"cut": EVEN | ENDS},
            {"cpu": 3, "gpu": 5},
            candidates=CANDIDATES,
            trial="--blocks 4",
            smoke=SMOKE,
        ),
    ],
    parts,
)
