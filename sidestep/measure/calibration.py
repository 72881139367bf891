"""How good probabilities are, not only answers: accuracy, NLL, Brier score and expected calibration errors.

Computed in float64 whatever the precision of the logits.   B batch, C classes.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from sidestep.errors import DataError


def accuracy(logits: Tensor, y: Tensor) -> Tensor:
    """The share of right answers, ().  logits: (B, C); y: (B,) class indices."""
    return _sums(logits, y)[0] / len(y)


def nll(logits: Tensor, y: Tensor) -> Tensor:
    """Mean negative log-likelihood of the labels, (), in nats."""
    return _sums(logits, y)[1] / len(y)


def brier(logits: Tensor, y: Tensor) -> Tensor:
    """Mean over samples of the squared distance between belief and one-hot label, (), in [0, 2] (Brier 1950)."""
    return _sums(logits, y)[2] / len(y)


def ece(logits: Tensor, y: Tensor, bins: int = 15) -> Tensor:
    """Expected calibration error, (): the mean distance of accuracy and confidence over bins of equal width.

    Guo et al., arXiv:1706.04599, equation 3; bin m holds the confidences in ((m-1)/bins, m/bins].
    """
    return _sums(logits, y, bins)[3:].abs().sum() / len(y)


def adaptive_ece(logits: Tensor, y: Tensor, bins: int = 15) -> Tensor:
    """Expected calibration error over bins of equal mass, (): they hold equally many samples, or differ by one.

    As `ece` it is of the answer's confidence alone: the adaptive ECE of Mukhoti et al., arXiv:2002.09437, whose bins
    are those of Nguyen & O'Connor, arXiv:1508.05154.  The ACE of Nixon et al., arXiv:1904.01685, has such bins too, but
    averages over all classes' probabilities.  Samples of equal confidence count as their mean, as in `ranked`.
    """
    sure = confidence(logits)
    excess = ranked(sure, (logits.argmax(-1) == y).double() - sure)
    return torch.stack([part.sum() for part in excess.tensor_split(bins)]).abs().sum() / len(y)


def confidence(logits: Tensor) -> Tensor:
    """The largest probability, (B,) float64."""
    return logits.double().softmax(-1).amax(-1)


def ranked(confidence: Tensor, value: Tensor) -> Tensor:
    """Values (B,) from the most to the least confident sample, each the mean over all samples of its very confidence.

    That mean is what it is expected to be in a random order of them, so nothing depends on the order they came in.
    """
    _, tie, size = confidence.unique(return_inverse=True, return_counts=True)
    mean = value.new_zeros(len(size)).index_add(0, tie, value) / size
    return mean.repeat_interleave(size).flip(0)


class Scores:
    """The four measures over any number of batches, added up on the device without a synchronisation per batch."""

    def __init__(self, bins: int = 15) -> None:
        self.bins = bins
        self.count = 0
        self.sums: Tensor | None = None

    @torch.no_grad()
    def update(self, logits: Tensor, y: Tensor) -> None:
        """Add a batch.  logits: (B, C) of any floating type; y: (B,) class indices."""
        batch = _sums(logits, y, self.bins)
        self.sums = batch if self.sums is None else self.sums + batch
        self.count += len(y)

    def result(self) -> dict[str, float]:
        """`accuracy`, `nll`, `brier` and `ece` of all samples so far.  Raises DataError if there were none."""
        if self.sums is None or not self.count:
            raise DataError("got no samples to evaluate, expected at least one; check the split and its size.")
        right, surprise, distance, *gaps = (self.sums / self.count).tolist()
        return {"accuracy": right, "nll": surprise, "brier": distance, "ece": sum(abs(gap) for gap in gaps)}


def _sums(logits: Tensor, y: Tensor, bins: int = 15) -> Tensor:
    """(3 + bins,) summed over samples: right answers, NLL, Brier score, and by bin the excess of right over expected.

    Accuracy minus confidence, times its share of the samples, is that excess over all samples: a bin needs no count.
    """
    log_p = F.log_softmax(logits.double(), -1)
    confidence, answer = log_p.max(-1)
    confidence = confidence.exp()
    right = (answer == y).double()
    surprise = -log_p.gather(-1, y[:, None])
    distance = (log_p.exp() - F.one_hot(y, log_p.shape[-1])).square()
    # Clamped for the NaN of a diverged network: it belongs to no bin, and should reach the result, not an index error.
    bin_of = ((confidence * bins).ceil().long() - 1).clamp(0, bins - 1)
    excess = (right - confidence) @ F.one_hot(bin_of, bins).double()
    return torch.cat([torch.stack([right.sum(), surprise.sum(), distance.sum()]), excess])
