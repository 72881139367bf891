"""SID's published CIFAR-10 numbers again, on the network they were made with and on the one that was released.

The authors' log (rizhi.txt, github.com/ychAlbert/sid_bp at 05cd9a5d): batch 256, Adam at 1e-3, L = 5, 50 epochs, one
run each, test accuracy after every epoch; the paper reports the best of them.  Their backprop is the belief cascade
with the gradient left on.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from sidestep.studies.curves import last_ten, section
from sidestep.studies.rows import by_label, mean, minus, points
from sidestep.studies.study import Grid, Machine, Part, Row, Study

DATA = "--data cifar10-jpeg-q95 --epochs 50 --batch-size 256 --augment crop,flip --test epochs"
LIKE_THEM = f"{DATA} --recipe sid-authors"
STRONG = f"{DATA} --recipe conv-cifar --val-fraction 0 --select last"
EPOCHS = (1, 3, 10, 20, 50)
LOG = {"SID": (4.087, 3.034, 2.350, 2.043, 1.693), "the cascade": (1.521, 1.020, 0.683, 0.533, 0.347)}
"""The training loss at these epochs of the authors' log; SID's is the sum of its objectives."""

SID = "SID"
CASCADE = "belief cascade by backprop"
PLAIN = "backprop, one head"
SID_STRONG = "SID, strong recipe"
PLAIN_STRONG = "backprop, one head, strong recipe"
SMOOTHED_STRONG = "backprop, one head, strong recipe, smoothed as SID’s last block"
CASCADE_STRONG = "belief cascade by backprop, strong recipe"
HEADS_STRONG = "parallel heads on SID’s targets, strong recipe"


class Network(NamedTuple):
    """A guess at the network of the log: what it is, and the words that set it, and its belief modules, apart."""

    what: str
    words: str = ""
    sid_modules: str = ""
    cascade_modules: str = ""


NETWORKS = {
    "strided": Network(
        "the strided network with BatchNorm in its belief modules too, whose loss is nearest to the log’s",
        "--set model.strided=true",
        "--set sid.module_norm=true",
        "--set model.module_norm=true",
    ),
    "pooled": Network("the pooled network", "--set model.pooled=true"),
    "BatchNorm": Network("`simplecnn` with BatchNorm"),
}


def on(arm: str, network: str) -> str:
    return f"{arm}, {network}"


def parts(rows: Sequence[Row]) -> list[Part]:
    groups = by_label(rows, "arm")
    curves = [found[0]["curve"]["train_loss"] for found in groups.values()]
    losses = [", ".join(f"{curve[n - 1]:.3f}" for n in EPOCHS if n <= len(curve)) for curve in curves]
    head = f"loss after epochs {', '.join(map(str, EPOCHS))}"
    said = " ".join(filter(None, (answer(groups, network) for network in NETWORKS)))
    text = f"{said} {LOG_SAYS}" if said else "Not both of SID and the belief cascade have run yet."
    return [(text, section(groups, DRAWN, [(head, losses)]) if groups else None)]


LOG_SAYS = "The log’s training loss after epochs {}: {}.".format(
    ", ".join(map(str, EPOCHS)),
    "; ".join(f"{name} {', '.join(f'{loss:.3f}' for loss in losses)}" for name, losses in LOG.items()),
)


def answer(groups: Mapping[str, Sequence[Row]], network: str) -> str | None:
    """In numbers: the two published curves, how far the gain shrinks, and what strong controls leave of it."""
    sid, cascade = groups.get(on(SID, network), []), groups.get(on(CASCADE, network), [])
    ours, theirs = mean(sid, last_ten), mean(cascade, last_ten)
    if ours is None or theirs is None:
        return None
    off = {"SID": ours - 0.7995, "the cascade": theirs - 0.7822}
    far = [f"{name} by {100 * by:+.2f}" for name, by in off.items() if abs(by) > 0.015]
    sentences = [
        f"On {NETWORKS[network].what}, the mean of the last ten epochs is {100 * ours:.2f} % for SID (authors’ log "
        f"79.95) and {100 * theirs:.2f} % for the belief cascade by backprop (log 78.22). Their gain of 4.12 points at "
        f"the last epoch is 1.73 over the last ten epochs of their log, and {points(minus(sid, cascade, last_ten))} "
        "here.",
        f"Further than 1.5 points from the log: {' and '.join(far)} points." if far else "Both are within 1.5 points.",
    ]
    for arm in (PLAIN, PLAIN_STRONG, SMOOTHED_STRONG):
        if gap := minus(sid, groups.get(on(arm, network), []), last_ten):
            sentences.append(f"SID less “{arm}”: {points(gap)} points.")
    for arm in (PLAIN_STRONG, CASCADE_STRONG, HEADS_STRONG):
        if gap := minus(groups.get(on(SID_STRONG, network), []), groups.get(on(arm, network), []), last_ten):
            sentences.append(f"“{SID_STRONG}” less “{arm}”: {points(gap)} points.")
    return " ".join(sentences).replace("-", "−")


DRAWN = {
    on(arm, "pooled"): name
    for arm, name in {
        SID: "SID",
        CASCADE: "cascade",
        PLAIN: "one head",
        SID_STRONG: "SID, strong",
        PLAIN_STRONG: "one head, strong",
    }.items()
}
"""What the figure shows, in words that fit beside a line."""

BATCHNORM = "--model simplecnn_bn"


THREE_ON_GPU: Mapping[Machine, int] = {"cpu": 1, "gpu": 3}
NOT_ON_CPU: Mapping[Machine, int] = {"cpu": 0, "gpu": 3}


def grids(name: str, strong_seeds: Mapping[Machine, int] = THREE_ON_GPU) -> list[Grid]:
    network = NETWORKS[name]
    sid = f"train sid {BATCHNORM} --blocks 5 {network.sid_modules}"
    like_them = {
        SID: sid,
        CASCADE: f"train backprop --model belief_cascade --set model.norm=true --blocks 1 {network.cascade_modules}",
        PLAIN: f"train backprop {BATCHNORM} --blocks 1",
    }
    strong = {
        SID_STRONG: f"{sid} --form shared",
        PLAIN_STRONG: f"train backprop {BATCHNORM} --blocks 1",
        SMOOTHED_STRONG: f"train backprop {BATCHNORM} --blocks 1 --label-smoothing 0.03125",
        CASCADE_STRONG: like_them[CASCADE],
        HEADS_STRONG: f"{sid} --form shared --belief none",
    }
    return [
        Grid({on(arm, name): f"{own} {network.words}" for arm, own in arms.items()}, common, seeds=seeds)
        for arms, common, seeds in ((like_them, LIKE_THEM, THREE_ON_GPU), (strong, STRONG, strong_seeds))
    ]


STUDY = Study(
    "Does SID’s published gain over backprop reproduce?",
    [
        *grids("pooled"),
        *grids("strided", strong_seeds=NOT_ON_CPU),
        *grids("BatchNorm", strong_seeds=NOT_ON_CPU),  # two hours a run on two cores
        Grid(
            {
                "SID, as released": "train sid --model simplecnn --blocks 5",
                "belief cascade by backprop, as released": "train backprop --model belief_cascade --blocks 1",
            },
            LIKE_THEM,
            seeds=THREE_ON_GPU,
        ),
    ],
    parts,
)
