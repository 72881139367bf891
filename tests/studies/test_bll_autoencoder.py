"""The page of `bll-autoencoder`, on rows by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from sidestep.studies.bll_autoencoder import BACKPROP, BLL, STUDY
from tests.studies.made import trained
from tests.studies.pages import columns, written_of_every_part


def row(arm: str, nll: float, seed: int) -> dict[str, Any]:
    """After the factor 0.5 less; with one deviation for all 0.1 more than that, with one for each pixel 0.2 less."""
    found: dict[str, Any] = {
        "nll": nll,
        "scale": 1.25,
        "nll_scaled": nll - 0.5,
        "nll_constant": nll - 0.4,
        "nll_per_number": nll - 0.7,
    }
    found |= {"deviation": [0.01 * (k + 1) for k in range(10)]}
    found |= {"coverage": [[0.5, 0.8, 0.9 + 0.01 * seed] for _ in range(10)]}
    return trained({"arm": arm, "tuned": "rate 0.001"}, seed=seed, test_accuracy=None, test_rmse=0.1, deviations=found)


ROWS = [row(arm, nll + 0.01 * seed, seed) for arm, nll in ((BLL, -1.0), (BACKPROP, -1.25)) for seed in (0, 1)]


def test_the_deviations_are_held_against_constants_of_the_same_runs_and_against_backprops() -> None:
    text = STUDY.page(ROWS).answer
    assert "BLL pays −1.4950 nats a pixel" in text
    assert "its means with one deviation for all pixels −0.1000 [−0.1000, −0.1000], below" in text
    assert "its means with one for each pixel +0.2000 [+0.2000, +0.2000], above" in text
    assert "backprop +0.2500 [+0.2500, +0.2500], above" in text
    found = columns(STUDY.page(ROWS), "Likelihood")
    assert found["less backprop"][0].startswith("+0.2500") and found["less backprop"][1] == ""
    assert found["NLL, one deviation for all pixels"] == ["−1.3950 ± 0.0071", "−1.6450 ± 0.0071"]


def test_coverage_is_the_mean_over_seeds_by_tenth() -> None:
    found = columns(STUDY.page(ROWS), "Coverage", BLL)
    assert (
        found["within the central 95 %, %"] == ["90.50"] * 10 and found["within the central 50 %, %"] == ["50.00"] * 10
    )
    assert found["mean deviation"][::9] == ["0.0100", "0.1000"]


def test_any_part_of_the_rows_makes_a_page(tmp_path: Path) -> None:
    written_of_every_part(STUDY.page, [*ROWS, trained({"arm": BLL}, seed=2, deviations=None)], tmp_path)


@pytest.mark.parametrize("rows", [ROWS[2:], []])
def test_without_bll_there_is_nothing_to_say(rows: list[dict[str, Any]]) -> None:
    assert STUDY.page(rows).answer in ("BLL has not run yet.", "Too little has run yet.")
