"""Read-outs of a block's features.

B batch, C classes, D features, (D, H, W) feature maps, (T, D) tokens; `...` is B, or B, T in a head per token.
"""

from __future__ import annotations

from typing import Literal, get_args

import torch
from torch import Tensor, nn

HeadKind = Literal["auto", "linear", "conv", "mlp"]


class Pool(nn.Module):
    """Features of any shape to a vector: the mean over positions.  (B, D, H, W), (B, T, D) or (B, D) -> (B, D)."""

    def forward(self, h: Tensor) -> Tensor:
        if h.dim() == 4:
            return h.mean((2, 3))
        return h.mean(1) if h.dim() == 3 else h


def pooling(width: int, *, norm: bool = False, per_token: bool = False) -> nn.Sequential:
    """What comes first of all that reads features: LayerNorm of every vector or token, if asked; and the pool."""
    layers: list[nn.Module] = [nn.LayerNorm(width, eps=1e-6)] if norm else []
    return nn.Sequential(*layers, *([] if per_token else [Pool()]))


def pooled_width(shape: torch.Size) -> int:
    """D after `Pool`, from one sample's feature shape."""
    return shape[-1] if len(shape) == 2 else shape[0]


def spatial(shape: torch.Size) -> bool:
    """Whether features of this shape, of one sample, are maps of more than one position."""
    return len(shape) == 3 and shape[1] * shape[2] > 1


HIDDEN = "head", ("auto", "conv", "mlp")
"""The field, and its values, that read width and depth, as `Method.check_read` has it."""


def check_kind(kind: str) -> None:
    if kind not in get_args(HeadKind):
        raise ValueError(f"got head={kind!r}, expected one of {', '.join(get_args(HeadKind))}.")


def check_hidden(width: int, depth: int) -> None:
    """Raises ValueError for hidden layers of a head that are none."""
    for name, value in (("head_width", width), ("head_depth", depth)):
        if value < 1:
            raise ValueError(f"got {name}={value}, expected at least 1; head=linear has no hidden layer.")


class Head(nn.Module):
    """Features of a block, and an optional belief beside them, to logits.

    norm: LayerNorm first, of every vector or token.  linear: pool, then a linear map.  conv: at most 8 x 8 positions,
    `depth` 3 x 3 convolutions with BatchNorm and ReLU, then as linear.  mlp: `depth` hidden layers after the pool.
    auto: conv for feature maps, linear for the rest.  per_token: nothing is pooled, every token has logits of its own.
    """

    def __init__(
        self,
        shape: torch.Size,
        outputs: int,
        kind: HeadKind = "auto",
        *,
        belief: int = 0,
        width: int = 128,
        depth: int = 1,
        norm: bool = False,
        per_token: bool = False,
    ) -> None:
        super().__init__()
        check_kind(kind)
        if kind == "conv" and not spatial(shape):
            raise ValueError(
                f"got head='conv' for features of shape {tuple(shape)}, expected feature maps; use linear or mlp."
            )
        check_hidden(width, depth)
        self.classes, self.per_token = outputs, per_token
        features = pooled_width(shape)
        self.trunk = pooling(features, norm=norm, per_token=per_token)
        if kind == "conv" or (kind == "auto" and spatial(shape)):
            small = min(shape[1], 8), min(shape[2], 8)
            shrink = nn.AdaptiveAvgPool2d(small) if small != tuple(shape[1:]) else nn.Identity()
            layers: list[nn.Module] = []
            for inputs in (features, *[width] * (depth - 1)):
                conv = nn.Conv2d(inputs, width, 3, padding=1, bias=False)
                layers += [conv, nn.BatchNorm2d(width), nn.ReLU()]
            self.trunk = nn.Sequential(shrink, *layers, Pool())
            features = width
        features += belief
        hidden: list[nn.Module] = []
        for _ in range(depth if kind == "mlp" else 0):
            hidden += [nn.Linear(features, width), nn.ReLU()]
            features = width
        self.out = nn.Sequential(*hidden, nn.Linear(features, outputs))

    def forward(self, h: Tensor, *belief: Tensor) -> Tensor:
        """h: the block's features; belief: (..., C) beside the pooled features.  Returns logits (..., outputs)."""
        features = self.trunk(h)
        # Joining one tensor would still copy it.
        return self.out(torch.cat([features, *belief], -1) if belief else features)
