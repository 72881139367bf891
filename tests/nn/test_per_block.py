from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sidestep.nn.per_block import PerBlock, alphas, remainders, smoothings

weights = st.lists(st.floats(0.01, 1), min_size=1, max_size=8).map(tuple)


@pytest.mark.parametrize(
    ("spec", "count", "expected"),
    [
        (0.5, 3, (0.5, 0.5, 0.5)),
        (1, 2, (1.0, 1.0)),
        ("0.25", 2, (0.25, 0.25)),
        ("1,0.5,0.25,0.1", 4, (1.0, 0.5, 0.25, 0.1)),
        ((1.0, 0.5), 2, (1.0, 0.5)),
        ((0.5,), 3, (0.5, 0.5, 0.5)),
        ("linear:1:0.1", 4, (1.0, 0.7, 0.4, 0.1)),
        ("linear:0.1:0.5", 3, (0.1, 0.3, 0.5)),
        ("linear:1:0.1", 1, (1.0,)),
    ],
)
def test_a_word_gives_one_weight_per_block(spec: PerBlock, count: int, expected: tuple[float, ...]) -> None:
    assert alphas(spec, count) == pytest.approx(expected, abs=1e-15)  # 1 - 0.9 / 3 is no float


def test_a_list_is_taken_like_a_tuple() -> None:
    listed: Any = [1, 0.5]
    assert alphas(listed, 2) == (1.0, 0.5)


@given(weights)
def test_a_tuple_written_as_a_word_means_the_same(values: tuple[float, ...]) -> None:
    assert alphas(",".join(map(repr, values)), len(values)) == alphas(values, len(values)) == values


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        (0.0, r"got alpha=0.0, expected values in \(0, 1\]"),
        (1.1, r"got alpha=1.1, expected values in"),
        (float("nan"), "got alpha=nan, expected values in"),
        ("1,0.5,0", "got alpha=1,0.5,0, expected values in"),
        ("linear:1:0", "got alpha=linear:1:0, expected values in"),
        ((), r"got alpha=\(\), expected values in"),
        ("half", "got alpha='half', expected a number, a list 1,0.5,0.25 or linear:FIRST:LAST"),
        ("", "got alpha='', expected a number"),
        ("linear:1", "got alpha='linear:1', expected a number"),
        ("linear:1:0.5:0.1", "got alpha='linear:1:0.5:0.1', expected a number"),
        (None, "got alpha=None, expected a number"),
    ],
)
def test_a_bad_weight_is_refused_with_or_without_a_count(spec: Any, message: str) -> None:
    for count in (None, 3):
        with pytest.raises(ValueError, match=message):
            alphas(spec, count)


def test_a_list_of_another_length_than_the_blocks_is_refused() -> None:
    with pytest.raises(ValueError, match=r"got 2 values of alpha='1,0.5' for 3 blocks; give one, or one per block"):
        alphas("1,0.5", 3)


def test_remainders_by_hand() -> None:
    assert remainders((0.5, 0.5, 0.5)) == (0.5, 0.25, 0.125)
    assert remainders((1.0, 0.5, 0.1)) == (0.0, 0.0, 0.0)
    assert remainders((0.25, 0.5)) == (0.75, 0.375)


@pytest.mark.parametrize(
    ("spec", "count", "expected"),
    [
        (0.1, 3, (0.1, 0.1, 0.1)),
        ("0.1", 2, (0.1, 0.1)),
        (0, 2, (0.0, 0.0)),
        ("sid", 3, (0.5, 0.25, 0.125)),
        ("sid:0.25", 2, (0.75, 0.5625)),
        ("sid:linear:1:0.1", 3, (0.0, 0.0, 0.0)),
        ("sid:linear:0.2:0.6", 3, (0.8, 0.48, 0.192)),
        ("sid:0.5,0.2", 2, (0.5, 0.4)),
    ],
)
def test_smoothing_is_a_constant_or_what_is_left_of_the_uniform_belief(
    spec: float | str, count: int, expected: tuple[float, ...]
) -> None:
    assert smoothings(spec, count) == pytest.approx(expected, abs=1e-15)  # 0.2 + 0.4 / 2 is no float


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        (1.0, r"got label_smoothing=1.0, expected a number in \[0, 1\)"),
        (-0.1, "got label_smoothing=-0.1, expected a number in"),
        (float("nan"), "got label_smoothing=nan, expected a number in"),
        ("side", "got label_smoothing='side', expected a number in .* sid, or sid:ALPHA"),
        ("sid:0", r"got alpha=0, expected values in \(0, 1\]"),
        ("sid:half", "got alpha='half', expected a number"),
    ],
)
def test_a_bad_smoothing_is_refused(spec: float | str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        smoothings(spec, 2)
