"""Stratified splits."""

from __future__ import annotations

import torch
from torch import Tensor

from sidestep.core.keys import generator, key


def stratified_split(y: Tensor, fraction: float, seed: int) -> tuple[Tensor, Tensor]:
    """Hold out `fraction` of the samples, the same share of every class.

    y: (N,) class indices; or (N, ...) tokens' or numbers, by which nothing is stratified.  Returns (kept, held), sorted
    indices into y that share none and cover all.  Each class gives its share within one sample and keeps at least one;
    so the total is round(fraction * N) unless that bound bites.
    """
    if y.dim() > 1:
        y = torch.zeros(len(y), dtype=torch.int64)
    counts = torch.bincount(y)
    # Rounding the running total, not each class: many small classes would otherwise all round the same way.
    edges = torch.cat([torch.zeros(1), counts.cumsum(0).double() * fraction]).round().long()
    share = torch.minimum(edges.diff(), (counts - 1).clamp(min=0))

    shuffled = torch.randperm(len(y), generator=generator(key(seed, "split")))
    by_class = shuffled[torch.argsort(y[shuffled], stable=True)]
    place = torch.arange(len(y)) - (counts.cumsum(0) - counts)[y[by_class]]
    held = place < share[y[by_class]]
    return by_class[~held].sort().values, by_class[held].sort().values
