"""Label noise."""

from __future__ import annotations

import torch
from torch import Tensor

from sidestep.core.keys import generator, key
from sidestep.errors import UsageError


def check_rate(rate: float) -> None:
    if not 0 <= rate <= 1:
        raise UsageError(f"label noise {rate:g}; expected a rate from 0 to 1.")


def symmetric_noise(y: Tensor, rate: float, num_classes: int, seed: int) -> Tensor:
    """Redraw each label with probability `rate`, uniformly over all classes.

    A label may be drawn again, so a share rate * (C - 1) / C of them is wrong afterwards.  y: (N,) or (N, T) int64.
    """
    check_rate(rate)
    random = generator(key(seed, "label noise"))
    redraw = torch.rand(y.shape, generator=random, dtype=torch.float64) < rate
    return torch.where(redraw, torch.randint(num_classes, y.shape, generator=random), y)
