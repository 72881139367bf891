"""`sidestep bench scale`: every way to train in several processes has its prediction."""

from __future__ import annotations

import pytest

from sidestep.bench import scale
from sidestep.bench.ranks import STEPS_A_TURN
from sidestep.bench.scale import scale_table, turn
from sidestep.config import resolve
from sidestep.simulate.machine import Compute, Link, Machine, Receive, Send


def test_all_ways_are_predicted_and_measured() -> None:
    found = scale.run(resolve("local_ce", {"precision": "fp32", "model.width": 32}), 2, rounds=1)
    rows = {row["name"]: row for row in found["rows"]}
    pipelines = {f"{kind}, {m} micro-batches" for kind in ("GPipe", "1F1B") for m in (2, 4, 8, 16)}
    pipelines |= {f"ZBV, {m} micro-batches" for m in (4, 8, 16)}
    assert rows.keys() == pipelines | {"local_ce, 2 processes", "backprop, data parallel"}
    for row in rows.values():
        assert row["predicted_ms"] > 0 and row["error"] == pytest.approx(row["predicted_ms"] / row["step_ms"] - 1)
    kinds = {"whole batch", "data parallel", *(f"{m} micro-batches" for m in (2, 4, 8, 16))}
    assert found["calibrations"].keys() == kinds and min(found["calibrations"].values()) > 0
    assert max(map(len, scale_table(found).splitlines())) <= 80


def test_the_steps_of_a_turn_begin_together_and_messages_within_a_rank_are_free() -> None:
    """Two ranks of a second each, the second after the first's message of half a second: filled once a turn."""
    works = [[Compute(1.0), Send(1, 0)], [Receive(0), Compute(1.0)]]
    link = Link(start=0.5)
    assert turn(works, link)(Machine(2)) == pytest.approx((1.5 + STEPS_A_TURN) / STEPS_A_TURN)
    assert turn(works, link, on=[0, 0])(Machine(2)) == pytest.approx((1.0 + STEPS_A_TURN) / STEPS_A_TURN)
    # One core has to do it all.
    assert turn(works, link)(Machine(1)) == pytest.approx(2.0, abs=0.5 / STEPS_A_TURN)
