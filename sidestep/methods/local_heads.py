"""What methods with a head at every cut have in common: the heads, their smoothing, and how they are read.

B batch, C classes; `...` is B, or B, T where every token has a label of its own.
"""

from __future__ import annotations

from abc import ABC
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from sidestep.core.block import Block, Chain
from sidestep.core.cell import Cell
from sidestep.core.cut import CutPlan
from sidestep.core.emit import Emit
from sidestep.core.method import Method
from sidestep.core.program import Program, Up
from sidestep.core.task import Regression, Task
from sidestep.nn.decoders import MapDecoder
from sidestep.nn.heads import HIDDEN, Head, HeadKind, check_hidden
from sidestep.nn.per_block import smoothings


@dataclass(frozen=True)
class LocalHeads(Method, ABC):
    """Every block has a head of its own, but for the last, whose read-out is the model's classifier by default."""

    label_smoothing: float | str = 0.0  # a constant, or sid[:ALPHA]: block i smoothed by SID's r_i
    head: HeadKind = "auto"  # linear, conv or mlp; auto: conv on feature maps, else linear
    head_width: int = 128  # channels of a conv head, hidden units of an mlp head
    head_depth: int = 1  # convolutions of a conv head, hidden layers of an mlp head
    last: Literal["classifier", "head"] = "classifier"  # the last block's read-out: the model's, or one like the others

    def __post_init__(self) -> None:
        self.check_choices()
        smoothings(self.label_smoothing)
        check_hidden(self.head_width, self.head_depth)
        self.check_read({"head_width": HIDDEN, "head_depth": HIDDEN})

    def build(self, model: nn.Module, task: Task, plan: CutPlan) -> Chain:
        task.check_smoothable(self.label_smoothing)
        slices = plan(model, task.sample)
        count = len(slices.bodies)
        smoothings(self.label_smoothing, count)
        with_head = count if self.last == "head" else count - 1
        heads = [
            head_for(task, shape, self.head, self.head_width, self.head_depth, norm=norm)
            for shape, norm in zip(slices.features[:with_head], slices.may_be_sums, strict=False)
        ]
        blocks = [Block(i, count, slices.bodies[i], head=head) for i, head in enumerate(heads)]
        if self.last == "classifier":
            blocks.append(Block(count - 1, count, slices.nets_for(task)[-1]))
        return Chain(blocks, at=slices.at)

    def export(self, chain: Chain) -> nn.Module:
        last = chain.blocks[-1]
        return nn.Sequential(*(block.net for block in chain.blocks), *last.extras.values())

    def inference(self) -> Program:
        return (Up(self.read),)

    def read(self, cell: Cell, h: Tensor) -> Emit:
        out = cell.block.net(h)
        return Emit(send=(out,), logits=read_out(cell.block, out))

    def local_loss(self, cell: Cell, out: Tensor) -> Tensor:
        """The task's loss of the block's own read-out, with its own smoothing, ()."""
        smoothing = cell.own(smoothings(self.label_smoothing, cell.block.count))
        return cell.task.loss(read_out(cell.block, out), cell.y, smoothing)


def head_for(
    task: Task, shape: torch.Size, kind: HeadKind, width: int, depth: int, *, norm: bool = False
) -> Head | MapDecoder:
    """What makes a block's features (B, *shape) an answer to the task; norm: as `Head` has it.

    Raises ValueError for a kind that they do not admit.
    """
    if isinstance(task, Regression) and len(task.shape) > 1:
        return MapDecoder(shape, task.outputs, task.shape[1:], kind, width=width, depth=depth)
    return Head(shape, task.outputs, kind, width=width, depth=depth, norm=norm, per_token=task.per_token)


def read_out(block: Block, out: Tensor) -> Tensor:
    """Logits (..., C) from a block's output, which is the logits where the model's classifier is in the block."""
    return block.extras["head"](out) if "head" in block.extras else out
