"""What numbers are computed in: `fp32`, or `bf16` by autocast."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch


def choose_precision(name: str, device: torch.device) -> str:
    """`auto` is bf16 where the hardware computes in it, else fp32."""
    if name != "auto":
        return name
    if device.type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp32"
    # torch has no public question for what the CPU computes in.
    fast = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()  # pyright: ignore[reportPrivateUsage]
    return "bf16" if fast else "fp32"


def autocast_dtype(precision: str) -> torch.dtype | None:
    """What autocast is opened with; None for fp32, which needs none."""
    return torch.bfloat16 if precision == "bf16" else None


def computed_in(device: torch.device, dtype: torch.dtype | None) -> AbstractContextManager[object]:
    """Autocast to this, or, of None, float32 as it is."""
    return nullcontext() if dtype is None else torch.autocast(device.type, dtype)
