"""The page of `gap`, on rows by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from sidestep.studies.gap import ARMS, BACKPROP, LOCAL, SID, STUDY
from tests.studies.made import trained
from tests.studies.pages import columns, written_of_every_part


def row(arm: str, accuracy: float, seed: int, epochs: str = "5 epochs", **more: Any) -> dict[str, Any]:
    return trained({"arm": arm, "data": "CIFAR-10", "epochs": epochs}, accuracy, seed, **more)


READ: dict[str, Any] = {"readouts": {"test": {"mean": {"accuracy": 0.80}, "gate": {"accuracy": 0.79}}}}
ROWS = [
    *(row(arm, a, s) for arm, level in ((SID, 0.84), (BACKPROP, 0.86)) for s, a in enumerate((level, level + 0.01))),
    *(row(LOCAL, 0.83, s, **READ) for s in (0, 1)),
    *(row(arm, a, s, "10 epochs") for arm, a in ((SID, 0.88), (BACKPROP, 0.89)) for s in (0, 1)),
]


def test_the_gap_is_said_at_the_largest_budget_and_to_every_read_out_of_local_ce() -> None:
    """SID less local_ce's last block 1, 2 points: mean 1.5, half width 12.7062 * 0.7071 / sqrt(2) = 6.35."""
    text = STUDY.page(ROWS[:6]).answer
    assert (
        "On CIFAR-10 after 5 epochs, SID less its controls, in points (below): backprop −2.00 [−2.00, −2.00]." in text
    )
    assert "local_ce, last block +1.50 [−4.85, +7.85]" in text
    assert "local_ce, averaged logits +4.50 [−1.85, +10.85]; local_ce, gate fitted on validation +5.50" in text
    later = STUDY.page(ROWS).answer
    assert "On CIFAR-10 after 10 epochs, SID less its controls, in points (below): backprop −1.00" in later
    assert "after 5 epochs" not in later


def test_each_budget_has_its_table_and_the_gap_is_drawn_over_budgets() -> None:
    found = columns(STUDY.page(ROWS), "CIFAR-10", "After 5 epochs")
    assert found["method"] == [SID, BACKPROP, LOCAL]
    assert found["SID less it"] == ["", "−2.00 [−2.00, −2.00]", "+1.50 [−4.85, +7.85]"]
    (section,) = STUDY.page(ROWS).sections
    assert next(title for title, _, _ in section.figures) == "The gap over the budget."
    (alone,) = STUDY.page(ROWS[:6]).sections
    assert "The gap over the budget." not in [title for title, _, _ in alone.figures]


def test_any_part_of_the_rows_makes_a_page(tmp_path: Path) -> None:
    rows = [row(arm, 0.9, seed, epochs) for arm in ARMS for seed in (0, 1) for epochs in ("5 epochs", "10 epochs")]
    written_of_every_part(STUDY.page, rows, tmp_path)
