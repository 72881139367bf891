"""How good numbers with a deviation are: likelihood, error, and how often the truth lies where it was said to.

N samples, D numbers each, M = N D of them in all.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from statistics import NormalDist
from typing import Any

import torch
from torch import Tensor

from sidestep.assemble import Assembly
from sidestep.core.task import LOG_2PI, Regression, moments
from sidestep.data.samples import Source
from sidestep.errors import DataError

LEVELS = (0.5, 0.8, 0.95)
PARTS = 10  # of equal mass, from the narrowest deviation to the widest


class Errors:
    """Likelihood and error over any number of batches, added up on the device without a synchronisation per batch."""

    def __init__(self, task: Regression) -> None:
        self.task = task
        self.count = 0
        self.sums: Tensor | None = None

    @torch.no_grad()
    def update(self, answer: Tensor, y: Tensor) -> None:
        """Add a batch.  answer: (B, 2 D, ...); y: (B, D, ...)."""
        mean, _ = moments(answer)
        surprise = self.task.surprise(answer, y).double().sum()
        batch = torch.stack([surprise, (y - mean).double().square().sum()])
        self.sums = batch if self.sums is None else self.sums + batch
        self.count += y.numel()

    def result(self) -> dict[str, float]:
        """`nll`, nats a number, and `rmse`, of all so far.  Raises DataError if there were none."""
        if self.sums is None or not self.count:
            raise DataError("got no samples to evaluate, expected at least one; check the split and its size.")
        surprise, square = (self.sums / self.count).tolist()
        return {"nll": surprise, "rmse": math.sqrt(square)}


def deviations(assembly: Assembly, source: Source) -> dict[str, Any]:
    """How far the deviations that a block predicts can be trusted: lists over blocks, None without a read-out.

    `nll_scaled` and what follows is after one factor on a block's deviations, `scale`, that of least NLL on the
    validation split; both are None where there is none or where it is the source.  `coverage`: by predicted deviation
    in ten parts of equal mass, how often the truth lies within the central 50, 80 and 95 %, (10, 3), and `deviation`,
    (10,), their mean predicted deviations.  `nll_constant`, `nll_per_number`: with the block's means and one deviation
    for all, or one for each number of a sample (each pixel), fitted on the validation split, without which they are
    left out.
    """
    rows = measured(assembly, source, slice(None))
    names = next(r for r in rows if r is not None)
    return {"samples": len(source), "levels": LEVELS} | {name: [r and r[name] for r in rows] for name in names}


def deviations_of_the_answer(assembly: Assembly) -> dict[str, Any] | None:
    """`deviations` of the last block alone, on the test set, or else on validation; None without either."""
    source = assembly.test or assembly.data.val
    return None if source is None else measured(assembly, source, slice(-1, None))[0]


def measured(assembly: Assembly, source: Source, blocks: slice) -> list[dict[str, Any] | None]:
    """`row` of every one of these blocks, None without a read-out."""
    assert isinstance(assembly.task, Regression)
    judged = collect(assembly, source, blocks)
    val = assembly.data.val
    fitted = [None] * len(judged) if val is None or val is source else collect(assembly, val, blocks)
    return [None if one is None else row(one, fit) for one, fit in zip(judged, fitted, strict=True)]


Moments = tuple[Tensor, Tensor]
"""Errors y - mean and log-deviations, each (N, D), of one block."""


def row(judged: Moments, fit: Moments | None) -> dict[str, Any]:
    error, log_deviation = judged
    found: dict[str, Any] = {"nll": gaussian_nll(error, log_deviation), "scale": None, "nll_scaled": None}
    if fit is not None:
        scale = ((fit[0] / fit[1].exp()).square().mean()).sqrt()  # what the NLL is least for
        one, each = fit[0].square().mean().sqrt().log(), fit[0].square().mean(0).sqrt()
        # A pixel that is black in the whole validation split: no narrower than a byte's own width.
        each = each.clamp(min=BYTE).log()
        log_deviation = log_deviation + scale.log()
        found |= {
            "scale": scale.item(),
            "nll_scaled": gaussian_nll(error, log_deviation),
            "nll_constant": gaussian_nll(error, one.expand_as(error)),
            "nll_per_number": gaussian_nll(error, each.expand_as(error)),
        }
    return found | coverage(error, log_deviation)


BYTE = 1 / (256 * math.sqrt(12))
"""The deviation of a number that was rounded to a byte, in 0..1."""


def gaussian_nll(error: Tensor, log_deviation: Tensor) -> float:
    """Mean -log N(error; 0, deviation), nats a number."""
    return (0.5 * LOG_2PI + log_deviation + 0.5 * (error / log_deviation.exp()).square()).mean().item()


def coverage(error: Tensor, log_deviation: Tensor) -> dict[str, list[Any]]:
    """Of each of PARTS parts, by predicted deviation, the mean one, and the shares within each of LEVELS.

    Fewer numbers than that are a part each.  Equal deviations are told apart by their place, which is no matter for the
    shares.
    """
    order = log_deviation.flatten().argsort(stable=True)
    parts = min(PARTS, len(order))
    deviation = log_deviation.exp().flatten()[order].tensor_split(parts)
    away = (error / log_deviation.exp()).abs().flatten()[order].tensor_split(parts)
    bounds = [NormalDist().inv_cdf((1 + level) / 2) for level in LEVELS]
    return {
        "deviation": [part.mean().item() for part in deviation],
        "coverage": [[(part <= bound).double().mean().item() for bound in bounds] for part in away],
    }


def collect(assembly: Assembly, source: Source, blocks: slice) -> list[Moments | None]:
    """Errors and log-deviations (N, D) float64 of these blocks, None without a read-out, on the CPU."""
    parts = [[None if a is None else errors(a, y) for a in found[blocks]] for found, y in assembly.answers(source)]
    return [joined([one for one in block if one is not None]) for block in zip(*parts, strict=True)]


def joined(parts: list[Moments]) -> Moments | None:
    return (torch.cat([e for e, _ in parts]), torch.cat([s for _, s in parts])) if parts else None


def errors(answer: Tensor, y: Tensor) -> Moments:
    mean, log_precision = moments(answer)
    return (y - mean).flatten(1).double().cpu(), (-0.5 * log_precision).flatten(1).double().cpu()


def deviation_table(found: Mapping[str, Any], part: str) -> str:
    """For people, 80 columns wide: likelihoods of every block, and the last block's coverage by deviation."""
    lines = [f"{found['samples']:,} {'validation' if part == 'val' else 'test'} samples, nats a number"]
    names = [n for n in ("nll", "scale", "nll_scaled", "nll_constant", "nll_per_number") if n in found]
    heads = {
        "nll": "NLL",
        "scale": "scale",
        "nll_scaled": "scaled",
        "nll_constant": "one sigma",
        "nll_per_number": "a sigma each",
    }
    lines.append(f"{'block':>5}" + "".join(f" {heads[n]:>13}" for n in names))
    for i, values in enumerate(zip(*(found[n] for n in names), strict=True), 1):
        cells = "".join(f" {'-' if v is None else format(v, '.4f'):>13}" for v in values)
        lines.append(f"{i:>5}" + ("  (no read-out)" if values[0] is None else cells))
    lines += ["", "last block, by predicted deviation, within the central"]
    lines.append(f"{'deviation':>11}" + "".join(f" {100 * level:>6.0f} %" for level in LEVELS))
    for deviation, shares in zip(found["deviation"][-1], found["coverage"][-1], strict=True):
        lines.append(f"{deviation:>11.5f}" + "".join(f" {100 * share:>6.1f} %" for share in shares))
    return "\n".join(lines)
