"""The page of `reproduction`, on rows by hand."""

from __future__ import annotations

from pathlib import Path

from sidestep.studies.reproduction import (
    CASCADE,
    CASCADE_STRONG,
    HEADS_STRONG,
    PLAIN_STRONG,
    SID,
    SID_STRONG,
    STUDY,
    on,
)
from tests.studies.made import over_epochs
from tests.studies.pages import columns, written_of_every_part


def curve(level: float) -> list[float]:
    """Two epochs that do not count, then ten of mean `level`, the best 0.01 above it, the last 0.01 below."""
    return [0.1, 0.2, *[level] * 8, level + 0.01, level - 0.01]


ROWS = [
    over_epochs(on(SID, "BatchNorm"), curve(0.80)),
    over_epochs(on(CASCADE, "BatchNorm"), curve(0.81)),
    over_epochs(on(PLAIN_STRONG, "BatchNorm"), curve(0.85)),
    over_epochs(on(SID_STRONG, "BatchNorm"), curve(0.84)),
]
POOLED = [over_epochs(on(SID, "pooled"), curve(0.79)), over_epochs(on(CASCADE, "pooled"), curve(0.78))]


def test_the_gain_is_said_of_the_log_and_of_ours_and_what_lies_outside_is_named() -> None:
    text = STUDY.page(ROWS).answer
    assert "80.00 % for SID (authors’ log 79.95) and 81.00 % for the belief cascade by backprop (log 78.22)" in text
    assert "1.73 over the last ten epochs of their log, and −1.00 here." in text
    assert "Further than 1.5 points from the log: the cascade by +2.78 points." in text
    assert f"SID less “{PLAIN_STRONG}”: −5.00 points." in text
    assert "“SID, strong recipe” less “backprop, one head, strong recipe”: −1.00 points." in text
    assert "pooled network" not in text  # it has no rows


def test_under_the_strong_recipe_sid_stands_beside_every_control_that_has_run() -> None:
    strong = [
        over_epochs(on(CASCADE_STRONG, "BatchNorm"), curve(0.83)),
        over_epochs(on(HEADS_STRONG, "BatchNorm"), curve(0.86)),
    ]
    text = STUDY.page([*ROWS, *strong]).answer
    assert f"“{SID_STRONG}” less “{CASCADE_STRONG}”: +1.00 points." in text
    assert f"“{SID_STRONG}” less “{HEADS_STRONG}”: −2.00 points." in text


def test_each_network_is_answered_by_its_own_rows() -> None:
    text = STUDY.page([*ROWS, *POOLED]).answer
    assert text.index("79.00 % for SID") < text.index("80.00 % for SID")
    pooled, batch_norm = text.split("On `simplecnn` with BatchNorm")
    assert "and +1.00 here. Both are within 1.5 points." in pooled and "strong" not in pooled
    assert "the cascade by +2.78 points." in batch_norm


def test_the_last_and_the_best_epoch_stand_beside_the_mean_and_the_loss_beside_the_logs_epochs() -> None:
    found = columns(STUDY.page(ROWS), "Test accuracy over the last ten epochs")
    assert found["last ten epochs, %"][0] == "80.00"
    assert found["last epoch, %"][0] == "79.00"
    assert found["best epoch on test, %"][0] == "81.00"
    assert found["loss after epochs 1, 3, 10, 20, 50"][0] == "1.000, 1.000, 1.000"  # twelve epochs


def test_any_part_of_the_rows_makes_a_page(tmp_path: Path) -> None:
    written_of_every_part(STUDY.page, [*ROWS, *POOLED], tmp_path)
    assert "Not both" in STUDY.page([ROWS[0]]).answer
