"""Categorical: one of S states, z and T(z) one-hot, eta the logits, any numbers.  A = logsumexp, E[z] = softmax.

One logit more than needed: adding a number to all of a unit's logits changes A by it and the law not at all.

B, D, `...` as in family.py; P = S, so of a flat tensor (..., S D) the first D entries belong to the first state.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

import torch
from torch import Generator, Tensor

from sidestep.errors import UsageError

from .family import Family, at_least_float32, straight_through, uniform_like


@final
@dataclass(frozen=True)
class Categorical(Family):
    """Units with `states` states each; natural parameters and z are (..., S D)."""

    states: int = 4

    def __post_init__(self) -> None:
        if self.states < 2:
            raise UsageError(f"got states={self.states}, expected at least 2; one state alone says nothing.")

    def units(self, channels: int) -> int:
        if channels % self.states:
            raise UsageError(
                f"got a block with {channels} channels for latents of {self.states} states, expected a multiple; "
                "choose states that divide it."
            )
        return channels // self.states

    def width(self, d: int) -> int:
        return self.states * d

    def by_state(self, flat: Tensor) -> Tensor:
        """(..., S D) as (..., S, D)."""
        return at_least_float32(flat).unflatten(-1, (self.states, -1))

    def log_probs(self, natural: Tensor) -> Tensor:
        """(..., S, D)."""
        return self.by_state(natural).log_softmax(-2)

    def to_natural(self, raw: Tensor) -> Tensor:
        return at_least_float32(raw)

    def log_partition(self, natural: Tensor) -> Tensor:
        return self.by_state(natural).logsumexp(-2).sum(-1)

    def mean(self, natural: Tensor) -> Tensor:
        return self.by_state(natural).softmax(-2).flatten(-2)

    def mean_latent(self, natural: Tensor) -> Tensor:
        return self.mean(natural)

    def entropy(self, natural: Tensor) -> Tensor:
        log_p = self.log_probs(natural)
        return -(log_p.exp() * log_p).sum((-2, -1))

    def kl(self, p: Tensor, q: Tensor) -> Tensor:
        log_p = self.log_probs(p)
        return (log_p.exp() * (log_p - self.log_probs(q))).sum((-2, -1))

    def log_prob(self, z: Tensor, natural: Tensor) -> Tensor:
        return (self.by_state(z) * self.log_probs(natural)).sum((-2, -1))

    def sample(self, natural: Tensor, generator: Generator) -> Tensor:
        """One-hot z, (..., S D), its gradient that of E[z]: straight-through, biased unless used linearly.

        A score-function estimate is unbiased: multiply `log_prob` of the detached z by what it cost.
        """
        logits = self.by_state(natural)
        gumbel = -(-uniform_like(logits, generator).log()).log()
        chosen = (logits + gumbel).argmax(-2, keepdim=True)
        z = chosen == torch.arange(self.states, device=logits.device)[:, None]
        return straight_through(z.to(logits.dtype), logits.softmax(-2)).flatten(-2)
