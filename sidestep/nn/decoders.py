"""A block's features read as maps, such as the image they were made of.

B batch, D features, (D, H, W) feature maps.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from .heads import HeadKind, check_hidden, check_kind

SCALE = 0.1
"""What a decoder's last layer is multiplied by, and that of the network it stands beside (`models/autoencoder.py`).

An adaptive optimizer moves every weight by its rate.  What a pixel's log-precision adds up has no normalisation behind
it, so that hundreds of such moves cost thousands of nats in single steps (Yang et al., arXiv:2203.03466, on output
multipliers; what it was worth here is in docs/LOG.md, 2026-11-24).
"""


class MapDecoder(nn.Module):
    """Features of a block to maps of another size, (B, outputs, *size).

    From maps, conv: `depth` 3 x 3 convolutions with BatchNorm and ReLU, and a last one; linear: a 1 x 1 convolution.
    Either gives every position its own f x f numbers of the maps (sub-pixel convolution: Shi et al., arXiv:1609.05158),
    f being how often the features' size goes into the maps', rounded up; what is then too large is interpolated.  From
    vectors, mlp: `depth` hidden layers, and a linear map to all positions; linear: that map alone.  auto: conv, mlp.
    What the last layer gives is multiplied by `SCALE`.
    """

    def __init__(
        self,
        shape: torch.Size,
        outputs: int,
        size: torch.Size,
        kind: HeadKind = "auto",
        *,
        width: int = 128,
        depth: int = 1,
    ) -> None:
        super().__init__()
        spatial = len(shape) == 3
        check_kind(kind)
        if kind == ("mlp" if spatial else "conv"):
            raise ValueError(f"got head={kind!r} for features of shape {tuple(shape)}, expected auto or linear.")
        check_hidden(width, depth)
        features, layers = shape[0], list[nn.Module]()
        if not spatial:
            features = shape.numel()
            layers.append(nn.Flatten())
        for _ in range(0 if kind == "linear" else depth):
            hidden = [nn.Conv2d(features, width, 3, padding=1, bias=False), nn.BatchNorm2d(width)]
            layers += [*(hidden if spatial else [nn.Linear(features, width)]), nn.ReLU()]
            features = width
        if spatial:
            side = 1 if kind == "linear" else 3
            factor = max(math.ceil(wanted / own) for wanted, own in zip(size, shape[1:], strict=True))
            layers += [nn.Conv2d(features, outputs * factor**2, side, padding=side // 2), nn.PixelShuffle(factor)]
            if size != torch.Size(factor * own for own in shape[1:]):
                layers.append(nn.Upsample(tuple(size), mode="bilinear", align_corners=False))
        else:
            layers += [nn.Linear(features, outputs * size.numel()), nn.Unflatten(1, (outputs, *size))]
        self.layers = nn.Sequential(*layers)

    def forward(self, h: Tensor) -> Tensor:
        return SCALE * self.layers(h)
