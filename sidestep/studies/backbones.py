"""SID's trunk form inside of three backbones, every block with a head of its own, beside greedy heads and backprop.

Each backbone has its default recipe, the same for all methods.  Checkpointed backprop computes what backprop does, so
it is timed and not trained.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from sidestep.report.study import Section
from sidestep.studies import against, benches
from sidestep.studies.benches import CHECKPOINTED
from sidestep.studies.rows import ACCURACY, by_label, names, pick, sizes, table
from sidestep.studies.statistics import Difference
from sidestep.studies.study import Grid, Machine, Part, Row, Study

SID, LOCAL, BACKPROP = "SID", "local CE", "backprop"
CANDIDATES = {"sid (streaming)": SID, CHECKPOINTED: "checkpointing"}


def parts(rows: Sequence[Row]) -> list[Part]:
    return [part for name in names(rows, "backbone") for part in backbone(name, pick(rows, backbone=name))]


def backbone(name: str, rows: Sequence[Row]) -> list[Part]:
    """What the answer says of one backbone, and its section; nothing where there are no rows."""
    trained, benched = benches.apart(rows)
    cuts = sorted(names(rows, "blocks"), key=int)
    groups = by_label(trained, "arm", [BACKPROP])
    for arm in (SID, LOCAL):
        groups |= {f"{arm}, K = {cut}": its for cut, its in by_label(pick(trained, arm=arm), "blocks", cuts).items()}
    timed = by_label(benched, "blocks", cuts)
    gaps = against.less(groups, BACKPROP)
    tables = benches.tables(timed, CANDIDATES, "blocks")
    if groups:
        less = against.column("less backprop", list(groups), gaps)
        tables.insert(0, ("After training", table(groups, (ACCURACY,), further=[*less, *sizes(groups)])))
    section = Section(
        name,
        f"{benches.SEGMENTS} {benches.taken(benched)}".strip(),
        tables,
        against.figure(f"{name}, less backprop", gaps),
    )
    return [(answer(name, gaps, timed), section)] if tables else []


def answer(name: str, gaps: Mapping[str, Difference], timed: Mapping[str, Sequence[Row]]) -> str:
    """The differences of one backbone, and the costs of its finest cut."""
    finest = [f"{name} in {cut} blocks: {benches.costs(its, CANDIDATES)}." for cut, its in timed.items()][-1:]
    return " ".join(filter(None, [against.said(f"{name}, less backprop", gaps), *finest]))


DATA = "--data cifar10-jpeg-q95"
BACKBONES = {
    "backbone": {
        "VGG-11": "--model vgg11_bn",
        "ResNet-18": "--model resnet18",
        "ViT-Tiny": "--model vit_tiny",
    }
}
CUTS = BACKBONES | {"blocks": {str(count): f"--blocks {count}" for count in (2, 4, 8)}}
ON: Mapping[Machine, int] = {"cpu": 0, "gpu": 3}
SMALL = "--set model.width=12"

STUDY = Study(
    "What does trunk SID cost inside of VGG-11, ResNet-18 and ViT-Tiny, and what does it save?",
    [
        Grid({BACKPROP: "train backprop --blocks 1"}, f"{DATA} --epochs 30", BACKBONES, ON, smoke=SMALL),
        Grid({SID: "train sid --form trunk", LOCAL: "train local_ce"}, f"{DATA} --epochs 30", CUTS, ON, smoke=SMALL),
        *benches.grids({SID: "sid --form trunk"}, DATA, CUTS, ON, SMALL),
    ],
    parts,
)
