"""SID's published CIFAR-10 numbers again, on the network they were made with and on the one that was released.

The authors' log (rizhi.txt, github.com/ychAlbert/sid_bp at 05cd9a5d): batch 256, Adam at 1e-3, L = 5, 50 epochs, one
run each, test accuracy after every epoch; the paper reports the best of them.  Their backprop is the belief cascade
with the gradient left on.
"""

from __future__ import annotations

from collections.abc import Sequence

from sidestep.report.study import Page
from sidestep.studies.curves import last_ten, section
from sidestep.studies.rows import mean, minus, names, pick, points
from sidestep.studies.study import Grid, Row, Study

DATA = "--data cifar10-jpeg-q95 --epochs 50 --batch-size 256 --augment crop,flip --test epochs"
STRONG = "--recipe conv-cifar --val-fraction 0 --select last"
LOSS = "4.087, 3.338, 3.034"
"""The sum of SID's objectives after epochs 1 to 3 of the authors' log."""


def page(rows: Sequence[Row]) -> Page:
    groups = {arm: pick(rows, arm=arm) for arm in names(rows, "arm")}
    groups = {arm: found for arm, found in groups.items() if found}
    losses = [", ".join(f"{loss:.3f}" for loss in found[0]["curve"]["train_loss"][:3]) for found in groups.values()]
    sections = [section(groups, DRAWN, [("loss after epochs 1, 2, 3", losses)])] if groups else []
    return Page("Does SID’s published gain over backprop reproduce?", answer(groups), sections, rows)


def answer(groups: dict[str, list[Row]]) -> str:
    """In numbers: the two published curves, how far the gain shrinks, and what strong controls leave of it."""
    sid, cascade = groups.get(SID_BN, []), groups.get(CASCADE_BN, [])
    ours, theirs = mean(sid, last_ten), mean(cascade, last_ten)
    if ours is None or theirs is None:
        return "Not both of SID and the belief cascade have run yet."
    sentences = [
        f"On the network with BatchNorm the mean of the last ten epochs is {100 * ours:.2f} % for SID (authors’ log "
        f"79.95) and {100 * theirs:.2f} % for the belief cascade by backprop (log 78.22). Their gain of 4.12 points at "
        f"the last epoch is 1.73 over the last ten epochs of their log, and {points(minus(sid, cascade, last_ten))} "
        f"here. SID’s loss after epochs 1 to 3 was {LOSS} in the log."
    ]
    for arm, found in groups.items():
        if arm not in (SID_BN, CASCADE_BN) and not arm.startswith("SID") and "released" not in arm:
            sentences.append(f"SID less “{arm}”: {points(minus(sid, found, last_ten))} points.")
    if strong := minus(groups.get(SID_STRONG, []), groups.get(PLAIN_STRONG, []), last_ten):
        sentences.append(f"Both under the strong recipe: SID less backprop with one head {points(strong)} points.")
    return " ".join(sentences)


SID_BN = "SID, BatchNorm"
CASCADE_BN = "belief cascade by backprop, BatchNorm"
SID_STRONG = "SID, BatchNorm, strong recipe"
PLAIN = "backprop, one head, BatchNorm"
PLAIN_STRONG = "backprop, one head, BatchNorm, strong recipe"
DRAWN = {
    SID_BN: "SID",
    CASCADE_BN: "cascade",
    PLAIN: "one head",
    SID_STRONG: "SID, strong",
    PLAIN_STRONG: "one head, strong",
}
"""What the figure shows, in words that fit beside a line."""

STUDY = Study(
    "Does SID’s published gain over backprop reproduce?",
    [
        Grid(
            {
                SID_BN: "train sid --model simplecnn_bn --blocks 5",
                CASCADE_BN: "train backprop --model belief_cascade --set model.norm=true --blocks 1",
            },
            f"{DATA} --recipe sid-authors",
        ),
        Grid({PLAIN_STRONG: "train backprop --model simplecnn_bn --blocks 1"}, f"{DATA} {STRONG}"),
        Grid(
            {
                PLAIN: "train backprop --model simplecnn_bn --blocks 1",
                "SID, as released": "train sid --model simplecnn --blocks 5",
                "belief cascade by backprop, as released": "train backprop --model belief_cascade --blocks 1",
            },
            f"{DATA} --recipe sid-authors",
        ),
        Grid(
            {
                SID_STRONG: "train sid --model simplecnn_bn --blocks 5 --form shared",
                "backprop, one head, BatchNorm, strong recipe, smoothed as SID’s last block": "train backprop "
                "--model simplecnn_bn --blocks 1 --label-smoothing 0.03125",
            },
            f"{DATA} {STRONG}",
        ),
    ],
    page,
)
