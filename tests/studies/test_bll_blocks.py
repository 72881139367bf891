"""The page of `bll-blocks`, on rows by hand."""

from __future__ import annotations

from pathlib import Path

from sidestep.studies.bll_blocks import BACKPROP, BLL, CUT, DEPTHS, GREEDY, STUDY
from sidestep.studies.study import Row
from tests.studies.made import trained
from tests.studies.pages import columns, written_of_every_part

EVENLY, AT_INPUT = "4 blocks", "4 blocks, three at the input"
ROWS: list[Row] = [
    trained({"arm": name, where: which}, level + 0.01 * seed, seed)
    for name, where, which, level in (
        (BLL, "units", "16", 0.90),
        (GREEDY, "units", "16", 0.89),
        (BACKPROP, "units", "16", 0.92),
        (BLL, "units", "4", 0.91),
        (BACKPROP, "units", "4", 0.91),
        (BLL, "cut", EVENLY, 0.88),
        (BLL, "cut", AT_INPUT, 0.93),
    )
    for seed in (0, 1)
]


def test_over_depth_every_arm_is_held_against_backprop() -> None:
    found = columns(STUDY.page(ROWS), "Depth")
    assert found["units"] == ["4", "16"]
    assert found["BLL less backprop, points"] == [
        "+0.00 [+0.00, +0.00], not distinguishable",
        "−2.00 [−2.00, −2.00], below",
    ]
    assert found["BLL less local_ce, points"] == ["", "+1.00 [+1.00, +1.00], above"]
    answer = STUDY.page(ROWS).answer
    assert (
        "BLL less backprop, in points (not distinguishable): 4 units +0.00 [+0.00, +0.00]. Below: 16 units −2.00"
        in answer
    )


def test_every_cut_is_held_against_the_network_that_was_not_cut() -> None:
    found = columns(STUDY.page(ROWS), "Blocks")
    assert found["cut"] == [EVENLY, AT_INPUT]
    assert found["BLL, %"] == ["88.50 ± 0.71", "93.50 ± 0.71"]
    assert found["BLL less backprop, points"] == ["−4.00 [−4.00, −4.00], below", "+1.00 [+1.00, +1.00], above"]
    assert STUDY.page([row for row in ROWS if row["labels"]["arm"] == BLL]).answer == "Too little has run yet."


def test_the_network_that_is_cut_is_one_of_those_over_depth() -> None:
    assert CUT in DEPTHS
    runs = [piece for piece in STUDY.pieces(smoke=True) if "trial" not in piece.labels]
    backprop = [piece.labels["units"] for piece in runs if piece.labels["arm"] == BACKPROP]  # which has no cut
    assert list(dict.fromkeys(backprop)) == [str(n) for n in DEPTHS]


def test_any_part_of_the_rows_makes_a_page(tmp_path: Path) -> None:
    written_of_every_part(STUDY.page, ROWS, tmp_path)
