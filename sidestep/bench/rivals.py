"""Backpropagation in several processes by torch itself: pipelines and data parallelism, the rivals of ranks."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Unpack

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributed import ProcessGroup
from torch.distributed.pipelining import PipelineStage, Schedule1F1B, ScheduleGPipe, ScheduleZBVZeroBubble
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer

from sidestep.bench.plain import Options, PlainStep
from sidestep.precision import computed_in

MakeOptimizer = Callable[[Iterable[nn.Parameter]], Optimizer]
SCHEDULES = {"GPipe": 1, "1F1B": 1, "ZBV": 2}
"""Of torch.distributed.pipelining (arXiv:1811.06965, 2006.15704, 2401.10241): how many stages each has on a rank."""


class PipelineStep:
    """One update by a pipeline: this process has one stage of the network, or two that lie opposite in a V.

    stages: all of them in order, x -> logits (B, C); as many as ranks, for ZBV twice as many.  The batch is cut into
    `microbatches`, its gradient is that of the whole batch.  group: of all ranks.
    """

    def __init__(
        self,
        schedule: str,
        stages: Sequence[nn.Module],
        microbatches: int,
        make: MakeOptimizer,
        group: ProcessGroup,
        device: torch.device,
        autocast: torch.dtype | None = None,
    ) -> None:
        rank, count = group.rank(), len(stages)
        assert count == SCHEDULES[schedule] * group.size(), "a stage for every rank, or two"
        own = [rank] if schedule != "ZBV" else [rank, count - 1 - rank]
        self.has_first, self.has_last = 0 in own, count - 1 in own
        self.device, self.autocast = device, autocast
        parts = [PipelineStage(stages[n], n, count, device, group=group) for n in own]
        if schedule == "ZBV":
            self.schedule = ScheduleZBVZeroBubble([*parts], microbatches, F.cross_entropy)
        else:
            kind = ScheduleGPipe if schedule == "GPipe" else Schedule1F1B
            self.schedule = kind(parts[0], microbatches, F.cross_entropy)
        self.modules = [stages[n] for n in own]
        self.optimizer = make([p for m in self.modules for p in m.parameters()])

    def step(self, batch: tuple[Tensor, Tensor]) -> None:
        """One update from a batch (x, y), which every rank is given."""
        x, y = batch
        for module in self.modules:
            module.train()
        with computed_in(self.device, self.autocast):
            inputs, target = [x] if self.has_first else [], y if self.has_last else None
            self.schedule.step(*inputs, target=target, return_outputs=False)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)


class DataParallelStep:
    """One update with a copy of the network in every process, each taking its share of the batch."""

    def __init__(
        self, network: nn.Module, make: MakeOptimizer, group: ProcessGroup, **options: Unpack[Options]
    ) -> None:
        self.group = group
        copy = DistributedDataParallel(network, process_group=group)
        self.plain = PlainStep(copy, make(copy.parameters()), **options)

    def step(self, batch: tuple[Tensor, Tensor]) -> None:
        """One update from a batch (x, y), which every rank is given."""
        x, y = (part.chunk(self.group.size())[self.group.rank()] for part in batch)
        self.plain.step((x, y))


class MicroBatchedStep(PlainStep):
    """Plain backpropagation of a batch in micro-batches: what a pipeline computes, in one process."""

    def __init__(self, network: nn.Module, optimizer: Optimizer, microbatches: int, **options: Unpack[Options]) -> None:
        super().__init__(network, optimizer, **options)
        self.microbatches = microbatches

    def step(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        """One update from a batch (x, y).  Returns the last micro-batch's share of the loss, ()."""
        x, y = batch
        self.network.train()
        loss = x.new_zeros(())
        for part in zip(x.chunk(self.microbatches), y.chunk(self.microbatches), strict=True):
            with computed_in(x.device, self.autocast):
                loss = self.loss(*part) / self.microbatches
            loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return loss.detach()
