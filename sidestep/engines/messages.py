"""What the cells of a step or an inference are given, and what they give back to the hub: the same over any wire."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from sidestep.core.cell import Batch, Context, run_hub
from sidestep.core.emit import Message
from sidestep.core.method import Method
from sidestep.core.program import Pass

from .relay import Relay
from .wire import When, Work


class Messages:
    """Of a method's cells at the blocks that are here; the relay has those elsewhere."""

    def __init__(self, method: Method, context: Context, relay: Relay) -> None:
        self.method, self.context, self.relay = method, context, relay

    def from_hub(self, hub: nn.Module | None, batch: Batch, when: When) -> Work[Message]:
        """The hub's output: made where the first block is, and handed on."""
        if hub is None:
            return ()

        def made(before: Message | None) -> Message:
            if before is not None:
                return before
            with torch.set_grad_enabled(when.training):
                return run_hub(self.method.encode, hub, batch, self.context)

        return (yield from self.relay.fold_up("hub", when, made))

    def to_hub(self, encoded: Message, shared: Mapping[int, Message], when: When) -> Work[None]:
        """Add what the blocks ask of the hub, passing the sum on, and differentiate it where the hub is.

        encoded: what the hub has sent.  shared: the leaves it became at each block, with their gradients.
        """

        def folded(before: Message | None) -> Message:
            # In block order: addition is not associative, and all engines must agree.
            totals: list[Tensor | None] = [None] * len(encoded) if before is None else unpacked(before)
            for n in self.relay.own:
                for k, leaf in enumerate(shared[n]):
                    if leaf.grad is not None:
                        sofar = totals[k]
                        totals[k] = leaf.grad if sofar is None else sofar + leaf.grad
            return packed(totals, encoded)

        folds = yield from self.relay.fold_up("hub gradient", when, folded)
        total = yield from self.relay.to_first("hub gradient", when, folds)
        if total is None:
            return
        found = [(output, g) for output, g in zip(encoded, unpacked(total), strict=True) if g is not None]
        if found:
            torch.autograd.backward([output for output, _ in found], [g for _, g in found])

    def to_cell(
        self, p: Pass, what: str, n: int, carry: Message, shared: Message, batch: Batch, when: When
    ) -> Work[Message]:
        """What block n gets in a pass: from outside, or from the block before it.

        what: the pass, told apart from the program's others.  carry: what its cell before has sent, if that was here.
        """
        if p.order == "each":
            return ()
        if p.order == "up" and n == 0:
            return self.method.source(batch, shared, self.context.task)
        if p.order == "down" and n == self.relay.last:
            return self.method.sink(batch, shared, self.context.task)
        return (yield from self.relay.before(p.order, what, when, len(batch.x), n, carry))


def packed(totals: Sequence[Tensor | None], like: Message) -> Message:
    """Gradients that may be missing, as a message of one layout: which there are, and zeros for the others."""
    there = torch.tensor([total is not None for total in totals])
    return there, *(torch.zeros_like(x) if total is None else total for total, x in zip(totals, like, strict=True))


def unpacked(message: Message) -> list[Tensor | None]:
    there, *totals = message
    return [total if has else None for has, total in zip(there.tolist(), totals, strict=True)]
