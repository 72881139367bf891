"""`sidestep bench scale`: every way to train in several processes has its prediction, made of its parts."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from torch import Tensor, nn

from sidestep.bench import scale
from sidestep.bench.ranks import STEPS_A_TURN
from sidestep.bench.scale import predictions, scale_table, turn
from sidestep.bench.step import benched
from sidestep.config import resolve
from sidestep.simulate.links import Links
from sidestep.simulate.machine import Action, Compute, Link, Machine, Receive, Send
from sidestep.simulate.rivals import Stage

Batch = tuple[Tensor, Tensor]


def test_all_ways_are_predicted_and_measured() -> None:
    found = scale.run(resolve("local_ce", {"precision": "fp32", "model.width": 32}), 2, rounds=1)
    rows = {row["name"]: row for row in found["rows"]}
    pipelines = {f"{kind}, {m} micro-batches" for kind in ("GPipe", "1F1B") for m in (2, 4, 8, 16)}
    pipelines |= {f"ZBV, {m} micro-batches" for m in (4, 8, 16)}
    assert rows.keys() == pipelines | {"local_ce, 2 processes", "backprop, data parallel"}
    for row in rows.values():
        assert row["predicted_ms"] > 0 and row["predicted_plain_ms"] > 0
    kinds = {"whole batch", "data parallel", *(f"{m} micro-batches" for m in (2, 4, 8, 16))}
    assert found["calibrations"].keys() == kinds and min(found["calibrations"].values()) > 0
    assert max(map(len, scale_table(found).splitlines())) <= 80


@pytest.fixture
def scripted(monkeypatch: pytest.MonkeyPatch) -> None:
    """Parts that take what they are told to: forward 8 s and backward 16 over all parts and micro-batches, update half
    a second each; torch's pipelines half as long again, its data parallelism a quarter."""

    def stages(parts: Sequence[nn.Module], make: object, batch: Batch, micros: int, autocast: object) -> list[Stage]:
        whole = len(batch[0]) / BATCH / micros / len(parts)
        return [Stage(8 * whole, 16 * whole, 0.5, size=100, given=100, weights=8 * whole) for _ in parts]

    traces: list[list[Action]] = [[Compute(1.0), Send(1, 100)], [Receive(0), Compute(2.0)]]
    monkeypatch.setattr(scale, "stages_alone", stages)
    monkeypatch.setattr(scale, "traced", lambda *_: traces)
    monkeypatch.setattr(scale, "pipelines_alone", lambda kind, parts, *_: [1.5] * len(parts))
    monkeypatch.setattr(scale, "replica_alone", lambda *_: 1.25)


BATCH = 64
CONFIG = {"precision": "fp32", "model.width": 32, "batch_size": BATCH}


@pytest.mark.usefixtures("scripted")
def test_predictions_are_made_of_what_the_parts_take() -> None:
    """By hand, where messages are free, and where one of 100 bytes takes three seconds."""
    assembly, two = benched(resolve("local_ce", CONFIG), "clip"), Machine(2)
    free = {name: predict(two) for name, predict in predictions(assembly, 2, Links(Link(), Link(), Link())).items()}
    assert free["local_ce, 2 processes"] == pytest.approx((1 + STEPS_A_TURN * 2) / STEPS_A_TURN)
    for m in (2, 4, 8, 16):
        for kind in ("GPipe", "1F1B"):
            assert free[f"{kind}, {m} micro-batches"] == pytest.approx((m + 1) * 1.5 * 12 / m + 0.5)
    # Each rank is busy for 12 s and two updates, and waits for half of a forward at most.
    assert all(13 <= free[f"ZBV, {m} micro-batches"] <= 13 + 2 / m for m in (4, 8, 16))
    assert free["backprop, data parallel"] == pytest.approx(1.25 * 12 + 0.5)
    slow = predictions(assembly, 2, Links(Link(byte=0.03), Link(byte=0.03), Link()))
    assert slow["local_ce, 2 processes"](two) == pytest.approx((1 + 3 + 2 + (STEPS_A_TURN - 1) * 3) / STEPS_A_TURN)
    # At least the first micro-batch's way up and the last gradient's way down are waited for.
    assert slow["1F1B, 2 micro-batches"](two) > free["1F1B, 2 micro-batches"] + 2 * 3


@pytest.mark.usefixtures("scripted")
def test_beside_a_prediction_stands_the_one_with_the_plain_factor(monkeypatch: pytest.MonkeyPatch) -> None:
    """Both replicas are busy all the time: 15.5 s, times what their cores lose.

    Blocks are timed with whole batches, so that the plain factor is theirs; what is not predicted has no row.
    """
    times = {"backprop, data parallel": 15500.0, "local_ce, 2 processes": 1000.0, "local_ce, 1 process": 1.0}
    rows = [{"name": name, "step_ms": ms} for name, ms in times.items()]
    found = {"ranks": 2, "threads": 2, "calibration": 1.1, "calibrations": {"data parallel": 1.2}, "rows": rows}
    monkeypatch.setattr(scale.ranks, "run", lambda *_, **__: found)
    monkeypatch.setattr(scale.links, "measured", lambda: Links(Link(), Link(), Link()))
    monkeypatch.setattr(scale, "scale_table", lambda _: "")
    monkeypatch.setattr(scale.os, "cpu_count", lambda: 4)
    told, blocks = scale.run(resolve("local_ce", CONFIG), 2)["rows"]
    assert (told["predicted_ms"], told["predicted_plain_ms"]) == pytest.approx((18600.0, 17050.0))
    assert (told["error"], told["error_plain"]) == pytest.approx((0.2, 0.1))
    assert blocks["predicted_ms"] == blocks["predicted_plain_ms"] == pytest.approx(1000 * (1 + blocks["error"]))


def test_the_steps_of_a_turn_begin_together_and_messages_within_a_rank_are_free() -> None:
    """Two ranks of a second each, the second after the first's message of half a second: filled once a turn."""
    works = [[Compute(1.0), Send(1, 0)], [Receive(0), Compute(1.0)]]
    link = Link(start=0.5)
    assert turn(works, link)(Machine(2)) == pytest.approx((1.5 + STEPS_A_TURN) / STEPS_A_TURN)
    assert turn(works, link, on=[0, 0])(Machine(2)) == pytest.approx((1.0 + STEPS_A_TURN) / STEPS_A_TURN)
    # One core has to do it all.
    assert turn(works, link)(Machine(1)) == pytest.approx(2.0, abs=0.5 / STEPS_A_TURN)
