"""The page on label noise, on rows made by hand: what is picked, what is subtracted, what may be said of it."""

from __future__ import annotations

import math
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest

from sidestep.report.study import write_page
from sidestep.studies.label_noise import (
    ARMS,
    BACKPROP,
    CIFAR,
    DEEP,
    LOCAL,
    MATCHED,
    MNIST,
    NOISE,
    PARALLEL,
    SID,
    STUDY,
    TUNED,
)
from sidestep.studies.rows import nats
from sidestep.studies.statistics import difference
from sidestep.studies.study import Row
from tests.studies.pages import tables


def described(off: float = 0.125) -> dict[str, Any]:
    """T5's D = -log((1 - r)(1 - q + q/C) + r/C) with q = 0.4, C = 10, r = 1/2, 1/4; measured is `off` above."""
    theory = [-math.log((1 - r) * (1 - 0.4 + 0.04) + r / 10) for r in (1, 0.5, 0.25)]
    return {"descent": {"D": [theory[0], *(d + off for d in theory[1:])], "D_population": theory}}


GAIN = "+3.00 [+0.52, +5.48]"
"""Of 0.92, 0.93, 0.94 over 0.90: mean 0.03, sd 0.01, half width t(0.975, 2) sd / sqrt(3) = 4.302653 * 0.00577."""


def row(arm: str, noise: str = "40 %", seed: int = 0, accuracy: float = 0.9, data: str = MNIST, **more: Any) -> Row:
    return {
        "labels": {"arm": arm, "data": data, "noise": noise, **({"tuned": "0.2"} if arm == TUNED else {})},
        "seed": seed,
        "device": "a device",
        "commit": "abc",
        "command": "sidestep train",
        "val_accuracy": 0.5,
        "test_accuracy": accuracy,
        "test_nll": 0.25,
        "test_ece": 0.125,
        "block_test_nll": [0.75, 0.5],
        "curve": {"test_accuracy": [0.1, accuracy - 0.01]},
        **(described() if arm == SID else {}),
        **more,
    }


def of_three(arm: str, accuracies: tuple[float, float, float], **more: Any) -> list[Row]:
    return [row(arm, seed=seed, accuracy=a, **more) for seed, a in enumerate(accuracies)]


def all_rows() -> list[Row]:
    return [
        row(arm, noise, seed, 0.9 + 0.001 * seed, data)
        for data in (MNIST, CIFAR)
        for noise in NOISE
        for arm in (*ARMS, TUNED)
        for seed in range(2)
    ]


def test_the_smoothing_is_tuned_on_noisy_validation_for_each_rate_of_noise() -> None:
    trials = [piece for piece in STUDY.pieces() if "trial" in piece.labels]
    assert len(trials) == 4 * len(NOISE)
    assert all(piece.labels["arm"] == TUNED and "--test never" in piece.command for piece in trials)
    best = dict(zip(NOISE, ("0.05", "0.4", "0.1", "0.2"), strict=True))
    rows = [
        {"command": p.command, "val_accuracy": 0.6 if p.labels["trial"] == best[p.labels["noise"]] else 0.5}
        for p in trials
    ]
    tuned = [p for p in STUDY.pieces(seeds=1, rows=rows) if "tuned" in p.labels]
    assert {p.labels["noise"]: p.labels["tuned"] for p in tuned} == best
    assert [f"--label-noise {NOISE[p.labels['noise']]:g} " in p.command for p in tuned] == [True] * len(NOISE)
    assert all(f"--label-smoothing {p.labels['tuned']} " in p.command for p in tuned)


def test_a_table_has_both_epochs_and_what_sid_has_over_each_control_paired_by_seed() -> None:
    rows = of_three(SID, (0.92, 0.93, 0.94)) + of_three(BACKPROP, (0.90, 0.90, 0.90))
    table = tables(STUDY.page(rows))["Accuracy on MNIST: 40 % label noise"]
    assert table.head == [
        "method",
        "seeds",
        "selected epoch, %",
        "last epoch, %",
        "NLL, nats",
        "ECE",
        "SID less it, points",
    ]
    assert table.rows == [
        ["SID", "3", "93.00 ± 1.00", "92.00 ± 1.00", "0.2500 ± 0.0000", "0.1250 ± 0.0000", ""],
        ["backprop", "3", "90.00 ± 0.00", "89.00 ± 0.00", "0.2500 ± 0.0000", "0.1250 ± 0.0000", GAIN],
    ]


def test_the_answer_says_above_only_where_the_interval_excludes_zero_and_asks_the_parallel_heads() -> None:
    rows = of_three(SID, (0.92, 0.93, 0.94)) + of_three(BACKPROP, (0.90, 0.90, 0.90))
    rows += of_three(PARALLEL, (0.93, 0.93, 0.93))
    rows += [row(SID, "20 %", accuracy=0.9), row(BACKPROP, "20 %", accuracy=0.91)]
    answer = STUDY.page(rows).answer
    assert f"SID less backprop, in points (one seed, no interval): 20 % −1.00. Above: 40 % {GAIN}." in answer
    assert "SID less parallel heads, in points (not distinguishable): 40 % " in answer
    assert "above parallel heads, which have its targets and no beliefs, at 0 of 1." in answer
    assert "CIFAR" not in answer


def test_each_blocks_distance_stands_beside_t5s() -> None:
    rows = [
        *of_three(SID, (0.9, 0.9, 0.9)),
        row(PARALLEL, seed=0, block_test_nll=[1.0, 0.75]),
    ]
    made = STUDY.page(rows)
    table = tables(made)["T5 tested: D on the clean test set at 40 % noise, nats"]
    assert table.head == ["after block", "T5", "SID", "SID less T5", "parallel heads"]
    assert table.rows == [
        ["1", "0.9943", "1.1193 ± 0.0000", "+0.1250 [+0.1250, +0.1250]", "1.0000"],
        ["2", "0.6832", "0.8082 ± 0.0000", "+0.1250 [+0.1250, +0.1250]", "0.7500"],
    ]
    assert "in nats: +0.125, +0.125 at 40 % noise." in made.sections[-1].text


def test_a_difference_of_nats_has_its_interval() -> None:
    three, one = difference([0.01, 0.02, 0.03]), difference([-0.01])
    assert three and one
    assert nats(three) == "+0.0200 [−0.0048, +0.0448]"
    assert nats(one) == "−0.0100"


def test_the_last_epoch_is_held_against_the_selected_one_at_the_highest_rate() -> None:
    rows = [row(SID, "20 %"), row(SID, "60 %"), row(DEEP, "60 %")]
    assert (
        "falls at 60 % noise by (points): 1.00 for SID; 1.00 for deep supervision." in STUDY.page(rows).sections[0].text
    )


@pytest.mark.parametrize(
    ("rows", "shown"),
    [
        ([], 0),
        ([row(SID)], 2),  # accuracy, and T5
        ([row(BACKPROP)], 1),
        ([row(TUNED), row(SID, "0 %")], 3),
        ([row(SID, data=CIFAR), row(PARALLEL, data=CIFAR)], 1),
        ([{"labels": {"arm": SID, "data": MNIST, "noise": "0 %"}, "failed": "diverged", "command": ""}], 0),
    ],
    ids=["none", "SID", "a control", "tuned", "CIFAR", "failed"],
)
def test_a_page_from_few_rows_leaves_out_what_is_missing(rows: list[Row], shown: int) -> None:
    made = STUDY.page(rows)
    assert made.answer
    assert len(tables(made)) == shown


def test_a_page_lacks_any_two_arms_and_is_written(tmp_path: Path) -> None:
    rows = all_rows()
    write_page(STUDY.page(rows), tmp_path / "page.html")
    assert "T5 tested" in (tmp_path / "page.html").read_text()
    mnist = [r for r in rows if r["labels"]["data"] == MNIST and r["labels"]["noise"] in ("0 %", "40 %")]
    rest = [MATCHED, f"{TUNED}: 0.2", LOCAL]
    for missing in combinations((SID, PARALLEL, BACKPROP, DEEP), 2):
        left = [r for r in mnist if r["labels"]["arm"] not in missing]
        names = [line[0] for line in tables(STUDY.page(left))["Accuracy on MNIST: 40 % label noise"].rows]
        assert names == [arm for arm in (SID, PARALLEL, DEEP, BACKPROP, *rest) if arm not in missing]
