from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sidestep.nn.mixing import Mixing, mixing

QUARTERS = (0.0, 0.25, 0.5, 0.75, 1.0)


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        (0.3, (0.3, 0.3, 0.3, 0.3, 0.3)),
        (1, (1.0, 1.0, 1.0, 1.0, 1.0)),
        ("0.3", (0.3, 0.3, 0.3, 0.3, 0.3)),
        ("linear:1:0", (1.0, 0.75, 0.5, 0.25, 0.0)),
        ("linear:0:2", (0.0, 0.5, 1.0, 1.5, 2.0)),
        ("cosine:1:0", (1.0, (1 + math.sqrt(0.5)) / 2, 0.5, (1 - math.sqrt(0.5)) / 2, 0.0)),
        ("0:1,1:0", (1.0, 0.75, 0.5, 0.25, 0.0)),
        ("0:1,0.5:0.2,1:0", (1.0, 0.6, 0.2, 0.1, 0.0)),
        ("0:0, 0.25:1, 0.75:1, 1:0", (0.0, 1.0, 1.0, 1.0, 0.0)),
    ],
)
def test_m_at_every_quarter_of_training(spec: Mixing, expected: tuple[float, ...]) -> None:
    schedule = mixing(spec)
    assert [schedule(share) for share in QUARTERS] == pytest.approx(expected, abs=1e-15)


@pytest.mark.parametrize(
    ("spec", "constant"),
    [
        (0.5, True),
        ("1", True),
        ("linear:0.5:0.5", True),
        ("0:1,0.3:1,1:1", True),
        ("linear:1:0", False),
        ("0:1,0.5:0,1:1", False),
    ],
)
def test_what_never_moves_is_constant(spec: Mixing, constant: bool) -> None:
    assert mixing(spec).constant == constant


@given(share=st.floats(0, 1))
def test_m_stays_between_the_knots_it_lies_between(share: float) -> None:
    """And linear is knots at the ends; cosine, symmetric about the middle, is half way there."""
    assert 0.2 <= mixing("0:1,0.5:0.2,1:0.4")(share) <= 1
    assert mixing("linear:1:0.5")(share) == mixing("0:1,1:0.5")(share)
    assert mixing("cosine:1:0")(share) + mixing("cosine:1:0")(1 - share) == pytest.approx(1, abs=1e-12)


WORD = "expected a number, linear:FIRST:LAST, cosine:FIRST:LAST or knots SHARE:M"
RANGE = "expected finite values of at least 0"
GAP = "expected shares of training that ascend from 0 to 1 and leave no gap"


@pytest.mark.parametrize(
    ("spec", "got", "expected"),
    [
        ("half", "'half'", WORD),
        ("", "''", WORD),
        (None, "None", WORD),
        ("linear", "'linear'", WORD),
        ("linear:1", "'linear:1'", WORD),
        ("linear:1:0:1", "'linear:1:0:1'", WORD),
        ("cosine:one:0", "'cosine:one:0'", WORD),
        ("sine:1:0", "'sine:1:0'", WORD),
        ("0:1,1", "'0:1,1'", WORD),
        ("0:1,,1:0", "'0:1,,1:0'", WORD),
        ("0:1:2,1:0", "'0:1:2,1:0'", WORD),
        (-0.1, "-0.1", RANGE),
        ("-1", "'-1'", RANGE),
        (math.nan, "nan", RANGE),
        ("nan", "'nan'", RANGE),
        (math.inf, "inf", RANGE),
        ("linear:1:-0.5", "'linear:1:-0.5'", RANGE),
        ("cosine:nan:0", "'cosine:nan:0'", RANGE),
        ("0:1,0.5:-1,1:0", "'0:1,0.5:-1,1:0'", RANGE),
        ("0:1", r"'0:1' with knots at 0,", GAP),
        ("0.5:1,1:0", r"'0.5:1,1:0' with knots at 0.5, 1,", GAP),
        ("0:1,0.5:0", r"'0:1,0.5:0' with knots at 0, 0.5,", GAP),
        ("0:1,2:0", r"'0:1,2:0' with knots at 0, 2,", GAP),
        ("-1:1,1:0", r"'-1:1,1:0' with knots at -1, 1,", GAP),
        ("1:0,0:1", r"'1:0,0:1' with knots at 1, 0,", GAP),
        ("0:1,0.5:1,0.5:0,1:0", "with knots at 0, 0.5, 0.5, 1,", GAP),
        ("0:1,0.7:1,0.3:0,1:0", "with knots at 0, 0.7, 0.3, 1,", GAP),
        ("0:1,nan:0.5,1:0", "with knots at 0, nan, 1,", GAP),
    ],
)
def test_a_bad_word_is_refused_in_one_line_with_what_was_expected(spec: Any, got: str, expected: str) -> None:
    with pytest.raises(ValueError) as refused:
        mixing(spec)
    text = str(refused.value)
    assert text.startswith("got m=") and got in text and expected in text
    assert "\n" not in text
