"""The least time that a step could take: its FLOPs at the rate of a matrix product, its bytes at that of a copy."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from statistics import median

import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.optimizer import register_optimizer_step_pre_hook

from sidestep.measure.flops import flops_per_sample
from sidestep.measure.memory import saved_bytes
from sidestep.measure.timing import interleaved

SIDE = {"cpu": 1024, "cuda": 8192}
"""Of the matrices whose product is timed: large enough for the best rate."""
COPIED = {"cpu": 2**27, "cuda": 2**30}
"""Bytes that are copied: more than caches hold."""
ROUNDS = 5


@dataclass(frozen=True)
class Rates:
    """What a device does at best, measured: FLOPs a second in one precision, bytes read or written a second."""

    flops: float
    bytes: float

    @classmethod
    def of(cls, device: torch.device, dtype: torch.dtype) -> Rates:
        """Measure the product of two square matrices, and a copy, which reads and writes."""
        side, size = SIDE[device.type], COPIED[device.type]
        a = torch.ones(side, side, device=device, dtype=dtype)
        source = torch.zeros(size, device=device, dtype=torch.uint8)
        both = {"product": partial(torch.mm, a, a), "copy": partial(torch.empty_like(source).copy_, source)}
        ms = {name: median(times) for name, times in interleaved(both, ROUNDS, device=device).items()}
        return cls(1000 * 2 * side**3 / ms["product"], 1000 * 2 * size / ms["copy"])


@dataclass(frozen=True)
class Demand:
    """What a step cannot do without: FLOPs of products and convolutions, and bytes moved."""

    flops: float
    bytes: int

    @classmethod
    def of(cls, step: Callable[[], object]) -> Demand:
        """Counted over a few calls of a step, which is neither compiled nor recorded.

        Bytes: what autograd saves is written and read once; a parameter is read in both passes and by its optimizer,
        which writes it; a gradient is written and read, and so is an optimizer's state.
        """
        parameters: list[Tensor] = []
        update = 0

        def count(optimizer: Optimizer, *_: object) -> None:
            nonlocal update
            for p in (p for group in optimizer.param_groups for p in group["params"] if p.grad is not None):
                state = sum(t.nbytes for t in optimizer.state[p].values() if isinstance(t, Tensor))
                update += 4 * p.nbytes + 2 * p.grad.nbytes + 2 * state
                parameters.append(p)

        step()  # optimizer state is made by the first
        hook = register_optimizer_step_pre_hook(count)
        try:
            step()
        finally:
            hook.remove()
        return cls(flops_per_sample(step, 1), update + 2 * saved_bytes(step, exclude=parameters))

    def floor(self, rates: Rates) -> dict[str, float]:
        """`flops_ms`, `bytes_ms`, and `floor_ms`, the larger: a device computes and moves at once."""
        times = {"flops_ms": 1000 * self.flops / rates.flops, "bytes_ms": 1000 * self.bytes / rates.bytes}
        return times | {"floor_ms": max(times.values())}
