"""Gaussian with mean mu and precision lam: T(z) = (z, -z^2 / 2), eta = (lam mu, lam), lam > 0.

    A = lam mu^2 / 2 - log(lam / 2 pi) / 2,   E[T(z)] = (mu, -(mu^2 + 1 / lam) / 2)

Products add: precisions, and means weighted by them.   B, D, `...` as in family.py; P = 2.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

import torch
from torch import Generator, Tensor

from .family import LOG_2PI, Family, at_least_float32, check_least_precision, check_precision, to_precision

LEAST_SQUARE = 1e-6
"""Added to the mean square of means, which may all be 0."""


@final
@dataclass(frozen=True)
class Gaussian(Family):
    """Real units with a mean and a precision; natural parameters are (..., 2 D), z is (..., D)."""

    mean_is_output = True
    learnt = 2
    least_precision: float = 100.0  # of `to_natural`: a message b moves by b / precision, and noise costs accuracy

    def __post_init__(self) -> None:
        check_least_precision(self.least_precision)

    def width(self, d: int) -> int:
        return 2 * d

    def check(self, natural: Tensor, *, zero: bool = False) -> None:
        super().check(natural, zero=zero)
        check_precision(halves(natural)[1], "Gaussian", zero=zero)

    def to_natural(self, raw: Tensor) -> Tensor:
        """raw: the mean of every unit, then the precision's softplus' argument of every unit."""
        mu, free = halves(at_least_float32(raw))
        lam = to_precision(free, self.least_precision)
        return torch.cat([lam * mu, lam], -1)

    def around(self, output: Tensor, *learnt: Tensor) -> Tensor:
        """The law whose means are the output, each precision following its mean by a slope and an offset.

        Over the mean square of all means, so that noise is a share of what it is added to, however large that is.
        """
        slope, offset = learnt
        mu = at_least_float32(output)
        free = to_precision(slope * mu + offset, self.least_precision)
        lam = free / (mu.square().mean(-1, keepdim=True) + LEAST_SQUARE)
        return torch.cat([lam * mu, lam], -1)

    def log_partition(self, natural: Tensor) -> Tensor:
        mu, lam = mean_and_precision(natural)
        return 0.5 * (lam * mu.square() - lam.log() + LOG_2PI).sum(-1)

    def mean(self, natural: Tensor) -> Tensor:
        mu, lam = mean_and_precision(natural)
        return torch.cat([mu, -0.5 * (mu.square() + 1 / lam)], -1)

    def mean_latent(self, natural: Tensor) -> Tensor:
        return mean_and_precision(natural)[0]

    def mean_told(self, natural: Tensor) -> Tensor:
        return self.mean_latent(natural)

    def tilted(self, a: Tensor, b: Tensor, m: float = 1.0) -> Tensor:
        """A message is of the location alone: a read-out that is quadratic in z made training diverge.  b: (..., D)."""
        potential, lam = halves(at_least_float32(a))
        moved = self.product(potential, b, m)
        return torch.cat([moved, lam.expand_as(moved)], -1)

    def tilting_kl(self, a: Tensor, b: Tensor, m: float = 1.0) -> Tensor:
        """(m b)^2 / (2 lam), summed: both have one precision."""
        _, lam = halves(at_least_float32(a))
        return 0.5 * ((m * at_least_float32(b)).square() / lam).sum(-1)

    def entropy(self, natural: Tensor) -> Tensor:
        _, lam = mean_and_precision(natural)
        return 0.5 * (1 + LOG_2PI - lam.log()).sum(-1)

    def kl(self, p: Tensor, q: Tensor) -> Tensor:
        mu_p, lam_p = mean_and_precision(p)
        mu_q, lam_q = mean_and_precision(q)
        ratio = lam_q / lam_p
        return 0.5 * (ratio - 1 - ratio.log() + lam_q * (mu_p - mu_q).square()).sum(-1)

    def log_prob(self, z: Tensor, natural: Tensor) -> Tensor:
        mu, lam = mean_and_precision(natural)
        return 0.5 * (lam.log() - LOG_2PI - lam * (z - mu).square()).sum(-1)

    def sample(self, natural: Tensor, generator: Generator) -> Tensor:
        """z, (..., D), reparameterised: its gradient is the unbiased pathwise one."""
        mu, lam = mean_and_precision(natural)
        return mu + torch.randn(mu.shape, generator=generator, dtype=mu.dtype, device=mu.device) * lam.rsqrt()


def halves(x: Tensor) -> tuple[Tensor, Tensor]:
    first, second = x.unflatten(-1, (2, -1)).unbind(-2)
    return first, second


def mean_and_precision(natural: Tensor) -> tuple[Tensor, Tensor]:
    potential, lam = halves(at_least_float32(natural))
    return potential / lam, lam
