"""What pages show of benches, on rows by hand."""

from __future__ import annotations

import pytest

from sidestep.studies.benches import CHECKPOINTED, MEMORY, STEP, entry, places, taken
from sidestep.studies.study import Row
from tests.studies.made import timed, weighed

SIZES = weighed(
    {}, {"plain backprop": 16.0, "plain checkpointed/1": 2.0, "plain checkpointed/2": 2.1, "plain checkpointed/4": 2.2}
)
TIMES = timed(
    {},
    {"plain backprop": 9.0, "plain checkpointed/1": 18.0, "plain checkpointed/2": 16.0, "plain checkpointed/4": 14.0},
)


@pytest.mark.parametrize(("rows", "length"), [([SIZES, TIMES], 2), ([TIMES, SIZES], 2), ([SIZES], 1)])
def test_checkpointing_is_the_fastest_of_those_within_five_percent_of_the_least_memory(
    rows: list[Row], length: int
) -> None:
    """Segments of 4 blocks are faster than those of 2, and need a tenth more memory than those of 1."""
    for key in (MEMORY, STEP):
        found = entry(rows, CHECKPOINTED, key)
        assert (found is None) == (key == STEP and TIMES not in rows)
        assert found is None or found["name"] == f"plain checkpointed/{length}"


def test_checkpointing_whose_memory_is_not_known_is_not_shown() -> None:
    assert entry([TIMES], CHECKPOINTED, STEP) is None


def test_times_taken_beside_other_work_are_named_and_memory_which_does_not_mind_is_not() -> None:
    """Rows from before the load was kept are not named either."""
    labels = {"arm": "SID", "blocks": "4"}
    rows = [
        timed({"arm": "SID", "blocks": str(n)}, {"plain backprop": 10.0}) | {"load": load}
        for n, load in ((4, 2.25), (8, 0.3))
    ]
    rows += [weighed(labels, {"plain backprop": 10.0}) | {"load": 3.0}, timed(labels, {"plain backprop": 10.0})]
    sentence = "Taken beside other work, or right after the study’s own, the load of the minute before in brackets: "
    for told in (places(rows), taken(rows)):
        assert told.endswith(f"{sentence}SID, 4 (2.25).")
    assert "Taken beside" not in places(rows[1:])
