"""BLL on images: a narrow ResNet-18 in four blocks, and on a GPU the whole one, beside greedy heads and backprop.

A lifted read-out is a local head but for its last layer, so that local_ce has the same.  What is no method's own (cut,
heads, augmentation, optimizer, epochs) is the same for all.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from sidestep.report.study import Page, Section
from sidestep.report.tables import fixed
from sidestep.studies import against, benches
from sidestep.studies.rows import ACCURACY, chosen, names, pick, sizes, table
from sidestep.studies.study import Grid, Machine, Row, Study

QUESTION = "How near does BLL come to backprop on images, and what does it cost?"
BLL, GREEDY, BACKPROP = "BLL, lifted", "local_ce", "backprop"
LIFTED = "bll --family gaussian --read-out lifted --head-depth 2"
LOCAL = "local_ce --last head --head-depth 2"
LATENT = {BLL: f"train {LIFTED}"}
UNMIXED = {"BLL, lifted, m = 0": f"train {LIFTED} --m 0"}
CONTROLS = {GREEDY: f"train {LOCAL}", BACKPROP: "train backprop"}
ARMS = {**LATENT, **UNMIXED, **CONTROLS}
CANDIDATES = {"bll (streaming)": BLL, "local_ce (streaming)": GREEDY}


def page(rows: Sequence[Row]) -> Page:
    places = {place: pick(rows, place=place) for place in names(rows, "place")}
    parts = [section(place, its) for place, its in places.items() if its]
    return Page(
        QUESTION,
        " ".join(text for text, _ in parts if text) or "Too little has run yet.",
        [section for _, section in parts],
        rows,
    )


def section(place: str, rows: Sequence[Row]) -> tuple[str, Section]:
    """What the answer says of one network and data set, and its section."""
    trained, benched = benches.apart(rows)
    arms = {arm: its for arm in ARMS if (its := pick(trained, arm=arm))}
    gaps = against.less(arms, BLL)
    told = [against.said(f"{place}: less {BLL}", gaps)]
    tables = benches.tables({place: benched} if benched else {}, CANDIDATES, "network")
    if cost := benches.costs(benched, CANDIDATES):
        told.append(f"{place}: {cost}.")
    if arms:
        columns = (ACCURACY, ("NLL, nats", "test_nll", fixed(4)), ("ECE", "test_ece", fixed(4)))
        further = [*against.column(f"less {BLL}", list(arms), gaps), chosen(arms), *sizes(arms)]
        tables.insert(0, ("After training", table(arms, columns, further=further)))
    text = f"Differences are paired by seed, with their 95 % interval. {benches.taken(benched)}"
    return " ".join(filter(None, told)), Section(
        place, text.strip(), tables, against.figure(f"less {BLL}, {place}", gaps)
    )


NARROW = "--model resnet18 --set model.width=16 --blocks 4"
RECIPE = "--optimizer adamw --weight-decay 0.05 --schedule onecycle --warmup 0.3"
CIFAR, FASHION = "--data cifar10-jpeg-q95", "--data fashion-mnist"
ON_CIFAR = {"narrow ResNet-18 on CIFAR-10": f"{CIFAR} --epochs 5"}
BOTH = {**ON_CIFAR, "narrow ResNet-18 on Fashion-MNIST": f"{FASHION} --epochs 5"}
WHOLE = {"place": {"ResNet-18 on CIFAR-10": CIFAR}}
FULL = (
    f"--model resnet18 --blocks 4 {RECIPE} --lr 0.004 --epochs 50 --batch-size 512 --augment crop,flip,cutout:8 "
    "--label-smoothing 0.1 --val-fraction 0 --select last"
)
GPU: Mapping[Machine, int] = {"cpu": 0, "gpu": 1}
SMALL = "--set model.width=8 --batch-size 64"
BENCHED = {BLL: LIFTED, GREEDY: LOCAL}

RATES = ("0.008", "0.016", "0.032", "0.064")
TWO = RATES[1:3]
TWINS = {f"rate {lr}, twin {twin}": f"--lr {lr} --twin {twin}" for lr in TWO for twin in ("mlp", "linear")}
"""Four trials for everybody: two rates by the twin, or four rates."""


def narrow(arms: Mapping[str, str], candidates: Mapping[str, str], places: Mapping[str, str] = BOTH) -> Grid:
    return Grid(
        arms,
        f"{NARROW} {RECIPE}",
        {"place": places},
        {"cpu": 3},
        candidates=candidates,
        trial=f"{CIFAR} --epochs 2",
        smoke=SMALL,
    )


STUDY = Study(
    QUESTION,
    [
        narrow(LATENT, TWINS),
        narrow(CONTROLS, {f"rate {lr}": f"--lr {lr}" for lr in RATES}),
        narrow(UNMIXED, TWINS, ON_CIFAR),
        *benches.grids(BENCHED, NARROW, {"place": {"narrow ResNet-18 on CIFAR-10": CIFAR}}, {"cpu": 1}, SMALL),
        Grid(ARMS, FULL, WHOLE, GPU, smoke=SMALL),
        *benches.grids(BENCHED, "--model resnet18 --blocks 4 --batch-size 512", WHOLE, GPU, SMALL),
    ],
    page,
)
