"""SID's objective on beliefs over classes, its theory, and the network that inference runs.

B batch, C classes, K blocks; `...` is B, or B, T where every token has a belief of its own.
Beliefs travel as log-probabilities: one that underflows to 0 would make KLs infinite.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .divergences import kl
from .heads import Head
from .per_block import remainders

Direction = Literal["code", "paper"]
Use = Literal["features", "residual", "none"]
"""What a block makes of the belief before it: an input beside its features, a log-belief to add to, or nothing."""


def uniform(shape: Sequence[int], classes: int, device: torch.device, dtype: torch.dtype = torch.float32) -> Tensor:
    """The log-belief p_0 that knows nothing, (..., C).  shape: that of the labels."""
    return torch.full((*shape, classes), -math.log(classes), device=device, dtype=dtype)


def local_objective(t: Tensor, log_p: Tensor, log_prev: Tensor, alpha: float | Tensor, direction: Direction) -> Tensor:
    """L_i of every sample, (...), in nats.

    code:   alpha KL(t || p_i) + (1 - alpha) KL(p_{i-1} || p_i), the released code; t may be one-hot.
    paper:  alpha KL(p_i || t) + (1 - alpha) KL(p_i || p_{i-1}), arXiv:2510.03273; t must have full support.
    """
    if direction == "paper":
        p = log_p.exp()
        return (p * (log_p - alpha * t.log() - (1 - alpha) * log_prev)).sum(-1)
    # Both cross-entropies share log p_i; the two entropies shift the value and nothing else.
    prev = log_prev.exp()
    mixture = torch.lerp(prev, t, alpha)
    return ((1 - alpha) * prev * log_prev + alpha * torch.xlogy(t, t) - mixture * log_p).sum(-1)


def distance(t: Tensor, log_p: Tensor, direction: Direction) -> Tensor:
    """D = KL(t || p) for the code's direction, KL(p || t) for the paper's, (...)."""
    return kl(t.log(), log_p) if direction == "code" else kl(log_p, t.log())


def movement(log_prev: Tensor, log_p: Tensor, direction: Direction) -> Tensor:
    """C = KL(p_{i-1} || p_i) for the code's direction, KL(p_i || p_{i-1}) for the paper's, (...)."""
    return kl(log_prev, log_p) if direction == "code" else kl(log_p, log_prev)


def descent(t: Tensor, log_p: Sequence[Tensor], alpha: Sequence[float], direction: Direction) -> dict[str, Tensor]:
    """How far each block is from the target, how far it moved, and the slack of its own objective, per sample.

    t: (B, C) targets; log_p: K log-beliefs (B, C), p_0 being uniform.  Returns `D` (K+1, B) with D_0 first, `C` and the
    slack `e` = L_i(p_i) - L_i(p_{i-1}) (K, B), and `identity` (1, B), the difference of the two sides of
    D_K = D_0 - sum_i (1-alpha_i)/alpha_i C_i + sum_i e_i/alpha_i, which is 0 for any beliefs whatever.
    """
    beliefs = [uniform(t.shape[:1], t.shape[1], t.device, t.dtype), *log_p]
    steps = list(pairwise(beliefs))
    far = torch.stack([distance(t, p, direction) for p in beliefs])
    moved = torch.stack([movement(before, here, direction) for before, here in steps])
    slack = torch.stack(
        [
            local_objective(t, here, before, a, direction) - local_objective(t, before, before, a, direction)
            for a, (before, here) in zip(alpha, steps, strict=True)
        ]
    )
    weight = torch.tensor(alpha, dtype=t.dtype, device=t.device)[:, None]
    right = far[0] - ((1 - weight) / weight * moved).sum(0) + (slack / weight).sum(0)
    return {"D": far, "C": moved, "e": slack, "identity": (far[-1] - right)[None]}


def population(p_y: Tensor, alpha: Sequence[float], smoothing: float, direction: Direction) -> list[Tensor]:
    """The beliefs p_1..p_K that well-specified blocks reach on the population (T5), if P(y|x) is `p_y` (B, C)."""
    return [perfect(p_y, r, smoothing, direction) for r in remainders(tuple(alpha))]


def perfect(p_y: Tensor, r: float | Tensor, smoothing: float, direction: Direction) -> Tensor:
    """The belief with r_i = r, (..., C), of blocks that minimise their objectives, if P(y|x) is `p_y` (..., C): T5.

    code:   (1 - r_i) [(1-s) P + s/C] + r_i / C.
    paper:  proportional to exp((1 - r_i) Lambda P), Lambda = log(1 + C (1-s) / s); not calibrated.
    """
    classes = p_y.shape[-1]
    if direction == "code":
        return (1 - r) * ((1 - smoothing) * p_y + smoothing / classes) + r / classes
    return F.softmax((1 - r) * math.log(1 + classes * (1 - smoothing) / smoothing) * p_y, -1)


def read_out(head: nn.Module, h: Tensor, log_prev: Tensor | None, use: Use) -> Tensor:
    """A block's logits (..., C) of its features h and the log-belief (..., C) before it, None where none is passed."""
    if log_prev is None:
        return head(h)
    return head(h, log_prev.exp()) if use == "features" else head(h).float() + log_prev


class BeliefModule(nn.Module):
    """One module of the published form: logits f_i([p_{i-1}; z]), Linear(D + C, hidden)-ReLU-Linear(hidden, C).

    belief: the width of the belief it sees, C as published, or 0 for none.  per_token: z and beliefs are per token.
    norm: BatchNorm on the hidden units.  Raises ValueError for one of tokens, and for no hidden units.
    """

    def __init__(
        self,
        features: int,
        classes: int,
        hidden: int = 256,
        *,
        belief: int | None = None,
        per_token: bool = False,
        norm: bool = False,
    ) -> None:
        super().__init__()
        if norm and per_token:
            raise ValueError("got module_norm=true on tokens, expected one label a sample; leave it out.")
        if hidden < 1:
            raise ValueError(f"got hidden={hidden}, expected at least 1.")
        self.classes, self.per_token = classes, per_token
        inputs = features + (classes if belief is None else belief)
        norms = [nn.BatchNorm1d(hidden)] if norm else []
        self.layers = nn.Sequential(nn.Linear(inputs, hidden), *norms, nn.ReLU(), nn.Linear(hidden, classes))

    def forward(self, z: Tensor, *belief: Tensor) -> Tensor:
        """z: (..., D) the extractor's features; belief: (..., C) of the module before.  Returns logits (..., C)."""
        return self.layers(torch.cat([*belief, z], -1))


class Cascade(nn.Module):
    """What inference runs: every block's net and head, the belief of each passed to the next.  x -> logits (..., C).

    stages: (net, head) of each block, the head a BeliefModule or a Head.  A net continues from the features of the one
    before, the first from the extractor.
    """

    def __init__(
        self,
        stages: Sequence[tuple[nn.Module, nn.Module]],
        extractor: nn.Module | None = None,
        use: Use = "features",
    ) -> None:
        super().__init__()
        self.use: Use = use
        head = stages[0][1]
        assert isinstance(head, BeliefModule | Head)
        self.classes, self.per_token = head.classes, head.per_token
        self.extractor = extractor if extractor is not None else nn.Identity()
        self.nets = nn.ModuleList([net for net, _ in stages])
        self.heads = nn.ModuleList([head for _, head in stages])

    def forward(self, x: Tensor) -> Tensor:
        h = self.extractor(x)
        log_p = uniform(x.shape[: 2 if self.per_token else 1], self.classes, x.device)
        logits = log_p
        for net, head in zip(self.nets, self.heads, strict=True):
            h = net(h)
            logits = read_out(head, h, log_p, self.use)
            log_p = F.log_softmax(logits.float(), -1)
        return logits
