"""Learning-rate schedules: pure functions of the step, so that a resumed run needs no state."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal

Schedule = Literal["constant", "cosine", "onecycle"]


def schedule(kind: Schedule, steps: int, warmup: float) -> Callable[[int], float]:
    """step -> factor of the peak learning rate.

    warmup: the fraction of all steps in which the rate climbs to its peak, which the last of them has.  constant climbs
    linearly and stays; cosine climbs linearly and falls along half a cosine to 0, due one step after the last.
    onecycle starts at 1/25 of the peak and ends, in its last step, at 1/10,000 of that start, both along half a cosine
    (Smith & Topin, arXiv:1708.07120; the factors of torch's OneCycleLR).
    """
    top = max(warmup * steps - 1, 0.0)

    def fallen(step: int, end: float) -> float:
        return min((step - top) / (end - top), 1.0) if end > top else 0.0

    def factor(step: int) -> float:
        if step < top:
            return half_cosine(1 / 25, 1.0, step / top) if kind == "onecycle" else (step + 1) / (top + 1)
        if kind == "constant":
            return 1.0
        if kind == "cosine":
            return half_cosine(1.0, 0.0, fallen(step, steps))
        return half_cosine(1.0, 1 / 25 / 1e4, fallen(step, steps - 1))

    return factor


def half_cosine(start: float, end: float, progress: float) -> float:
    return end + (start - end) * (1 + math.cos(math.pi * progress)) / 2
