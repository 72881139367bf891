"""Randomness as a function of (seed, step, micro-batch, block, pass): equal in every engine, after every resume."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Generator
from contextlib import contextmanager

import torch


def key(*parts: int | str) -> int:
    """A 63-bit seed that depends on every part and on their order."""
    digest = hashlib.blake2b(repr(parts).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


def generator(seed: int, device: torch.device | str = "cpu") -> torch.Generator:
    return torch.Generator(device).manual_seed(seed)


@contextmanager
def global_rng(seed: int, device: torch.device | None = None) -> Generator[None, None, None]:
    """Seed the global generators that dropout, drop-path and initialisers read, and put them back afterwards.

    The only place in the library that touches them.
    """
    devices = [device] if device is not None and device.type == "cuda" else []
    python = random.getstate()
    with torch.random.fork_rng(devices, device_type="cuda"):
        torch.manual_seed(seed)
        random.seed(seed)
        try:
            yield
        finally:
            random.setstate(python)
