"""A small transformer with an answer for every token: causal (gpt), or one that sees the whole sequence (encoder).

B batch, T tokens, W width, C classes.
"""

from __future__ import annotations

import math
from collections import OrderedDict

from torch import Tensor, nn

from sidestep.models.chained import Chained, positive, rate
from sidestep.models.transformer import Layer, divides

STD = 0.02


def gpt(
    input_shape: tuple[int],
    num_classes: int,
    depth: int = 6,
    width: int = 128,
    heads: int = 4,
    dropout: float = 0.0,
) -> Chained:
    """GPT-2 and 3's decoder, with learned positions and untied embeddings (Brown et al. 2020, arXiv:2005.14165).

    input_shape: (T,), the most tokens it takes; they are the classes.  (B, T) int64 to logits (B, T, C).
    """
    return _stack(input_shape[0], num_classes, depth, width, heads, dropout, causal=True)


def encoder(
    input_shape: tuple[int],
    num_classes: int,
    depth: int = 6,
    width: int = 128,
    heads: int = 4,
    dropout: float = 0.0,
) -> Chained:
    """The network of `gpt` in which every token sees all others, as in BERT (Devlin et al. 2019, arXiv:1810.04805)."""
    return _stack(input_shape[0], num_classes, depth, width, heads, dropout, causal=False)


def _stack(tokens: int, classes: int, depth: int, width: int, heads: int, dropout: float, *, causal: bool) -> Chained:
    positive(depth=depth, width=width, heads=heads)
    rate(dropout=dropout)
    divides(width, heads)
    units: OrderedDict[str, nn.Module] = OrderedDict()
    units["embed"] = Embed(classes, width, tokens, dropout)
    for i in range(depth):
        units[f"block{i}"] = Layer(width, heads, dropout, causal=causal)
    units["classifier"] = nn.Sequential(nn.LayerNorm(width, eps=1e-6), nn.Linear(width, classes))
    net = Chained(units).apply(_init)
    for layer in net.modules():
        if isinstance(layer, Layer):  # as in GPT-2: the sum over all layers is as large as one
            for last in (layer.attention.project, layer.mlp[3]):
                assert isinstance(last, nn.Linear)
                nn.init.normal_(last.weight, std=STD / math.sqrt(2 * depth))
    return net


class Embed(nn.Module):
    """Tokens to vectors, plus a learned position."""

    def __init__(self, classes: int, width: int, tokens: int, dropout: float) -> None:
        super().__init__()
        self.token = nn.Embedding(classes, width)
        self.position = nn.Embedding(tokens, width)
        self.drop = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:  # (B, T) int64 -> (B, T, W)
        return self.drop(self.token(x) + self.position.weight[: x.shape[1]])


def _init(module: nn.Module) -> None:
    if isinstance(module, nn.Linear | nn.Embedding):
        nn.init.normal_(module.weight, std=STD)
        if isinstance(module, nn.Linear):
            nn.init.zeros_(module.bias)
