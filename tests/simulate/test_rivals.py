"""Pipelines and data parallelism by the simulation, beside the formulas of their papers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence

import pytest

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


@pytest.mark.parametrize(("count", "micros"), [(2, 4), (4, 8), (8, 32)])
def test_a_v_without_bubbles_takes_its_work_and_little_more(count: int, micros: int) -> None:
    """A rank does each of the three, of both halves, once a micro-batch; what is left is the way to the last rank."""
    stage = Stage(2.0, 4.0, 0.0, size=0, weights=2.0)
    orders = zero_bubble_orders(count, micros)
    for order in orders:
        assert Counter(order) == {
            (kind, half): micros for kind in ("forward", "backward", "weights") for half in (0, 1)
        }
        alive = [sum({"forward": 1, "backward": -1}.get(kind, 0) for kind, _ in order[:n]) for n in range(len(order))]
        assert max(alive) <= 2 * count
    assert of(zero_bubble, stage, count, micros, Link()) <= 6 * micros + count - 1


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
