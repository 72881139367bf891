"""Ways of their own for what lies on accelerators: over NCCL it goes from one's memory to the other's.

NCCL does the operations of one communicator in the order they were begun in, so that a message that is waited for would
keep one from leaving: every direction between two processes has a communicator, and so a lane, of its own.
"""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed import ProcessGroup

from .packets import check_cargo

CHUNK = 1 << 20
"""Bytes sent at once: a peer that dies in the middle of more than this is noticed late by gloo, or not at all."""


class Lane:
    """One end of a way from one process to another and never back, for one thread.

    group: of the two.  peer: the other's place in it.  device: where what is sent lies, and what arrives will lie.
    """

    def __init__(self, group: ProcessGroup, peer: int, device: torch.device) -> None:
        self.group, self.peer, self.device = group, peer, device
        self.stream = torch.cuda.Stream(device) if device.type == "cuda" else None

    def ready(self) -> torch.cuda.Event | None:
        """The moment at which all that this thread has asked of the device so far is done."""
        if self.stream is None:
            return None
        event = torch.cuda.Event()
        event.record(torch.cuda.current_stream(self.device))
        return event

    def send(self, cargo: Tensor, ready: torch.cuda.Event | None) -> None:
        """Send once it is ready; returns when it has left."""
        with self._turn(ready):
            for piece in cargo.split(CHUNK):
                self.group.send([piece], self.peer, 0).wait()

    def receive(self, size: int) -> Tensor:
        """So many bytes, once they are there.  Raises WireError for damaged ones."""
        with self._turn(None):
            cargo = torch.empty(size, dtype=torch.uint8, device=self.device)
            for piece in cargo.split(CHUNK):
                self.group.recv([piece], self.peer, 0).wait()
            check_cargo(cargo)
        return cargo

    @contextmanager
    def _turn(self, ready: torch.cuda.Event | None) -> Generator[None]:
        """Beside the stream that blocks compute on, and waited for: windows count what has really gone."""
        if self.stream is None:
            yield
            return
        with torch.cuda.stream(self.stream):
            if ready is not None:
                self.stream.wait_event(ready)
            yield
            self.stream.synchronize()


def lanes_between(
    chains: Sequence[Sequence[int]], rank: int, device: torch.device, backend: str
) -> Mapping[tuple[int, int], Lane]:
    """This process's lanes, by the places of both ends in its chain: to and from its neighbours, and to the first.

    chains: the processes of every chain of blocks.  All processes have to ask, as each group is made by all of them.
    """
    found: dict[tuple[int, int], Lane] = {}
    for chain in chains:
        places = range(len(chain))
        ways = [(a, b) for a in places for b in places if abs(a - b) == 1 or (b == 0 and a > 1)]
        for source, target in ways:
            group = dist.new_group([chain[source], chain[target]], backend=backend)
            if rank in (chain[source], chain[target]):
                assert isinstance(group, ProcessGroup)
                other = chain[target] if rank == chain[source] else chain[source]
                found[source, target] = Lane(group, dist.get_group_rank(group, other), device)
    return found
