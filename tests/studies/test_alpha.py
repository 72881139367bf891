"""The page on α, direction and descent, on rows made by hand."""

from __future__ import annotations

from itertools import combinations
from pathlib import Path
from typing import Any

import pytest

from sidestep.report.study import write_page
from sidestep.studies.alpha import ARMS, DATA, MIDDLE, STUDY, directed
from sidestep.studies.rows import best_on_validation
from sidestep.studies.study import Row
from tests.studies.pages import tables
from tests.studies.test_label_noise import GAIN

MNIST, FASHION = DATA
POOR = "learning rate ÷ 30"


def row(arm: str, seed: int = 0, accuracy: float = 0.9, data: str = MNIST, **more: Any) -> Row:
    descent = {
        "D": [2.0, 1.0, 0.5],
        "D_population": [2.0, 0.75, 0.25],
        "C": [0.5, 0.25],
        "e": [-0.1, 0.1],
        "e_quantiles": [[-0.4, -0.3, -0.2, -0.1, 0.0], [-0.2, -0.1, 0.0, 0.1, 0.25]],
        "e_positive": [0.05, 0.5],
        "identity": 2e-15,
    }
    return {
        "labels": {"arm": arm, "data": data},
        "seed": seed,
        "device": "a device",
        "commit": "abc",
        "command": "sidestep train",
        "val_accuracy": 0.5,
        "test_accuracy": accuracy,
        "test_nll": 0.25,
        "test_ece": 0.125,
        "descent": descent | more.pop("descent", {}),
    } | more


def failed(arm: str, data: str = MNIST) -> Row:
    """What the runner leaves of a run that diverged: no seed, no numbers."""
    return {"labels": {"arm": arm, "data": data}, "commit": "abc", "command": "sidestep train", "failed": "diverged"}


def of_three(arm: str, accuracies: tuple[float, float, float], **more: Any) -> list[Row]:
    return [row(arm, seed, a, **more) for seed, a in enumerate(accuracies)]


def test_every_alpha_stands_beside_labels_only_and_what_t5_leaves_of_the_uniform_belief() -> None:
    """r = (1 - 0.5)^5 = 0.03125, and 0 where any block heeds labels only."""
    rows = of_three("α = 0.5", (0.92, 0.93, 0.94)) + of_three("α = 1", (0.90, 0.90, 0.90))
    rows += [row("α from 0.1 to 1", test_nll=0.5)]
    table = tables(STUDY.page(rows))["α on MNIST: Constant α, and α that changes from block to block"]
    assert table.head == ["α", "seeds", "test accuracy, %", "NLL, nats", "ECE", "r", "NLL by T5", "less α = 1, points"]
    assert table.rows == [
        ["α = 0.5", "3", "93.00 ± 1.00", "0.2500 ± 0.0000", "0.1250 ± 0.0000", "0.0312", "0.2500", GAIN],
        ["α = 1", "3", "90.00 ± 0.00", "0.2500 ± 0.0000", "0.1250 ± 0.0000", "0.0000", "0.2500", ""],
        ["α from 0.1 to 1", "1", "90.00", "0.5000", "0.1250", "0.0000", "0.2500", "+0.00"],
    ]


def test_alpha_is_chosen_by_validation_and_not_by_test() -> None:
    rows = of_three("α = 0.5", (0.92, 0.93, 0.94), val_accuracy=0.6) + of_three("α = 1", (0.90, 0.90, 0.90))
    rows += of_three("α = 0.1", (0.95, 0.95, 0.95), val_accuracy=0.4)
    answer = STUDY.page(rows).answer
    assert "On MNIST validation chooses “α = 0.5”, with a test accuracy of 93.00 ± 1.00 %" in answer
    assert "among 90.00 % (“α = 1”) to 95.00 % (“α = 0.1”)" in answer
    assert f"“α = 0.5” less “α = 1”, labels only: {GAIN} points (above)." in answer
    assert best_on_validation({"a": [row("a", seed=0)], "b": [row("b", seed=1)]}) is None  # nothing to compare them by


def test_directions_are_compared_at_equal_smoothing_only() -> None:
    code, paper = directed("code", "0.05"), directed("paper", "0.05")
    rows = of_three(code, (0.90, 0.90, 0.90)) + of_three(paper, (0.92, 0.93, 0.94), test_nll=0.5)
    rows += [
        row(directed("code", "0.01")),
        row(directed("paper", "0.1")),
        *of_three(code, (0.8, 0.8, 0.8), data=FASHION),
    ]
    made = STUDY.page(rows)
    accuracy = tables(made)["The paper’s direction and the code’s, equally smoothed: Test accuracy, %"]
    assert accuracy.rows == [["MNIST, smoothing 0.05", "90.00 ± 0.00", "93.00 ± 1.00", GAIN]]
    nll = tables(made)["The paper’s direction and the code’s, equally smoothed: Test NLL, nats"]
    assert nll.rows[0][-1] == "+0.2500 [+0.2500, +0.2500]"
    assert f"on MNIST, in points (above): smoothing 0.05 {GAIN}." in made.answer


def test_descent_is_shown_for_good_and_poor_optimisation_side_by_side() -> None:
    rows = [row(MIDDLE, 0), row(MIDDLE, 1, descent={"e_positive": [0.15, 0.7], "D": [2.0, 2.0, 1.5]})]
    rows += [
        row(POOR, descent={"e_positive": [0.5, 0.25], "C": [1.0, 2.0]}),
        row("learning rate × 10"),
        row("one epoch"),
    ]
    rows += [failed("learning rate × 10")]
    made = STUDY.page(rows)
    found = {name.split(": ")[1]: table.rows for name, table in tables(made).items() if name.startswith("Descent")}
    assert found["D, the distance to the label after each block, nats"][:2] == [
        ["by the recipe", "2.0000", "1.5000", "1.0000"],
        ["learning rate ÷ 30", "2.0000", "1.0000", "0.5000"],
    ]
    assert found["C, how far each block moved, nats"][1] == ["learning rate ÷ 30", "1.0000", "2.0000"]
    assert found["e > 0, % of the test samples, in each block"][0] == ["by the recipe", "10.0", "60.0"]
    text = made.sections[-1].text
    assert "by the recipe 10.0 to 60.0 %, 0.250 nats; learning rate ÷ 30 25.0 to 50.0 %, 0.250 nats;" in text
    assert text.endswith("learning rate × 10 diverged in 1 of 2 runs.")
    assert made.sections[-1].figures[0][0] == "Slack of each block: by the recipe."


def test_the_identity_is_called_what_it_is_with_the_largest_difference_of_all_runs() -> None:
    rows = [row(MIDDLE), row(POOR, descent={"identity": 4e-15}), failed("learning rate × 10")]
    answer = STUDY.page(rows).answer
    assert "is an identity (T6): over 2 runs, good and poor, its two sides differ by at most 4e-15 nats" in answer
    assert "By the recipe it fails for 5.0 to 50.0 % on MNIST of the test samples, by block." in answer


@pytest.mark.parametrize(
    "rows",
    [[], *([row(arm)] for arm in ARMS), [failed("learning rate × 10")], [failed("learning rate × 10"), row("α = 1")]],
    ids=["none", *ARMS, "failed", "failed and one"],
)
def test_a_page_from_few_rows_leaves_out_what_is_missing(rows: list[Row]) -> None:
    made = STUDY.page(rows)
    assert made.answer
    assert len(made.sections) <= 3


def test_a_page_lacks_any_two_arms_and_is_written(tmp_path: Path) -> None:
    rows = [row(arm, seed, 0.9 + 0.001 * seed, data) for data in DATA for arm in ARMS for seed in range(2)]
    write_page(STUDY.page(rows), tmp_path / "page.html")
    assert "Descent on Fashion-MNIST" in (tmp_path / "page.html").read_text()
    rows = [r for r in rows if r["labels"]["data"] == MNIST]
    for missing in combinations((MIDDLE, "α = 1", POOR, directed("paper", "0.1")), 2):
        made = STUDY.page([r for r in rows if r["labels"]["arm"] not in missing])
        assert all(row[0] != arm for table in tables(made).values() for row in table.rows for arm in missing)
