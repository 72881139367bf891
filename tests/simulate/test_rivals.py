"""Pipelines and data parallelism by the simulation, beside the formulas of their papers."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.pipelining import PipelineStage, ScheduleZBVZeroBubble
from torch.testing._internal.distributed.fake_pg import FakeStore

from sidestep.simulate.machine import Action, Link, Mark, simulate
from sidestep.simulate.rivals import (
    Stage,
    data_parallel,
    gpipe,
    local_steps,
    one_f_one_b,
    zero_bubble,
    zero_bubble_orders,
)

KINDS = {"FORWARD", "BACKWARD_INPUT", "BACKWARD_WEIGHT", "SEND_F", "SEND_B", "RECV_F", "RECV_B"}
Schedule = Callable[[Stage, int, int, int], Iterator[Action]]


def seconds(works: Sequence[Sequence[Action]], link: Link) -> float:
    return max(marks[-1] for marks in simulate([[*work, Mark()] for work in works], lambda a, b: link) if marks)


def of(schedule: Schedule, stage: Stage, count: int, micros: int, link: Link) -> float:
    return seconds([list(schedule(stage, rank, count, micros)) for rank in range(count)], link)


@pytest.mark.parametrize("schedule", [gpipe, one_f_one_b])
@pytest.mark.parametrize(("count", "micros"), [(2, 2), (2, 16), (4, 8), (7, 9)])
def test_a_pipeline_takes_its_bubble_more_than_its_work(schedule: Schedule, count: int, micros: int) -> None:
    """(m + P - 1) of forward and backward, and one update."""
    stage = Stage(1.0, 2.0, 5.0, size=100)
    assert of(schedule, stage, count, micros, Link(meet=True)) == pytest.approx((micros + count - 1) * 3 + 5)


def test_a_pipelines_latency_is_in_every_step() -> None:
    """GPipe's first micro-batch goes up and its gradient comes down: 2 (P - 1) ways beyond the work."""
    stage, link = Stage(1.0, 2.0, 0.0, size=0), Link(latency=10.0)
    assert of(gpipe, stage, 4, 8, link) == pytest.approx((8 + 3) * 3 + 2 * 3 * 10)


@pytest.mark.parametrize("schedule", [gpipe, one_f_one_b])
def test_a_gradient_is_as_large_as_what_it_is_the_gradient_of(schedule: Schedule) -> None:
    """One micro-batch up two cuts of 100 and 30 bytes and down again; of the last stage's loss nothing is sent."""
    sizes = [(100, 0), (30, 100), (4, 30)]
    works = [list(schedule(Stage(1.0, 2.0, 0.0, size, given), rank, 3, 1)) for rank, (size, given) in enumerate(sizes)]
    assert seconds(works, Link(byte=0.1)) == pytest.approx(3 * 3 + 2 * (10 + 3))


@pytest.mark.parametrize(("rank", "micros"), [(0, 8), (1, 3), (3, 12)])
def test_a_v_is_done_in_the_order_that_torch_does_it(rank: int, micros: int) -> None:
    """The schedule of a real pipeline of four, whose messages go nowhere."""
    dist.init_process_group("fake", store=FakeStore(), rank=rank, world_size=4)
    try:
        parts = [PipelineStage(nn.Linear(2, 2), n, 8, torch.device("cpu")) for n in (rank, 7 - rank)]
        schedule: Any = ScheduleZBVZeroBubble([*parts], micros)
    finally:
        dist.destroy_process_group()
    found = zero_bubble_orders(4, micros)[rank]
    actions = schedule.pipeline_order_with_comms[rank]
    expected = [(a.computation_type.name, a.stage_index // 4) for a in actions if a.computation_type.name in KINDS]
    # Receives are begun a place earlier or later, since parameters that are gathered and let go stand between them.
    assert [named for named in found if "RECV" not in named[0]] == [n for n in expected if "RECV" not in n[0]]
    assert sorted(found) == sorted(expected)


def of_v(halves: Callable[[int], Stage], count: int, micros: int, link: Link) -> float:
    """halves: by their places in the network."""
    pairs = [(halves(rank), halves(2 * count - 1 - rank)) for rank in range(count)]
    return seconds([list(zero_bubble(pair, rank, count, micros)) for rank, pair in enumerate(pairs)], link)


@pytest.mark.parametrize(("latency", "expected"), [(0.5, 212.5), (5.0, 785.5)])
def test_a_v_without_bubbles_waits_for_messages_all_the_same(latency: float, expected: float) -> None:
    """Eight ranks of 192 s of work each; worked out by another program from torch's order."""
    half = Stage(0.5, 1.0, 0.0, weights=0.5)
    assert of_v(lambda n: half, 8, 64, Link(latency=latency)) == pytest.approx(expected)


def test_a_v_of_two_ranks_begins_with_its_first_message_and_is_busy_from_then_on() -> None:
    """16 times 3 s, by hand; the last quarter's gradient is waited for, whatever the first half has to send back."""
    half = Stage(0.5, 1.0, 0.0, weights=0.5)
    assert of_v(lambda n: half, 2, 16, Link()) == pytest.approx(48.5)
    assert of_v(lambda n: half if n else half._replace(weights=1.0), 2, 16, Link()) == pytest.approx(48.5)


def test_a_vs_messages_are_as_large_as_the_cuts_they_cross() -> None:
    """One micro-batch up three cuts of 100, none (both sides are on one rank) and 30 bytes, and down again.

    All wait for weights twice: the third stage's come before the second's gradient, on the same rank, the first's last.
    """
    sizes = [100, 50, 30, 4]

    def half(n: int) -> Stage:
        return Stage(1.0, 2.0, 0.0, sizes[n], sizes[n - 1] if n else 7, weights=1.0)

    assert of_v(half, 2, 1, Link(byte=0.1)) == pytest.approx(4 * 2 + 2 * (10 + 3) + 2)


def test_replicas_add_up_gradients_while_backward_goes_on() -> None:
    """Two buckets of ten bytes, ten seconds each on their way, the first of them behind the second's backward."""
    parts = [data_parallel(Stage(1.0, 30.0, 2.0), [10, 10], rank, 2) for rank in range(2)]
    works = [own for own, _ in parts] + [sums for _, sums in parts]
    marks = simulate([[*work, Mark()] for work in works], lambda a, b: Link() if abs(a - b) == 2 else Link(byte=1.0))
    assert marks[0] == marks[1] == [pytest.approx(1 + 30 + 10 + 2)]


def test_local_steps_pay_for_the_mean_once() -> None:
    works = [local_steps(Stage(1.0, 2.0, 0.5), 40, 5, rank, 4) for rank in range(4)]
    # A ring of four: six messages of ten bytes, each way at once.
    assert seconds(works, Link(byte=0.1)) == pytest.approx(5 * 3.5 + 6 * 1.0)
