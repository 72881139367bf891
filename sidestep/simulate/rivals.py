"""What backpropagation over several processes does in a step: pipelines, data parallelism, and local steps (DiLoCo).

Pipelines are the actions of one rank, in the order in which torch.distributed.pipelining does them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cache
from itertools import repeat
from typing import Any, NamedTuple

from torch.distributed.pipelining import ScheduleZBVZeroBubble, schedules

from .machine import Action, Compute, Expect, Flush, Receive, Send

FORWARD, GRADIENT = "forward", "gradient"
"""The kinds of a pipeline's messages."""


class Stage(NamedTuple):
    """A part of a network, timed alone on one micro-batch: seconds, and bytes."""

    forward: float  # of the last one with the loss
    backward: float
    update: float
    size: int = 0  # of the message to the next stage; its gradient, which comes back, is as large
    given: int = 0  # of the message from the stage before, and of the gradient that goes back to it
    weights: float = 0.0  # that part of `backward` which no other stage waits for


def gpipe(stage: Stage, rank: int, count: int, micros: int) -> Iterator[Action]:
    """All micro-batches forwards, then all backwards (arXiv:1811.06965)."""
    first, last = rank == 0, rank == count - 1
    for _ in range(micros):
        if not first:
            yield Receive(rank - 1, FORWARD)
        yield Compute(stage.forward)
        if not last:
            yield Send(rank + 1, stage.size, FORWARD)
    if not last:
        yield Flush(rank + 1, FORWARD)
    for _ in range(micros):
        if not last:
            yield Receive(rank + 1, GRADIENT)
        yield Compute(stage.backward)
        if not first:
            yield Send(rank - 1, stage.given, GRADIENT)
    if not first:
        yield Flush(rank - 1, GRADIENT)
    yield Compute(stage.update)


def one_f_one_b(stage: Stage, rank: int, count: int, micros: int) -> Iterator[Action]:
    """Backwards as soon as can be, so that no more micro-batches are alive than there are stages (arXiv:2006.15704).

    What is sent and received at once is waited for together.
    """
    first, last, ahead = rank == 0, rank == count - 1, min(micros, count - rank)
    for _ in range(ahead):
        if not first:
            yield Receive(rank - 1, FORWARD)
        yield Compute(stage.forward)
        if not last:
            yield Flush(rank + 1, FORWARD)
            yield Send(rank + 1, stage.size, FORWARD)
    for n in range(micros):
        if not last:
            yield Receive(rank + 1, GRADIENT)
            yield Flush(rank + 1, FORWARD)
        yield Compute(stage.backward)
        if not first:
            yield Flush(rank - 1, GRADIENT)
            yield Send(rank - 1, stage.given, GRADIENT)
        if n < micros - ahead:
            if not first:
                yield Receive(rank - 1, FORWARD)
                yield Flush(rank - 1, GRADIENT)
            yield Compute(stage.forward)
            if not last:
                yield Send(rank + 1, stage.size, FORWARD)
    if not first:
        yield Flush(rank - 1, GRADIENT)
    yield Compute(stage.update)


def zero_bubble(halves: tuple[Stage, Stage], rank: int, count: int, micros: int) -> Iterator[Action]:
    """ZBV: two stages on every rank, in a V, and weights learn where a rank would wait (arXiv:2401.10241).

    halves: those of this rank, the one on the way up first.
    """
    for kind, half in zero_bubble_orders(count, micros)[rank]:
        stage = halves[half]
        before, after = (rank - 1, rank + 1) if half == 0 else (rank + 1, rank - 1)
        begins = rank == 0 if half == 0 else rank == count - 1  # else a message comes from another rank
        ends = rank == count - 1 if half == 0 else rank == 0
        match kind:
            case "RECV_F":
                yield Expect(before, f"{FORWARD} {half}")
            case "FORWARD":
                if not begins:
                    yield Receive(before, f"{FORWARD} {half}")
                yield Compute(stage.forward)
            case "SEND_F":
                yield Send(after, stage.size, f"{FORWARD} {half}")
            case "RECV_B":
                yield Expect(after, f"{GRADIENT} {half}")
            case "BACKWARD_INPUT":
                if not ends:
                    yield Receive(after, f"{GRADIENT} {half}")
                yield Compute(stage.backward - stage.weights)
            case "SEND_B":
                yield Send(before, stage.given, f"{GRADIENT} {half}")
            case _:
                yield Compute(stage.weights)
    yield Compute(sum(stage.update for stage in halves))


@cache
def zero_bubble_orders(count: int, micros: int) -> list[list[tuple[str, int]]]:
    """What every rank does after what, by torch's own schedule: the name of its action, and which half.

    The schedule is made without processes and stages, of which only the numbers decide; a test holds it to a whole one.
    """
    schedule: Any = object.__new__(ScheduleZBVZeroBubble)
    schedule.pp_group_size, schedule.num_stages, schedule._n_microbatches = count, 2 * count, micros
    own = {rank: [a for a in schedule._calculate_single_rank_operations(rank) if a] for rank in range(count)}
    orders = schedules._add_send_recv(own, lambda n: min(n, 2 * count - 1 - n), 2 * count)  # pyright: ignore[reportPrivateUsage]  # whole schedules alone are public
    return [[(a.computation_type.name, a.stage_index // count) for a in orders[rank]] for rank in range(count)]


def data_parallel(copy: Stage, buckets: Sequence[int], rank: int, count: int) -> tuple[list[Action], list[Action]]:
    """A replica, and what adds up its gradients meanwhile: processes `rank` and `count + rank` (arXiv:2006.15704).

    copy: the whole network, on a replica's share of the batch.  buckets: bytes of the gradients that are added up at
    once, in the order in which backward reaches them, each after as large a share of its time.
    """
    adding, total = count + rank, sum(buckets)
    own: list[Action] = [Compute(copy.forward)]
    for size in buckets:
        own += [Compute(copy.backward * size / total), Send(adding, 0)]
    own += [*repeat(Receive(adding), len(buckets)), Compute(copy.update)]
    sums: list[Action] = []
    for size in buckets:
        sums += [Receive(rank), *_ring(size, rank, count, first=count), Send(rank, 0)]
    return own, sums


def local_steps(copy: Stage, size: int, every: int, rank: int, count: int) -> list[Action]:
    """So many steps of a replica of its own, then the mean of all parameters (DiLoCo, arXiv:2311.08105).

    size: bytes of all parameters.
    """
    step = Compute(copy.forward + copy.backward + copy.update)
    return [*repeat(step, every), *_ring(size, rank, count)]


def _ring(size: int, rank: int, count: int, first: int = 0) -> Iterator[Action]:
    """A sum over so many processes from `first` on, each of which passes on a share of it 2 (count - 1) times."""
    for _ in range(2 * (count - 1)):
        yield Send(first + (rank + 1) % count, size // count)
        yield Receive(first + (rank - 1) % count)
