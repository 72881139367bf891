"""Arithmetic on many numbers a few samples at a time, and once more for its gradient: for memory, and for the cache.

A block's latents are float32, and what is computed of them number by number would keep many tensors of their size for
the gradient, more than the block's own layers do.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

Rows = Callable[..., tuple[Tensor, ...]]
"""Tensors of some samples, (b, ...) each, and shared ones, to tensors (b, ...)."""

NUMBERS = {"cpu": 2**17, "cuda": 2**22}
"""Of a tile's largest input: half a mebibyte, which a core's cache holds; on a GPU enough to keep it busy."""

FEW = 4
"""So many tiles are computed at once: they hold little, and computing them twice took 0.3 of a step of small blocks."""


def tiled(make: Callable[[], Rows], rows: Sequence[Tensor], shared: Sequence[Tensor] = ()) -> tuple[Tensor, ...]:
    """fn(*rows, *shared) with fn = make(), by tiles of samples; what it keeps for its gradient it computes again.

    rows: (B, ...), of which a tile takes some; what fn does to a sample must not depend on the others.  make is called
    anew for the gradient, so that random numbers drawn in the order of tiles are the same.  fn must reach nothing that
    requires a gradient but by its arguments.  Where `FEW` tiles hold all, fn is simply called.
    """
    largest = max(row.numel() for row in rows)
    tiles = math.ceil(largest / NUMBERS.get(rows[0].device.type, NUMBERS["cuda"]))
    if tiles <= FEW:
        return make()(*rows, *shared)
    size = math.ceil(len(rows[0]) / tiles)
    return _Tiled.apply(make, len(rows), size, *rows, *shared)  # pyright: ignore[reportReturnType]  # torch types it as Any


class _Tiled(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, make: Callable[[], Rows], count: int, size: int, *tensors: Tensor) -> tuple[Tensor, ...]:
        device = tensors[0].device.type
        ctx.autocast = {
            "device_type": device,
            "enabled": torch.is_autocast_enabled(device),
            "dtype": torch.get_autocast_dtype(device),
        }
        ctx.make, ctx.count, ctx.size = make, count, size
        ctx.save_for_backward(*tensors)
        ctx.set_materialize_grads(False)
        fn = make()
        parts = [fn(*tile, *tensors[count:]) for tile in split(tensors[:count], size)]
        return tuple(torch.cat(part) for part in zip(*parts, strict=True))

    @staticmethod
    def backward(ctx: Any, *outer: Tensor | None) -> tuple[Tensor | None, ...]:
        tensors, needed = ctx.saved_tensors, ctx.needs_input_grad[3:]
        rows, shared = tensors[: ctx.count], tensors[ctx.count :]
        asked = [k for k, gradient in enumerate(outer) if gradient is not None]
        wanted = [i for i, need in enumerate(needed) if need]
        incoming = split([g for g in outer if g is not None], ctx.size)
        by_tile: dict[int, list[Tensor]] = {i: [] for i in wanted if i < ctx.count}  # of rows
        total: dict[int, Tensor] = {}  # of what all tiles share
        fn = ctx.make()
        for tile, above in zip(split(rows, ctx.size), incoming, strict=True):
            given = [t.detach().requires_grad_(need) for t, need in zip((*tile, *shared), needed, strict=True)]
            with torch.enable_grad(), torch.autocast(**ctx.autocast):
                outputs = fn(*given)
            pairs = [(outputs[k], g) for k, g in zip(asked, above, strict=True) if outputs[k].requires_grad]
            gradients = torch.autograd.grad(
                [output for output, _ in pairs],
                [given[i] for i in wanted],
                [gradient for _, gradient in pairs],
                materialize_grads=True,
            )
            for i, gradient in zip(wanted, gradients, strict=True):
                if i in by_tile:
                    by_tile[i].append(gradient)
                else:
                    total[i] = total[i] + gradient if i in total else gradient
        found = total | {i: torch.cat(gradients) for i, gradients in by_tile.items()}
        return (None, None, None, *(found.get(i) for i in range(len(tensors))))


def split(tensors: Sequence[Tensor], size: int) -> list[tuple[Tensor, ...]]:
    """Tiles of so many samples."""
    return list(zip(*(tensor.split(size) for tensor in tensors), strict=True))
