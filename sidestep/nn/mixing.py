"""The mixing weight m of BLL (arXiv:2305.14974), as a function of the share of training that is done."""

from __future__ import annotations

import math
from bisect import bisect_right
from dataclasses import dataclass
from itertools import pairwise

Mixing = float | str
"""1; linear:1:0 or cosine:1:0, from the first step to the last's end; or knots 0:1,0.5:0.2,1:0, SHARE:M, straight."""


@dataclass(frozen=True)
class MixingSchedule:
    """m at the knots, at least 0, and how it moves between them."""

    shares: tuple[float, ...]  # ascending, from 0 to 1
    values: tuple[float, ...]
    cosine: bool = False

    @property
    def constant(self) -> bool:
        return len(set(self.values)) == 1

    def __call__(self, share: float) -> float:
        """m when `share` (0 to 1) of training is done."""
        i = min(bisect_right(self.shares, share), len(self.shares) - 1) - 1
        (start, end), (first, last) = self.shares[i : i + 2], self.values[i : i + 2]
        done = (share - start) / (end - start)
        if self.cosine:
            done = (1 - math.cos(math.pi * done)) / 2
        return first + (last - first) * done


def mixing(spec: Mixing) -> MixingSchedule:
    """The schedule that `spec` writes.  Raises ValueError for a value below 0, NaN, or knots that leave a gap."""
    try:
        found = _parse(spec)
    except (AttributeError, ValueError):
        raise ValueError(
            f"got m={spec!r}, expected a number, linear:FIRST:LAST, cosine:FIRST:LAST or knots SHARE:M,SHARE:M,..."
        ) from None
    if not all(0 <= v < math.inf for v in found.values):
        raise ValueError(f"got m={spec!r}, expected finite values of at least 0; m=0 mixes nothing in.")
    shares = found.shares
    if shares[0] != 0 or shares[-1] != 1 or not all(a < b for a, b in pairwise(shares)):
        raise ValueError(
            f"got m={spec!r} with knots at {', '.join(f'{s:g}' for s in shares)}, expected shares of training that "
            "ascend from 0 to 1 and leave no gap."
        )
    return found


def _parse(spec: Mixing) -> MixingSchedule:
    if isinstance(spec, int | float):
        return MixingSchedule((0.0, 1.0), (float(spec),) * 2)
    kind, _, rest = spec.partition(":")
    if kind in ("linear", "cosine"):
        first, last = (float(part) for part in rest.split(":"))
        return MixingSchedule((0.0, 1.0), (first, last), kind == "cosine")
    if ":" not in spec:
        return _parse(float(spec))
    knots = [[float(part) for part in knot.split(":")] for knot in spec.split(",")]
    shares, values = zip(*((share, value) for share, value in knots), strict=True)
    return MixingSchedule(shares, values)
