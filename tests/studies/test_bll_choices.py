"""The page of `bll-choices`, on rows by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from sidestep.studies.bll_choices import BASELINE, CHOICES, STUDY, WORDS, arm
from tests.studies.made import trained
from tests.studies.pages import columns, written_of_every_part


def row(name: str, accuracy: float, seed: int, gap: float = 0.25) -> dict[str, Any]:
    told = {"bound": [0.5, 0.75], "gap": [gap, gap / 2], "angle": [60.0, None]}
    return trained({"arm": name, "tuned": "rate 0.002"}, accuracy, seed, diagnostics=told)


ROWS = [row(BASELINE, 0.90 + 0.01 * s, s) for s in (0, 1)] + [
    row(arm("twin", "linear"), 0.88 + 0.01 * s, s, gap=0.125) for s in (0, 1)
]


def test_a_choice_is_held_against_the_baselines() -> None:
    made = STUDY.page(ROWS)
    assert made.answer == ("Twin, less mlp, 128 wide, in points (below): linear −2.00 [−2.00, −2.00].")
    assert [section.heading for section in made.sections] == ["Twin"]
    found = columns(made, "Twin")
    assert found["twin"] == ["mlp, 128 wide", "linear"]
    assert found["bound, last block"] == ["0.7500 ± 0.0000"] * 2
    assert found["gap, block 1"] == ["0.2500 ± 0.0000", "0.1250 ± 0.0000"]
    assert found["gap, last block"] == ["0.1250 ± 0.0000", "0.0625 ± 0.0000"]
    assert found["less mlp, 128 wide, points"] == ["", "−2.00 [−2.00, −2.00], below"]


def test_the_baseline_is_run_once_and_every_other_changes_one_choice() -> None:
    arms = {piece.labels["arm"]: piece.words for piece in STUDY.pieces(seeds=1) if "trial" in piece.labels}
    assert list(arms) == [BASELINE, *(arm(name, other) for name, c in CHOICES.items() for other in c.others)]
    assert all(WORDS[name].count("--family") == 1 for name in arms)  # no default stands for the baseline's
    assert len(set(arms.values())) == len(arms)


def test_any_part_of_the_rows_makes_a_page(tmp_path: Path) -> None:
    rows = [row(name, 0.9, seed) for name in list(WORDS)[:6] for seed in (0, 1)]
    written_of_every_part(STUDY.page, rows, tmp_path)
