"""A small vision transformer, for any image size.

B batch, T tokens, W width, H heads.
"""

from __future__ import annotations

from collections import OrderedDict
from math import gcd

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sidestep.errors import UsageError
from sidestep.models.chained import Chained, positive, rate


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
    if width % heads:
        raise UsageError(f"width={width} does not divide into heads={heads}; choose a multiple.")
    channels, height, breadth = input_shape
    patch = patch or patch_for(height, breadth)
    if patch < 0 or height % patch or breadth % patch:
        raise UsageError(f"patch={patch} does not divide an image of {height}x{breadth}; choose one that does, or 0.")
    units: OrderedDict[str, nn.Module] = OrderedDict()
    units["embed"] = Embed(channels, width, patch, tokens=height * breadth // patch**2, dropout=dropout)
    for i in range(depth):
        units[f"block{i}"] = Encoder(width, heads, dropout, drop_path * i / max(depth - 1, 1))
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


class Encoder(nn.Module):
    """Pre-norm block: x + attention(LN(x)), then x + MLP(LN(x)); each branch is dropped per sample at `drop_path`."""

    def __init__(self, width: int, heads: int, dropout: float, drop_path: float) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width, eps=1e-6)
        self.attention = Attention(width, heads, dropout)
        self.norm2 = nn.LayerNorm(width, eps=1e-6)
        self.mlp = nn.Sequential(
            nn.Linear(width, 4 * width),
            nn.GELU(),
            nn.Dropout(dropout),
            nn.Linear(4 * width, width),
            nn.Dropout(dropout),
        )
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor) -> Tensor:  # (B, T, W) -> (B, T, W)
        x = x + self.drop_path(self.attention(self.norm1(x)))
        return x + self.drop_path(self.mlp(self.norm2(x)))


class Attention(nn.Module):
    """Multi-head self-attention."""

    def __init__(self, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.project = nn.Linear(width, width)
        self.drop = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:  # (B, T, W) -> (B, T, W)
        q, k, v = self.qkv(x).unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)  # each (B, H, T, W / H)
        return self.drop(self.project(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)))


class DropPath(nn.Module):
    """Stochastic depth (Huang et al. 2016, arXiv:1603.09382): a sample's whole branch is 0 with probability `rate`."""

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate

    def forward(self, x: Tensor) -> Tensor:  # (B, T, W) -> (B, T, W)
        if self.rate == 0 or not self.training:
            return x
        return x * F.dropout(x.new_ones(len(x), 1, 1), self.rate)


class TokenMean(nn.Module):
    """Mean over the tokens."""

    def forward(self, x: Tensor) -> Tensor:  # (B, T, W) -> (B, W)
        return x.mean(1)


def _init(module: nn.Module) -> None:
    if isinstance(module, nn.Linear | nn.Conv2d):
        nn.init.trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
