"""A transformer's layer, which looks at an image's patches or at a text.

B batch, T tokens, W width, H heads.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from sidestep.errors import UsageError


class Layer(nn.Module):
    """Pre-norm: x + attention(LN(x)), then x + MLP(LN(x)); each branch is dropped per sample at `drop_path`."""

    def __init__(self, width: int, heads: int, dropout: float, drop_path: float = 0.0, *, causal: bool = False) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width, eps=1e-6)
        self.attention = Attention(width, heads, dropout, causal=causal)
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
    """Multi-head self-attention; causal: no token sees a later one."""

    def __init__(self, width: int, heads: int, dropout: float, *, causal: bool = False) -> None:
        super().__init__()
        self.heads, self.causal = heads, causal
        self.qkv = nn.Linear(width, 3 * width)
        self.project = nn.Linear(width, width)
        self.drop = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:  # (B, T, W) -> (B, T, W)
        q, k, v = self.qkv(x).unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)  # each (B, H, T, W / H)
        with kernel(q):
            found = F.scaled_dot_product_attention(q, k, v, is_causal=self.causal)
        return self.drop(self.project(found.transpose(1, 2).flatten(2)))


def kernel(q: Tensor) -> AbstractContextManager[object]:
    """torch's choice, but of bf16 on a CPU plain products: its fused kernel takes two to six times as long there."""
    slow = q.device.type == "cpu" and q.dtype == torch.bfloat16
    return sdpa_kernel(SDPBackend.MATH) if slow else nullcontext()


class DropPath(nn.Module):
    """Stochastic depth (Huang et al. 2016, arXiv:1603.09382): a sample's whole branch is 0 with probability `rate`."""

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate

    def forward(self, x: Tensor) -> Tensor:  # (B, T, W) -> (B, T, W)
        if self.rate == 0 or not self.training:
            return x
        return x * F.dropout(x.new_ones(len(x), 1, 1), self.rate)


def divides(width: int, heads: int) -> None:
    """Refuse a width that the heads cannot share."""
    if width % heads:
        raise UsageError(f"width={width} does not divide into heads={heads}; choose a multiple.")
