"""What goes along the chain from engine to engine: the passes' messages, and what all engines add to or get."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from sidestep.core.emit import Message
from sidestep.core.program import Order

from .wire import Edge, When, Wire, Work


class Relay:
    """An engine's place in the chain: its own blocks of so many, and the wire to those elsewhere, if there are any.

    What waits for a message is work.  Where all blocks are here nothing is sent and nothing waited for.
    """

    def __init__(self, own: range, count: int, wire: Wire | None) -> None:
        if not own or own.step != 1 or own.start < 0 or own.stop > count:
            raise ValueError(f"got own={own}, expected one or more consecutive blocks, from 0 to {count - 1}.")
        if wire is None and len(own) < count:
            raise ValueError(f"got own={own} of {count} blocks and no wire; give one, or let all be here.")
        self.own, self.last, self.wire = own, count - 1, wire

    def receive(self, edge: Edge) -> Message:
        """Wait for a message."""
        return self._wire.receive(edge)

    def send(self, edge: Edge, message: Message) -> None:
        """Send a message, with no graph."""
        self._wire.send(edge, tuple(m.detach() for m in message))

    @property
    def _wire(self) -> Wire:
        assert self.wire is not None, "all blocks are here"
        return self.wire

    def before(self, order: Order, what: str, when: When, samples: int, block: int, here: Message) -> Work[Message]:
        """What the block before this one in a pass has sent; `here` if that block is one of our own."""
        source = block - 1 if order == "up" else block + 1
        return here if source in self.own else (yield _edge(order, what, when, samples, source, block))

    def after(self, order: Order, what: str, when: When, samples: int, block: int) -> Edge | None:
        """The way to the block after this one in a pass, if that is elsewhere."""
        target = {"up": block + 1, "down": block - 1, "each": block}[order]
        if target in self.own or not 0 <= target <= self.last:
            return None
        return _edge(order, what, when, samples, block, target)

    def fold_up(self, what: str, when: When, add: Callable[[Message | None], Message]) -> Work[Message]:
        """What the engines before have made of it, None at the first, with this one's part added; handed on."""
        first, end = self.own.start, self.own.stop
        made = add((yield Edge(what, when, first - 1, first)) if first > 0 else None)
        if end <= self.last:
            self.send(Edge(what, when, end - 1, end), made)
        return made

    def to_first(self, what: str, when: When, message: Message) -> Work[Message | None]:
        """The last engine's message, at the first; None at the others."""
        edge, first, last = Edge(what, when, self.last, 0), 0 in self.own, self.last in self.own
        if first:
            return message if last else (yield edge)
        if last:
            self.send(edge, message)
        return None

    def broadcast_down(self, what: str, when: When, message: Message) -> Work[Message]:
        """The last engine's message, at all."""
        first, end = self.own.start, self.own.stop
        if end <= self.last:
            message = yield Edge(what, when, end, end - 1)
        if first > 0:
            self.send(Edge(what, when, first, first - 1), message)
        return message

    def gather(self, what: str, when: When, named: Mapping[str, Tensor]) -> Work[dict[str, Tensor]]:
        """What all engines have by name, at the first; at another what it has itself.

        It goes there part by part, which names begin with, each when the one before has come to the next engine: who
        is in between holds one or two.
        """
        first, end = self.own.start, self.own.stop
        found, parts, more, sent, received = dict(named), _by_part(named), end <= self.last, 0, 0

        def hand_on(message: Message) -> Work[None]:
            nonlocal sent
            if sent:
                yield Edge(f"next {what}", when._replace(micro=sent), first - 1, first)
            self.send(Edge(what, when._replace(micro=sent), first, first - 1), message)
            sent += 1

        for n, part in enumerate(parts if first > 0 else [], 1):
            names = json.dumps([n < len(parts) or more, *part]).encode()
            yield from hand_on((torch.frombuffer(bytearray(names), dtype=torch.uint8), *part.values()))
        while more:
            if received:
                self.send(Edge(f"next {what}", when._replace(micro=received), end - 1, end), ())
            message = yield Edge(what, when._replace(micro=received), end, end - 1)
            received += 1
            more, *names = json.loads(message[0].numpy().tobytes())
            if first > 0:
                yield from hand_on(message)
            else:
                found |= zip(names, message[1:], strict=True)
        return found


def _by_part(named: Mapping[str, Tensor]) -> list[dict[str, Tensor]]:
    """Those with the same word before the first slash."""
    parts: dict[str, dict[str, Tensor]] = {}
    for name, value in named.items():
        parts.setdefault(name.partition("/")[0], {})[name] = value
    return list(parts.values())


def _edge(order: Order, what: str, when: When, samples: int, source: int, target: int) -> Edge:
    # What goes up comes of samples; what goes down may be of classes.
    return Edge(what, when, source, target, samples if order == "up" else 0)
