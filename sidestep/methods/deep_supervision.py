"""Deep supervision: a loss at every cut, and gradients that cross all of them.

Lee et al., arXiv:1409.5185.

    loss = sum_k CE(head_k(h_k), y),   backpropagated through the whole network

What separates it from `local_ce` is the stop-gradient at the cuts and nothing else.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from sidestep.core.cell import Cell
from sidestep.core.emit import Emit
from sidestep.core.program import Down, Program, Up

from .local_heads import LocalHeads


@dataclass(frozen=True)
class DeepSupervision(LocalHeads):
    """Backpropagation with a head's cross-entropy added at every cut."""

    reference: ClassVar[str] = "arXiv:1409.5185"

    def program(self) -> Program:
        return (Up(self.forward, input_grad=True), Down(self.backward))

    def forward(self, cell: Cell, h: Tensor) -> Emit:
        out = cell.block.net(h)
        return Emit(send=(out,), keep={"in": h, "out": out})

    def backward(self, cell: Cell, *delta: Tensor) -> Emit:
        """delta: the gradient of the later blocks' losses; the last block has none."""
        out = cell.kept["out"]
        return Emit(
            loss=self.local_loss(cell, out),
            pull=() if cell.block.is_last else ((out, delta[0]),),
            send_grad=() if cell.block.is_first else (cell.kept["in"],),
        )
