"""Learning-rate schedules: pure functions of the step, so that a resumed run needs no state."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal

Schedule = Literal["constant", "cosine", "onecycle"]


def schedule(kind: Schedule, steps: int, warmup: float) -> Callable[[int], float]:
    """step -> factor of the peak learning rate.

    warmup: the fraction of all steps in which the rate climbs linearly to its peak.  cosine then falls to 0; onecycle
    starts at 1/25 of the peak and falls to 1/10,000 of that start, both along half a cosine (Smith & Topin,
    arXiv:1708.07120, with torch's defaults).
    """
    climb = max(round(warmup * steps), 1)

    def factor(step: int) -> float:
        rest = min(max((step - climb) / max(steps - climb, 1), 0.0), 1.0)
        if kind == "constant":
            return 1.0
        if kind == "cosine":
            return (step + 1) / climb if step < climb else half_cosine(1.0, 0.0, rest)
        if step < climb:
            return half_cosine(1 / 25, 1.0, step / climb)
        return half_cosine(1.0, 1 / 25 / 1e4, rest)

    return factor


def half_cosine(start: float, end: float, progress: float) -> float:
    return end + (start - end) * (1 + math.cos(math.pi * progress)) / 2
