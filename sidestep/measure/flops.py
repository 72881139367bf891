"""Floating-point operations of a step or a prediction, counted from the operations that run."""

from __future__ import annotations

from collections.abc import Callable

from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode


def flops_per_sample(fn: Callable[[], object], batch_size: int) -> float:
    """FLOPs of one call of `fn` on a batch, divided by its size; a multiply and an add count as two.

    Matrix products, convolutions and attention count, forward and backward and whatever is computed twice; element-wise
    work and the optimizer do not.  `fn` runs once: `lambda: engine.step(batch)` moves the parameters.
    """
    # The fused attention kernels are not counted on every device: as plain products all devices give one number.
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        fn()
    return counter.get_total_flops() / batch_size
