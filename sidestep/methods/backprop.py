"""Backpropagation, written as a program: the strong control of every comparison.

Rumelhart, Hinton & Williams 1986; checkpointing: Chen et al., arXiv:1604.06174.

    up:    h_k = f_k(h_{k-1}),        loss = CE(h_K, y)
    down:  delta_{k-1} = (df_k/dh_{k-1})^T delta_k,  the gradient of block k from the same product

Bitwise equal to plain autograd on the uncut network.   B batch, C classes.
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
from sidestep.nn.per_block import smoothings


@dataclass(frozen=True)
class Backprop(Method):
    """End-to-end backpropagation of one cross-entropy."""

    reference: ClassVar[str] = "Rumelhart, Hinton & Williams 1986"

    label_smoothing: float | str = 0.0  # a constant, or sid[:ALPHA]: smoothed like SID's last block

    def __post_init__(self) -> None:
        smoothings(self.label_smoothing)

    def build(self, model: nn.Module, task: Task, plan: CutPlan) -> Chain:
        task.check_smoothable(self.label_smoothing)
        slices = plan(model, task.sample)
        nets = slices.nets_for(task)
        smoothings(self.label_smoothing, len(nets))
        return Chain([Block(i, len(nets), net) for i, net in enumerate(nets)], at=slices.at)

    def program(self) -> Program:
        return (Up(self.forward, input_grad=True), Down(self.backward))

    def inference(self) -> Program:
        return (Up(self.read),)

    def forward(self, cell: Cell, h: Tensor) -> Emit:
        out = cell.block.net(h)
        return Emit(send=(out,), keep={"in": h, "out": out})

    def backward(self, cell: Cell, *delta: Tensor) -> Emit:
        return pull_back(cell, cell.kept["out"], delta, self.label_smoothing)

    def read(self, cell: Cell, h: Tensor) -> Emit:
        out = cell.block.net(h)
        return Emit(send=(out,), logits=out if cell.block.is_last else None)


@dataclass(frozen=True)
class BackpropCheckpointed(Backprop):
    """Backpropagation that keeps only each block's input and computes the block again on the way down."""

    reference: ClassVar[str] = "arXiv:1604.06174"

    def program(self) -> Program:
        return (Up(self.forward, input_grad=True, grad=False), Down(self.recompute, replays="forward"))

    def forward(self, cell: Cell, h: Tensor) -> Emit:
        return Emit(send=(cell.block.net(h),), keep={"in": h})

    def recompute(self, cell: Cell, *delta: Tensor) -> Emit:
        return pull_back(cell, cell.block.net(cell.kept["in"]), delta, self.label_smoothing)


def pull_back(cell: Cell, out: Tensor, delta: tuple[Tensor, ...], smoothing: float | str) -> Emit:
    """The last block's loss, or the gradient that came down, taken through this block to its input."""
    down = () if cell.block.is_first else (cell.kept["in"],)
    if cell.block.is_last:
        loss = cell.task.loss(out, cell.y, smoothings(smoothing, cell.block.count)[-1])
        return Emit(loss=loss, logits=out, send_grad=down)
    return Emit(pull=((out, delta[0]),), send_grad=down)
