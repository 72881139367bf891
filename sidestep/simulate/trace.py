"""What the engines of a step do, found by running them in turn in one process: the input of a simulation.

So a prediction comes from blocks that were timed alone, by the code that runs in several processes.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from sidestep.core.emit import Message
from sidestep.engines.streaming import Streaming
from sidestep.engines.wire import Edge, LocalWire, T, Work, in_turn
from sidestep.measure.timing import now

from .machine import Action, Compute, Mark, Receive, Send

Trace = list[Action]
"""What one rank does in a step."""


class _Stopwatch:
    """Notes what an engine computes between its messages."""

    def __init__(self, wire: LocalWire, rank_of: Sequence[int], device: torch.device) -> None:
        self.wire, self.rank_of, self.device = wire, rank_of, device
        self.trace: Trace = []
        self.since = 0.0

    def send(self, edge: Edge, message: Message) -> None:
        self.stop()
        size = sum(m.nbytes for m in message)
        self.trace.append(Send(self.rank_of[edge.target], size))
        self.wire.send(edge, message)
        self.start()

    def receive(self, edge: Edge) -> Message:
        return self.wire.receive(edge)

    def timed(self, work: Work[T]) -> Work[T]:
        """The same work, noted."""
        self.trace = []
        self.start()
        try:
            edge = next(work)
            while True:
                self.stop()
                self.trace.append(Receive(self.rank_of[edge.source]))
                message = yield edge
                self.start()
                edge = work.send(message)
        except StopIteration as done:
            self.stop()
            return done.value

    def start(self) -> None:
        self.since = now(self.device)

    def stop(self) -> None:
        self.trace.append(Compute(now(self.device) - self.since))


def traced(
    engine: Streaming, shares: Sequence[range], batches: Sequence[tuple[Tensor, Tensor]], warmup: int = 2
) -> list[Trace]:
    """What each of these ranks does in a step: of every duration the median over the batches after the warm-up.

    engine: of all blocks, whose parameters move with every batch.  shares: the blocks of every rank.
    """
    wire, device = LocalWire(), engine.context.device
    rank_of = [rank for rank, own in enumerate(shares) for _ in own]
    watches = [_Stopwatch(wire, rank_of, device) for _ in shares]
    engines = [engine.share(own, watch) for own, watch in zip(shares, watches, strict=True)]
    found: list[list[Trace]] = []
    for batch in batches:
        in_turn([watch.timed(e.stepping(batch)) for e, watch in zip(engines, watches, strict=True)], wire)
        found.append([watch.trace for watch in watches])
    return [median(list(one)) for one in zip(*found[warmup:], strict=True)]


def median(traces: Sequence[Trace]) -> Trace:
    """One trace, with the median of every duration of several that are alike but for them."""
    found: Trace = []
    for actions in zip(*traces, strict=True):
        times = [action.seconds for action in actions if isinstance(action, Compute)]
        assert len(times) in (0, len(actions)), "the steps of a run do the same things"
        found.append(Compute(statistics.median(times)) if times else actions[0])
    return found


def busy(trace: Trace) -> float:
    """Seconds that a rank computes in a step."""
    return sum(action.seconds for action in trace if isinstance(action, Compute))


def repeated(trace: Trace, steps: int) -> Iterator[Action]:
    """So many steps, with a mark after each."""
    for _ in range(steps):
        yield from trace
        yield Mark()


def step_seconds(marks: Sequence[Sequence[float]], warmup: int) -> float:
    """The mean time of a step, once the first few have filled what runs ahead."""
    last = max(marks, key=lambda own: own[-1])
    return (last[-1] - last[warmup - 1]) / (len(last) - warmup)
