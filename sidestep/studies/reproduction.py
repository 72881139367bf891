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
EPOCHS = (1, 3, 10, 20, 50)
LOG = {"SID": (4.087, 3.034, 2.350, 2.043, 1.693), "the cascade": (1.521, 1.020, 0.683, 0.533, 0.347)}
"""The training loss at these epochs of the authors' log; SID's is the sum of its objectives."""


def page(rows: Sequence[Row]) -> Page:
    groups = {arm: pick(rows, arm=arm) for arm in names(rows, "arm")}
    groups = {arm: found for arm, found in groups.items() if found}
    curves = [found[0]["curve"]["train_loss"] for found in groups.values()]
    losses = [", ".join(f"{curve[n - 1]:.3f}" for n in EPOCHS if n <= len(curve)) for curve in curves]
    head = f"loss after epochs {', '.join(map(str, EPOCHS))}"
    sections = [section(groups, DRAWN, [(head, losses)])] if groups else []
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
        f"here. {likeness(ours - 0.7995, theirs - 0.7822)}"
    ]
    for arm, found in groups.items():
        if arm not in (SID_BN, CASCADE_BN) and not arm.startswith("SID") and "released" not in arm:
            sentences.append(f"SID less “{arm}”: {points(minus(sid, found, last_ten))} points.")
    if strong := minus(groups.get(SID_STRONG, []), groups.get(PLAIN_STRONG, []), last_ten):
        sentences.append(f"Both under the strong recipe: SID less backprop with one head {points(strong)} points.")
    return " ".join(sentences)


def likeness(sid: float, cascade: float) -> str:
    """Whether the curves are the log's, by accuracy within 1.5 points and by training loss."""
    far = [f"{name} by {100 * off:+.2f}" for name, off in (("SID", sid), ("the cascade", cascade)) if abs(off) > 0.015]
    text = (
        f"Further than 1.5 points from the log: {' and '.join(far)} points. " if far else "Both are within 1.5 points. "
    )
    losses = [f"{name} {', '.join(f'{loss:.3f}' for loss in its)}" for name, its in LOG.items()]
    return f"{text}Its training loss after epochs {', '.join(map(str, EPOCHS))}: {'; '.join(losses)}.".replace("-", "−")


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
