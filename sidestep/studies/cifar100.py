"""SID's largest published gain, on CIFAR-100, beside controls that its authors' backprop is not.

The authors' log (rizhi.txt, github.com/ychAlbert/sid_bp at 05cd9a5d): batch 256, Adam at 1e-3, L = 8, 100 epochs, one
run each, on the network with BatchNorm.  Their backprop is the belief cascade with the gradient left on.  r_L = 2^-8 is
the smoothing that SID's last block has.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from sidestep.report.study import Section
from sidestep.studies.against import column, figure, said
from sidestep.studies.curves import last_ten, section
from sidestep.studies.rows import by_label, mean, minus, points
from sidestep.studies.statistics import Difference
from sidestep.studies.study import Grid, Part, Row, Study

SID = "SID"
CASCADE = "belief cascade by backprop"
PUBLISHED = {SID: "56.36", CASCADE: "46.66"}
"""Percent over the last ten epochs of the authors' log."""
DRAWN = {
    SID: "SID",
    CASCADE: "cascade",
    "backprop, one head": "one head",
    "backprop, one head, smoothing 0.1": "smoothing 0.1",
    "backprop, one head, smoothing r_L": "smoothing r_L",
    "parallel heads": "parallel heads",
}
"""The arms, in words that fit beside a line."""


def parts(rows: Sequence[Row]) -> list[Part]:
    groups = by_label(rows, "arm")
    gains = {arm: gain for arm in groups if arm != SID and (gain := minus(groups.get(SID, []), groups[arm], last_ten))}
    further = [
        ("authors’ log, last ten", [PUBLISHED.get(arm, "") for arm in groups]),
        *column("SID less it, last ten", list(groups), gains),
    ]
    drawn = figure("SID less each, over the last ten epochs", gains)
    return [
        (answer(groups, gains), section(groups, DRAWN, further) if groups else None),
        ("", Section("What is left of the gain", figures=drawn) if drawn else None),
    ]


def answer(groups: Mapping[str, Sequence[Row]], gains: Mapping[str, Difference]) -> str:
    """In numbers: the two published curves, and what every control leaves of the gain between them."""
    ours, theirs = (mean(groups.get(arm, []), last_ten) for arm in (SID, CASCADE))
    gain = gains.get(CASCADE)
    if ours is None or theirs is None or gain is None:
        return "Not both of SID and the belief cascade have run yet."
    sentences = [
        f"The mean of the last ten epochs is {100 * ours:.2f} % for SID (authors’ log {PUBLISHED[SID]}) and "
        f"{100 * theirs:.2f} % for the belief cascade by backprop (log {PUBLISHED[CASCADE]}), so their gain of 9.70 "
        f"points is {points(gain)} here."
    ]
    controls = {arm: left for arm, left in gains.items() if arm != CASCADE}
    sentences.append(said("SID less controls", controls))
    if controls and gain.mean > 0:
        shares = [f"{100 * left.mean / gain.mean:.0f} % beside {arm}" for arm, left in controls.items()]
        sentences.append(f"What is left of the gain: {'; '.join(shares)}.".replace("-", "−"))
    return " ".join(filter(None, sentences))


STUDY = Study(
    "What do strong controls leave of SID’s published gain on CIFAR-100?",
    [
        Grid(
            {
                SID: "train sid --model simplecnn_bn --blocks 8",
                CASCADE: "train backprop --model belief_cascade --set model.norm=true --set model.modules=8 --blocks 1",
                "backprop, one head": "train backprop --model simplecnn_bn --blocks 1",
                "parallel heads": "train sid --belief none --model simplecnn_bn --blocks 8",
                "backprop, one head, smoothing 0.1": "train backprop --model simplecnn_bn --blocks 1 "
                "--label-smoothing 0.1",
                "backprop, one head, smoothing r_L": "train backprop --model simplecnn_bn --blocks 1 "
                f"--label-smoothing {0.5**8}",
            },
            "--data cifar100-jpeg-q95 --epochs 100 --batch-size 256 --recipe sid-authors --augment crop,flip "
            "--test epochs",
            seeds={"cpu": 0, "gpu": 3},
        )
    ],
    parts,
)
