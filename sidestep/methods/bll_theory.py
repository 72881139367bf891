"""What BLL's theory speaks of, measured: how tight the bounds are, and whether feedback knows the forward weights.

B batch, C classes, S positions of a block's latents, N natural parameters of one; `...` is B, or B, T where every token
has a label.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Generator, Tensor, nn

from sidestep.families.family import Family

DRAWS = 16  # of a latent, for the estimate of its marginal likelihood


def bound_and_gap(
    law: Family, a: Tensor, rho: Tensor, price: Callable[[Tensor], Tensor], generator: Generator
) -> tuple[float, float]:
    """KL(rho || alpha) - E_rho[log p(y|z)], and how far it is above -log E_alpha[p(y|z)], in nats, means over samples.

    Of DRAWS samples z of rho, whose weights alpha(z) p(y|z) / rho(z) have that likelihood as their mean: the mean of
    their negative logarithms is the bound, the negative logarithm of their mean at least the truth in expectation
    (Burda et al., arXiv:1509.00519, theorem 1).  So the gap is measured from below, and is never negative.

    a, rho: natural parameters (..., S, N); price: t(z), (..., S, D), to -log p(y|z), (...).
    """
    logs: list[Tensor] = []
    for _ in range(DRAWS):
        z = law.sample(rho, generator)
        logs.append((law.log_prob(z, a) - law.log_prob(z, rho)).sum(-1) - price(law.told(z)))
    weights = torch.stack(logs)
    bound = -weights.mean(0)
    likelihood = weights.logsumexp(0) - math.log(DRAWS)
    return bound.mean().item(), (bound + likelihood).mean().item()


def feedback_angle(messages: Tensor, gradients: Tensor) -> float:
    """Degrees between b_k(y), (C, S or 1, D), and the gradients of the network's logits by E[t(z_k)], (C, S, D).

    Both less their means over classes.  At 90 degrees what is fed back knows nothing of the weights ahead.
    """
    messages = messages.expand_as(gradients)
    return degrees(messages - messages.mean(0), gradients - gradients.mean(0))


def weight_angle(step: nn.Module, ahead: nn.Module) -> float | None:
    """Degrees between a twin block's weights and the transposed ones of the forward block whose way back it goes.

    None unless both have one layer of weights and these have each other's shapes, as those of a mirror may.
    """
    back, forth = layers(step), layers(ahead)
    if len(back) != 1 or len(forth) != 1:
        return None
    there = forth[0].transpose(0, 1)
    if there.dim() == 4:
        there = there.flip(2, 3)
    return degrees(back[0], there) if back[0].shape == there.shape else None


def layers(module: nn.Module) -> list[Tensor]:
    """The weights of its linear layers and convolutions."""
    return [m.weight for m in module.modules() if isinstance(m, nn.Linear | nn.Conv2d)]


def gradients_of(logits: Tensor, told: Sequence[Tensor]) -> list[Tensor]:
    """Of every class's mean logit, of (..., C), by every block's E[t(z)], (..., S, D): (C, S, D) a block."""
    sums = logits.flatten(0, -2).mean(0)
    found = zip(*(torch.autograd.grad(s, told, retain_graph=True) for s in sums), strict=True)
    return [torch.stack([g.flatten(0, -3).sum(0) for g in each]) for each in found]


def degrees(a: Tensor, b: Tensor) -> float:
    """The angle between two tensors.  Waits for the device: it is asked for once an epoch."""
    return math.degrees(math.acos(F.cosine_similarity(a.flatten(), b.flatten(), 0).clamp(-1, 1).item()))
