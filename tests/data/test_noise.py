from __future__ import annotations

import pytest
import torch

from sidestep.data.noise import symmetric_noise
from sidestep.data.sources import load
from sidestep.errors import UsageError


def test_a_rate_r_makes_r_times_nine_tenths_of_ten_classes_wrong_and_every_wrong_class_equally_likely():
    n, rate = 200_000, 0.4
    noisy = symmetric_noise(torch.full((n,), 3), rate, 10, seed=0)
    counts = torch.bincount(noisy, minlength=10)
    share = rate / 10
    # Five standard deviations of a binomial count.
    assert abs(int(counts[3]) - n * (1 - 9 * share)) < 5 * (n * 9 * share * (1 - 9 * share)) ** 0.5
    wrong = counts[torch.arange(10) != 3]
    assert (wrong - n * share).abs().max() < 5 * (n * share * (1 - share)) ** 0.5


def test_noise_is_a_function_of_its_seed():
    y = torch.arange(1000) % 7
    assert torch.equal(symmetric_noise(y, 0.5, 7, seed=1), symmetric_noise(y, 0.5, 7, seed=1))
    assert not torch.equal(symmetric_noise(y, 0.5, 7, seed=1), symmetric_noise(y, 0.5, 7, seed=2))


def test_rate_zero_leaves_every_label_and_rate_one_redraws_every_label():
    y = torch.arange(1000) % 7
    assert torch.equal(symmetric_noise(y, 0.0, 7, seed=1), y)
    redrawn = symmetric_noise(y, 1.0, 7, seed=1)
    assert torch.equal(redrawn, symmetric_noise(torch.zeros_like(y), 1.0, 7, seed=1))


@pytest.mark.parametrize("rate", [-0.1, 1.1, float("nan")])
def test_a_rate_outside_0_to_1_is_refused(rate):
    with pytest.raises(UsageError, match="label noise"):
        symmetric_noise(torch.tensor([0]), rate, 2, seed=0)
    with pytest.raises(UsageError, match="label noise"):
        load("digits", label_noise=rate)


@pytest.mark.parametrize("noise_val", [False, True])
def test_label_noise_touches_training_labels_on_request_validation_labels_and_never_test_labels(noise_val):
    clean, noisy = load("digits"), load("digits", label_noise=0.5, noise_val=noise_val)
    assert torch.equal(noisy.train.y, symmetric_noise(clean.train.y, 0.5, 10, seed=0))
    assert torch.equal(noisy.val.y, symmetric_noise(clean.val.y, 0.5 * noise_val, 10, seed=0))
    assert torch.equal(noisy.test.y, clean.test.y)
    for part, other in ((clean.train, noisy.train), (clean.val, noisy.val), (clean.test, noisy.test)):
        assert torch.equal(part.x, other.x)
