"""What carries messages between the blocks of one engine and those of another."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from typing import NamedTuple, Protocol, TypeVar

import torch

from sidestep.core.emit import Message


class When(NamedTuple):
    """The step, or inference, and its micro-batch."""

    training: bool
    step: int
    micro: int = 0

    def __str__(self) -> str:
        return f"{'step' if self.training else 'inference'} {self.step}, micro-batch {self.micro}"


class Edge(NamedTuple):
    """The way of one message: what it is, when, the blocks it leaves and reaches, and of how many samples it is.

    rows: of the first tensor, one a sample, which both ends know; 0 where a message need not be of samples.
    """

    what: str
    when: When
    source: int
    target: int
    rows: int = 0

    def __str__(self) -> str:
        samples = f", {self.rows} samples" if self.rows else ""
        return f"{self.what} from block {self.source} to {self.target}, {self.when}{samples}"


class Wire(Protocol):
    """Messages arrive as they were sent: dtype, shape and memory format."""

    def send(self, edge: Edge, message: Message) -> None: ...
    def receive(self, edge: Edge) -> Message: ...  # waits for it


T = TypeVar("T")
Work = Generator[Edge, Message, T]
"""What asks for messages by the way they take, is sent them, and returns a T."""


class LocalWire:
    """Between engines in one process, which take turns on one thread: `in_turn`."""

    def __init__(self) -> None:
        self.arrived: dict[Edge, Message] = {}

    def send(self, edge: Edge, message: Message) -> None:
        assert edge not in self.arrived, f"sent twice: {edge}"
        # A copy: what is sent must not change with its sender.
        self.arrived[edge] = tuple(m.clone(memory_format=torch.preserve_format) for m in message)

    def receive(self, edge: Edge) -> Message:
        return self.arrived.pop(edge)


def in_turn(works: Sequence[Work[T]], wire: LocalWire) -> list[T]:
    """Do all the work: each goes on until what it asks for has not been sent yet, then it is another's turn."""
    waiting: dict[int, Edge | None] = dict.fromkeys(range(len(works)))  # None: not begun
    results: dict[int, T] = {}
    while waiting:
        able = [k for k, edge in waiting.items() if edge is None or edge in wire.arrived]
        assert able, f"everybody waits: {'; '.join(map(str, waiting.values()))}"
        for k in able:
            edge = waiting.pop(k)
            try:
                waiting[k] = next(works[k]) if edge is None else works[k].send(wire.receive(edge))
            except StopIteration as done:
                results[k] = done.value
    return [results[k] for k in range(len(works))]
