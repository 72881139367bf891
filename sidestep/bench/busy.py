"""Work that says what a machine's cores give when all processes are busy, beside one of them that is."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from functools import partial
from typing import Unpack

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed import ProcessGroup
from torch.optim import Optimizer

from sidestep.bench.plain import Options
from sidestep.bench.rivals import MakeOptimizer, MicroBatchedStep
from sidestep.bench.step import Step

WHOLE, REPLICA = "whole batch", "data parallel"
Pair = tuple[Step | None, Step]
"""What a process does while the first one is busy, and while all are."""
Exchange = Callable[[Tensor], object]
"""Send a tensor to another process, and wait for one as long."""


def calibrations(
    parts: Sequence[nn.Module],
    make: MakeOptimizer,
    batch: tuple[Tensor, Tensor],
    micros: Sequence[int],
    group: ProcessGroup,
    autocast: torch.dtype | None = None,
) -> dict[str, Pair]:
    """A part's step on a whole batch and in micro-batches, and a replica's, by what rivals are called.

    parts: of the network, as many as processes.  Small micro-batches wait for memory, which cores share, more than they
    compute.  And they come with messages, for each of which a core turns to another process, where there are more
    processes than cores: while the first one is busy, the second does nothing but answer.  A whole batch and a replica
    have none.
    """
    rank, count = group.rank(), len(parts)
    x, y = batch
    before, part, *_ = parts
    with torch.no_grad():
        given = before(x)

    def silent(network: nn.Module, inputs: Tensor, target: Tensor) -> Pair:
        step = PartStep(network, still(make, network), 1, autocast=autocast)

        def taken(_: tuple[Tensor, Tensor]) -> None:
            step.step((inputs, target))

        return taken if rank == 0 else None, taken

    def talking(m: int) -> Pair:
        network = copy.deepcopy(part)
        optimizer = still(make, network)

        def work(to: int, source: int) -> Step:
            step = PartStep(network, optimizer, m, partial(exchange, group, to, source), autocast=autocast)
            return lambda _: step.step((given, y))

        def answer(_: tuple[Tensor, Tensor]) -> None:
            for message in [*given.chunk(m)] * 2:
                exchange(group, 0, 0, message)

        return {0: work(1, 1), 1: answer}.get(rank), work((rank + 1) % count, (rank - 1) % count)

    whole = nn.Sequential(*copy.deepcopy([*parts]))
    found = {WHOLE: silent(copy.deepcopy(part), given, y), REPLICA: silent(whole, *(t.chunk(count)[0] for t in batch))}
    return found | {f"{m} micro-batches": talking(m) for m in micros}


class PartStep(MicroBatchedStep):
    """What a rank of a pipeline does in a step, in no order with others: forward, all gradients, and the update.

    exchange: two messages as long as a micro-batch's input.
    """

    def __init__(
        self,
        network: nn.Module,
        optimizer: Optimizer,
        microbatches: int,
        exchange: Exchange | None = None,
        **options: Unpack[Options],
    ) -> None:
        super().__init__(network, optimizer, microbatches, **options)
        self.exchange = exchange

    def loss(self, x: Tensor, y: Tensor) -> Tensor:
        if self.exchange:
            self.exchange(x)  # in the place of a gradient
        answer = self.network(x.detach().requires_grad_()).float()
        if self.exchange:
            self.exchange(x)
        return answer.square().mean()


def still(make: MakeOptimizer, network: nn.Module) -> Optimizer:
    """An optimizer that moves every number and changes none: gradients would vanish, which a CPU is slow with."""
    optimizer = make(network.parameters())
    for group in optimizer.param_groups:
        group["lr"] = 0.0
    return optimizer


def exchange(group: ProcessGroup, to: int, source: int, message: Tensor) -> None:
    """As torch's pipelines send and receive."""
    ways = [
        dist.P2POp(dist.isend, message.detach().contiguous(), to, group),
        dist.P2POp(dist.irecv, torch.empty_like(message), source, group),
    ]
    for way in dist.batch_isend_irecv(ways):
        way.wait()
