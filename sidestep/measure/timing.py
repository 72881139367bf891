"""Wall time of candidates that are run in turn, so that whatever slows the machine down slows all of them."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager

import numpy as np
import torch

from sidestep.errors import UsageError, unknown

Quartiles = tuple[float, float, float]
"""The median, and the quartiles below and above it."""


def interleaved(
    candidates: Mapping[str, Callable[[], object]],
    rounds: int,
    warmup: int = 3,
    device: torch.device | str = "cpu",
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, list[float]]:
    """Run every candidate once in each round and return its times in milliseconds, one per round.

    The candidate that begins moves on by one from round to round.  The `warmup` rounds before are not timed.  On CUDA
    the device has finished before a clock is read.  Raises UsageError for fewer than 1 round or a negative warm-up.
    """
    if rounds < 1 or warmup < 0:
        raise UsageError(f"got rounds={rounds} and warmup={warmup}, expected at least 1 round and 0 to warm up.")
    names = list(candidates)
    samples: dict[str, list[float]] = {name: [] for name in names}
    for r in range(-warmup, rounds):
        first = r % len(names) if names else 0
        for name in names[first:] + names[:first]:
            start = now(device, clock)
            candidates[name]()
            took = now(device, clock) - start
            if r >= 0:
                samples[name].append(1000 * took)
    return samples


def now(device: torch.device | str, clock: Callable[[], float] = time.perf_counter) -> float:
    """The time once the device has done what it was given."""
    device = torch.device(device)
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return clock()


def ratios(samples: Mapping[str, Sequence[float]], of: str, over: str) -> Quartiles:
    """The median and the quartiles of the ratios of `of`'s time to `over`'s, each within one round.

    Raises UsageError for a name that was not timed.
    """
    for name in (of, over):
        if name not in samples:
            raise unknown("candidate", name, samples)
    return quartiles([a / b for a, b in zip(samples[of], samples[over], strict=True)])


def quartiles(values: Sequence[float]) -> Quartiles:
    low, median, high = np.percentile(values, [25, 50, 75])
    return float(median), float(low), float(high)


def by_key(key: str, values: Quartiles) -> dict[str, float]:
    """As rows have them: `key`, `key_low` and `key_high`."""
    return dict(zip((key, f"{key}_low", f"{key}_high"), values, strict=True))


@contextmanager
def threads(count: int) -> Generator[None]:
    """Compute with so many."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
