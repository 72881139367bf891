"""What the figures draw is the numbers they were given."""

from __future__ import annotations

import re

import numpy as np
import pytest

from sidestep.report.drawing import apart, depth
from sidestep.report.figures import (
    Line,
    confidences,
    curves,
    descent,
    differences,
    dots,
    reliability,
    risk_coverage,
    slack,
)
from sidestep.report.figures import lines as named_lines


def lines(svg: str, colour: str, points: int) -> list[list[tuple[float, float]]]:
    """The open paths of so many points stroked in a colour, as (x, height): SVG counts down."""
    paths = re.findall(r'<path d="([^"]*)"[^>]*style="fill: none;[^"]*stroke: ' + re.escape(colour) + r"[;\"]", svg)
    found = [[(float(x), -float(y)) for x, y in re.findall(r"[ML] (\S+) (\S+)", path)] for path in paths]
    return [line for line in found if len(line) == points]


def last_block(percent: int = 100) -> str:
    return f"color-mix(in srgb, var(--accent) {percent}%, var(--page))"


def test_a_line_is_the_mean_over_runs_at_every_epoch() -> None:
    values = np.array([[[0.0], [2.0], [8.0]], [[0.0], [4.0], [10.0]]])  # means 0, 3, 9
    svg = curves("a", [1, 2, 5], values, "u")
    (x0, y0), (x1, y1), (x2, y2) = lines(svg, last_block(), 3)[0]
    # 1e-4: SVG has six digits.
    assert (x2 - x0) / (x1 - x0) == pytest.approx(4, abs=1e-4)
    assert (y2 - y0) / (y1 - y0) == pytest.approx(3, abs=1e-4)


def test_a_logarithmic_line_has_equal_steps_for_equal_factors() -> None:
    svg = curves("a", [1, 2, 3], np.array([[[16.0], [4.0], [2.0]]]), "u", log=True)
    (_, y0), (_, y1), (_, y2) = lines(svg, last_block(), 3)[0]
    assert y0 - y1 == pytest.approx(2 * (y1 - y2), abs=1e-4)  # SVG has six digits
    flat = curves("a", [1, 2, 3], np.array([[[16.0], [4.0], [0.0]]]), "u", log=True)
    (_, y0), (_, y1), (_, y2) = lines(flat, last_block(), 3)[0]
    assert y0 - y1 == pytest.approx(3 * (y1 - y2), abs=1e-4)  # 0 has no logarithm, so the axis is linear


def test_blocks_without_numbers_have_no_line_and_no_name() -> None:
    svg = curves("a", [1, 2], np.array([[[np.nan, 1.0], [np.nan, 2.0]]]), "u")
    assert re.findall(r">(block \d+)<", svg) == ["block 2"]
    assert lines(svg, last_block(35), 2) == [] != lines(svg, last_block(), 2)


def test_of_many_blocks_some_are_named_the_first_and_last_among_them() -> None:
    svg = curves("a", [1], np.arange(32.0).reshape(1, 1, 32), "u")
    names = re.findall(r">block (\d+)<", svg)
    assert len(names) == 8 and {"1", "32"} < set(names)


def test_the_last_block_has_the_full_accent() -> None:
    assert [int(depth(k, 3)[-2:], 16) for k in range(3)] == [35, 68, 100]
    assert int(depth(0, 1)[-2:], 16) == 100


def test_descent_draws_measured_and_predicted_on_one_scale() -> None:
    measured, predicted = np.array([[4.0, 1.5, 1.0]]), np.array([[4.0, 1.0, 0.25]])
    svg = descent("a", measured, predicted)
    (accent,), (muted,) = lines(svg, "var(--accent)", 3), lines(svg, "var(--muted)", 3)
    assert muted[0] == accent[0]
    # On a logarithmic axis a factor of 16 is twice a factor of 4; SVG has six digits.
    assert muted[0][1] - muted[2][1] == pytest.approx(2 * (accent[0][1] - accent[2][1]), abs=1e-3)


def test_slack_shows_the_share_of_positive_samples_and_its_quantiles_in_place() -> None:
    svg = slack("a", np.array([[-4.0, -3.0, -2.0, -1.0, 0.0]]), np.array([0.125]))
    assert ">12.5 %<" in svg
    zero = lines(svg, "var(--ink)", 2)[0][0][0]
    thin, thick = lines(svg, last_block(), 2)
    assert thin[1][0] == zero and thick[0][1] == thin[0][1]
    # 25 to 75 % is half as wide as 5 to 95 %; SVG has six digits.
    assert thin[1][0] - thin[0][0] == pytest.approx(2 * (thick[1][0] - thick[0][0]), abs=1e-4)


def test_reliability_stands_beside_the_diagonal_on_equal_axes() -> None:
    raw, after = Line("raw", [0.56, 0.7, 1.0], [0.6, 0.65, 1.0]), Line("T = 2.00", [0.5, 0.6, 0.9], [0.6, 0.65, 1.0])
    svg = reliability("a", [raw, after])
    assert ">raw<" in svg and ">T = 2.00<" in svg and set(ticks(svg)) == {"50", "60", "70", "80", "90", "100"}
    ((left, bottom), (right, top)) = lines(svg, "var(--muted)", 2)[0]
    for line, colour in ((raw, "var(--accent)"), (after, "var(--line-2)")):
        for (x, y), c, a in zip(lines(svg, colour, 3)[0], line.x, line.y, strict=True):
            # From 50 %, the least number, to 100 %; 1e-4: SVG has six digits.
            assert (x - left) / (right - left) == pytest.approx(2 * c - 1, abs=1e-4)
            assert (y - bottom) / (top - bottom) == pytest.approx(2 * a - 1, abs=1e-4)
    assert {"90", "100"} < set(ticks(reliability("a", [Line("raw", [1.0], [1.0])])))  # all sure, all right


def test_risk_over_coverage_is_a_line_a_block_and_one_for_their_mean() -> None:
    risks = np.array([[0.0, 0.1, 0.4], [np.nan] * 3, [0.1, 0.1, 0.2]])
    svg = risk_coverage("a", [0.25, 0.5, 1.0], risks, np.array([0.0, 0.0, 0.1]))
    assert [name for name in ("block 1", "block 2", "block 3", "mean") if f">{name}<" in svg] == [
        *("block 1", "block 3", "mean")
    ]
    (first,), (third,), (mean,) = (lines(svg, c, 3) for c in (last_block(35), last_block(), "var(--ink)"))
    left, floor = mean[0]
    unit = (third[0][1] - floor) / 0.1
    assert (mean[2][0] - left) / (mean[1][0] - left) == pytest.approx(3, abs=1e-4)  # SVG has six digits
    heights = [(y - floor) / unit for line in (first, third, mean) for _, y in line]
    assert heights == pytest.approx([0, 0.1, 0.4, 0.1, 0.1, 0.2, 0, 0, 0.1], abs=1e-4)
    alone = risk_coverage("a", [0.25, 0.5, 1.0], risks, None)
    assert ">mean<" not in alone and lines(alone, "var(--ink)", 3) == []


def test_confidences_inside_and_outside_are_steps_as_high_as_their_shares() -> None:
    svg = confidences("a", [0.0, 0.25, 0.75], [0.5, 0.5, 0.0])
    assert ">inside<" in svg and ">outside<" in svg
    (inside,), (outside,) = (lines(svg, colour, 8) for colour in ("var(--accent)", "var(--line-2)"))
    floor = inside[0][1]
    unit = (inside[5][1] - floor) / 0.75
    for steps, shares in ((inside, [0, 0, 0.25, 0.25, 0.75, 0.75]), (outside, [0.5, 0.5, 0.5, 0.5, 0, 0])):
        assert [(y - floor) / unit for _, y in steps[1:-1]] == pytest.approx(shares, abs=1e-4)  # SVG has six digits
        widths = np.diff([x for x, _ in steps[1:-1]])
        assert widths[[0, 2, 4]] == pytest.approx(np.full(3, widths[0]), abs=1e-4)


def test_every_run_is_a_dot_beside_its_group() -> None:
    svg = dots("a", [("x & y", [0.5, 0.75]), ("$z$", [0.25])])
    assert ">x &amp; y<" in svg and ">$z$<" in svg
    places = [float(x) for x in re.findall(r'<use xlink:href="#\w+" x="([\d.]+)"[^>]*style="fill-opacity: 0', svg)]
    assert places[0] - places[2] == pytest.approx(places[1] - places[0], abs=1e-4)  # 0.25 apart; SVG has six digits
    assert len(places) == 3


def ticks(svg: str) -> list[str]:
    """The texts below the x axis, in order: centred, and numbers."""
    return re.findall(r"text-anchor: middle[^>]*>([\d.,]+)<", svg)


def test_a_named_line_and_its_band_are_where_their_numbers_are() -> None:
    svg = named_lines("a", [Line("x & y", [1, 2, 5], [0, 3, 9], low=[-1, 3, 6], high=[1, 3, 12])], "t", "u", zero=True)
    assert ">x &amp; y<" in svg and ">t<" in svg and ">u<" in svg
    (x0, y0), (x1, y1), (x2, y2) = lines(svg, "var(--line-1)", 3)[0]
    # 1e-4: SVG has six digits.
    assert (x2 - x0) / (x1 - x0) == pytest.approx(4, abs=1e-4)
    assert (y2 - y0) / (y1 - y0) == pytest.approx(3, abs=1e-4)
    assert lines(svg, "var(--ink)", 2)[0][0][1] == pytest.approx(y0, abs=1e-4)  # the line at 0, where y begins
    (band,) = re.findall(r'<path id="\w+" d="([^"]* z )"/> </defs> <g [^>]*> <use [^>]*fill: var\(--line-1\)', svg)
    corners = [(float(x), float(y)) for x, y in re.findall(r"[ML] (\S+) (\S+)", band)]
    assert {x for x, _ in corners} == {x0, x1, x2}
    heights = [y for x, y in corners if x == x2]
    assert max(heights) - min(heights) == pytest.approx(2 * (y1 - y0), abs=1e-4)  # from 6 to 12, twice from 0 to 3


def test_logarithmic_axes_have_equal_steps_for_equal_factors_and_the_given_numbers_below() -> None:
    svg = named_lines("a", [Line("a", [1, 4, 8], [16, 4, 2]), Line("b", [2000], [8])], "t", "u", log_x=True, log_y=True)
    (x0, y0), (x1, y1), (x2, y2) = lines(svg, "var(--line-1)", 3)[0]
    assert x1 - x0 == pytest.approx(2 * (x2 - x1), abs=1e-4)  # SVG has six digits
    assert y0 - y1 == pytest.approx(2 * (y1 - y2), abs=1e-4)
    assert ticks(svg) == ["1", "4", "8", "2,000"]


def test_of_crowded_numbers_those_are_written_that_have_room() -> None:
    svg = named_lines("a", [Line("a", range(1, 101), range(1, 101))], "t", "u", log_x=True)
    written = ticks(svg)
    assert {"1", "2", "100"} < set(written) and "99" not in written
    assert len(set(written)) == len(written) < 30


def test_eight_lines_differ_in_colour_in_dashes_and_in_marker() -> None:
    svg = named_lines("a", [Line(f"m{k}", [1, 2, 3], [k, k + 1, k]) for k in range(8)], "t", "u")
    assert sorted(re.findall(r">m(\d)<", svg)) == list("01234567")
    assert all(len(lines(svg, f"var(--line-{n})", 3)) == 1 for n in range(1, 9))
    paths = [p for p in re.findall(r'<path d="[^"]*"[^>]*style="fill: none;[^"]*"', svg) if p.count(" L ") == 2]
    assert len({tuple(re.findall(r"stroke-dasharray: ([^;]*)", p)) for p in paths}) == len(paths) == 8
    assert len(set(re.findall(r'<use xlink:href="#(\w+)"[^>]*style="fill: var\(--line', svg))) == 8


def test_few_points_are_marked_and_many_are_not() -> None:
    few, many = (named_lines("a", [Line("a", range(n), range(n))], "t", "u") for n in (20, 21))
    marks = r'<use [^>]*style="fill: var\(--line-1'
    assert len(re.findall(marks, few)) == 20 and not re.findall(marks, many)


def test_a_line_that_ends_early_is_led_to_its_name_from_its_last_number() -> None:
    svg = named_lines("a", [Line("a", [1, 2, 3], [4, 5, 6]), Line("b", [1, 2, 3], [1, 2, np.nan])], "t", "u")
    (short,) = [line for line in lines(svg, "var(--line-2)", 2) if line[0][1] != line[1][1]][:1]
    leader = next(line for line in lines(svg, "var(--line-2)", 2) if line[0] == short[1])
    full = lines(svg, "var(--line-1)", 3)[0]
    assert leader[1] == (full[2][0], short[1][1])
    assert ">b<" in svg and "nan" not in svg.lower()


def test_differences_stand_beside_zero_with_their_interval_and_single_values() -> None:
    svg = differences("a", [("x < y", -1, -3, 1, [-2.0, 0.0]), ("z", 2, None, None, [2.0])], "points")
    assert ">x &lt; y<" in svg and ">points<" in svg
    zero = lines(svg, "var(--ink)", 2)[0][0][0]
    (interval,) = lines(svg, "var(--accent)", 2)  # z has none
    places = [float(x) for x in re.findall(r'<use xlink:href="#\w+" x="([\d.]+)"[^>]*style="fill-opacity: 0', svg)]
    means = [float(x) for x in re.findall(r'<use xlink:href="#\w+" x="([\d.]+)"[^>]*style="fill: var\(--accent', svg)]
    unit = (interval[1][0] - interval[0][0]) / 4
    # 1e-4: SVG has six digits.
    assert [(x - zero) / unit for x in (interval[0][0], interval[1][0])] == pytest.approx([-3, 1], abs=1e-4)
    assert [(x - zero) / unit for x in places] == pytest.approx([-2, 0, 2], abs=1e-4)
    assert [(x - zero) / unit for x in means] == pytest.approx([-1, 2], abs=1e-4)


def test_equal_figures_have_equal_bytes_and_other_ones_other_ids() -> None:
    values = np.ones((1, 2, 1))
    one, again, other = (curves(alt, [1, 2], values, "u") for alt in ("a", "a", "b"))
    assert one == again
    assert not set(re.findall(r' id="([^"]*)"', one)) & set(re.findall(r' id="([^"]*)"', other))


def test_labels_keep_apart_and_move_no_more_than_they_must() -> None:
    assert apart([0.2, 0.5, 0.9], 0.1) == pytest.approx([0.2, 0.5, 0.9])  # rounding of y - i gap + i gap
    assert apart([0.5, 0.5], 0.2) == pytest.approx([0.4, 0.6])
    assert apart([0.1, 0.5, 0.5, 0.5], 0.2) == pytest.approx([0.1, 0.3, 0.5, 0.7])
    assert apart([1.0, 1.0], 0.2) == pytest.approx([0.8, 1.0])  # and stay within the axes
    wanted = sorted(np.random.default_rng(0).random(8).tolist())
    placed = apart(wanted, 0.1)
    assert min(np.diff(placed)) > 0.1 - 1e-12 and min(placed) >= 0 and max(placed) <= 1 + 1e-12
