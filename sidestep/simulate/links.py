"""What a message costs between two processes of this machine that do nothing else."""

from __future__ import annotations

import statistics
import time
from typing import Any, NamedTuple, Protocol

import torch
import torch.distributed as dist
from torch import Tensor

from sidestep.engines.dist_wire import WINDOW, DistWire
from sidestep.engines.wire import Edge, When
from sidestep.launch import spawn
from sidestep.ranks import joined, world

from .machine import Link

LARGE = 4 << 20
"""Bytes of the message whose bytes are timed, as large as a layer's outputs may be."""
ROUNDS = 30


class Way(Protocol):
    """Let a message of a number go to rank `to`, or wait for it."""

    def __call__(self, number: int, to: int, message: Tensor, *, wait: bool) -> None: ...


class Links(NamedTuple):
    """wire: of the engines.  gloo: as pipelines use it.  ring: what every byte of a sum over processes costs."""

    wire: Link
    gloo: Link
    ring: Link


def measured() -> Links:
    """Start two processes and time messages between them."""
    found = spawn(2, 1, _at_rank)
    return Links(*(Link(**found[name]) for name in Links._fields))


def _at_rank() -> dict[str, Any]:
    with joined() as ranks:
        wire = DistWire(world(), [range(1), range(1, 2)], bytes(16))
        ranks.wire = wire
        group = dist.new_group(backend="gloo")  # its messages and the wire's must not be taken for each other's
        assert isinstance(group, dist.ProcessGroup)

        def by_wire(number: int, to: int, message: Tensor, *, wait: bool) -> None:
            edge = Edge(f"{len(message)} bytes", When(True, number), 1 - to, to)
            if wait:
                wire.receive(edge)
            else:
                wire.send(edge, (message,))

        def by_gloo(number: int, to: int, message: Tensor, *, wait: bool) -> None:
            if wait:
                group.recv([message], 1 - to, 0).wait()
            else:
                group.send([message], to, 0).wait()

        return {
            "wire": _link(by_wire, ranks.rank, packs=True) | {"window": WINDOW},
            "gloo": _link(by_gloo, ranks.rank, packs=False) | {"meet": True},
            "ring": _ring(),
        }


def _link(way: Way, rank: int, *, packs: bool) -> dict[str, float]:
    """Time messages that are answered by a tiny one, at both ends.

    packs: whether a message is only handed over before its sender goes on.
    """
    times: list[tuple[float, float, float, float]] = []  # until the answer, to pack, and of a core at either end
    for size in (1, LARGE):
        message, answer = torch.zeros(size, dtype=torch.uint8), torch.zeros(2, dtype=torch.uint8)
        whole: list[float] = []
        packed: list[float] = []
        busy = time.process_time()
        for n in range(ROUNDS):
            began = time.perf_counter()
            way(n, 1, message, wait=rank == 1)
            packed.append(time.perf_counter() - began)
            way(n, 0, answer, wait=rank == 0)
            whole.append(time.perf_counter() - began)
        own = [statistics.median(whole), statistics.median(packed), 0.0, 0.0]
        own[2 + rank] = (time.process_time() - busy) / ROUNDS
        seen = torch.tensor([own[0], own[1], *own[2:]]) * torch.tensor([rank == 0, rank == 0, True, True])
        dist.all_reduce(seen)
        until, packing, sending, receiving = seen.tolist()
        times.append((until, packing if packs else 0.0, sending, receiving))
    start = times[0][0]
    until, pack, send, receive = (max(b - a, 0.0) / LARGE for a, b in zip(*times, strict=True))
    return {
        "start": start / 2,
        "pack": pack,
        "byte": max(until - pack, 0.0),
        "send": max(send - pack, 0.0),
        "receive": receive,
    }


def _ring() -> dict[str, float]:
    """Time a sum over both, which is two messages of half its bytes each way, and adding up."""
    times: list[tuple[float, float]] = []  # until it is done, and of a core
    for numbers in (2, LARGE // 4):
        values = torch.zeros(numbers)
        took: list[float] = []
        busy = time.process_time()
        for _ in range(ROUNDS):
            began = time.perf_counter()
            dist.all_reduce(values)
            took.append(time.perf_counter() - began)
        times.append((statistics.median(took), (time.process_time() - busy) / ROUNDS))
    byte, core = (max(b - a, 0.0) / LARGE for a, b in zip(*times, strict=True))
    return {"start": times[0][0] / 2, "byte": byte, "send": core / 2, "receive": core / 2}
