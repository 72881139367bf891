"""BLL on images: a narrow ResNet-18 in four blocks, and on a GPU the whole one, beside greedy heads and backprop.

A lifted read-out is a local head but for its last layer, so that local_ce has the same.  What is no method's own (cut,
heads, augmentation, optimizer, epochs) is the same for all.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from sidestep.report.study import Section
from sidestep.report.tables import PERCENT, shown
from sidestep.studies import against, benches
from sidestep.studies.rows import ACCURACY, ECE, NLL, by_label, chosen, read_out, sizes, spread, table
from sidestep.studies.study import Grid, Machine, Part, Row, Study

BLL, GREEDY, BACKPROP = "BLL, lifted", "local_ce", "backprop"
LIFTED = "bll --family gaussian --read-out lifted --head-depth 2"
LOCAL = "local_ce --last head --head-depth 2"
LATENT = {BLL: f"train {LIFTED}"}
UNMIXED = {"BLL, lifted, m = 0": f"train {LIFTED} --m 0"}
CONTROLS = {GREEDY: f"train {LOCAL}", BACKPROP: "train backprop"}
ARMS = {**LATENT, **UNMIXED, **CONTROLS}
CANDIDATES = {"bll (streaming)": BLL, "local_ce (streaming)": GREEDY}


def parts(rows: Sequence[Row]) -> list[Part]:
    return [section(place, its) for place, its in by_label(rows, "place").items()]


def section(place: str, rows: Sequence[Row]) -> Part:
    """What the answer says of one network and data set, and its section."""
    trained, benched = benches.apart(rows)
    arms = by_label(trained, "arm", ARMS)
    gaps = against.less(arms, BLL)
    told = [against.said(f"{place}: less {BLL}", gaps)]
    tables = benches.tables({place: benched} if benched else {}, CANDIDATES, "network")
    if cost := benches.costs(benched, CANDIDATES):
        told.append(f"{place}: {cost}.")
    if arms:
        # Backprop has one read-out.
        averaged = [shown(found, PERCENT) if (found := spread(its, read_out("mean"))) else "" for its in arms.values()]
        further = [("averaged logits, %", averaged), *against.column(f"less {BLL}", list(arms), gaps)]
        tables.insert(
            0, ("After training", table(arms, (ACCURACY, NLL, ECE), further=[*further, chosen(arms), *sizes(arms)]))
        )
    text = f"{against.PAIRED} Of narrow networks all is chosen on CIFAR-10’s validation samples, for Fashion-MNIST too."
    text += f" {benches.taken(benched)}"
    return " ".join(filter(None, told)), Section(
        place, text.strip(), tables, against.figure(f"less {BLL}, {place}", gaps)
    )


NARROW = "--model resnet18 --set model.width=16 --blocks 4"
RECIPE = "--optimizer adamw --weight-decay 0.05 --schedule onecycle --warmup 0.3"
CIFAR, FASHION = "--data cifar10-jpeg-q95", "--data fashion-mnist"
NARROW_CIFAR = "narrow ResNet-18 on CIFAR-10"
ON_CIFAR = {NARROW_CIFAR: f"{CIFAR} --epochs 5"}
BOTH = {**ON_CIFAR, "narrow ResNet-18 on Fashion-MNIST": f"{FASHION} --epochs 5"}
WHOLE = {"place": {"ResNet-18 on CIFAR-10": CIFAR}}
FULL = (
    f"--model resnet18 --blocks 4 {RECIPE} --lr 0.004 --epochs 50 --batch-size 512 --augment crop,flip,cutout:8 "
    "--label-smoothing 0.1 --val-fraction 0 --select last"
)
GPU: Mapping[Machine, int] = {"cpu": 0, "gpu": 1}
SMALL = "--set model.width=8 --batch-size 64"
BENCHED = {BLL: LIFTED, GREEDY: LOCAL}

TRIALS = {
    f"rate {lr}, smoothing {s}": f"--lr {lr} --label-smoothing {s}" for lr in ("0.016", "0.032") for s in ("0", "0.1")
}
"""Four trials for everybody, as long as the runs: after two epochs the lowest rate won that is too low for five."""


def narrow(arms: Mapping[str, str], places: Mapping[str, str]) -> Grid:
    return Grid(
        arms,
        f"{NARROW} {RECIPE}",
        {"place": places},
        {"cpu": 3},
        candidates=TRIALS,
        trial=ON_CIFAR[NARROW_CIFAR],
        smoke=SMALL,
    )


STUDY = Study(
    "How near does BLL come to backprop on images, and what does it cost?",
    [
        narrow(LATENT | CONTROLS, BOTH),
        narrow(UNMIXED, ON_CIFAR),
        *benches.grids(BENCHED, NARROW, {"place": {NARROW_CIFAR: CIFAR}}, {"cpu": 1}, SMALL),
        Grid(ARMS, FULL, WHOLE, GPU, smoke=SMALL),
        *benches.grids(BENCHED, "--model resnet18 --blocks 4 --batch-size 512", WHOLE, GPU, SMALL),
    ],
    parts,
)
