"""What BLL's theory speaks of, measured: how tight the bounds are, and whether feedback knows the forward weights.

B batch, C classes, S positions of a block's latents, D channels, N natural parameters of a position; `...` is B, or
B, T where every token has a label.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

import torch
import torch.nn.functional as F
from torch import Generator, Tensor, nn

from sidestep.core.block import Chain
from sidestep.core.cell import Batch, Cell
from sidestep.core.keys import key
from sidestep.core.task import Classification, Task
from sidestep.families.family import Family, cross_entropy_bound
from sidestep.nn.latents import answer_at

from .latent_block import Said, numbers, parts, surprise

if TYPE_CHECKING:
    from .bll import BLL

DRAWS = 16  # of a latent, for the estimate of its marginal likelihood


class Seen(NamedTuple):
    """A block, what its twin says, and alpha of a batch."""

    cell: Cell
    said: Said
    a: Tensor  # natural parameters, (..., S, N)
    told: Tensor  # E[t(z)], (..., S, D)


def diagnose(method: BLL, chain: Chain, batch: Batch, task: Task) -> Mapping[str, Sequence[float | None]]:
    """Of every block, on samples whose latents are alpha's, as at inference:

    bound, gap: F_k with w = 1, in closed form where the read-out is linear, by sampling elsewhere, and how far it is
    above -log E_alpha[p_k(y | z_k)], an estimate from below, in nats a label or number.
    angle: degrees between b_k(y) and the mean gradient of logit_y by E[t(z_k)].  The twin neither reads nor copies the
    weights through which z_k reaches the network's answer (no weight transport).  None at the last block where its
    messages are those weights by construction.
    weight_angle: degrees between the weights of twin mirror and the next block's, transposed.

    Every number waits for the device: this is for once an epoch.
    """
    with torch.enable_grad():
        seen = look(method, chain, batch, task)
        of_classes = isinstance(task, Classification)
        gradients = gradients_of(answer(seen), [s.told for s in seen]) if of_classes else []
    bounds = [bound(method, s) for s in seen]
    found: dict[str, Sequence[float | None]] = {
        "bound": [value / numbers(task) for value, _ in bounds],
        "gap": [gap / numbers(task) for _, gap in bounds],
    }
    if gradients:
        found["angle"] = [angle(s, gradient) for s, gradient in zip(seen, gradients, strict=True)]
    if method.twin == "mirror":
        pairs = zip(chain.blocks, chain.blocks[1:], strict=False)
        found["weight_angle"] = [*(weight_angle(parts(b)[1].step, ahead.net) for b, ahead in pairs), None]
    return found


def look(method: BLL, chain: Chain, batch: Batch, task: Task) -> list[Seen]:
    """What every block computes of a batch, its twin's part before."""
    cells = [Cell(block, batch, task, (), {}, key(batch.step, block.index)) for block in chain.blocks]
    above = method.sink(batch, (), task)
    for cell in () if method.twin == "linear" else reversed(cells):
        emit = method.feedback(cell, *above)
        cell.kept.update(emit.keep)
        above = emit.send
    found, h = list[Seen](), batch.x
    for cell in cells:
        latents, twin, _ = parts(cell.block)
        a = latents(cell.block.net(h))
        told = latents.family.mean_told(a).requires_grad_()  # of a frozen block it does not by itself
        h = latents.features(told)
        found.append(Seen(cell, method.said(cell, twin), a, told))
    return found


def answer(seen: Sequence[Seen]) -> Tensor:
    """The network's, from the mean of alpha_K."""
    cell, (_, weights), _, told = seen[-1]
    latents, _, lift = parts(cell.block)
    extras = cell.block.extras
    if "classifier" in extras:
        return extras["classifier"](latents.features(told))
    return answer_at(latents, told, weights, lift)


@torch.no_grad()
def bound(method: BLL, seen: Seen) -> tuple[float, float]:
    """F_k with w = 1 and its gap, in nats a label, or a sample's numbers.

    In closed form no sample's F_k is below -log E_alpha[p_k(y | z_k)]; of the mean of some draws that holds in
    expectation.
    """
    cell, (messages, weights), a, told = seen
    latents, _, lift = parts(cell.block)
    assert messages is not None
    own = method.own(cell, messages, answer_at(latents, told, weights, lift))
    rho = latents.family.tilted(a, own, method.mixed(cell))

    def price(told: Tensor) -> Tensor:
        return surprise(cell, answer_at(latents, told, weights, lift))

    sampled, gap = bound_and_gap(latents.family, a, rho, price, cell.generator())
    if lift or weights is None:
        return sampled, gap
    prices = cross_entropy_bound(latents.family, rho, weights, check=False)
    far = latents.family.tilting_kl(a, own, method.mixed(cell)).sum(-1)
    closed = (far + (cell.target() * prices).sum(-1)).mean().item()
    return closed, max(closed - sampled + gap, 0.0)  # which an unlucky estimate may be below, by little


def angle(seen: Seen, gradient: Tensor) -> float | None:
    """`feedback_angle` of one block; None where its messages are its answer's weights."""
    block, (messages, _) = seen.cell.block, seen.said
    given = block.is_last and parts(block)[2] is None and "classifier" not in block.extras
    return None if given or messages is None else feedback_angle(messages, gradient)


def bound_and_gap(
    law: Family, a: Tensor, rho: Tensor, price: Callable[[Tensor], Tensor], generator: Generator
) -> tuple[float, float]:
    """KL(rho || alpha) - E_rho[log p(y|z)], and how far it is above -log E_alpha[p(y|z)], in nats, means over samples.

    Of DRAWS samples z of rho, whose weights alpha(z) p(y|z) / rho(z) have that likelihood as their mean: the mean of
    their negative logarithms is the bound, the negative logarithm of their mean at least the truth in expectation
    (Burda et al., arXiv:1509.00519, theorem 1).  So the gap is measured from below, and is 0 or more but for rounding.

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
    """The angle between two tensors."""
    return math.degrees(math.acos(F.cosine_similarity(a.flatten(), b.flatten(), 0).clamp(-1, 1).item()))
