"""A block's features as the law of latents: natural parameters out of a block, what the next one gets to know.

B batch, D channels, S positions, N natural parameters of a position.  Natural parameters are (B, S, N), what they tell
(B, S, D); a vector has one position.  Where every token has a label of its own, tokens are no positions of one sample
but samples of one position: (B, T, 1, N).  `...` is B, or B, T.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from sidestep.families.family import Family, at_least_float32, inner

from .heads import Head, HeadKind, pooled_width, spatial

ACTIVATIONS = (nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.ELU, nn.GELU, nn.SiLU, nn.Mish, nn.Sigmoid, nn.Tanh)


def opened(body: nn.Sequential) -> tuple[nn.Sequential, nn.Module | None]:
    """A block without the activation that closes it, and that activation; None where it ends in something else.

    The modules are the body's own, and the body is left as it was.
    """
    # named_children() would hide the second use of a module.
    named = body.named_modules(remove_duplicate=False)
    *before, (name, last) = [(path, child) for path, child in named if path and "." not in path]
    if isinstance(last, ACTIVATIONS):
        kept, closing = before, last
    elif type(last) is nn.Sequential and len(last):
        rest, closing = opened(last)
        kept = [*before, (name, rest)]
    else:
        kept, closing = [], None
    if closing is None:
        return body, None
    made = nn.Sequential()
    for child, module in kept:
        made.add_module(child, module)
    return made, closing


class Latents(nn.Module):
    """Makes a block's output (B, *shape) the natural parameters of its latents, and what is passed on of those.

    shape: of one sample's features: (D,), (D, H, W), or (T, D) tokens.  mapped: with a linear map of the block's own
    (1 x 1 on feature maps), as for one that ends in a sum; norm: and a LayerNorm before it.  per_token: a law for every
    token of (T, D).

    Where a family's mean is the network's output, as a Gaussian's, the features are the mean, and nothing is mapped:
    what there is besides takes a few numbers a channel.  (A map of all channels doubled what a multilayer perceptron
    costs.)
    """

    def __init__(
        self,
        family: Family,
        shape: torch.Size,
        *,
        mapped: bool,
        norm: bool = False,
        per_token: bool = False,
    ) -> None:
        super().__init__()
        self.family, self.shape, self.per_token = family, shape, per_token
        self.tokens = len(shape) == 2
        self.channels = pooled_width(shape)
        self.positions = 1 if per_token else shape.numel() // self.channels
        self.width = family.width(family.units(self.channels))  # N
        self.map: nn.Module = nn.Identity()
        # What `Family.around` takes besides, (D,) each; alike everywhere at the start.
        self.learnt = nn.ParameterList(nn.Parameter(torch.zeros(self.channels)) for _ in range(family.learnt))
        if mapped and not family.mean_is_output:
            d = self.channels
            made = nn.Conv2d(d, d, 1) if len(shape) == 3 else nn.Linear(d, d)
            # The network starts out as it is without latents, or normalised here.
            nn.init.eye_(made.weight.data.flatten(1))
            assert made.bias is not None
            nn.init.zeros_(made.bias)
            self.map = nn.Sequential(nn.LayerNorm(d, eps=1e-6), made) if norm else made

    def raw(self, h: Tensor) -> Tensor:
        """The block's output, (B, *shape), as what `Family.around` takes, (..., S, D)."""
        return self.by_position(self.map(h))

    def told(self, raw: Tensor) -> Tensor:
        """E[t(z)], (..., S, D), of `raw`."""
        return raw if self.family.mean_is_output else self.family.mean_of(raw)

    def forward(self, h: Tensor) -> Tensor:
        """The block's output, (B, *shape), as natural parameters, (..., S, N)."""
        return self.family.around(self.raw(h), *self.learnt)

    def by_position(self, x: Tensor) -> Tensor:
        """Channels of the block's shape, (B, N), (B, N, H, W) or (B, T, N), as (..., S, N)."""
        return x[..., None, :] if self.per_token else by_position(x)

    def features(self, told: Tensor) -> Tensor:
        """t(z) or its mean, (..., S, D), as the next block's input, (B, *shape)."""
        if len(self.shape) == 3:
            return told.unflatten(1, self.shape[1:]).permute(0, 3, 1, 2)
        return told.squeeze(-2) if self.per_token or not self.tokens else told


def by_position(x: Tensor) -> Tensor:
    """Features (B, N), (B, N, H, W) or (B, S, N) as (B, S, N).  No copy where channels come last in memory."""
    if x.dim() == 4:
        return x.permute(0, 2, 3, 1).flatten(1, 2)
    return x[:, None] if x.dim() == 2 else x


class ReadOut(nn.Module):
    """p(y | x) from a block's output, as `answer_of` has it: what inference needs of a block and its twin."""

    def __init__(self, latents: Latents, weights: Tensor | None, lift: nn.Module | None = None, draws: int = 0) -> None:
        super().__init__()
        self.latents, self.lift, self.draws = latents, lift, draws
        self.weights = None if weights is None else nn.Buffer(weights.detach().clone())

    def forward(self, h: Tensor) -> Tensor:
        """The block's output (B, *shape) to logits (..., C), or to a regression's answer."""
        return answer_of(self.latents, self.latents.raw(h), self.weights, self.lift, self.draws)


class Passed(nn.Module):
    """A block's output (B, *shape) to the next block's input, for inference."""

    def __init__(self, latents: Latents) -> None:
        super().__init__()
        self.latents = latents

    def forward(self, h: Tensor) -> Tensor:
        return self.latents.features(self.latents.told(self.latents.raw(h)))


def answer_of(latents: Latents, raw: Tensor, weights: Tensor | None, lift: nn.Module | None, draws: int = 0) -> Tensor:
    """What `answer_at` makes of the mean of alpha; or, from `draws` samples of it, the logits of the mean distribution.

    Of numbers, whose mean distribution is no Gaussian, the Gaussian with its mean and variance.  The noise is the same
    for every input, so that an answer is a function of it.  raw: of the block's output, as `Latents.raw` has it.
    """
    if not draws:
        return answer_at(latents, latents.told(raw), weights, lift)
    family, natural = latents.family, latents.family.around(raw, *latents.learnt)
    random = torch.Generator(natural.device).manual_seed(0)
    sample = torch.vmap(lambda law: family.sample(law, random), randomness="same")
    answers = [answer_at(latents, family.told(sample(natural)), weights, lift) for _ in range(draws)]
    each = at_least_float32(torch.stack(answers))
    if weights is not None:
        return each.log_softmax(-1).logsumexp(0) - math.log(draws)
    means, log_precisions = each.chunk(2, 2)
    variance = (-log_precisions).exp().mean(0) + means.var(0, correction=0)
    return torch.cat([means.mean(0), -variance.log()], 1)


def answer_at(latents: Latents, told: Tensor, weights: Tensor | None, lift: nn.Module | None) -> Tensor:
    """log p(y | z) of every class up to a constant, (..., C), of t(z) or its mean, (..., S, D).

    Linear in it, weights being (C, S, D), or (C, 1, D) where they are the same at all positions; or in a learned map of
    it, weights being (C, L).  Without weights the map's own output is the answer, as for targets that are no classes.
    """
    if lift is None:
        assert weights is not None
        return inner(told, weights)
    found = lift(latents.features(told))
    return found if weights is None else found @ weights.mT


def lift_kind(shape: torch.Size, kind: HeadKind, *, norm: bool = False) -> HeadKind:
    """That of the local head which is a lifted read-out but for its last layer; mlp where it would have no other.

    Raises ValueError for kind=linear there.
    """
    if kind == "linear" and not norm:
        raise ValueError("got head='linear' for a lifted read-out, expected conv or mlp; use read_out='linear'.")
    if kind != "auto":
        return kind
    return "conv" if spatial(shape) else "linear" if norm else "mlp"


def lifting(
    shape: torch.Size, kind: HeadKind, width: int, depth: int, *, norm: bool = False, per_token: bool = False
) -> Head:
    """A learned map of what is passed on, to (..., L): a local head but for its last linear layer."""
    kind = lift_kind(shape, kind, norm=norm)
    head = Head(shape, 1, kind, width=width, depth=depth, norm=norm, per_token=per_token)
    head.out = nn.Sequential(*list(head.out)[:-1])
    return head


def lifted_width(shape: torch.Size, kind: HeadKind, width: int, *, norm: bool = False) -> int:
    """L, how many numbers `lifting` makes of a sample or token."""
    return pooled_width(shape) if lift_kind(shape, kind, norm=norm) == "linear" else width
