"""What BLL (arXiv:2305.14974) asks of the law of a latent z: an exponential family whose units are independent.

    p(z) = exp(eta . T(z) - A(eta)),  A(eta) = log of the sum or integral over z of exp(eta . T(z)),  E[T(z)] = dA/deta

The base measure is 1 in every family here, so the normalised product of two densities has the sum of their natural
parameters eta.  Those are one flat tensor (..., P D), as a linear layer gives it: the first parameter of every unit,
then the second of every unit, and so on.  T(z) is laid out alike.  t(z) is that part of it which is told: all, but of a
Gaussian z alone.

Values are in nats, summed over units, and computed in float32 at least, whatever the inputs and autocast; nothing is
written in place, so all of it runs under vmap.  Only `check` looks at values: it makes a device wait.

B batch, D units, P natural parameters of a unit, C classes; `...` is any leading dimensions, the batch among them.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Generator, Tensor

from sidestep.errors import UsageError


class Family(ABC):
    """A law of D independent units.  Final subclasses are frozen dataclasses."""

    mean_is_output: ClassVar[bool] = False  # of `around`: E[t(z)] is the network's output
    learnt: ClassVar[int] = 0  # how many numbers a channel `around` takes beside the network's output

    def units(self, channels: int) -> int:
        """How many units tell `channels` numbers.  Raises UsageError where they do not divide so."""
        return channels

    @abstractmethod
    def width(self, d: int) -> int:
        """P d: how many natural parameters d units need."""

    def check(self, natural: Tensor, *, zero: bool = False) -> None:
        """Raises UsageError where the natural parameters (..., P D) are NaN, infinite, or outside the family's domain.

        zero: allow a precision of 0, as in the message of a twin that says nothing; no law has it.
        """
        if natural.shape[-1] % self.width(1):
            raise UsageError(
                f"got {natural.shape[-1]} natural parameters, expected a multiple of {self.width(1)} for "
                f"{type(self).__name__}; make the layer before it width(d) wide."
            )
        finite = natural.isfinite()
        if not finite.all():
            raise UsageError(
                f"got a natural parameter {natural[~finite][0].item()} for {type(self).__name__}, expected a finite "
                "number; look at the network's output before it, or lower the learning rate."
            )

    @abstractmethod
    def to_natural(self, raw: Tensor) -> Tensor:
        """A network's unconstrained output (..., P D) as natural parameters inside the domain."""

    def around(self, output: Tensor, *learnt: Tensor) -> Tensor:
        """Natural parameters, (..., P D), of a network's output, (..., channels), and of numbers learnt beside it.

        learnt: (channels,) each.
        """
        return self.to_natural(output)

    @abstractmethod
    def log_partition(self, natural: Tensor) -> Tensor:
        """A(eta), (...)."""

    @abstractmethod
    def mean(self, natural: Tensor) -> Tensor:
        """E[T(z)] = dA/deta, (..., P D)."""

    @abstractmethod
    def mean_latent(self, natural: Tensor) -> Tensor:
        """E[z], shaped like z."""

    @abstractmethod
    def entropy(self, natural: Tensor) -> Tensor:
        """-E[log p(z)], (...).  Negative where a density is narrow."""

    @abstractmethod
    def kl(self, p: Tensor, q: Tensor) -> Tensor:
        """KL(p || q) of two laws given by natural parameters, (...), broadcast against each other."""

    @abstractmethod
    def log_prob(self, z: Tensor, natural: Tensor) -> Tensor:
        """log p(z), (...)."""

    @abstractmethod
    def sample(self, natural: Tensor, generator: Generator) -> Tensor:
        """One z from every law.  Each family says which estimator of the gradient comes with it."""

    def told(self, z: Tensor) -> Tensor:
        """t(z), what read-outs and the next block get to know of z, (..., channels)."""
        return z

    def mean_told(self, natural: Tensor) -> Tensor:
        """E[t(z)], (..., channels)."""
        return self.mean(natural)

    def mean_of(self, raw: Tensor) -> Tensor:
        """E[t(z)] of the law that `to_natural` makes of a network's output, (..., channels)."""
        return self.mean_told(self.to_natural(raw))

    def message(self, raw: Tensor) -> Tensor:
        """A network's outputs for every class, (C, ..., channels), as b_y of beta_y = exp(b_y . t(z)), centred over y.

        What all classes have in common changes no read-out b_y . t(z), only KL(rho || alpha).  The products with any
        law of the family stay in the family, for every m.
        """
        raw = at_least_float32(raw)
        return raw - raw.mean(0)

    def less(self, own: Tensor, common: Tensor) -> Tensor:
        """A label's message less what is expected of it, as far as products with it stay in the family."""
        return own - common

    def product(self, a: Tensor, b: Tensor, m: float = 1.0) -> Tensor:
        """Natural parameters of the law proportional to alpha(z) beta(z)^m: a + m b.

        Raises UsageError for m below 0: dividing by a message may leave the family.
        """
        if not m >= 0:
            raise UsageError(
                f"got m={m}, expected at least 0: alpha * beta^m need not be a {type(self).__name__} otherwise."
            )
        return at_least_float32(a) + m * at_least_float32(b)

    def tilted(self, a: Tensor, b: Tensor, m: float = 1.0) -> Tensor:
        """Natural parameters of the law proportional to alpha(z) exp(m b . t(z)).  Raises UsageError as `product`.

        a: of alpha, (..., P D); b: of a message, (..., channels); broadcast against each other.
        """
        return self.product(a, b, m)

    def tilting_kl(self, a: Tensor, b: Tensor, m: float = 1.0) -> Tensor:
        """KL(rho || alpha) of rho = tilted(a, b, m), (...)."""
        return self.kl(self.tilted(a, b, m), a)


def inner(told: Tensor, b: Tensor) -> Tensor:
    """b_y . t(z) of every class over all positions, (..., C); t(z) or its mean: (..., S, D), b: (C, S or 1, D)."""
    with torch.autocast(b.device.type, enabled=False):
        told = told.to(b)
        return told.sum(-2) @ b[:, 0].mT if b.shape[1] == 1 else told.flatten(-2) @ b.flatten(1).mT


def cross_entropy_bound(
    family: Family,
    r: Tensor,  # (..., S, P D)
    b: Tensor,  # (C, S or 1, channels)
    *,
    check: bool = True,
) -> Tensor:
    """The price of every label y under the read-out q(y|z) = softmax_y(b_y . t(z)), where z has parameters r, (..., C).

        log sum_y' exp(A(r + b_y') - A(r)) - b_y . E[t(z)]   >=   E[-log q(y|z)]

    An upper bound, by Jensen's inequality: the logarithm stands outside the expectation.  With
    A(r + b) - A(r) = KL(r || r + b) + b . E[t(z)], which is how it is computed, it is the cross-entropy of the logits
    b . E[t(z)] but for the KLs beside them in the normaliser.  S positions, over which all is summed.  Takes memory for
    B C S P D numbers.

    check: raise UsageError where an r + b_y is outside the domain.  This makes a device wait and cannot run under vmap;
    needless where b is in the domain itself, or has precisions of 0.
    """
    r, b = at_least_float32(r), at_least_float32(b)
    r_each = r[..., None, :, :]
    tilted = family.tilted(r_each, b)
    if check:
        try:
            family.check(tilted)
        except UsageError as error:
            raise UsageError(f"a posterior times a class's message is no {type(family).__name__}: {error}") from None
    logits = inner(family.mean_told(r), b)
    return (logits + family.kl(r_each, tilted).sum(-1)).logsumexp(-1, keepdim=True) - logits


def at_least_float32(x: Tensor) -> Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))


def to_precision(raw: Tensor, least: float) -> Tensor:
    """Any number to a precision of at least `least`."""
    # Of a view with short rows, as a Gaussian's is, softplus takes 14 times as long on a CPU.
    return F.softplus(raw.contiguous()) + least


def check_least_precision(least: float) -> None:
    if not 0 < least < math.inf:
        raise UsageError(f"got least_precision={least}, expected a finite number above 0.")


def check_precision(precision: Tensor, law: str, *, zero: bool) -> None:
    lowest = precision.min().item()
    if lowest < 0 or (lowest == 0 and not zero):
        raise UsageError(
            f"got a precision of {lowest:g} for {law}, expected {'at least' if zero else 'above'} 0; "
            "to_natural maps a network's output there."
        )


def uniform_like(x: Tensor, generator: Generator) -> Tensor:
    """Numbers in [0, 1), shaped like x."""
    return torch.rand(x.shape, generator=generator, dtype=x.dtype, device=x.device)


def straight_through(z: Tensor, mean: Tensor) -> Tensor:
    """The value of z, the gradient of its mean."""
    return z + (mean - mean.detach())


LOG_2PI = math.log(2 * math.pi)
