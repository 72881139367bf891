"""Each method's objective written straight from its paper, as one graph over the whole network: no engine, no program.

Where the paper stops a gradient, `detach` stands.  Of numbers one a block, a shorter chain takes the first.   B batch,
C classes.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from sidestep.core.block import Chain
from sidestep.core.keys import generator, key

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
    for block, smoothing in zip(chain.blocks, smoothings, strict=False):
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
    for block, alpha in zip(chain.blocks, alphas, strict=False):
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
    for block, alpha in zip(chain.blocks, alphas, strict=False):
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


def bll_released(
    chain: Chain, x: Tensor, y: Tensor, sign: int = 1, denoise_weight: float = 0.0, classes: int = CLASSES
) -> Tensor:
    """BLL as released, its configuration's weights; sign -1 mends the similarity.  Noise is 0 where there is any."""
    total, h = torch.zeros(()), x
    for block in chain.blocks:
        out = block.net(h.detach())
        if block.is_last:
            return total + 0.43 * cross_entropy(out, y, 0.1)
        top = out.amax((2, 3)) if out.dim() == 4 else out
        n = top - top.mean(1, keepdim=True)
        n = n / n.norm(dim=1, keepdim=True)
        (own,) = block.extras["prototypes"].parameters()
        w = own.T
        for c in range(classes):
            mean = n[y == c].mean(0).detach() if bool((y == c).any()) else torch.zeros(n.shape[1])
            total = total + 0.5 * (w[c] - mean).square().sum()
        cosines = sum((n[i] @ n[j]) ** 2 for i in range(len(n)) for j in range(len(n)) if i != j)
        total = total + 0.7 * cosines / len(n) ** 2
        alike = sum(w[y[i]].detach() @ n[i] for i in range(len(n)))
        total = total + sign * 0.25 * alike / len(n) ** 2
        total = total + 0.55 * cross_entropy(block.extras["head"](out), y, 0.1)
        if denoise_weight:
            total = total + denoise_weight * (block.net(h.detach()) - out.detach()).square().mean()
        h = out
    return total


def bll(
    chain: Chain,
    x: Tensor,
    y: Tensor,
    m: float = 1.0,
    w: float = 1.0,
    smoothing: float = 0.0,
    family: str = "bernoulli",  # at the mean of rho; or gaussian, the likelihood in closed form unless lifted
    least: float = 100.0,  # of a Gaussian's precision, whose mean is what comes out of the block
    chained: bool = True,  # every state made of the one after, or each of the classes
    lifted: bool = False,
    sampled: bool = False,  # a lifted read-out sees a sample of rho: the first that training draws with seed 0
    classifier: bool = False,
    predicted: bool = True,  # a label's message is less its mean under the block's own prediction
    bootstrap: bool = False,  # the mean of rho goes up; Bernoulli only
) -> Tensor:
    """Kappel et al. 2023, sum_k F_k, on feature maps: natural parameters (B, N, positions), messages (C, N, ...)."""
    t, total = soft(y, smoothing), torch.zeros(())

    def label(messages: Tensor) -> Tensor:
        return torch.einsum("bc,cnp->bnp", t, messages)

    u = [torch.eye(CLASSES)]
    for block in reversed(chain.blocks):
        step = block.extras["twin"].get_submodule("step")
        u.insert(0, step(u[0].detach() if chained else torch.eye(CLASSES)))
    h = x
    for block, state in zip(chain.blocks, u, strict=False):
        extras = block.extras
        found = block.net(h.detach())
        if family == "bernoulli":
            maps = extras["latents"].get_submodule("map")(found)
        else:
            slope, offset = extras["latents"].parameters()
            maps = slope[:, None, None] * found + offset[:, None, None]
        a, said = maps.flatten(2), extras["twin"].get_submodule("say")(state)
        positions = a.shape[-1]
        said = said[:, :, None].expand(-1, -1, positions) if said.dim() == 2 else said.flatten(2)
        if family == "bernoulli":
            b = (said - said.mean(0)) / positions
            alpha = a.sigmoid()
            p = (alpha.flatten(1) @ b.flatten(1).T).softmax(-1)
            rho = (a + m * (label(b) - torch.einsum("bc,cnp->bnp", p.detach(), b) if predicted else label(b))).sigmoid()
            kl = rho * (rho / alpha).log() + (1 - rho) * ((1 - rho) / (1 - alpha)).log()
            told, passed = alpha.reshape(maps.shape), (rho if bootstrap else alpha).reshape(maps.shape)
            miss = -(t * (rho.flatten(1) @ b.flatten(1).T).log_softmax(-1)).sum(-1)
        else:
            mu = found.flatten(2)
            precision = (F.softplus(a) + least) / (mu.square().mean(1, keepdim=True) + 1e-6)
            force = (said - said.mean(0)) / positions  # on the location; of the precision nothing is said
            v = extras["twin"].get_submodule("embed")(state.flatten(1)) if lifted else force
            v = v - v.mean(0)
            p = extras["lift"](found) @ v.T if lifted else torch.einsum("bnp,cnp->bc", mu, v)
            own = label(force)
            if predicted:
                own = own - torch.einsum("bc,cnp->bnp", p.softmax(-1).detach(), force)
            centre = mu + m * own / precision
            kl = precision * (centre - mu) ** 2 / 2
            if lifted:
                z = centre
                if sampled:
                    random = generator(key(key(0, 0, 0, block.index, "match"), "method"))
                    noise = torch.randn(len(x), positions, mu.shape[1], generator=random)  # channels come last
                    z = centre + noise.mT / precision.sqrt()
                price = -(extras["lift"](z.reshape(found.shape)) @ v.T).log_softmax(-1)
            else:
                here = (precision * centre).double()[:, None]  # of squares of hundreds a little is left
                there = here + force  # (B, C, units, positions), rho times every message
                log_partition = ((there**2 - here**2) / (2 * precision)[:, None]).float()
                means = force * centre[:, None]  # b . E[T(z)]
                price = log_partition.sum((2, 3)).logsumexp(-1, keepdim=True) - means.sum((2, 3))
            miss = (t * price).sum(-1)
            told = passed = found
        total = total + (w * kl.flatten(1).sum(-1) + miss).mean()
        if classifier and block.is_last:
            total = total + cross_entropy(extras["classifier"](told), y, smoothing)
        h = passed
    return total
