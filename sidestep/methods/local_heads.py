"""What methods with a head at every cut have in common: the heads, their smoothing, and how they are read.

B batch, C classes.
"""

from __future__ import annotations

from abc import ABC
from dataclasses import dataclass

from torch import Tensor, nn

from sidestep.core.block import Block, Chain
from sidestep.core.cell import Cell
from sidestep.core.cut import CutPlan
from sidestep.core.emit import Emit
from sidestep.core.method import Method
from sidestep.core.program import Program, Up
from sidestep.core.task import Task
from sidestep.nn.heads import Head, HeadKind
from sidestep.nn.schedules import smoothings


@dataclass(frozen=True)
class LocalHeads(Method, ABC):
    """Every block but the last has a head of its own; the last one's read-out is the model's classifier."""

    label_smoothing: float | str = 0.0  # a constant, or sid[:ALPHA]: block i smoothed by SID's r_i
    head: HeadKind = "auto"  # linear, conv or mlp; auto: conv on feature maps, else linear
    head_width: int = 128  # channels of a conv head, hidden units of an mlp head
    head_depth: int = 1  # convolutions of a conv head, hidden layers of an mlp head

    def __post_init__(self) -> None:
        smoothings(self.label_smoothing)

    def build(self, model: nn.Module, task: Task, plan: CutPlan) -> Chain:
        slices = plan(model, task.sample)
        count = len(slices.nets)
        smoothings(self.label_smoothing, count)
        blocks = [
            Block(
                i,
                count,
                net,
                head=Head(shape, task.num_classes, self.head, width=self.head_width, depth=self.head_depth),
            )
            for i, (net, shape) in enumerate(zip(slices.nets[:-1], slices.shapes, strict=False))
        ]
        return Chain([*blocks, Block(count - 1, count, slices.nets[-1])], at=slices.at)

    def inference(self) -> Program:
        return (Up(self.read),)

    def read(self, cell: Cell, h: Tensor) -> Emit:
        out = cell.block.net(h)
        return Emit(send=(out,), logits=read_out(cell.block, out))

    def local_loss(self, cell: Cell, out: Tensor) -> Tensor:
        """Cross-entropy of the block's own read-out, with its own smoothing, ()."""
        block = cell.block
        return cell.task.loss(read_out(block, out), cell.y, smoothings(self.label_smoothing, block.count)[block.index])


def read_out(block: Block, out: Tensor) -> Tensor:
    """Logits (B, C) from a block's output, which for the last block is the logits."""
    return out if block.is_last else block.extras["head"](out)
