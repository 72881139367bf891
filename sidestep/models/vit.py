"""A small vision transformer, for any image size.

B batch, T tokens, W width.
"""

from __future__ import annotations

from collections import OrderedDict
from math import gcd

import torch
from torch import Tensor, nn

from sidestep.errors import UsageError
from sidestep.models.chained import Chained, positive, rate
from sidestep.models.transformer import Layer, divides


def vit_tiny(
    input_shape: tuple[int, int, int],
    num_classes: int,
    depth: int = 12,
    width: int = 192,
    heads: int = 3,
    patch: int = 0,
    dropout: float = 0.0,
    drop_path: float = 0.0,
) -> Chained:
    """ViT-Tiny, mean over tokens, no class token (Dosovitskiy et al. 2021, arXiv:2010.11929; size: arXiv:2012.12877).

    `patch=0` follows the image: 4 pixels up to a side of 32, 8 up to 64, else 16, or the patch nearest to that
    which divides both sides.  `drop_path` rises linearly from 0 at the first block to its value at the last.
    """
    positive(depth=depth, width=width, heads=heads)
    rate(dropout=dropout, drop_path=drop_path)
    divides(width, heads)
    channels, height, breadth = input_shape
    patch = patch or patch_for(height, breadth)
    if patch < 0 or height % patch or breadth % patch:
        raise UsageError(f"patch={patch} does not divide an image of {height}x{breadth}; choose one that does, or 0.")
    units: OrderedDict[str, nn.Module] = OrderedDict()
    units["embed"] = Embed(channels, width, patch, tokens=height * breadth // patch**2, dropout=dropout)
    for i in range(depth):
        units[f"block{i}"] = Layer(width, heads, dropout, drop_path * i / max(depth - 1, 1))
    units["classifier"] = nn.Sequential(nn.LayerNorm(width, eps=1e-6), TokenMean(), nn.Linear(width, num_classes))
    return Chained(units).apply(_init)


def patch_for(height: int, width: int) -> int:
    """The patch size that follows the image; of two equally near the smaller."""
    side, common = max(height, width), gcd(height, width)
    wanted = 4 if side <= 32 else 8 if side <= 64 else 16
    return min((p for p in range(1, common + 1) if common % p == 0), key=lambda p: abs(p - wanted))


class Embed(nn.Module):
    """Patches to tokens by one linear map, plus a learned position."""

    def __init__(self, channels: int, width: int, patch: int, tokens: int, dropout: float) -> None:
        super().__init__()
        self.project = nn.Conv2d(channels, width, patch, stride=patch)
        self.position = nn.Parameter(nn.init.trunc_normal_(torch.empty(1, tokens, width), std=0.02))
        self.drop = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:  # (B, channels, height, width) -> (B, T, W)
        return self.drop(self.project(x).flatten(2).transpose(1, 2) + self.position)


class TokenMean(nn.Module):
    """Mean over the tokens."""

    def forward(self, x: Tensor) -> Tensor:  # (B, T, W) -> (B, W)
        return x.mean(1)


def _init(module: nn.Module) -> None:
    if isinstance(module, nn.Linear | nn.Conv2d):
        nn.init.trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
