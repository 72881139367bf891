"""The page of `bll-sequences`, on rows by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from sidestep.studies.bll_sequences import ARMS, BACKPROP, BLL, CHARACTERS, GREEDY, STUDY, WHOLE
from tests.studies.made import trained
from tests.studies.pages import columns, written_of_every_part


def row(
    arm: str, before: list[float | None], last: float, task: str = "4 hops", seed: int = 0, **more: Any
) -> dict[str, Any]:
    """before: the accuracy of every block but the last, None where it has no read-out.

    Backprop is cut into four blocks, as it comes, and has one read-out.
    """
    uncut = arm in WHOLE
    labels = {"arm": arm, "task": task} | ({} if uncut else {"cut": "3 blocks"})
    return trained(labels, last, seed, block_test_accuracy=[*([None] * 3 if uncut else before), last], **more)


ROWS = [
    row(BLL, [0.4, 0.7], 0.995),
    row(GREEDY, [0.3, 0.4], 0.6),
    row(BACKPROP, [None, None], 1.0),
    row(BLL, [0.4, 0.7], 0.995, "2 hops"),
    row(GREEDY, [0.3, 0.999], 1.0, "2 hops"),
    row(BLL, [0.5, 0.5], 0.5, "reversal"),
    row(BLL, [0.2, 0.3], 0.4, CHARACTERS, val_loss=1.75),
    row(BACKPROP, [None, None], 0.5, CHARACTERS, val_loss=1.5),
]


def test_credit_has_passed_only_where_the_first_block_and_greedy_ones_fail_and_the_last_does_not() -> None:
    text = STUDY.page(ROWS).answer
    assert "On 4 hops in 3 blocks, BLL, backprop reach 99 %; after a first block that has less than half: BLL." in text
    assert (
        "On 2 hops in 3 blocks, BLL, local_ce reach 99 %; after a first block that has less than half: BLL, local_ce; "
        "as local_ce does, which sends no credit, the task asks for none."
    ) in text
    assert "On reversal in 3 blocks, nobody reaches 99 %." in text
    assert text.endswith(
        "Validation loss of characters at equal steps, in nats, in 3 blocks: BLL 1.7500; backprop 1.5000."
    )


def test_every_block_has_its_line() -> None:
    found = columns(STUDY.page(ROWS), "4 hops", "3 blocks, each")
    assert found["BLL, %"] == ["40.00", "70.00", "99.50"] and found["local_ce, %"][0] == "30.00"
    assert columns(STUDY.page(ROWS), CHARACTERS, "3 blocks")["validation loss, nats"] == ["1.7500", "1.5000"]


def test_any_part_of_the_rows_makes_a_page(tmp_path: Path) -> None:
    rows = [row(arm, [0.4, 0.5], 0.995, task, val_loss=1.5) for arm in ARMS for task in ("4 hops", CHARACTERS)]
    written_of_every_part(STUDY.page, rows, tmp_path)
