from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sidestep.schedules import Schedule, half_cosine, schedule


def factors(kind: Schedule, steps: int, warmup: float) -> list[float]:
    factor = schedule(kind, steps, warmup)
    return [factor(step) for step in range(steps)]


def test_half_a_cosine_by_hand() -> None:
    assert half_cosine(2.0, 1.0, 0.0) == 2.0
    assert half_cosine(2.0, 1.0, 1.0) == 1.0
    assert half_cosine(2.0, 1.0, 0.5) == pytest.approx(1.5, rel=1e-12)
    assert half_cosine(2.0, 1.0, 1 / 3) == pytest.approx(1.75, rel=1e-12)  # (1 + cos 60 degrees) / 2 = 3/4


def test_constant_stays_at_its_peak() -> None:
    assert factors("constant", 5, 0.0) == [1.0] * 5
    assert factors("constant", 8, 0.5) == [0.25, 0.5, 0.75, 1.0, 1.0, 1.0, 1.0, 1.0]


def test_cosine_by_hand() -> None:
    """Eight steps, two of them climbing: 1/2, 1, then the cosine at 1/7, 2/7, ... of its way."""
    expected = [0.5, 1.0, 0.950484, 0.811745, 0.611260, 0.388740, 0.188255, 0.049516]
    assert factors("cosine", 8, 0.25) == pytest.approx(expected, abs=1e-6)


def test_cosine_without_warm_up_starts_at_its_peak_and_is_there_once() -> None:
    assert factors("cosine", 4, 0.0) == pytest.approx([1.0, 0.853553, 0.5, 0.146447], abs=1e-6)


@given(st.sampled_from(["cosine", "onecycle"]), st.integers(1, 300), st.floats(0, 0.99))
def test_a_rate_climbs_once_and_falls_once_between_0_and_its_peak(kind: Schedule, steps: int, warmup: float) -> None:
    found = factors(kind, steps, warmup)
    assert all(0 < f <= 1 for f in found)
    top = found.index(max(found))
    assert all(a < b for a, b in pairwise(found[: top + 1]))
    assert all(a >= b for a, b in pairwise(found[top:]))


def test_cosine_ends_at_almost_nothing_and_stays_there() -> None:
    factor = schedule("cosine", 1000, 0.1)
    assert 0 < factor(999) < 1e-5
    assert 0 <= factor(1000) < 1e-12  # the cosine of a float pi
    assert factor(2000) == factor(1000)


@pytest.mark.parametrize(("steps", "warmup"), [(100, 0.3), (100, 0.25), (37, 0.3), (10, 0.45), (1000, 0.05)])
def test_onecycle_has_the_factors_of_torch(steps: int, warmup: float) -> None:
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    reference = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, max_lr=1.0, total_steps=steps, pct_start=warmup, anneal_strategy="cos", cycle_momentum=False
    )
    expected: list[float] = []
    for _ in range(steps):
        expected.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        if len(expected) < steps:
            reference.step()
    # The same formula with its terms in another order.
    assert factors("onecycle", steps, warmup) == pytest.approx(expected, rel=1e-6)


def test_onecycle_starts_ends_and_peaks_where_it_says() -> None:
    found = factors("onecycle", 100, 0.3)
    assert found[0] == pytest.approx(1 / 25, rel=1e-12)
    assert found[29] == 1.0
    assert found[99] == pytest.approx(1 / 250_000, rel=1e-12)


@pytest.mark.parametrize("kind", ["cosine", "onecycle"])
def test_a_single_step_is_taken_at_the_peak(kind: Schedule) -> None:
    assert factors(kind, 1, 0.3) == [1.0]
