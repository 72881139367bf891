from __future__ import annotations

import math

import pytest
import torch
from sklearn.calibration import calibration_curve
from sklearn.metrics import brier_score_loss, log_loss
from torch import Tensor

from sidestep.errors import DataError
from sidestep.measure.calibration import Scores, accuracy, adaptive_ece, brier, ece, nll


def rounded(value: float) -> object:
    """Equal but for the order in which float64 terms were added, about 1e-16 each."""
    return pytest.approx(value, rel=1e-12, abs=1e-12)


def some_answers(samples: int = 200, classes: int = 7, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(0)
    logits = 3 * torch.randn(samples, classes, generator=g)
    return logits.to(dtype), torch.randint(classes, (samples,), generator=g)


def logits_of(*confidences: float) -> Tensor:
    """Two classes, the first believed with the given probability."""
    p = torch.tensor(confidences, dtype=torch.double)
    return torch.stack([p, 1 - p], 1).log()


def test_nll_and_brier_score_are_those_of_scikit_learn() -> None:
    logits, y = some_answers()
    p = logits.double().softmax(-1).numpy()
    assert nll(logits, y).item() == rounded(log_loss(y.numpy(), p, labels=range(7)))
    expected = brier_score_loss(y.numpy(), p, labels=range(7))
    assert brier(logits, y).item() == rounded(expected)


def test_accuracy_is_the_share_of_right_answers() -> None:
    logits = torch.tensor([[0.0, 1.0], [2.0, 1.0], [0.0, 3.0], [5.0, 1.0]])
    assert accuracy(logits, torch.tensor([1, 0, 0, 0])).item() == 0.75


def test_ece_of_three_answers_worked_by_hand() -> None:
    # Bin (0.8, 1]: accuracy 1/2, confidence 0.9.  Bin (0.4, 0.6]: accuracy 1, confidence 0.55.
    logits, y = logits_of(0.95, 0.85, 0.55), torch.tensor([0, 1, 0])
    assert ece(logits, y, bins=5).item() == rounded(2 / 3 * 0.4 + 1 / 3 * 0.45)


def test_a_confidence_on_the_edge_of_two_bins_is_in_the_lower_one() -> None:
    # In one bin the two errors, +0.5 and -0.9, would nearly cancel and leave 0.2.
    logits, y = logits_of(0.5, 0.9), torch.tensor([0, 1])
    assert ece(logits, y, bins=2).item() == rounded(0.7)


def test_a_certain_belief_is_in_the_last_bin() -> None:
    logits, y = torch.tensor([[1000.0, 0.0], [1000.0, 0.0]]), torch.tensor([0, 1])
    assert ece(logits, y).item() == 0.5
    assert nll(logits, y).item() == 500.0


def test_adaptive_ece_of_four_answers_worked_by_hand() -> None:
    # Two bins of two: {0.95 right, 0.85 wrong} errs by 1.8 - 1, {0.7 right, 0.55 right} by 2 - 1.25, of 4 samples.
    logits, y = logits_of(0.7, 0.95, 0.55, 0.85), torch.tensor([0, 0, 0, 1])
    assert adaptive_ece(logits, y, bins=2).item() == rounded((0.8 + 0.75) / 4)
    # As many bins as samples, or more: each errs alone.
    for bins in (4, 15):
        assert adaptive_ece(logits, y, bins).item() == rounded((0.05 + 0.85 + 0.3 + 0.45) / 4)


def test_equal_confidences_in_two_bins_of_equal_mass_count_as_their_mean_worked_by_hand() -> None:
    # 0.9 right; 0.8 right, wrong, wrong, so 1/3 right each; the bins hold 0.9, 0.8 and 0.8, 0.8, whatever the order.
    confidences, y = (0.8, 0.8, 0.9, 0.8), torch.tensor([1, 0, 0, 1])
    expected = (abs(0.1 + (1 / 3 - 0.8)) + abs(2 * (1 / 3 - 0.8))) / 4
    assert adaptive_ece(logits_of(*confidences), y, bins=2).item() == rounded(expected)
    assert adaptive_ece(logits_of(*confidences).flip(0), y.flip(0), bins=2).item() == rounded(expected)
    # One confidence for all: every bin errs as the whole does.
    assert adaptive_ece(logits_of(*[0.8] * 50), torch.arange(50) % 2).item() == rounded(0.3)


@pytest.mark.parametrize("samples", [210, 217])
def test_adaptive_ece_is_that_of_a_loop_over_sorted_samples(samples: int) -> None:
    logits, y = some_answers(samples)
    p = logits.double().softmax(-1)
    found = sorted(zip(p.amax(-1).tolist(), (p.argmax(-1) == y).tolist(), strict=True), reverse=True)
    expected, start = 0.0, 0
    for m in range(15):
        part = found[start : start + samples // 15 + (m < samples % 15)]  # the first bins have one more
        start += len(part)
        expected += abs(sum(right - sure for sure, right in part)) / samples
    assert start == samples
    assert adaptive_ece(logits, y).item() == rounded(expected)


def test_adaptive_ece_is_that_of_scikit_learns_quantile_bins_where_bins_are_equal() -> None:
    logits, y = some_answers(210)
    p = logits.double().softmax(-1)
    right = (p.argmax(-1) == y).numpy()
    share, sure = calibration_curve(right, p.amax(-1).numpy(), n_bins=15, strategy="quantile")
    assert adaptive_ece(logits, y).item() == rounded(float(abs(share - sure).mean()))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_scores_over_uneven_batches_are_those_of_the_whole(dtype: torch.dtype) -> None:
    logits, y = some_answers(dtype=dtype)
    scores = Scores()
    for part in (slice(0, 64), slice(64, 65), slice(65, 65), slice(65, 200)):
        scores.update(logits[part], y[part])
    result = scores.result()
    assert result["accuracy"] == accuracy(logits, y).item()
    for name, whole in (("nll", nll), ("brier", brier), ("ece", ece)):
        assert result[name] == rounded(whole(logits, y).item())


def test_bfloat16_logits_are_measured_in_float64() -> None:
    logits, y = some_answers(dtype=torch.bfloat16)
    for measure in (accuracy, nll, brier, ece, adaptive_ece):
        assert torch.equal(measure(logits, y), measure(logits.double(), y))


def test_a_diverged_network_scores_nan_instead_of_failing() -> None:
    scores = Scores()
    scores.update(torch.full((4, 3), torch.nan), torch.tensor([0, 1, 2, 0]))
    result = scores.result()
    assert math.isnan(result["nll"])
    assert math.isnan(result["brier"])
    assert math.isnan(result["ece"])


def test_no_samples_have_no_score() -> None:
    with pytest.raises(DataError, match="no samples"):
        Scores().result()
