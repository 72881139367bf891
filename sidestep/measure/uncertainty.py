"""Does a network know what it does not know: proper scores, calibration, abstention, and data of another kind.

Every read-out of a run and their mean, as they are and after one temperature.   N samples, C classes.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from sidestep.assemble import Assembly
from sidestep.data.samples import Samples, Source
from sidestep.data.sources import load
from sidestep.errors import UsageError
from sidestep.measure.calibration import Scores, adaptive_ece, confidence, ranked
from sidestep.measure.readouts import Collected, collect, reading

COVERAGES = 100  # at which the risk is kept
BARS = 20  # of equal width, of a histogram
DIGITS = 6  # after the point, of a curve
COLUMNS = {
    "T": "T",
    "accuracy": "acc %",
    "nll": "NLL",
    "brier": "Brier",
    "ece": "ECE",
    "adaptive_ece": "aECE",
    "aurc": "AURC",
    "ood_auroc": "AUROC",
}


def risk_coverage(logits: Tensor, y: Tensor) -> Tensor:
    """The share of wrong answers among the k most confident, for k = 1..N, (N,): the risk at coverage k/N.

    Geifman & El-Yaniv, arXiv:1705.08500, by the largest probability.  Where the k-th is one of several of equal
    confidence, it is the risk expected over their orders.   logits: (N, C); y: (N,).
    """
    sure = confidence(logits)
    wrong = (logits.argmax(-1) != y).double() + 0 * sure  # NaN where the network diverged
    return ranked(sure, wrong).cumsum(0) / torch.arange(1, len(y) + 1, device=y.device)


def aurc(logits: Tensor, y: Tensor) -> Tensor:
    """Area under the risk-coverage curve, (): the mean risk over all coverages (Geifman et al., arXiv:1805.08206)."""
    return risk_coverage(logits, y).mean()


def sampled(count: int) -> Tensor:
    """Which k of 1..count a risk-coverage curve keeps, ascending: all, or 100 that are evenly spaced, count the last.

    Between two of them wrong answers are only added, so that k times the risk never falls: both together bound the
    risk at every coverage between, and AURC.
    """
    return (-(-torch.arange(1, COVERAGES + 1) * count // COVERAGES)).unique()


def reliability(logits: Tensor, y: Tensor, bins: int = 15) -> dict[str, Tensor]:
    """Mean `confidence`, `accuracy` and `share` of the samples in each bin of equal mass, (bins,) each, ascending.

    The bins are those of `adaptive_ece`, which is the sum of share |accuracy - confidence|; none of them is empty.
    """
    sure = confidence(logits)
    right = (logits.argmax(-1) == y).double()
    held, good = ([part for part in ranked(sure, v).tensor_split(bins)[::-1] if len(part)] for v in (sure, right))
    return {
        "confidence": torch.stack([part.mean() for part in held]),
        "accuracy": torch.stack([part.mean() for part in good]),
        "share": torch.tensor([len(part) / len(y) for part in held], dtype=torch.double),
    }


def histogram(sure: Tensor) -> Tensor:
    """The share of confidences in each of 20 bins of equal width from 0 to 1, (20,)."""
    return torch.histc(sure, BARS, 0, 1) / len(sure)


def auroc(inside: Tensor, outside: Tensor) -> Tensor:
    """The probability that a score of `inside` (N,) is larger than one of `outside` (M,), equal ones half, ().

    With `confidence` as the score: Hendrycks & Gimpel, arXiv:1610.02136.  Counted by rank, in N + M numbers.
    """
    below = outside.sort().values
    least, most = (torch.searchsorted(below, inside, right=right).sum() for right in (False, True))
    nan = 0 * (inside.sum() + outside.sum())  # unless a network diverged, 0
    return (least + most).double() / (2 * len(inside) * len(outside)) + nan


def temperature(logits: Tensor, y: Tensor) -> float | None:
    """The T > 0 of least NLL for softmax(logits / T) on these samples, None where no T has it.

    Guo et al., arXiv:1706.04599.   logits: (N, C); y: (N,).

    In b = 1/T the NLL is convex: of a sample, with a_c = z_c - z_y, it is log sum_c exp(b a_c), with the slope E_p[a]
    and the curvature Var_p[a] >= 0 under p = softmax(b a).  In log T it is not: where all is right it falls from log C
    to 0, and what is bounded and convex on a line is constant.  So the slope in b has at most one root but where all
    logits are equal.  At b = 0 it is the mean over samples of mean_c a, for b -> inf it rises to that of max_c a, and a
    least NLL exists just if the first is negative and the second positive: the labels' logits lie above average, and an
    answer is wrong.  Bisection between two powers of 2 then cannot miss it, whatever the logits' scale.
    """
    z = logits.double()
    a = z - z.gather(-1, y[:, None])

    def slope(b: float) -> float:
        return ((b * a).softmax(-1) * a).sum(-1).mean().item()

    if not (slope(0.0) < 0 < a.amax(-1).mean().item()):
        return None
    high = 1.0
    while slope(high) < 0:
        high *= 2
    while slope(high / 2) >= 0:
        high /= 2
    low = high / 2
    for _ in range(52):  # the digits of a float64
        middle = (low + high) / 2
        low, high = (middle, high) if slope(middle) < 0 else (low, middle)
    return 1 / high


def measures(logits: Tensor, y: Tensor, outside: Tensor | None = None) -> dict[str, float]:
    """All of COLUMNS but T, of one answer; `ood_auroc` where there are logits (M, C) of samples of another kind."""
    scores = Scores()
    scores.update(logits, y)
    found = scores.result() | {"adaptive_ece": adaptive_ece(logits, y).item(), "aurc": aurc(logits, y).item()}
    if outside is not None:
        found["ood_auroc"] = auroc(confidence(logits), confidence(outside)).item()
    return found


def curves(logits: Tensor, y: Tensor, outside: Tensor | None = None) -> dict[str, Any]:
    """What pictures of one answer are drawn from: its `reliability`, its `risk` at the coverages `sampled`.

    Where there are logits (M, C) of samples of another kind, histograms of the confidence `inside` and `outside` too.
    """
    found: dict[str, Any] = {
        "reliability": {name: rounded(values) for name, values in reliability(logits, y).items()},
        "risk": rounded(risk_coverage(logits, y)[sampled(len(y)) - 1]),
    }
    if outside is not None:
        found |= {"inside": rounded(histogram(confidence(logits))), "outside": rounded(histogram(confidence(outside)))}
    return found


def rounded(values: Tensor) -> list[float]:
    return [round(value, DIGITS) for value in values.tolist()]


def of_the_answer(held: Mapping[str, Collected]) -> dict[str, dict[str, float | None]]:
    """`measures` of the last block on each split, and on `test_scaled` those after `T`, fitted on the validation split.

    All of the latter are None where there is no T.
    """
    last = {split: (logits[-1].double(), y) for split, (logits, y) in held.items()}
    found: dict[str, dict[str, float | None]] = {split: {**measures(*answer)} for split, answer in last.items()}
    if "val" in last and "test" in last:
        (logits, y), t = last["test"], temperature(*last["val"])
        found["test_scaled"] = {"T": t, **(dict.fromkeys(found["test"]) if t is None else measures(logits / t, y))}
    return found


def uncertainty(
    assembly: Assembly,
    source: Source,
    outside: Samples | None = None,
    collected: Collected | None = None,
) -> dict[str, Any]:
    """`measures` of every block on a source, each a list with None for a block without a read-out, and under `mean`
    those of the softmax of the blocks' mean logits.

    `temperature` holds the same with each answer's own `T`, fitted on the validation split; None where there is none,
    or where it is the source: a fit to the very samples that are judged would flatter.  It leaves every answer, and so
    the accuracy, as it was, but not the order of confidences between samples: AURC and AUROC may move.  All are None
    for an answer that has no T.  With `label_noise` validation labels are as noisy as those of training.

    `curves` holds those of every block and of the mean in the same way, with the `coverage` of every risk, and, as
    `reliability_at_T`, the last block's reliability after temperature, None where it has no T.

    outside: samples of another kind, which the network should be less sure of.  collected: what `collect` gave of the
    source, where it has been called.
    """
    reads, val = reading(assembly), assembly.data.val
    judged, y = answers(collected or collect(assembly, source))
    other: Sequence[Tensor | None] = [None] * len(judged)
    ood: dict[str, Any] = {}
    if outside is not None:
        other, labels = answers(collect(assembly, outside))
        ood = {"ood": {"data": outside.name, "samples": len(labels)}}
    raw = [measures(z, y, o) for z, o in zip(judged, other, strict=True)]
    drawn = by_block([curves(z, y, o) for z, o in zip(judged, other, strict=True)], reads)
    found: dict[str, Any] = {
        "split": "val" if source is val else "test",
        "samples": len(y),
        "unit": "tokens" if assembly.task.per_token else "samples",  # of which there are so many
        **by_block(raw, reads),
        **ood,
        "temperature": None,
        "curves": {"coverage": rounded(sampled(len(y)) / len(y)), **drawn, "reliability_at_T": None},
    }
    if val is None or val is source:
        return found
    fitted, y_val = answers(collect(assembly, val))
    rows: list[dict[str, float | None]] = []
    for z, o, z_val in zip(judged, other, fitted, strict=True):
        t = temperature(z_val, y_val)
        after = dict.fromkeys(raw[0]) if t is None else measures(z / t, y, None if o is None else o / t)
        rows.append({"T": t, **after})
    fit = {"samples": len(y_val), "label_noise": assembly.config.label_noise}
    found["temperature"] = fit | by_block(rows, reads)
    if (t := rows[-2]["T"]) is not None:
        found["curves"]["reliability_at_T"] = curves(judged[-2] / t, y)["reliability"]
    return found


def answers(collected: Collected) -> tuple[list[Tensor], Tensor]:
    """Logits (N, C) float64 of every read-out and, last, their mean; and the labels (N,)."""
    logits, y = collected
    logits = logits.double()
    return [*logits, logits.mean(0)], y


def by_block(rows: Sequence[Mapping[str, Any]], reads: Sequence[bool]) -> dict[str, Any]:
    """A list over all blocks for each name in the rows, and the last row as `mean`."""
    *blocks, mean = rows
    rest = iter(blocks)
    placed = [next(rest) if read else None for read in reads]
    return {name: [None if row is None else row[name] for row in placed] for name in mean} | {"mean": mean}


def other_data(assembly: Assembly, name: str) -> Samples:
    """The test split of another data set, to be read as the run's own samples are.

    Raises UsageError for a name that is unknown or the run's own and for samples of another shape, DataError for what
    is bad inside.
    """
    own = assembly.data.train
    assert isinstance(own, Samples)  # a run's folder names its data
    other = load(name, val_fraction=0, context=assembly.config.context).test
    if other.name == own.name:
        raise UsageError(f"got --ood {name}, the run's own data, expected another data set.")
    if other.shape != own.shape:
        raise UsageError(
            f"got --ood {name} with samples of shape {other.shape}, expected {own.shape} as {own.name} has; "
            "choose a data set of that shape."
        )
    if own.x.dtype == torch.int64 and (other.classes != own.classes or other.x.max() > own.x.max()):
        raise UsageError(
            f"got --ood {name}, whose symbols are not those of {own.name}, expected the same; choose data in the same "
            "alphabet."
        )
    return other


def uncertainty_table(found: Mapping[str, Any]) -> str:
    """Two tables for people, 80 columns wide, as answered and after temperature."""
    part, after, other = found["split"], found["temperature"], found.get("ood")
    no_t = "(no T: validation's NLL has no minimum)"
    missing = ["(no read-out)" if value is None else no_t for value in [*found["nll"], found["mean"]["nll"]]]
    names = [name for name in COLUMNS if name in found]
    lines = [f"{found['samples']:,} {'validation' if part == 'val' else 'test'} samples, as answered"]
    lines += [*rows_of(found, names, missing), ""]
    if after is not None:
        noisily = " noisily labelled" if after["label_noise"] else ""
        lines += [f"after temperature: T of least NLL on {after['samples']:,}{noisily} validation samples"]
        lines += rows_of(after, ["T", *names[1:]], missing)
    elif part == "val":
        lines += ["no temperature: it would be fitted on the very samples that are judged here"]
    else:
        lines += ["no temperature: the run has no validation samples to fit one on"]
    lines += ["", "mean: softmax of the blocks' mean logits.  aECE: ECE in 15 bins of equal mass."]
    lines += ["AURC: mean share of wrong answers among the most confident, over all coverages."]
    if other is not None:
        lines += [
            "AUROC: how likely a sample here is answered more surely than one of the",
            f"{other['samples']:,} test samples of {other['data']}.",
        ]
    return "\n".join(lines)


def rows_of(found: Mapping[str, Any], names: Sequence[str], missing: Sequence[str]) -> Iterator[str]:
    """The head, a line per block and one for the mean; missing: what stands where there are no numbers."""
    yield f"{'block':>5}" + "".join(f" {COLUMNS[name]:>7}" for name in names)
    blocks = zip(*(found[name] for name in names), strict=True)
    for i, (row, why) in enumerate(zip([*blocks, [found["mean"][name] for name in names]], missing, strict=True), 1):
        shown = [f" {shorter(name, value):>7}" for name, value in zip(names, row, strict=True) if value is not None]
        yield f"{i if i < len(missing) else 'mean':>5}" + ("".join(shown) or f"  {why}")


def shorter(name: str, value: float) -> str:
    return f"{100 * value:.2f}" if name == "accuracy" else f"{value:.3f}" if name == "T" else f"{value:.4f}"
