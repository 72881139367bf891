"""The search behind the study `gap`: what was tried to close it, on validation only, the failures among it.

Every trial is a ResNet-18 of width 16 in four blocks on CIFAR-10, five epochs, the recipe of `conv-cifar`, one seed.
What is no method's own (augmentation, averaged parameters, cut, head) is tried for backprop's other rivals as well.
"""

from __future__ import annotations

from collections.abc import Sequence

from sidestep.report.study import Section
from sidestep.report.tables import PERCENT, prefixed
from sidestep.studies.rows import by_label, read_out, table
from sidestep.studies.study import TRIAL_SEED, Grid, Part, Row, Study

COMMON = "--data cifar10-jpeg-q95 --model resnet18 --set model.width=16 --blocks 4 --epochs 5 --test never"


def parts(rows: Sequence[Row]) -> list[Part]:
    arms = dict(sorted(by_label(rows, "arm").items(), key=lambda item: -item[1][0]["val_accuracy"]))
    if not arms:
        return []
    blocks = [
        ", ".join("–" if v is None else f"{100 * v:.1f}" for v in found[0]["block_val_accuracy"])
        for found in arms.values()
    ]
    columns = (
        ("validation accuracy, %", "val_accuracy", PERCENT),
        ("mean of read-outs", read_out("mean", "val"), PERCENT),
        ("FLOPs, training", "flops_per_sample", prefixed),
        ("FLOPs, inference", "inference_flops_per_sample", prefixed),
    )
    told = f"{len(arms)} trials on validation, best first; the test set was read by none of them."
    shown = table(arms, columns, "trial", further=[("by block, %", blocks)])
    return [(told, Section("All trials", tables=[("", shown)]))]


ADAMW = "--optimizer adamw --lr 0.004 --weight-decay 0.05 --schedule onecycle --warmup 0.3"
ONE = "sid --alpha 1"
DEEP = "--head-depth 2"
ARMS = {
    "backprop": "backprop",
    "deep supervision": "deep_supervision",
    "local_ce": "local_ce",
    "SID": "sid",
    "SID, alpha 1": ONE,
    "backprop, AdamW": f"backprop {ADAMW}",
    "SID, alpha 1, residual belief": f"{ONE} --belief residual",
    "SID, alpha 1, heads of 2 convolutions": f"{ONE} {DEEP}",
    "SID, alpha 1, heads of 2 convolutions, AdamW": f"{ONE} {DEEP} {ADAMW}",
    "SID, alpha 1, heads of 2 convolutions, AdamW, cut by memory": f"{ONE} {DEEP} {ADAMW} --balance memory",
    "SID, alpha 1, heads of 2 convolutions, AdamW, cut by parameters": f"{ONE} {DEEP} {ADAMW} --balance params",
    "local_ce, heads of 2 convolutions, AdamW": f"local_ce {DEEP} {ADAMW}",
    "SID, alpha 1 to 0.5": "sid --alpha linear:1:0.5",
    "backprop, rate 0.05": "backprop --lr 0.05",
    "backprop, residual branches not zero at first": "backprop --set model.zero_init_residual=false",
}

STUDY = Study(
    "What closes the gap between isolated blocks and backprop?",
    [
        Grid(
            {arm: f"train {words}" for arm, words in ARMS.items()},
            COMMON,
            seeds={"cpu": 1},
            first_seed=TRIAL_SEED,
            smoke="--set model.width=8",
        )
    ],
    parts,
)
