"""One number per block, written as a word: the weights alpha of SID, and label smoothing that follows them.

K blocks, counted from 1 in the equations: r_i = prod_{j <= i} (1 - alpha_j).
"""

from __future__ import annotations

from itertools import accumulate

PerBlock = float | str | tuple[float, ...]


def alphas(spec: PerBlock, count: int | None = None) -> tuple[float, ...]:
    """alpha_1..alpha_K from `0.5`, `1,0.5,0.25,0.1` or `linear:1:0.1`.

    With count None the word is only checked.  Raises ValueError for a value outside (0, 1] or a list of another length.
    """
    values: tuple[float, ...]
    try:
        if isinstance(spec, str) and spec.startswith("linear:"):
            first, last = (float(part) for part in spec.removeprefix("linear:").split(":"))
            steps = max((count or 2) - 1, 1)
            values = tuple(first + (last - first) * i / steps for i in range(count or 2))
        elif isinstance(spec, str):
            values = tuple(float(part) for part in spec.split(","))
        else:
            values = (float(spec),) if isinstance(spec, int | float) else tuple(float(a) for a in spec)
    except (TypeError, ValueError):
        raise ValueError(f"got alpha={spec!r}, expected a number, a list 1,0.5,0.25 or linear:FIRST:LAST.") from None
    if not values or not all(0 < a <= 1 for a in values):
        raise ValueError(f"got alpha={spec}, expected values in (0, 1]; alpha=1 is plain local cross-entropy.")
    if count is not None and len(values) == 1:
        values *= count
    if count is not None and len(values) != count:
        raise ValueError(f"got {len(values)} values of alpha={spec!r} for {count} blocks; give one, or one per block.")
    return values


def remainders(alpha: tuple[float, ...]) -> tuple[float, ...]:
    """r_i = prod_{j <= i} (1 - alpha_j): how much of the uniform belief p_0 is left in block i's target (T5)."""
    return tuple(accumulate((1 - a for a in alpha), lambda r, factor: r * factor))


def smoothings(spec: float | str, count: int | None = None) -> tuple[float, ...]:
    """The label smoothing of each block's loss: a constant, or `sid`, `sid:ALPHA` for SID's own: r_i for block i."""
    if isinstance(spec, str) and (spec == "sid" or spec.startswith("sid:")):
        return remainders(alphas(spec[4:] or 0.5, count))
    try:
        value = float(spec)
    except ValueError:
        raise ValueError(f"got label_smoothing={spec!r}, expected a number in [0, 1), sid, or sid:ALPHA.") from None
    check_smoothing(value)
    return (value,) * (count or 1)


def check_smoothing(value: float) -> None:
    if not 0 <= value < 1:
        raise ValueError(f"got label_smoothing={value}, expected a number in [0, 1).")
