"""Deep supervision: a loss at every cut, and gradients that cross all of them.

Lee et al., arXiv:1409.5185.

    loss = sum_k CE(head_k(h_k), y),   backpropagated through the whole network

What separates it from `local_ce` is the stop-gradient at the cuts and nothing else.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor, nn

from sidestep.core.block import Block, Chain
from sidestep.core.cell import Cell
from sidestep.core.cut import CutPlan
from sidestep.core.emit import Emit
from sidestep.core.method import Method
from sidestep.core.program import Down, Program, Up
from sidestep.core.task import Task
from sidestep.nn.heads import Head, HeadKind
from sidestep.nn.schedules import smoothings

from .backprop import plain_blocks


def blocks_with_heads(model: nn.Module, task: Task, plan: CutPlan, kind: HeadKind, width: int) -> Chain:
    """Every block but the last gets a head of its own; the last one's read-out is the model's classifier."""
    slices = plan(model, task.sample)
    nets = plain_blocks(slices)
    blocks = [
        Block(i, len(nets), net, head=Head(shape, task.num_classes, kind, width=width))
        for i, (net, shape) in enumerate(zip(nets[:-1], slices.shapes, strict=False))
    ]
    return Chain([*blocks, Block(len(nets) - 1, len(nets), nets[-1])], at=slices.at)


def read_out(block: Block, h: Tensor) -> Tensor:
    """Logits of a block's features; the last block's features are its logits."""
    return h if block.is_last else block.extras["head"](h)


@dataclass(frozen=True)
class DeepSupervision(Method):
    """Backpropagation with a head's cross-entropy added at every cut."""

    reference: ClassVar[str] = "arXiv:1409.5185"

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
        return (Up(self.forward, input_grad=True), Down(self.backward))

    def inference(self) -> Program:
        return (Up(self.read),)

    def forward(self, cell: Cell, h: Tensor) -> Emit:
        out = cell.block.net(h)
        return Emit(send=(out,), keep={"in": h, "out": out})

    def backward(self, cell: Cell, *delta: Tensor) -> Emit:
        block, out = cell.block, cell.kept["out"]
        smoothing = smoothings(self.label_smoothing, block.count)[block.index]
        loss = cell.task.loss(read_out(block, out), cell.y, smoothing)
        return Emit(
            loss=loss,
            pull=() if block.is_last else ((out, delta[0]),),
            send_grad=() if block.is_first else (cell.kept["in"],),
        )

    def read(self, cell: Cell, h: Tensor) -> Emit:
        out = cell.block.net(h)
        return Emit(send=(out,), logits=read_out(cell.block, out))
