"""`sidestep bench scale --machines`: what is computed, and for whom it is refused."""

from __future__ import annotations

from typing import Any

import pytest

from sidestep.bench import machines
from sidestep.bench.machines import AHEAD, LIVES, NETWORKS, THERE, ahead, loses, machines_table
from sidestep.config import resolve
from sidestep.errors import UsageError
from sidestep.simulate.extrapolate import MeasuredBlock, chain
from sidestep.simulate.machine import Action, Compute, Receive, Send
from sidestep.simulate.rivals import Stage

FLAGS: dict[str, Any] = {"precision": "fp32", "model.width": 32, "batch_size": 32}


def test_every_way_has_a_time_on_every_network_and_more_bandwidth_or_less_latency_is_never_slower() -> None:
    found = machines.run(resolve("local_ce", FLAGS), most=64)
    better = {(row["ranks"], row["network"]): row for row in found["rows"] if row["wire"] == AHEAD}
    rows = {(row["ranks"], row["network"]): row for row in found["rows"] if row["wire"] == THERE}
    assert better.keys() == rows.keys()
    assert rows.keys() == {(ranks, network) for ranks in (8, 64) for network in NETWORKS}
    for way in ("blocks", "GPipe", "1F1B", "ZBV", "data parallel", "DiLoCo"):
        slow, near, fast = (
            rows[8, f"{name}, {rtt} ms"][way] for name, rtt in (("100 Mb/s", 100), ("100 Mb/s", 1), ("10 Gb/s", 1))
        )
        assert 0 < fast <= near <= slow
        assert better[8, "10 Gb/s, 100 ms"][way] <= rows[8, "10 Gb/s, 100 ms"][way]
    # Of 32 samples 64 replicas have none; messages of the blocks are 32 x 32 numbers.
    assert all(rows[64, network]["data parallel"] is None for network in NETWORKS)
    assert found["message_kb"] == 4.0
    assert rows[64, "10 Gb/s, 1 ms"]["blocks"] == pytest.approx(rows[8, "10 Gb/s, 1 ms"]["blocks"], rel=1e-6)
    assert [(row["ranks"], row["life"]) for row in found["kept"]] == [
        (ranks, life) for ranks in (8, 64) for life in LIVES
    ]
    for row in found["rows"]:
        short, *_, long = (row["goodput"][life] for life in LIVES)
        for way, share in long.items():
            assert (share is None) == (row[way] is None)
            assert share is None or 0 <= short[way] <= share < 1
    assert max(map(len, machines_table(found).splitlines())) <= 80


def test_blocks_lose_where_a_rival_keeps_more_steps_a_second() -> None:
    """Twice as fast as DiLoCo, of which three times as many steps are kept; a way without a sample is no rival."""
    row: dict[str, Any] = {"blocks": 50.0, "data parallel": None, "DiLoCo": 100.0}
    row["goodput"] = {
        "1 h": {"blocks": 0.3, "data parallel": None, "DiLoCo": 0.9},
        "6 h": {"blocks": 0.5, "data parallel": None, "DiLoCo": 0.9},
    }
    assert loses(row, "1 h") and not loses(row, "6 h")


def test_a_long_line_is_paid_for_by_every_piece_of_a_message() -> None:
    """4 MB are a head and five pieces, since a message is a little longer than what it carries: 600 ms, not 100."""
    trace: list[Action] = [Receive(0), Compute(0.1), Send(2, 4 << 20)]
    block = MeasuredBlock(trace, 1, {1: Stage(0.1, 0.1, 0.0)}, parameters=4)
    links = NETWORKS["10 Gb/s, 100 ms"]
    assert chain(block, 8, links.wire) == pytest.approx(0.6 + (4 << 20) * 8e-10)
    assert chain(block, 8, ahead(links).wire) == pytest.approx(0.1)  # four of them are on their way at once


@pytest.mark.parametrize(
    ("flags", "most", "message"),
    [
        ({"blocks": 2}, 64, "got 2 blocks, expected 3 or more: one in the middle stands for all; give --blocks 8."),
        ({}, 4, "got --machines 4, expected 8 or more."),
        ({"batch_size": 30}, 64, "got a batch of 30, expected a multiple of 4 for micro-batches."),
    ],
)
def test_what_cannot_be_extrapolated_from_is_refused(flags: dict[str, Any], most: int, message: str) -> None:
    with pytest.raises(UsageError) as refused:
        machines.run(resolve("local_ce", FLAGS | flags), most)
    assert str(refused.value) == message
