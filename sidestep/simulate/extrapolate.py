"""A chain of equal blocks on machines that nobody here has, and its rivals: extrapolation, from one block and one link.

Every rank is a machine of its own, as fast as the one that was measured; a network of R ranks has R blocks.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

from .links import Links
from .machine import Action, Compute, Link, Mark, Receive, Send, simulate
from .rivals import Stage, gpipe, one_f_one_b, zero_bubble
from .trace import Trace, repeated, step_seconds

STEPS, FILLED = 24, 12
SYNCHRONISED_EVERY = 100
"""Steps between two means of the parameters, for local steps (DiLoCo has 500, its successors fewer)."""


@dataclass(frozen=True)
class MeasuredBlock:
    """What one block does, timed alone.

    trace: of a rank in the middle, `middle`, in a step of the method.  stages: under backpropagation, by micro-batches.
    parameters: bytes.
    """

    trace: Trace
    middle: int
    stages: Mapping[int, Stage]
    parameters: int


def chain(block: MeasuredBlock, ranks: int, link: Link) -> float:
    """Seconds of a step of the method."""
    works = [repeated(list(shifted(block, rank, ranks)), STEPS) for rank in range(ranks)]
    return step_seconds(simulate(works, lambda a, b: link), FILLED)


def shifted(block: MeasuredBlock, rank: int, ranks: int) -> Iterator[Action]:
    """What the block does where it is the one of `rank`; at the ends it has one neighbour."""
    by = rank - block.middle
    for action in block.trace:
        if isinstance(action, Send) and 0 <= action.to + by < ranks:
            yield Send(action.to + by, action.size)
        elif isinstance(action, Receive) and 0 <= action.source + by < ranks:
            yield Receive(action.source + by)
        elif isinstance(action, Compute):
            yield action


def pipeline(
    schedule: Callable[[Stage, int, int, int], Iterator[Action]],
    block: MeasuredBlock,
    ranks: int,
    link: Link,
    least: int = 1,
) -> float:
    """Seconds of a step with the best number of micro-batches that was measured.

    least: stages a rank has, for each of which a pipeline needs a micro-batch, if it does.  Where fewer were measured
    it is the most.
    """
    found: list[float] = []
    for micros, stage in block.stages.items():
        if micros >= min(least * ranks, max(block.stages)):
            works = [[*schedule(stage, rank, ranks, micros), Mark()] for rank in range(ranks)]
            found.append(max(marks[0] for marks in simulate(works, lambda a, b: link)))
    return min(found)


def zero_bubble_of_equals(stage: Stage, rank: int, count: int, micros: int) -> Iterator[Action]:
    """ZBV where both stages of a rank are halves of a block, whose messages are as large as a block's."""
    times = {name: getattr(stage, name) / 2 for name in ("forward", "backward", "update", "weights")}
    half = stage._replace(**times)
    return zero_bubble((half, half), rank, count, micros)


def added_up(size: float, ranks: int, link: Link) -> float:
    """Seconds of a sum over all, by a ring or by halves, whichever is faster.

    Either way 2 (R - 1) R-ths of its bytes leave everybody, in 2 (R - 1) messages, or in 2 log R where who is twice as
    far away has half as much (Rabenseifner's; where R is no power of two a little more than is counted here).
    """
    messages = 2 * min(ranks - 1, math.ceil(math.log2(ranks)))
    return messages * (link.start + link.latency) + 2 * (ranks - 1) / ranks * size * link.byte


def replica(block: MeasuredBlock, ranks: int, batch: int) -> tuple[float, float, float] | None:
    """Seconds of forward, backward and update of the whole network on a share of the batch; None without one.

    A share that was not measured takes as long, by the sample, as the next smaller one that was.
    """
    share = batch / ranks
    if share < 1:
        return None
    size, stage = next(
        ((batch / m, stage) for m, stage in sorted(block.stages.items()) if batch / m <= share),
        (batch / max(block.stages), block.stages[max(block.stages)]),
    )
    scale = ranks * share / size
    return stage.forward * scale, stage.backward * scale, stage.update * ranks


def data_parallel(block: MeasuredBlock, ranks: int, batch: int, link: Link) -> float | None:
    """Seconds of a step whose gradients are added up while backward goes on; the update needs all of them."""
    own = replica(block, ranks, batch)
    if own is None:
        return None
    forward, backward, update = own
    return forward + max(backward, added_up(block.parameters * ranks, ranks, link)) + update


def local_steps(block: MeasuredBlock, ranks: int, batch: int, link: Link) -> float | None:
    """Seconds of a step of DiLoCo, with its share of a mean of all parameters."""
    own = replica(block, ranks, batch)
    return own and sum(own) + added_up(block.parameters * ranks, ranks, link) / SYNCHRONISED_EVERY


def ways(block: MeasuredBlock, ranks: int, batch: int, links: Links) -> dict[str, float | None]:
    """Seconds of a step, by what trains."""
    return {
        "blocks": chain(block, ranks, links.wire),
        "GPipe": pipeline(gpipe, block, ranks, links.gloo, least=0),
        "1F1B": pipeline(one_f_one_b, block, ranks, links.gloo),
        "ZBV": pipeline(zero_bubble_of_equals, block, ranks, links.gloo, least=2),
        "data parallel": data_parallel(block, ranks, batch, links.ring),
        "DiLoCo": local_steps(block, ranks, batch, links.ring),
    }


def filling(block: MeasuredBlock, ranks: int, link: Link, step: float) -> float:
    """Seconds by which a step of the method through an empty chain takes longer than `step`, of a full one."""
    works = [repeated(list(shifted(block, rank, ranks)), 1) for rank in range(ranks)]
    return max(mark for (mark,) in simulate(works, lambda a, b: link)) - step


def goodputs(
    ranks: int, seconds: Mapping[str, float | None], filling: float, life: float, save: float, restart: float
) -> dict[str, float | None]:
    """The share of time that goes into steps which are kept, by what trains, where machines end.

    seconds: of a step, as `ways` has them.  filling: of the chain.  Where blocks, stages or gradients are waited for,
    any machine's end makes all go back, and blocks that only go forward have to fill their chain anew, which pipelines
    do in every step anyway.  DiLoCo loses one replica's round.
    """
    found = {way: s and goodput(ranks, life, save, restart, s) for way, s in seconds.items()}
    step, local = seconds["blocks"], seconds["DiLoCo"]
    found["blocks"] = step and goodput(ranks, life, save, restart, step, filling)
    found["DiLoCo"] = local and rounds_kept(life, SYNCHRONISED_EVERY * local, restart)
    return found


def goodput(ranks: int, life: float, save: float, restart: float, least: float = 0.0, filling: float = 0.0) -> float:
    """The share of time that goes into steps which are kept, where any machine's end makes all go back and start anew.

    life: mean seconds that a machine lives, its end coming at random, but not in a restart.  save, restart: seconds of
    each.  least: of work between two checkpoints, a step's.  filling: seconds after a restart until steps end as often
    as before; a machine may end in them.

    A checkpoint is saved as often as is best: work of T seconds and its saving take (M + restart) (e^((T + save) / M)
    - 1) e^(filling / M) in the mean, M seconds being between two ends of any machine.  But for filling that is Daly's
    (Future Generation Computer Systems 22, 2006, after Young, Communications of the ACM 17, 1974), whose machines may
    end in restarts too.
    """
    mean = life / ranks
    best = 0.0
    interval = max(least, save / 100, mean / 1e6)  # where neither takes time, as often as one likes
    while interval < 20 * mean:
        spent = (mean + restart) * math.expm1((interval + save) / mean)
        best = max(best, interval / spent)
        interval *= 1.05
    return best * math.exp(-filling / mean)


def rounds_kept(life: float, length: float, restart: float) -> float:
    """The share of a replica's rounds that it ends, where one whose machine ends is left out until it is back.

    So does DiLoCo (arXiv:2311.08105), whose replicas may come and go between two means.  That a mean of fewer is worth
    as much by the replica is assumed, and that somebody saves each.

    length: seconds of a round.  Of rounds begun, s = e^(-length / life) are ended; any other costs itself, as many as a
    restart takes, and, with a rest of r seconds, one more if the end came in the last r: 1 + (1 - s) whole + s (e^(r /
    life) - 1) rounds in the mean, in all.
    """
    ended = math.exp(-length / life)
    whole, rest = divmod(restart, length)
    return ended / (1 + (1 - ended) * whole + ended * math.expm1(rest / life))
