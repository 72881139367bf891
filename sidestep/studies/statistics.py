"""What may be said of numbers over seeds: means with their spread, and paired differences with an interval."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Difference:
    """The mean of n paired differences, and its 95 % interval (Student's t), None of a single pair."""

    mean: float
    low: float | None
    high: float | None
    values: tuple[float, ...]

    @property
    def n(self) -> int:
        return len(self.values)

    @property
    def verdict(self) -> str:
        """`above` and `below` are said only where the interval excludes 0."""
        if self.low is None or self.high is None:
            return "one seed, no interval"
        return "above" if self.low > 0 else "below" if self.high < 0 else "not distinguishable"


def paired(a: Mapping[int, float], b: Mapping[int, float]) -> Difference | None:
    """a - b over the seeds that both have; None if there are none.

    Runs of one seed share the split, the order of samples and the augmentation, so their difference varies less than
    either.
    """
    return difference([a[seed] - b[seed] for seed in sorted(a.keys() & b.keys())])


def difference(values: Sequence[float]) -> Difference | None:
    """The interval holds where the differences are about normal, which few seeds cannot show."""
    if not values:
        return None
    mean = statistics.fmean(values)
    if len(values) == 1:
        return Difference(mean, None, None, tuple(values))
    from scipy.stats import t

    half = float(t.ppf(0.975, len(values) - 1)) * statistics.stdev(values) / len(values) ** 0.5
    return Difference(mean, mean - half, mean + half, tuple(values))
