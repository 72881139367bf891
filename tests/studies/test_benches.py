"""What pages show of benches, on rows by hand."""

from __future__ import annotations

import pytest

from sidestep.studies.benches import CHECKPOINTED, MEMORY, STEP, entry
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
