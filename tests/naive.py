"""Each method's objective written straight from its paper, as one graph over the whole network: no engine, no program.

Where the paper stops a gradient, `detach` stands.   B batch, C classes.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from sidestep.core.block import Chain

CLASSES = 5


def soft(y: Tensor, smoothing: float) -> Tensor:
    return (1 - smoothing) * F.one_hot(y, CLASSES).float() + smoothing / CLASSES


def cross_entropy(logits: Tensor, y: Tensor, smoothing: float) -> Tensor:
    return -(soft(y, smoothing) * F.log_softmax(logits, -1)).sum(-1).mean()


def backprop(chain: Chain, x: Tensor, y: Tensor, smoothing: float = 0.0) -> Tensor:
    for block in chain.blocks:
        x = block.net(x)
    return cross_entropy(x, y, smoothing)


def with_heads(chain: Chain, x: Tensor, y: Tensor, smoothings: list[float], isolated: bool) -> Tensor:
    """Lee et al. 2014, and Belilovsky et al. 2019 where `isolated`."""
    total = torch.zeros(())
    for block, smoothing in zip(chain.blocks, smoothings, strict=True):
        x = block.net(x.detach() if isolated else x)
        logits = block.extras["head"](x) if "head" in block.extras else x
        total = total + cross_entropy(logits, y, smoothing)
    return total


def sid(
    chain: Chain, x: Tensor, y: Tensor, alphas: list[float], direction: str, smoothing: float, residual: bool = False
) -> Tensor:
    """Ye & Tang 2025, both forms: sum_i L_i, with the belief before a module as a constant."""
    t = soft(y, smoothing)
    p = torch.full((len(x), CLASSES), 1 / CLASSES)
    h = x if chain.hub is None else chain.hub(x)
    total = torch.zeros(())
    for block, alpha in zip(chain.blocks, alphas, strict=True):
        before = p.detach()
        if chain.hub is None:
            h = block.net(h.detach())
            head = block.extras["head"]
            p = (head(h) + before.log()).softmax(-1) if residual else head(h, before).softmax(-1)
        else:
            p = block.net(h, before).softmax(-1)
        if direction == "code":
            target, consistency = torch.xlogy(t, t) - t * p.log(), before * (before.log() - p.log())
        else:
            target, consistency = p * (p.log() - t.log()), p * (p.log() - before.log())
        total = total + (alpha * target + (1 - alpha) * consistency).sum(-1).mean()
    return total


def parallel_heads(chain: Chain, x: Tensor, y: Tensor, alphas: list[float], direction: str, smoothing: float) -> Tensor:
    """SID's objectives with every belief before a module replaced by the exact minimiser of its own objective.

    The minimiser of alpha KL(t || p) + (1 - alpha) KL(q || p) is the mean alpha t + (1 - alpha) q; with the arguments
    the other way round it is the normalised geometric mean t^alpha q^(1 - alpha).
    """
    t = soft(y, smoothing)
    perfect = torch.full((len(x), CLASSES), 1 / CLASSES)
    h = x if chain.hub is None else chain.hub(x)
    total = torch.zeros(())
    for block, alpha in zip(chain.blocks, alphas, strict=True):
        if chain.hub is None:
            h = block.net(h.detach())
            p = block.extras["head"](h).softmax(-1)
        else:
            p = block.net(h).softmax(-1)
        if direction == "code":
            perfect = alpha * t + (1 - alpha) * perfect
            loss = torch.xlogy(perfect, perfect) - perfect * p.log()
        else:
            perfect = t**alpha * perfect ** (1 - alpha)
            perfect = perfect / perfect.sum(-1, keepdim=True)
            loss = p * (p.log() - perfect.log())
        total = total + loss.sum(-1).mean()
    return total
