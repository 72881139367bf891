"""The page of `bll`, on rows by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from sidestep.studies.bll import ARMS, BERNOULLI, FIXED, GAUSSIAN, MEASURES, PARTS, SAME, STUDY
from tests.studies.made import trained
from tests.studies.pages import columns, written_of_every_part


def row(arm: str, accuracy: float, seed: int, nll: float = 0.3, data: str = "MNIST") -> dict[str, Any]:
    raw = {"nll": nll + 0.1, "brier": 0.2, "ece": 0.05, "adaptive_ece": 0.04, "aurc": 0.03}
    trust = {"test": raw, "test_scaled": {"T": 1.2, **raw, "nll": nll, "aurc": nll / 10}}
    return trained({"arm": arm, "data": data, "tuned": "rate 0.002"}, accuracy, seed, uncertainty=trust)


LEVELS = {BERNOULLI: (0.90, 0.30), f"{BERNOULLI}, m = 0": (0.89, 0.32), "local_ce, sigmoid": (0.88, 0.28)}
ROWS = [row(arm, level + 0.01 * s, s, nll) for arm, (level, nll) in LEVELS.items() for s in (0, 1)]


def test_each_family_is_held_against_its_own_controls() -> None:
    text = STUDY.page(ROWS).answer
    assert "On MNIST: BLL, Bernoulli reaches 90.50 %." in text
    assert "BLL, Bernoulli, m = 0 +1.00 [+1.00, +1.00]; local_ce, sigmoid +2.00 [+2.00, +2.00]" in text
    assert "Gaussian" not in text
    assert SAME[GAUSSIAN] == ["BLL, Gaussian, m = 0", "local_ce, ReLU", "backprop, ReLU"]
    assert {arm for controls in SAME.values() for arm in controls} <= ARMS.keys()


def test_trust_is_told_raw_and_after_temperature_with_paired_differences() -> None:
    page, title = STUDY.page(ROWS), "How far answers of BLL, Bernoulli and its controls can be trusted, "
    raw, scaled = (columns(page, "MNIST", title + how) for how in PARTS)
    assert raw["NLL"] == ["0.4000 ± 0.0000", "0.4200 ± 0.0000", "0.3800 ± 0.0000"]
    assert scaled["NLL"][0] == "0.3000 ± 0.0000"
    assert scaled["NLL, less"][1].startswith("+0.0200 [+0.0200, +0.0200], above")
    assert scaled["NLL, less"][2].startswith("−0.0200") and raw["NLL, less"][2].startswith("−0.0200")
    assert scaled["AURC, less"][2].endswith("below")
    assert all({"test accuracy, %", *MEASURES} <= found.keys() for found in (raw, scaled))


def test_better_is_said_where_both_nll_and_aurc_are_told_apart() -> None:
    """Those by hand differ by as much in every seed; a third control's NLL alone is lower."""
    third = [row("backprop, sigmoid", 0.88, s, 0.28) for s in (0, 1)]
    for each in third:
        each["uncertainty"]["test_scaled"]["aurc"] = 0.03
    assert (
        "By NLL and AURC after temperature BLL, Bernoulli is better than BLL, Bernoulli, m = 0. It is worse than "
        "local_ce, sigmoid. It is neither better nor worse than backprop, sigmoid."
    ) in STUDY.page([*ROWS, *third]).answer


def test_every_arm_has_as_many_trials() -> None:
    trials = [p for p in STUDY.pieces(seeds=1) if "trial" in p.labels]
    by_arm = {arm: sum(p.labels["arm"] == arm for p in trials) for arm in ARMS}
    assert {arm for arm, count in by_arm.items() if count != 6} == set(FIXED) == {a for a in ARMS if not by_arm[a]}


def test_any_part_of_the_rows_makes_a_page(tmp_path: Path) -> None:
    rows = [row(arm, 0.9, seed, data=data) for arm in ARMS for seed in (0, 1) for data in ("MNIST", "Fashion-MNIST")]
    written_of_every_part(STUDY.page, rows, tmp_path)
