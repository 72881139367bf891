"""ResNet-18 near its best with backprop and with local learning, and what a step costs over depth, on a GPU.

Backprop is to reach 95 %: 50 epochs of all training images, Nesterov SGD with a cosine and the usual rate of 0.1 at 128
images scaled to 0.4 at 512 (with a warm-up of 5 epochs), crops, flips and cutout of 8 pixels, label smoothing of 0.1.
Nothing is chosen on test images: the last epoch counts.  Everybody has this recipe.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from sidestep.report.study import Section
from sidestep.report.tables import PERCENT, shown
from sidestep.studies import against, benches
from sidestep.studies.benches import CHECKPOINTED, COMPILED, EAGER
from sidestep.studies.rows import ACCURACY, ECE, NLL, by_label, pick, sizes, spread, table
from sidestep.studies.study import Grid, Machine, Part, Row, Study

BACKPROP, SID = "backprop", "SID"
CANDIDATES = {"sid (streaming)": SID, CHECKPOINTED: "checkpointing"}


def parts(rows: Sequence[Row]) -> list[Part]:
    return [*accuracy(rows), *cost(rows)]


def accuracy(rows: Sequence[Row]) -> list[Part]:
    """What the answer says of the trained networks, and their section; nothing before one has run."""
    groups = by_label(rows, "arm", ARMS)
    if not groups:
        return []
    gaps = against.less(groups, BACKPROP)
    reached = [f"{shown(spread(its), PERCENT)} % by {arm}" for arm, its in groups.items()]
    told = [f"ResNet-18 reaches {'; '.join(reached)}.", against.said("Less backprop", gaps)]
    further = [*against.column("less backprop", list(groups), gaps), *sizes(groups)]
    section = Section(
        "ResNet-18 on CIFAR-10",
        "All training images, 50 epochs of 512 images a step, Nesterov SGD with a cosine, crops, flips, cutout, label "
        "smoothing of 0.1; the last epoch counts. The images are a copy of CIFAR-10 in JPEG at quality 95.",
        [("", table(groups, (ACCURACY, NLL, ECE), further=further))],
        against.figure("less backprop", gaps),
    )
    return [(" ".join(filter(None, told)), section)]


def cost(rows: Sequence[Row]) -> list[Part]:
    """As `accuracy`, of the benches."""
    heading = "Cost over depth"
    text = f"A residual MLP with a block a unit. {benches.SEGMENTS}"
    return benches.by_run(pick(rows, arm=SID), (EAGER, COMPILED), "units", CANDIDATES, heading, text)


ARMS = {
    BACKPROP: "train backprop --blocks 1",
    "SID, trunk, K = 4": "train sid --form trunk --blocks 4",
    "SID, trunk, K = 8": "train sid --form trunk --blocks 8",
    "local CE, K = 4": "train local_ce --blocks 4",
    "deep supervision, K = 4": "train deep_supervision --blocks 4",
    "SID, shared, L = 4": "train sid --form shared --blocks 4",
}
DEPTHS = {"units": {str(units): f"--set model.depth={units} --blocks {units}" for units in (8, 16, 32, 64)}}
UNITS = "--data cifar10-jpeg-q95 --model resmlp --set model.width=1024 --batch-size 4096 --precision bf16"
ON: Mapping[Machine, int] = {"cpu": 0, "gpu": 1}
SMALL = "--set model.width=8 --batch-size 64"

STUDY = Study(
    "How near to a strong ResNet-18 does local learning come, and what does a step of it cost over depth?",
    [
        Grid(
            ARMS,
            "--data cifar10-jpeg-q95 --model resnet18 --recipe conv-cifar --epochs 50 --batch-size 512 --lr 0.4 "
            "--warmup 0.1 --augment crop,flip,cutout:8 --label-smoothing 0.1 --val-fraction 0 --select last",
            seeds=ON,
            smoke=SMALL,
        ),
        *benches.grids({SID: "sid --form trunk"}, UNITS, {"run": {EAGER: ""}} | DEPTHS, ON, SMALL),
        # Compiling would take longer than the rest of a smoke, and a CPU does not see the memory of what it compiled.
        *benches.grids(
            {SID: "sid --form trunk"},
            UNITS,
            {"run": {COMPILED: "--set compile=true"}} | DEPTHS,
            ON,
            f"{SMALL} --set compile=false --set model.depth=4 --blocks 4",
        ),
    ],
    parts,
)
