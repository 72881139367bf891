"""The page of `attribution`, on rows by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from sidestep.studies.attribution import ARMS, SID, STUDY
from tests.studies.made import trained
from tests.studies.pages import columns, written_of_every_part


def read(mean: float, gate: float) -> dict[str, Any]:
    return {"readouts": {"test": {"mean": {"accuracy": mean}, "gate": {"accuracy": gate}}}}


def row(arm: str, accuracy: float, seed: int, data: str = "MNIST", **more: Any) -> dict[str, Any]:
    return trained({"arm": arm, "data": data, "tuned": "rate 0.004"}, accuracy, seed, **more)


ROWS = [
    *(row(SID, a, s, **read(0.5, 0.5)) for s, a in enumerate((0.990, 0.991, 0.992))),
    *(row("local_ce", a - 0.01, s, **read(a - 0.002, a - 0.003)) for s, a in enumerate((0.990, 0.991, 0.992))),
    *(row("backprop", a, s) for s, a in enumerate((0.991, 0.990, 0.991))),
    row("backprop", 0.1, 0) | {"labels": {"arm": "backprop", "data": "MNIST", "trial": "rate 0.002"}},
]


def test_sid_is_credited_only_with_what_exceeds_its_strongest_control_however_that_is_read() -> None:
    """Less backprop -0.1, +0.1, +0.1 points: mean 0.03, sd 0.1155, half width 4.302653 * 0.1155 / sqrt(3) = 0.29."""
    text = STUDY.page(ROWS).answer
    assert "On MNIST SID reaches 99.10 %. Its strongest control is backprop, read by its last block" in text
    assert "SID less that, in points: +0.03 [−0.25, +0.32], not distinguishable." in text
    assert "It is above 3 of 4 controls and read-outs by a 95 % interval; what it is credited with is nothing." in text
    best = STUDY.page(ROWS[:6]).answer
    assert "Its strongest control is local_ce, read by averaged logits" in best
    assert "+0.20 [+0.20, +0.20], above" in best
    assert best.endswith("credited with is the difference to the strongest.")


def test_every_way_to_read_a_control_has_its_column_and_trials_are_left_out() -> None:
    found = columns(STUDY.page(ROWS), "MNIST")
    assert found["method"] == [SID, "local_ce", "backprop"]
    assert found["test accuracy, %"] == ["99.10 ± 0.10", "98.10 ± 0.10", "99.07 ± 0.06"]
    assert found["gate, %"] == ["50.00 ± 0.00", "98.80 ± 0.10", "not measured"]
    assert found["SID less it, read by averaged logits"] == ["", "+0.20 [+0.20, +0.20]", ""]
    assert found["chosen on validation"] == ["rate 0.004"] * 3


def test_any_part_of_the_rows_makes_a_page(tmp_path: Path) -> None:
    rows = [row(arm, 0.9, seed, data) for arm in ARMS for seed in (0, 1) for data in ("MNIST", "CIFAR-10")]
    written_of_every_part(STUDY.page, rows[::5], tmp_path)


@pytest.mark.parametrize("rows", [ROWS[:1], ROWS[3:]])
def test_without_both_sides_nothing_is_claimed(rows: list[dict[str, Any]]) -> None:
    assert STUDY.page(rows).answer == "On MNIST SID and a control have not both run yet."
