"""Is there refinement of beliefs, or are there only several heads and smoothed targets?

SID in its published form beside networks that lack one of its parts each.  Every arm's learning rate is chosen on
validation from the same candidates, and SID is credited only with what exceeds all of its controls, each in the best of
the ways to read it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from sidestep.report.study import Section
from sidestep.report.tables import Column
from sidestep.studies import against
from sidestep.studies.rows import HOWEVER_READ, by_label, chosen, mean, names, pick, points, reads, sizes, table
from sidestep.studies.statistics import Difference, paired
from sidestep.studies.study import Grid, Part, Row, Study, rates

SID = "SID"
ARMS = {
    SID: "sid",
    "parallel heads on T5’s targets": "sid --belief none",
    "SID, alpha 1: beliefs, no consistency": "sid --alpha 1",
    "SID, residual beliefs": "sid --belief residual",
    "local_ce": "local_ce",
    "deep supervision on T5’s targets": "deep_supervision --label-smoothing sid:0.5",
    "backprop": "backprop",
    "backprop, smoothing 0.05": "backprop --label-smoothing 0.05",
    "backprop, smoothing 0.1": "backprop --label-smoothing 0.1",
    "backprop, smoothing 0.2": "backprop --label-smoothing 0.2",
    "backprop, smoothed as SID’s last block": "backprop --label-smoothing sid:0.5",
}


def parts(rows: Sequence[Row]) -> list[Part]:
    found = {data: by_label(pick(rows, data=data), "arm", ARMS) for data in names(rows, "data")}
    return [(answer(data, arms), section(data, arms) if arms else None) for data, arms in found.items()]


def less(arms: Mapping[str, Sequence[Row]], how: str) -> dict[str, Difference]:
    """SID's answer less every other arm's, that arm read in one of the ways of `READ_OUTS`, paired by seed."""
    own = reads(arms.get(SID, []), "last")
    found = {arm: paired(own, reads(its, how)) for arm, its in arms.items() if arm != SID}
    return {arm: gap for arm, gap in found.items() if gap}


def answer(data: str, arms: Mapping[str, Sequence[Row]]) -> str:
    own = mean(arms.get(SID, []))
    gaps = {f"{arm}, {READ_OUTS[how]}": gap for how in READ_OUTS for arm, gap in less(arms, how).items()}
    if own is None or not gaps:
        return f"On {data} SID and a control have not both run yet."
    best, gap = min(gaps.items(), key=lambda item: item[1].mean)
    above = sum(other.verdict == "above" for other in gaps.values())
    return (
        f"On {data} SID reaches {100 * own:.2f} %. Its strongest control is {best}; SID less that, in points: "
        f"{against.cell(gap)}. "
        f"It is above {above} of {len(gaps)} controls and read-outs by a 95 % interval; what it is credited with is "
        f"{'the difference to the strongest' if gap.verdict == 'above' else 'nothing'}."
    )


READ_OUTS = {"last": "read by its last block", "mean": "read by averaged logits", "gate": "read by a gate"}


def section(data: str, arms: Mapping[str, Sequence[Row]]) -> Section:
    gaps: list[Column] = [
        (f"SID less it, {words}", [points(found.get(arm)) or "" for arm in arms])
        for how, words in READ_OUTS.items()
        if (found := less(arms, how))
    ]
    drawn = less(arms, "last")
    return Section(
        data,
        against.PAIRED,
        [("", table(arms, HOWEVER_READ, further=[chosen(arms), *gaps, *sizes(arms)]))],
        against.figure(f"SID less each control on {data}", drawn),
    )


STUDY = Study(
    "Does SID refine beliefs, or has it only several heads and smoothed targets?",
    [
        Grid(
            {arm: f"train {words}" for arm, words in ARMS.items()},
            "--model simplecnn --blocks 5 --epochs 3",
            {"data": {"MNIST": "--data mnist", "Fashion-MNIST": "--data fashion-mnist"}},
            seeds={"cpu": 5, "gpu": 5},
            # The first three left SID and most of its controls at the edge, on Fashion-MNIST by half a point and more.
            candidates=rates("0.002", "0.004", "0.008", "0.016"),
            smoke="--batch-size 64",
        ),
        Grid(
            {
                arm: f"train {words}" + (" --form shared" if words.startswith("sid") else "")
                for arm, words in ARMS.items()
            },
            "--model simplecnn_bn --blocks 5 --epochs 30",
            {"data": {"CIFAR-10": "--data cifar10-jpeg-q95"}},
            seeds={"gpu": 3},
            candidates=rates("0.05", "0.1", "0.2"),
            smoke="--batch-size 64",
        ),
    ],
    parts,
)
