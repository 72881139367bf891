"""Bernoulli: z in {0, 1}, T(z) = z, eta the log-odds, any number.  A = softplus(eta), E[z] = sigmoid(eta).

B, D, `...` as in family.py; P = 1.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

import torch
import torch.nn.functional as F
from torch import Generator, Tensor

from .family import Family, at_least_float32, straight_through, uniform_like


@final
@dataclass(frozen=True)
class Bernoulli(Family):
    """Binary units; natural parameters and z are (..., D)."""

    def width(self, d: int) -> int:
        return d

    def to_natural(self, raw: Tensor) -> Tensor:
        return at_least_float32(raw)

    def log_partition(self, natural: Tensor) -> Tensor:
        return -F.logsigmoid(-at_least_float32(natural)).sum(-1)  # F.softplus is linear from 20 on, in float64 too

    def mean(self, natural: Tensor) -> Tensor:
        return at_least_float32(natural).sigmoid()

    def mean_latent(self, natural: Tensor) -> Tensor:
        return self.mean(natural)

    def entropy(self, natural: Tensor) -> Tensor:
        a = at_least_float32(natural)
        return -(a.sigmoid() * F.logsigmoid(a) + (-a).sigmoid() * F.logsigmoid(-a)).sum(-1)

    def kl(self, p: Tensor, q: Tensor) -> Tensor:
        """sum_j [sigmoid(p_j) (p_j - q_j) - softplus(p_j) + softplus(q_j)], without its cancellation."""
        p, q = at_least_float32(p), at_least_float32(q)
        # Exchanging 0 and 1 changes no KL, and where p >= 0 every term is as small as the whole for p and q far out.
        side = torch.where(p < 0, -1.0, 1.0)
        p, q = side * p, side * q
        return (F.logsigmoid(p) - F.logsigmoid(q) + (-p).sigmoid() * (q - p)).sum(-1)

    def log_prob(self, z: Tensor, natural: Tensor) -> Tensor:
        a = at_least_float32(natural)
        return (z * F.logsigmoid(a) + (1 - z) * F.logsigmoid(-a)).sum(-1)

    def sample(self, natural: Tensor, generator: Generator) -> Tensor:
        """z in {0, 1}, (..., D), its gradient that of E[z]: straight-through, biased unless used linearly.

        A score-function estimate is unbiased: multiply `log_prob` of the detached z by what it cost.
        """
        mean = self.mean(natural)
        return straight_through((uniform_like(mean, generator) < mean).to(mean.dtype), mean)
