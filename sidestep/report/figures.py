"""Figures as inline SVG: text stays text, colours are the page's CSS variables, and equal values give equal bytes.

S runs (one a seed), E epochs, K blocks.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from .drawing import (
    ACCENT,
    BOTTOM,
    DASHES,
    GRID,
    INK,
    MARKERS,
    MUTED,
    NAMED,
    PAGE,
    RIGHT,
    TOP,
    depth,
    end_labels,
    inline,
    logarithmic,
    logarithmic_at,
    name_lines,
    panel,
    style,
    whole_numbers,
)


@dataclass(frozen=True)
class Line:
    """Points (x, y), x ascending, and the band around them; NaN where there is nothing, as after a run diverged."""

    name: str
    x: Sequence[float]
    y: Sequence[float]
    low: Sequence[float] | None = None
    high: Sequence[float] | None = None


def curves(
    alt: str,
    epochs: Sequence[int],
    values: np.ndarray,
    unit: str,
    limits: tuple[float, float] | None = None,
    log: bool = False,
) -> str:
    """One line a block over epochs: the mean over runs, in a band from the least to the greatest.

    values: (S, E, K), NaN for a block that has none.  unit: what the vertical axis says.  alt: in words what the figure
    shows; no other figure of the page has the same.
    """
    with style(alt):
        figure, axes = panel()
        count = values.shape[2]
        ends: dict[int, float] = {}
        for k in range(count):
            if not np.isfinite(runs := values[:, :, k]).all():
                continue
            if len(runs) > 1:
                axes.fill_between(epochs, runs.min(0), runs.max(0), color=depth(k, count), alpha=0.14, linewidth=0)
            marker = "o" if len(epochs) <= 20 else ""
            axes.plot(epochs, runs.mean(0), color=depth(k, count), marker=marker, zorder=3, clip_on=False)
            ends[k] = float(runs.mean(0)[-1])
        if log and np.nanmin(values) > 0:
            logarithmic(axes)
        if limits:
            axes.set_ylim(*limits)
        whole_numbers(axes)
        if len(epochs) == 1:
            axes.set_xticks(epochs)
        axes.set_xlim(min(epochs) - (len(epochs) == 1), max(epochs))
        axes.set(xlabel="epoch", ylabel=unit)
        name_lines(axes, ends, count)
        return inline(figure, alt)


def descent(alt: str, measured: np.ndarray, predicted: np.ndarray | None) -> str:
    """The distance to the target before the first and after every block, beside what the theory predicts.

    measured, predicted: (S, K + 1), nats; the means over runs are drawn, the measured one in a bar of its range.
    """
    with style(alt):
        figure, axes = panel()
        x = np.arange(measured.shape[1])
        mean = measured.mean(0)
        ends = {"measured": (mean[-1], ACCENT)}
        if predicted is not None:
            axes.plot(x, predicted.mean(0), color=MUTED, linestyle=(0, (4, 3)), marker="o", markerfacecolor="none")
            ends["predicted"] = (predicted.mean(0)[-1], MUTED)
        axes.plot(x, mean, color=ACCENT, marker="o", zorder=3)
        axes.vlines(x, measured.min(0), measured.max(0), color=ACCENT, linewidth=1)
        if all(values.min() > 0 for values in (measured, predicted) if values is not None):
            logarithmic(axes)
        whole_numbers(axes)
        axes.set_xlim(-0.1, x[-1] + 0.1)
        axes.set(xlabel="after block (0: the uniform belief)", ylabel="D, nats")
        end_labels(axes, [(value, name, colour) for name, (value, colour) in ends.items()])
        return inline(figure, alt)


def slack(alt: str, quantiles: np.ndarray, positive: np.ndarray) -> str:
    """How each block's slack is distributed over samples, and the share of samples where it is positive.

    quantiles: (K, 5) at 5, 25, 50, 75 and 95 %, nats.  positive: (K,) fractions.
    """
    with style(alt):
        figure, axes = panel(height=BOTTOM + 3 * TOP + 0.26 * len(quantiles))
        axes.axvline(0, color=INK, linewidth=0.8)
        axes.grid(axis="y", visible=False)
        for k, (low, q1, median, q3, high) in enumerate(quantiles):
            colour = depth(k, len(quantiles))
            axes.plot([low, high], [k, k], color=colour, linewidth=1, solid_capstyle="butt")
            axes.plot([q1, q3], [k, k], color=colour, linewidth=5, solid_capstyle="butt")
            axes.plot([median], [k], color=INK, marker="|", markersize=9, markeredgewidth=1.5, zorder=3)
            axes.text(1.02, k, f"{100 * positive[k]:.1f} %", transform=axes.get_yaxis_transform(), va="center_baseline")
        axes.text(1.02, -0.75, "e > 0", transform=axes.get_yaxis_transform(), va="center_baseline", color=MUTED)
        axes.set_ylim(len(quantiles) - 0.4, -1.1)
        axes.set_yticks(range(len(quantiles)), [str(k + 1) for k in range(len(quantiles))])
        axes.tick_params(axis="y", length=0)
        axes.set(xlabel="slack e, nats (negative: better than the belief received)", ylabel="block")
        return inline(figure, alt)


def reliability(alt: str, answers: Sequence[Line]) -> str:
    """Accuracy over confidence, a point a bin, beside the line on which they are equal.

    answers: accuracies (fractions) at confidences, the last block's as they are, and after temperature if it has one.
    """
    with style(alt):
        figure, axes = panel()
        low = 10 * np.floor(min(9, *(10 * v for answer in answers for v in (*answer.x, *answer.y))))
        axes.plot([low, 100], [low, 100], color=MUTED, linewidth=0.8)
        ends: list[tuple[float, str, str]] = []
        looks = zip((ACCENT, NAMED[1]), DASHES, MARKERS, strict=False)
        for answer, (colour, dashes, (marker, size)) in zip(answers, looks, strict=False):
            x, y = 100 * np.array(answer.x), 100 * np.array(answer.y)
            axes.plot(x, y, color=colour, dashes=dashes, marker=marker, markersize=size, zorder=3, clip_on=False)
            ends.append((float(y[-1]), answer.name, colour))
        axes.set(xlim=(low, 100), ylim=(low, 100), xlabel="confidence, %", ylabel="accuracy, %")
        end_labels(axes, ends)
        return inline(figure, alt)


def coverage(alt: str, shares: np.ndarray, levels: Sequence[float]) -> str:
    """How often the truth lies within intervals that are to hold it `levels` % of the time: a line a level.

    shares: (P, L) in percent, over P parts of the numbers, from the narrowest predicted deviation to the widest.
    """
    with style(alt):
        figure, axes = panel()
        parts = np.arange(1, len(shares) + 1)
        ends: list[tuple[float, str, str]] = []
        for k, (share, level) in enumerate(zip(shares.T, levels, strict=True)):
            axes.axhline(level, color=MUTED, linewidth=0.8)
            axes.plot(parts, share, color=depth(k, len(levels)), zorder=3, clip_on=False)
            ends.append((float(share[-1]), f"{level:.0f} %", depth(k, len(levels))))
        axes.set(
            xlim=(1, len(shares)),
            ylim=(0, 100),
            xlabel="tenth, by predicted deviation",
            ylabel="within the interval, %",
        )
        whole_numbers(axes)
        end_labels(axes, ends)
        return inline(figure, alt)


def risk_coverage(alt: str, coverage: Sequence[float], risks: np.ndarray, mean: np.ndarray | None) -> str:
    """The share of wrong answers among the most confident, over the share that is answered: a line a block.

    coverage: (P,) fractions; risks: (K, P) fractions, NaN for a block that has none; mean: (P,) of the blocks' mean.
    """
    with style(alt):
        figure, axes = panel()
        x = 100 * np.array(coverage)
        ends: dict[int, float] = {}
        for k, risk in enumerate(100 * risks):
            if np.isfinite(risk).all():
                axes.plot(x, risk, color=depth(k, len(risks)), zorder=3)
                ends[k] = float(risk[-1])
        others: list[tuple[float, str, str]] = []
        if mean is not None:
            y = 100 * mean
            axes.plot(x, y, color=INK, dashes=DASHES[1], zorder=4)
            others.append((float(y[-1]), "mean", INK))
        axes.set(xlim=(0, 100), xlabel="coverage: the most confident answers, %", ylabel="wrong among them, %")
        axes.set_ylim(bottom=0)
        name_lines(axes, ends, len(risks), others)
        return inline(figure, alt)


def confidences(alt: str, inside: Sequence[float], outside: Sequence[float]) -> str:
    """How confidence is distributed over samples of the run's own kind and of another.

    inside, outside: shares of the samples in bins of equal width from 0 to 1.
    """
    with style(alt):
        figure, axes = panel()
        edges = np.linspace(0, 100, len(inside) + 1)
        drawn = (("inside", inside, ACCENT, "solid"), ("outside", outside, NAMED[1], (0, DASHES[1])))
        for _, shares, colour, dashes in drawn:
            y = 100 * np.array(shares)
            axes.stairs(y, edges, color=colour, alpha=0.14, linewidth=0, fill=True)
            axes.stairs(y, edges, color=colour, linestyle=dashes, linewidth=1.5, zorder=3)
        axes.set(xlim=(0, 100), xlabel="confidence, %", ylabel="share of samples, %")
        axes.set_ylim(bottom=0)
        end_labels(axes, [(100 * shares[-1], name, colour) for name, shares, colour, _ in drawn])
        return inline(figure, alt)


def lines(
    alt: str,
    series: Sequence[Line],
    xlabel: str,
    ylabel: str,
    *,
    log_x: bool = False,
    log_y: bool = False,
    zero: bool = False,
) -> str:
    """Up to eight named lines, each in its band; few points are marked.

    log_x: the ticks are the x that are given, all > 0.  log_y: where all y are positive.  zero: a line at y = 0.
    """
    assert 0 < len(series) <= len(NAMED)
    with style(alt):
        figure, axes = panel(right=max(RIGHT, 0.16 + 0.065 * max(len(line.name) for line in series)))
        given = sorted({float(x) for line in series for x in line.x})
        if zero:
            axes.axhline(0, color=INK, linewidth=0.8)
        ends: list[tuple[float, str, str]] = []
        for line, colour, dashes, (marker, size) in zip(series, NAMED, DASHES, MARKERS, strict=False):
            x, y = np.asarray(line.x, dtype=float), np.asarray(line.y, dtype=float)
            if line.low is not None and line.high is not None:
                axes.fill_between(x, line.low, line.high, color=colour, alpha=0.14, linewidth=0)
            (drawn,) = axes.plot(x, y, color=colour, dashes=dashes, zorder=3, clip_on=False)
            if len(given) <= 20:
                drawn.set(marker=marker, markersize=size)
            reached = np.isfinite(y)
            if reached.any():
                end, value = float(x[reached][-1]), float(y[reached][-1])
                ends.append((value, line.name, colour))
                if end < given[-1]:  # led to its name
                    axes.plot([end, given[-1]], [value, value], color=colour, linewidth=0.5, dashes=(1, 3))
        if log_x:
            logarithmic_at(axes, given)
        elif all(x.is_integer() for x in given):
            whole_numbers(axes)
        if log_y and np.nanmin([y for line in series for y in line.y]) > 0:
            logarithmic(axes)
        axes.set_xlim(given[0] / 2 if len(given) == 1 else given[0], given[-1])
        axes.set(xlabel=xlabel, ylabel=ylabel)
        end_labels(axes, ends)
        return inline(figure, alt)


def dots(alt: str, accuracies: Sequence[tuple[str, Sequence[float]]]) -> str:
    """Every run's accuracy as a dot, one row a group, its mean as a bar.  accuracies: a label and fractions each."""
    percent = [(label, [100 * v for v in values]) for label, values in accuracies]
    rows = [(label, float(np.mean(values)), None, None, values) for label, values in percent]
    return in_rows(alt, rows, "accuracy, %")


def differences(
    alt: str, rows: Sequence[tuple[str, float, float | None, float | None, Sequence[float]]], xlabel: str
) -> str:
    """Differences beside zero, one row each: a name, the mean as a bar, its interval, the single values as dots."""
    return in_rows(alt, rows, xlabel, zero=True)


# ------------------------------------------------------------------------------------------------------------ the parts


def in_rows(
    alt: str,
    rows: Sequence[tuple[str, float, float | None, float | None, Sequence[float]]],
    xlabel: str,
    zero: bool = False,
) -> str:
    """One row a name, which stands above it: mean, low and high end of an interval or None, single values."""
    with style(alt):
        row = 0.46
        figure, axes = panel(height=BOTTOM + 2 * TOP + row * len(rows), left=TOP)
        axes.grid(axis="y", visible=False)
        axes.spines["left"].set_visible(False)
        if zero:
            axes.axvline(0, color=INK, linewidth=0.8)
        for k, (name, mean, low, high, values) in enumerate(rows):
            axes.axhline(k, color=GRID, linewidth=0.6, zorder=1 if zero else 2)
            if low is not None and high is not None:
                axes.plot([low, high], [k, k], color=ACCENT)
            axes.plot(values, [k] * len(values), "o", color=MUTED, markerfacecolor="none", markersize=5)
            axes.plot([mean], [k], "|", color=ACCENT, markersize=11, markeredgewidth=2.5)
            text = axes.text(0, k - 0.22, name, transform=axes.get_yaxis_transform(), va="bottom")
            if zero:  # its line does not strike a name out
                text.set_bbox({"facecolor": PAGE, "linewidth": 0, "pad": 0})
        axes.set_ylim(len(rows) - 0.6, -0.9)
        axes.set_yticks([])
        axes.margins(x=0.08)
        axes.set_xlabel(xlabel)
        return inline(figure, alt)
