"""Greedy local cross-entropy: every block trains with a head of its own on detached inputs.

Belilovsky, Eickenberg & Oyallon, arXiv:1901.08164 (decoupled greedy learning).

    h_k = f_k(sg h_{k-1}),   loss_k = CE(head_k(h_k), y),   the last block's head being the model's classifier

Heads are dropped at inference.   B batch, C classes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor, nn

from sidestep.core.block import Chain
from sidestep.core.cell import Cell
from sidestep.core.cut import CutPlan
from sidestep.core.emit import Emit
from sidestep.core.method import Method
from sidestep.core.program import Program, Up
from sidestep.core.task import Task
from sidestep.nn.heads import HeadKind
from sidestep.nn.schedules import smoothings

from .deep_supervision import blocks_with_heads, read_out


@dataclass(frozen=True)
class LocalCE(Method):
    """Greedy cross-entropy with local heads."""

    reference: ClassVar[str] = "arXiv:1901.08164"

    label_smoothing: float | str = 0.0  # a constant, or sid[:ALPHA]: block i smoothed by SID's r_i
    head: HeadKind = "auto"
    head_width: int = 128  # channels of a conv head, hidden units of an mlp head

    def __post_init__(self) -> None:
        smoothings(self.label_smoothing)

    def build(self, model: nn.Module, task: Task, plan: CutPlan) -> Chain:
        chain = blocks_with_heads(model, task, plan, self.head, self.head_width)
        smoothings(self.label_smoothing, len(chain.blocks))
        return chain

    def program(self) -> Program:
        return (Up(self.learn),)

    def inference(self) -> Program:
        return (Up(self.learn),)

    def learn(self, cell: Cell, h: Tensor) -> Emit:
        block = cell.block
        out = block.net(h)
        logits = read_out(block, out)
        loss = None
        if cell.training:
            loss = cell.task.loss(logits, cell.y, smoothings(self.label_smoothing, block.count)[block.index])
        return Emit(send=(out,), loss=loss, logits=logits)
