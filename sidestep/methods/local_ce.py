"""Greedy local cross-entropy: every block trains with a head of its own on detached inputs.

Belilovsky, Eickenberg & Oyallon, arXiv:1901.08164 (decoupled greedy learning).

    h_k = f_k(sg h_{k-1}),   loss_k = CE(head_k(h_k), y),   the last block's head being the model's classifier

Heads are dropped at inference.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from sidestep.core.cell import Cell
from sidestep.core.emit import Emit
from sidestep.core.program import Program, Up

from .local_heads import LocalHeads


@dataclass(frozen=True)
class LocalCE(LocalHeads):
    """Greedy cross-entropy with local heads."""

    reference: ClassVar[str] = "arXiv:1901.08164"

    def program(self) -> Program:
        return (Up(self.learn),)

    def learn(self, cell: Cell, h: Tensor) -> Emit:
        out = cell.block.net(h)
        return Emit(send=(out,), loss=self.local_loss(cell, out))
