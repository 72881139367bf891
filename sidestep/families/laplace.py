"""Laplace around 0: T(z) = -|z|, eta = 1 / scale > 0.  A = log(2 / eta), E[T(z)] = -1 / eta.

A Laplace with a location of its own is no exponential family, and the product of two such messages is no Laplace: it
has a kink at either location.  Around 0 products add, and what a latent says it says by its scale.

B, D, `...` as in family.py; P = 1.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import final

import torch
import torch.nn.functional as F
from torch import Generator, Tensor

from sidestep.errors import UsageError

from .family import Family, at_least_float32, check_least_precision, check_precision, to_precision, uniform_like


@final
@dataclass(frozen=True)
class Laplace(Family):
    """Real units around 0 with a scale; natural parameters and z are (..., D).

    Raises UsageError for a location other than 0.
    """

    location: float = 0.0
    least_precision: float = 1.0  # 1 / scale that `to_natural` gives: one wide latent throws training off

    def __post_init__(self) -> None:
        check_least_precision(self.least_precision)
        if self.location != 0:
            raise UsageError(
                f"got location={self.location}, expected 0: a Laplace with a location of its own is no exponential "
                "family, and a product of two is no Laplace; use gaussian where latents need a mean."
            )

    def width(self, d: int) -> int:
        return d

    def check(self, natural: Tensor, *, zero: bool = False) -> None:
        super().check(natural, zero=zero)
        check_precision(natural, "Laplace", zero=zero)

    def to_natural(self, raw: Tensor) -> Tensor:
        return to_precision(at_least_float32(raw), self.least_precision)

    def log_partition(self, natural: Tensor) -> Tensor:
        return (math.log(2) - at_least_float32(natural).log()).sum(-1)

    def mean(self, natural: Tensor) -> Tensor:
        return -1 / at_least_float32(natural)

    def mean_latent(self, natural: Tensor) -> Tensor:
        """0 for every law, so that the next block is told minus the scale, E[T(z)]."""
        return torch.zeros_like(at_least_float32(natural))

    def told(self, z: Tensor) -> Tensor:
        return -z.abs()

    def message(self, raw: Tensor) -> Tensor:
        """Precisions of all classes: at least 0, and 0 for the class that is the least certain."""
        precision = F.softplus(at_least_float32(raw))
        return precision - precision.amin(0)

    def less(self, own: Tensor, common: Tensor) -> Tensor:
        """The message as it is: one below 0 would leave the family."""
        return own

    def entropy(self, natural: Tensor) -> Tensor:
        return (1 + math.log(2) - at_least_float32(natural).log()).sum(-1)

    def kl(self, p: Tensor, q: Tensor) -> Tensor:
        ratio = at_least_float32(q) / at_least_float32(p)
        return (ratio - 1 - ratio.log()).sum(-1)

    def log_prob(self, z: Tensor, natural: Tensor) -> Tensor:
        eta = at_least_float32(natural)
        return (eta.log() - math.log(2) - eta * z.abs()).sum(-1)

    def sample(self, natural: Tensor, generator: Generator) -> Tensor:
        """z, (..., D), reparameterised: its gradient is the unbiased pathwise one."""
        eta = at_least_float32(natural)
        first, second = (torch.log1p(-uniform_like(eta, generator)) for _ in range(2))
        return (first - second) / eta  # the difference of two exponentials is a Laplace
