"""Block-local learning as its authors released it for ImageNet, which differs from the paper: see `bll` for that.

Kappel et al., arXiv:2305.14974, released code (github.com/CeFKZP/congenial-octo-tribble): no latents, no KL, no chain
of twins.  Blocks train on detached inputs by heads of their own, with a decorrelation term, beside class prototypes
that one linear map per block learns.

    n(h): max-pool over positions, less the mean over channels, of length 1
    P_c   = mean of n(sg h) over the batch's samples of class c, 0 where there is none
    L_k   = w_f 1/2 |W - P|^2 + w_c mean_ij [i != j] min((n_i . n_j)^2, 1) + w_s s / B^2 sum_i W_{y_i} . n_i
            + w_p CE(V pool(h), y) + w_d mean (f(x + eps noise) - sg h)^2   (W a constant in the third term)
    L_K   = w_y CE(logits, y)

What the release does against its own aim is a field: s = +1 drives activations away from their prototypes
(`similarity`), and the heads V never learn (`heads`), since their gradients are cleared before their optimizer sees
them.  Here all of a block is updated at once by one optimizer; the release gives W its own and moves it first.

B batch, C classes, D channels.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sidestep.core.block import Block, Chain
from sidestep.core.cell import Cell
from sidestep.core.cut import CutPlan
from sidestep.core.emit import Emit
from sidestep.core.method import Method
from sidestep.core.program import Program, Up
from sidestep.core.task import Task, classes
from sidestep.nn.heads import Pool, pooled_width
from sidestep.nn.per_block import check_smoothing


@dataclass(frozen=True)
class BLLReleased(Method):
    """BLL's released ImageNet code: local heads, decorrelation and class prototypes.

    Prototypes and decorrelation are a batch's: accumulated micro-batches have others than the whole.
    """

    reference: ClassVar[str] = "arXiv:2305.14974, released code"
    needs: ClassVar[str] = "any chain; one class an input"

    similarity: Literal["released", "mended"] = "released"  # released: away from the prototype; mended: towards it
    heads: Literal["untrained", "trained"] = "untrained"  # released: random heads that never learn
    classifier_weight: float = 0.43  # w_y
    prediction_weight: float = 0.55  # w_p
    decorrelation_weight: float = 0.7  # w_c
    similarity_weight: float = 0.25  # w_s
    feedback_weight: float = 1.0  # w_f
    denoise_weight: float = 0.0  # w_d; the release's configuration has 1, under a name that does not bind
    noise: float = 0.01  # eps
    label_smoothing: float = 0.1

    def __post_init__(self) -> None:
        self.check_choices()
        check_smoothing(self.label_smoothing)
        for name in (own.name for own in fields(self) if isinstance(own.default, float)):
            if not 0 <= (value := getattr(self, name)) < math.inf:
                raise ValueError(f"got {name}={value}, expected a finite number of at least 0.")

    def build(self, model: nn.Module, task: Task, plan: CutPlan) -> Chain:
        task = classes(task, "bll_released")
        if task.per_token:
            raise ValueError("bll_released compares whole inputs, got a label for every token; use bll.")
        slices = plan(model, task.sample)
        count = len(slices.bodies)
        blocks = [
            Block(
                k,
                count,
                slices.bodies[k],
                prototypes=nn.Linear(task.num_classes, pooled_width(shape), bias=False),
                head=LocalPrediction(shape, task.num_classes, trained=self.heads == "trained"),
            )
            for k, shape in enumerate(slices.features[:-1])
        ]
        return Chain([*blocks, Block(count - 1, count, slices.nets_for(task)[-1])], at=slices.at)

    def program(self) -> Program:
        return (Up(self.learn),)

    def inference(self) -> Program:
        return (Up(self.read),)

    def read(self, cell: Cell, h: Tensor) -> Emit:
        out = cell.block.net(h)
        return Emit(send=(out,), logits=out if cell.block.is_last else cell.block.extras["head"](out))

    def learn(self, cell: Cell, x: Tensor) -> Emit:
        block, y = cell.block, cell.y
        h = block.net(x)
        if block.is_last:
            return Emit(send=(h,), loss=self.classifier_weight * cell.task.loss(h, y, self.label_smoothing))
        n, target = directions(h), cell.target()
        weights = block.extras["prototypes"].weight.mT  # (C, D)
        assert isinstance(weights, Tensor)
        sign = 1 if self.similarity == "released" else -1
        with torch.autocast(x.device.type, enabled=False):
            terms = [
                (self.feedback_weight, 0.5 * (weights - prototypes(n.detach(), target)).square().sum()),
                (self.decorrelation_weight, decorrelation(n)),
                (self.similarity_weight, sign * (target @ weights.detach() * n).sum() / len(n) ** 2),
            ]
        terms.append((self.prediction_weight, cell.task.loss(block.extras["head"](h), y, self.label_smoothing)))
        if self.denoise_weight:
            noisy = x + self.noise * cell.randn(*x.shape)
            terms.append((self.denoise_weight, F.mse_loss(block.net(noisy), h.detach())))
        total = torch.stack([weight * term.float() for weight, term in terms]).sum()
        return Emit(send=(h,), loss=total)


class LocalPrediction(nn.Module):
    """V: pooled to about half of every side, flattened, a linear map without bias; never trained as released."""

    def __init__(self, shape: torch.Size, classes: int, *, trained: bool) -> None:
        super().__init__()
        side = [(s - 3) // 2 + 1 if s >= 3 else 1 for s in shape[1:]]
        spatial = len(shape) == 3
        self.pool = nn.AdaptiveAvgPool2d((side[0], side[1])) if spatial else Pool()
        features = shape[0] * side[0] * side[1] if spatial else pooled_width(shape)
        self.out = nn.Linear(features, classes, bias=False).requires_grad_(trained)

    def forward(self, h: Tensor) -> Tensor:
        return self.out(self.pool(h).flatten(1))


def directions(h: Tensor) -> Tensor:
    """n(h), (B, D), in float32."""
    if h.dim() == 4:
        h = h.amax((2, 3))
    elif h.dim() == 3:
        h = h.amax(1)
    h = h.float()
    return F.normalize(h - h.mean(-1, keepdim=True), dim=-1)


def prototypes(n: Tensor, target: Tensor) -> Tensor:
    """P, (C, D): the mean direction of every class in the batch, 0 for a class that is not in it.  target: (B, C)."""
    return target.mT @ n / target.sum(0).clamp(min=1e-6)[:, None]


def decorrelation(n: Tensor) -> Tensor:
    """The mean squared cosine of two samples' directions, a sample with itself counted as 0, ()."""
    squared = (n @ n.mT).square().clamp(max=1)
    return (squared - squared.diagonal().diag_embed()).mean()
