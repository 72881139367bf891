"""The page of `cifar100`, on rows by hand."""

from __future__ import annotations

from pathlib import Path

import pytest

from sidestep.studies import reproduction
from sidestep.studies.cifar100 import CASCADE, DRAWN, SID, STUDY
from tests.studies.made import over_epochs
from tests.studies.pages import columns, written_of_every_part

ONE = "backprop, one head"
HEADING = "Test accuracy over the last ten epochs"


def curve(level: float) -> list[float]:
    """Two epochs that do not count, then ten of mean `level`, the last 0.01 below it, the best 0.01 above."""
    return [0.1, 0.2, *[level] * 8, level + 0.01, level - 0.01]


ROWS = [
    *(over_epochs(SID, curve(level), seed) for seed, level in enumerate((0.57, 0.56, 0.58))),
    *(over_epochs(CASCADE, curve(level), seed) for seed, level in enumerate((0.47, 0.46, 0.48))),
    *(over_epochs(ONE, curve(level), seed) for seed, level in enumerate((0.55, 0.57, 0.56))),
]


def test_the_last_ten_epochs_stand_beside_the_authors_log_and_the_last_and_the_best() -> None:
    """Mean over seeds 57, sd 1; last 56, best 58."""
    found = columns(STUDY.page(ROWS), HEADING)
    assert found["method"] == [SID, CASCADE, ONE]
    assert found["last ten epochs, %"] == ["57.00 ± 1.00", "47.00 ± 1.00", "56.00 ± 1.00"]
    assert found["authors’ log, last ten"] == ["56.36", "46.66", ""]
    assert found["last epoch, %"][0] == "56.00 ± 1.00"
    assert found["best epoch on test, %"][0] == "58.00 ± 1.00"


def test_what_a_control_leaves_of_the_gain_is_said_with_its_interval() -> None:
    """Gain over the cascade 10 in every seed.  Over one head 2, -1, 2: mean 1, sd sqrt(3), t(0.975, 2) = 4.302653, so
    a half width of 4.302653 sqrt(3) / sqrt(3) = 4.30; a tenth of the gain."""
    text = STUDY.page(ROWS).answer
    assert "57.00 % for SID (authors’ log 56.36) and 47.00 % for the belief cascade by backprop (log 46.66)" in text
    assert "their gain of 9.70 points is +10.00 [+10.00, +10.00] here" in text
    assert f"SID less controls, in points (not distinguishable): {ONE} +1.00 [−3.30, +5.30]." in text
    assert text.endswith(f"What is left of the gain: 10 % beside {ONE}.")
    found = columns(STUDY.page(ROWS), HEADING)["SID less it, last ten, points"]
    assert found == ["", "+10.00 [+10.00, +10.00], above", "+1.00 [−3.30, +5.30], not distinguishable"]


def test_of_a_loss_no_share_is_said() -> None:
    rows = [over_epochs(SID, curve(0.4)), over_epochs(CASCADE, curve(0.5)), over_epochs(ONE, curve(0.5))]
    assert STUDY.page(rows).answer.endswith(f"SID less controls, in points (one seed, no interval): {ONE} −10.00.")


def test_any_part_of_the_rows_makes_a_page(tmp_path: Path) -> None:
    written_of_every_part(STUDY.page, [over_epochs(arm, curve(0.5)) for arm in DRAWN], tmp_path)
    assert "Not both" in STUDY.page([ROWS[0]]).answer


def test_it_is_for_a_gpu_and_every_arm_is_drawn() -> None:
    assert not STUDY.pieces("cpu")
    assert {piece.labels["arm"] for piece in STUDY.pieces("gpu")} == set(DRAWN)
    assert len(STUDY.pieces("gpu")) == 3 * len(DRAWN)
    assert len({piece.labels["arm"] for piece in STUDY.pieces("gpu", seeds=1)}) == len(DRAWN)


def test_the_smoothing_of_the_last_block_is_sids_own() -> None:
    """r_8 at alpha = 1/2."""
    (found,) = [p for p in STUDY.pieces("gpu", seeds=1) if p.labels["arm"].endswith("r_L")]
    assert float(found.words[found.words.index("--label-smoothing") + 1]) == pytest.approx(0.5**8, abs=0)


def test_reproduction_shows_its_curves_with_names_that_fit(tmp_path: Path) -> None:
    arms = list(dict.fromkeys(piece.labels["arm"] for piece in reproduction.STUDY.pieces("gpu")))
    rows = [over_epochs(arm, curve(0.8)) for arm in arms]
    assert set(reproduction.DRAWN) < set(arms)
    (svg,) = [svg for _, svg, _ in reproduction.STUDY.page(rows).sections[0].figures]
    assert "one head, strong" in svg
    written_of_every_part(reproduction.STUDY.page, rows, tmp_path)
