"""Copies of the same blocks, each in a process of its own with other samples: what they learn is added up."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.distributed import ProcessGroup, Work

from sidestep.errors import WireError, cause

PIECE = 1 << 20
"""Bytes of gradients that are added up at once, at least; a single one is not divided."""


class Replicas:
    """This engine's place among those that have the same blocks.

    They share out the micro-batches of a step, and all move by the sum of their gradients.  Other state of a block,
    such as running statistics, is the first one's.

    group: of all of them, with a backend for tensors where the blocks are.
    """

    def __init__(self, group: ProcessGroup) -> None:
        self.group, self.rank, self.count = group, group.rank(), group.size()

    def share_of(self, micros: int) -> range:
        """The micro-batches that are this one's.  Raises ValueError where they cannot be shared out evenly."""
        if micros % self.count:
            raise ValueError(
                f"got accumulate={micros} for {self.count} replicas, expected a multiple: they share out the "
                "micro-batches of a step."
            )
        own = micros // self.count
        return range(self.rank * own, (self.rank + 1) * own)

    def broadcast(self, value: int) -> int:
        """The first one's value, at all."""
        said = torch.tensor(value)
        self.group.broadcast(said, 0).wait()
        return int(said)

    def mean(self, values: Tensor) -> Tensor:
        """Over all of them."""
        total = values.clone()
        self.group.allreduce([total]).wait()
        return total / self.count


class GradientSum:
    """Adds up one part's gradients over replicas.

    They go in pieces, each on its way as soon as the part's last backward call of a step is through with it, so while
    that call goes on.  All replicas send the same pieces in the same order, whatever they have: a gradient that is
    missing counts as 0, and stays missing where no replica has it.
    """

    def __init__(self, part: str, module: nn.Module, replicas: Replicas) -> None:
        self.part, self.module, self.group = part, module, replicas.group
        learnt = [p for p in module.parameters() if p.requires_grad]
        self.pieces = list(pieces(learnt[::-1]))  # a backward call comes to the last ones first
        self.missing: list[set[Tensor]] = []  # of every piece, what the last backward call has not come to yet
        self.flights: list[_Flight] = []
        for parameter in learnt:
            parameter.register_post_accumulate_grad_hook(self._filled)

    def begin(self) -> None:
        """The next backward call is the last one that adds to these gradients."""
        self.flights.clear()
        self.missing = [set(piece) for piece in self.pieces]

    def end(self) -> None:
        """That call is over: send what it has not come to, and the rest of the part's state."""
        while self.missing:
            self._send_next()
        # Asked for now, as a module may have assigned others.  Wide numbers first: all then begin where they may.
        if states := sorted(self.module.buffers(), key=lambda state: -state.itemsize):
            flat = torch.cat([state.flatten().view(torch.uint8) for state in states])
            self.flights.append(_Flight(flat, states, self.group.broadcast(flat, 0)))

    def wait(self) -> None:
        """Put the sums where the gradients are.  Raises WireError where a replica is gone."""
        for flight in self.flights:
            try:
                flight.work.wait()
            except RuntimeError as error:
                raise WireError(f"{self.part}: a replica is gone ({cause(error)}).") from error
            sizes = [target.nbytes // flight.flat.itemsize for target in flight.targets]
            *sums, holders = flight.flat.split([*sizes, flight.flat.numel() - sum(sizes)])
            for target, found in zip(flight.targets, sums, strict=True):
                target.copy_(found.view(target.dtype).view(target.shape))
            for n, parameter in flight.missing.items():
                if holders[n]:
                    parameter.grad = flight.targets[n]
        self.flights.clear()

    def forget(self) -> None:
        """What was begun in a step that was interrupted."""
        self.missing.clear()
        self.flights.clear()

    def _filled(self, parameter: Tensor) -> None:
        if self.missing:  # else this is not the last call
            for missing in self.missing:
                missing.discard(parameter)
            while self.missing and not self.missing[0]:
                self._send_next()

    def _send_next(self) -> None:
        piece = self.pieces[-len(self.missing)]
        del self.missing[0]
        gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in piece]
        has = [p.new_full((1,), float(p.grad is not None)) for p in piece]
        flat = torch.cat([*(gradient.flatten() for gradient in gradients), *has])
        missing = {n: p for n, p in enumerate(piece) if p.grad is None}
        self.flights.append(_Flight(flat, gradients, self.group.allreduce([flat]), missing))


class _Flight(NamedTuple):
    """What is being added up, or told, and the tensors it is to reach."""

    flat: Tensor  # all of them, or their bytes; of gradients then how many replicas have each
    targets: Sequence[Tensor]
    work: Work
    missing: Mapping[int, Tensor] = {}  # the parameters, by their places among the targets, that have no gradient here


def pieces(parameters: Sequence[nn.Parameter], size: int = PIECE) -> Iterator[list[nn.Parameter]]:
    """In order, of one dtype each, and of `size` bytes at least, but for the last of a dtype."""
    for _, alike in groupby(parameters, key=lambda p: p.dtype):
        piece: list[nn.Parameter] = []
        for parameter in alike:
            piece.append(parameter)
            if sum(p.nbytes for p in piece) >= size:
                yield piece
                piece = []
        if piece:
            yield piece
