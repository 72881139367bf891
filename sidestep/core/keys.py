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

    The only place in the library that touches them.  While a step is recorded as a CUDA graph those of CUDA, which then
    cannot be seeded, are left alone: such a step draws nothing.
    """
    # Not torch.manual_seed: where CUDA is not initialised it formats a stack trace at every call, a third of a
    # millisecond that a small block cannot afford.
    generators = [torch.default_generator]
    if device is not None and device.type == "cuda" and not torch.cuda.is_current_stream_capturing():
        torch.cuda.init()  # there are no generators before
        generators.append(torch.cuda.default_generators[device.index or 0])
    states = [g.get_state() for g in generators]
    python = random.getstate()
    for g in generators:
        g.manual_seed(seed)
    random.seed(seed)
    try:
        yield
    finally:
        for g, state in zip(generators, states, strict=True):
            g.set_state(state)
        random.setstate(python)
