"""Synergistic information distillation: a cascade of beliefs over classes, each block refining the one before.

Ye & Tang, arXiv:2510.03273.

    p_0 = uniform,   p_k = softmax(f_k(h_k, sg p_{k-1})),   t = (1 - s) y + s / C
    code:   L_k = alpha_k KL(t || p_k) + (1 - alpha_k) KL(sg p_{k-1} || p_k)
    paper:  L_k = alpha_k KL(p_k || t) + (1 - alpha_k) KL(p_k || sg p_{k-1})        (needs s > 0)

    trunk:   h_k = block_k(sg h_{k-1}); nothing is shared.
    shared:  h_k = z = extractor(x) for all k; the extractor gets the sum of all blocks' gradients: an update lock.

belief:  what f_k makes of p_{k-1}: one of its inputs (features, as published), log p_k = f_k(h_k) + log p_{k-1} up to a
         constant (residual), or nothing.  none is the control that decides the claim: parallel heads, each trained on
         what its belief would be if all before it were perfect, L_k = KL(t_k || p_k), t_k = (1 - r_k) t + r_k / C with
         r_k = prod_{j <= k} (1 - alpha_j) (and KL(p_k || t_k), t_k the geometric mean, in the paper's direction).

The published algorithm caches beliefs in a first, graph-free sweep; since no parameter moves between its two sweeps,
one sweep with the same stop-gradient computes the same numbers.   B batch, C classes, D features;
`...` is B, or B, T where every token has a label of its own.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sidestep.core.block import Block, Chain
from sidestep.core.cell import Batch, Cell
from sidestep.core.cut import CutPlan
from sidestep.core.emit import Emit, Message
from sidestep.core.method import Method
from sidestep.core.program import Each, Program, Up
from sidestep.core.task import Classification, Task, classes
from sidestep.nn.beliefs import (
    BeliefModule,
    Cascade,
    Direction,
    Use,
    descent,
    distance,
    local_objective,
    perfect,
    population,
    read_out,
    uniform,
)
from sidestep.nn.heads import HIDDEN, Head, HeadKind, check_hidden, pooled_width, pooling
from sidestep.nn.per_block import PerBlock, alphas, check_smoothing, remainders


@dataclass(frozen=True)
class SID(Method):
    """Beliefs refined block by block, each block with an objective of its own."""

    reference: ClassVar[str] = "arXiv:2510.03273"
    needs: ClassVar[str] = "classes; any chain (trunk), or any model with a classifier at its end (shared)"

    alpha: PerBlock = 0.5  # weight of the labels, for all blocks; or one per block: 1,0.5,0.25 or linear:1:0.1
    form: Literal["trunk", "shared"] = "trunk"  # cut the network; or modules around one extractor, as published
    belief: Use = "features"  # what becomes of the belief before: an input, a sum of logs, none (parallel heads)
    direction: Direction = "code"  # of both divergences, the released code's or the paper's
    label_smoothing: float = 0.0  # s, of the target t
    head: HeadKind = "auto"  # trunk: the last block has a head like the others; the model's classifier is left out
    head_width: int = 128  # channels of a conv head, hidden units of an mlp head
    head_depth: int = 1  # convolutions of a conv head, hidden layers of an mlp head
    hidden: int = 256  # shared: hidden units of a belief module, as released
    module_norm: bool = False  # shared: BatchNorm on them

    def __post_init__(self) -> None:
        self.check_choices()
        alphas(self.alpha)
        check_hidden(self.head_width, self.head_depth)
        trunk, shared = ("form", ("trunk",)), ("form", ("shared",))
        self.check_read(
            {"head": trunk, "head_width": trunk, "head_depth": trunk, "hidden": shared, "module_norm": shared}
        )
        self.check_read({"head_width": HIDDEN, "head_depth": HIDDEN})
        check_smoothing(self.label_smoothing)
        if self.direction == "paper" and self.label_smoothing == 0:
            raise ValueError(
                "direction='paper' has KL(p || t), infinite for one-hot targets; give label_smoothing > 0, such as 0.1."
            )

    def build(self, model: nn.Module, task: Task, plan: CutPlan) -> Chain:
        alphas(self.alpha, plan.blocks)
        task = classes(task, "sid")
        seen = task.num_classes if self.belief == "features" else 0
        if self.form == "shared":
            if plan.at:
                raise ValueError(f"got at={','.join(plan.at)} with form='shared', which does not cut; leave it out.")
            whole = replace(plan, blocks=1)(model, task.sample)
            width = pooled_width(whole.features[-1])
            modules = [
                BeliefModule(
                    width, task.num_classes, self.hidden, belief=seen, per_token=task.per_token, norm=self.module_norm
                )
                for _ in range(plan.blocks)
            ]
            blocks = [Block(i, plan.blocks, net) for i, net in enumerate(modules)]
            read = pooling(width, norm=whole.may_be_sums[-1], per_token=task.per_token)
            return Chain(blocks, hub=nn.Sequential(whole.bodies[-1], read))
        slices = plan(model, task.sample)
        heads = [
            Head(
                shape,
                task.num_classes,
                self.head,
                belief=seen,
                width=self.head_width,
                depth=self.head_depth,
                norm=norm,
                per_token=task.per_token,
            )
            for shape, norm in zip(slices.features, slices.may_be_sums, strict=True)
        ]
        blocks = [
            Block(i, len(heads), body, head=head)
            for i, (body, head) in enumerate(zip(slices.bodies, heads, strict=True))
        ]
        return Chain(blocks, at=slices.at)

    def program(self) -> Program:
        if self.form == "trunk":
            return (Up(self.refine),)
        return (Each(self.refine_shared) if self.belief == "none" else Up(self.refine_shared),)

    def inference(self) -> Program:
        return self.program()

    def encode(self, hub: nn.Module | None, batch: Batch) -> Message:
        return () if hub is None else (hub(batch.x),)

    def source(self, batch: Batch, shared: Message, task: Task) -> Message:
        features = (batch.x,) if self.form == "trunk" else ()
        if self.belief == "none":
            return features
        assert isinstance(task, Classification)
        return (*features, uniform(task.label_shape(batch.x), task.num_classes, batch.x.device))

    def refine(self, cell: Cell, h: Tensor, log_prev: Tensor | None = None) -> Emit:
        """h: the features of the block before; log_prev: (..., C) its belief."""
        h = cell.block.net(h)
        return self.judge(cell, read_out(cell.block.extras["head"], h, log_prev, self.belief), log_prev, h)

    def refine_shared(self, cell: Cell, log_prev: Tensor | None = None) -> Emit:
        """log_prev: (..., C) the belief of the module before."""
        (z,) = cell.shared
        return self.judge(cell, read_out(cell.block.net, z, log_prev, self.belief), log_prev)

    def judge(self, cell: Cell, logits: Tensor, log_prev: Tensor | None, *features: Tensor) -> Emit:
        """The block's belief, its objective, and what it passes on."""
        log_p = F.log_softmax(logits.float(), -1)
        loss = None
        if cell.training:
            alpha = alphas(self.alpha, cell.block.count)
            if log_prev is None:
                t = perfect(cell.target(), cell.own(remainders(alpha)), self.label_smoothing, self.direction)
                loss = distance(t, log_p, self.direction).mean()
            else:
                t = cell.target(self.label_smoothing)
                loss = local_objective(t, log_p, log_prev, cell.own(alpha), self.direction).mean()
        return Emit(send=features if log_prev is None else (*features, log_p), loss=loss, logits=logits)

    def descent(
        self, logits: Sequence[Tensor], y: Tensor, task: Task, p_y: Tensor | None = None
    ) -> Mapping[str, Tensor]:
        if self.belief == "none":
            return {}  # no block receives a belief that it could refine
        assert isinstance(task, Classification)
        t = task.target(y, self.label_smoothing).double()
        alpha = alphas(self.alpha, len(logits))
        measured = descent(t, [F.log_softmax(block.double(), -1) for block in logits], alpha, self.direction)
        truth = task.target(y).double() if p_y is None else p_y.double()
        predicted = [p.log() for p in population(truth, alpha, self.label_smoothing, self.direction)]
        far = torch.stack([measured["D"][0], *(distance(t, log_p, self.direction) for log_p in predicted)])
        return measured | {"D_population": far}

    def export(self, chain: Chain) -> nn.Module:
        shared = self.form == "shared"
        stages = [(nn.Identity(), b.net) if shared else (b.net, b.extras["head"]) for b in chain.blocks]
        if self.belief == "none":  # the answer is the last head's, and it needs no other
            extractor = [] if chain.hub is None else [chain.hub]
            return nn.Sequential(*extractor, *(net for net, _ in stages), stages[-1][1])
        return Cascade(stages, chain.hub, self.belief)
