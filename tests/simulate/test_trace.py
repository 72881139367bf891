"""What engines do in a step, noted while they take turns in one process."""

from __future__ import annotations

from itertools import pairwise

import torch

from sidestep.methods.backprop import Backprop
from sidestep.methods.local_ce import LocalCE
from sidestep.placement import Placement
from sidestep.simulate.machine import Action, Compute, Link, Receive, Send, simulate
from sidestep.simulate.trace import Trace, busy, median, repeated, step_seconds, traced
from tests.conftest import BLOCKS, CASES, Case, engine_for, some_batch

SHARES = Placement(BLOCKS).blocks(BLOCKS)
BATCHES = [some_batch(n) for n in range(3)]


def ways(trace: Trace) -> list[Action]:
    return [action for action in trace if not isinstance(action, Compute)]


def test_messages_of_local_blocks_go_up_and_backprops_come_back() -> None:
    """One feature map over each cut, of the size that the block before it sends in inference too."""
    sizes: list[int] = []
    engine_for(LocalCE()).infer(
        some_batch()[0], lambda _, m, emit: sizes.append(sum(part.nbytes for part in emit.send))
    )
    local = traced(engine_for(LocalCE()), SHARES, BATCHES)
    assert [ways(trace) for trace in local] == [[Send(1, sizes[0])], [Receive(0), Send(2, sizes[1])], [Receive(1)]]
    assert all(action.seconds >= 0 for trace in local for action in trace if isinstance(action, Compute))
    back = traced(engine_for(Backprop()), SHARES, BATCHES)
    assert [ways(trace) for trace in back] == [
        [Send(1, sizes[0]), Receive(1)],
        [Receive(0), Send(2, sizes[1]), Receive(2), Send(0, sizes[0])],
        [Receive(1), Send(1, sizes[1])],
    ]


def test_a_step_takes_between_the_busiest_rank_and_all_of_them(case: Case) -> None:
    """The first where no update waits for a later block or a shared part.  Where gradients go back all take turns."""
    engine = engine_for(case.method)
    traces = traced(engine, SHARES, BATCHES)
    marks = simulate([repeated(trace, 20) for trace in traces], lambda a, b: Link(window=4))
    found, most, total = step_seconds(marks, 8), max(map(busy, traces)), sum(map(busy, traces))
    assert most * 0.999 <= found <= total * 1.001
    if not engine.derived.locks["update"]:
        assert found <= most * 1.001
    if case.id == "backprop":
        waited_for = [a for trace in traces for a, then in pairwise(trace) if isinstance(then, Send)]
        assert found >= busy([*waited_for, traces[0][-1]]) * 0.999


def test_tracing_trains_as_steps_do() -> None:
    """What is traced learns with the parameters of the engine it comes from, which end as after so many steps."""
    for case in CASES[:3]:
        through, stepped = engine_for(case.method), engine_for(case.method)
        traced(through, SHARES, BATCHES, warmup=0)
        for batch in BATCHES:
            stepped.step(batch)
        expected = stepped.chain.state_dict()
        assert all(torch.equal(value, expected[name]) for name, value in through.chain.state_dict().items())


def test_a_duration_is_the_median_of_those_in_its_place() -> None:
    traces: list[Trace] = [[Compute(s), Send(1, 8), Compute(2 * s)] for s in (1.0, 5.0, 2.0)]
    assert median(traces) == [Compute(2.0), Send(1, 8), Compute(4.0)]
