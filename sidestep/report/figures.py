"""Figures as inline SVG: text stays text, colours are the page's CSS variables, and equal values give equal bytes.

S runs (one a seed), E epochs, K blocks.
"""

from __future__ import annotations

import io
import re
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from html import escape
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

WIDTH, HEIGHT = 5.0, 2.8  # inches: half a page, or a phone
LEFT, RIGHT, BOTTOM, TOP = 0.56, 0.66, 0.46, 0.1  # margins around the axes
SIZE = 9  # of text, points
FEW = 8  # lines that are named

# Stand-ins for the page's variables, which `inline` puts in their place.
INK, MUTED, GRID, ACCENT, PAGE = "#000001", "#000002", "#000003", "#000004", "#000005"
NAMED = [f"#00001{n}" for n in range(1, FEW + 1)]  # lines that are told apart by their names, not by an order
VARIABLES = {INK: "--ink", MUTED: "--muted", GRID: "--grid", ACCENT: "--accent", PAGE: "--page"} | {
    colour: f"--line-{n}" for n, colour in enumerate(NAMED, 1)
}

STYLE: dict[str, Any] = {
    "svg.fonttype": "none",
    "text.parse_math": False,
    "font.size": SIZE,
    "text.color": INK,
    "axes.edgecolor": MUTED,
    "axes.labelcolor": INK,
    "axes.linewidth": 0.6,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "axes.grid": True,
    "grid.color": GRID,
    "grid.linewidth": 0.6,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
    "lines.linewidth": 1.5,
    "lines.markersize": 3.5,
}

# Named lines differ without their colours too: dashes in line widths, on and off; marker and its size, for equal areas.
DASHES = ((), (4, 1.5), (1, 1), (6, 1.5, 1, 1.5), (8, 2), (2, 2), (3, 1, 1, 1, 1, 1), (8, 1.5, 2, 1.5))
MARKERS = (("o", 4), ("s", 3.8), ("^", 4.6), ("D", 3.5), ("v", 4.6), ("P", 4.8), ("X", 4.8), ("*", 6))


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
            text = axes.text(0, k - 0.16, name, transform=axes.get_yaxis_transform(), va="bottom")
            if zero:  # its line does not strike a name out
                text.set_bbox({"facecolor": PAGE, "linewidth": 0, "pad": 0})
        axes.set_ylim(len(rows) - 0.6, -0.9)
        axes.set_yticks([])
        axes.margins(x=0.08)
        axes.set_xlabel(xlabel)
        return inline(figure, alt)


def style(alt: str) -> AbstractContextManager[None]:
    """Whatever the user's own style is; alt salts the ids, so that no two figures of a page share one."""
    from matplotlib.style import context

    return context(["default", {**STYLE, "svg.hashsalt": alt}])


def panel(height: float = HEIGHT, left: float = LEFT, right: float = RIGHT) -> tuple[Figure, Axes]:
    """A figure with one pair of axes; heights and margins are inches, so that every figure's text is of one size."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(WIDTH, height))
    box = (left / WIDTH, BOTTOM / height, (WIDTH - left - right) / WIDTH, (height - BOTTOM - TOP) / height)
    return figure, figure.add_axes(box)


def depth(block: int, count: int) -> str:
    """The accent for the last block, paler towards the first."""
    return f"#0001{round(35 + 65 * block / (count - 1)) if count > 1 else 100:02x}"


def shade(colour: re.Match[str]) -> str:
    """What `depth` stands for."""
    return f"color-mix(in srgb, var(--accent) {int(colour[1], 16)}%, var(--page))"


def plain(value: float) -> str:
    """A number as one writes it, however large."""
    return f"{value:,.10g}"


def whole_numbers(axes: Axes) -> None:
    from matplotlib.ticker import MaxNLocator

    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))


def logarithmic(axes: Axes) -> None:
    """A logarithmic axis whose ticks are plain numbers: even steps, 1, 2, 5 of a decade, or decades, as it is long."""
    from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator

    axes.set_yscale("log")
    low, high = axes.get_ylim()
    decades = LogLocator(subs=(1, 2, 5) if high / low < 500 else (1,))
    axes.yaxis.set_major_locator(MaxNLocator(5) if high / low < 6 else decades)
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: plain(value)))
    axes.yaxis.set_minor_locator(NullLocator())


def logarithmic_at(axes: Axes, values: Sequence[float]) -> None:
    """A logarithmic x axis with ticks at these ascending values, written where there is room, the last one first."""
    axes.set_xscale("log")
    width = axes.get_position().width * WIDTH * 72
    decades = np.log10(values[-1]) - np.log10(values)
    texts: list[str] = []
    taken = -np.inf
    for value, place in zip(reversed(values), reversed(width * decades / max(decades[0], 1e-9)), strict=True):
        text = plain(value)
        half = 0.3 * SIZE * len(text)  # of its width, about
        texts.append(text if place - half > taken else "")
        if texts[-1]:
            taken = place + half + 0.4 * SIZE
    axes.set_xticks(values, reversed(texts))
    axes.minorticks_off()


def name_lines(axes: Axes, ends: Mapping[int, float], count: int) -> None:
    """Name the blocks at the ends of their lines, some of them where they are many."""
    blocks = list(ends)
    if len(blocks) > FEW:
        blocks = [blocks[round(i * (len(blocks) - 1) / (FEW - 1))] for i in range(FEW)]
    end_labels(axes, [(ends[k], f"block {k + 1}", depth(k, count)) for k in blocks])


def end_labels(axes: Axes, lines: Sequence[tuple[float, str, str]]) -> None:
    """Text beside the right ends of lines, moved up or down no more than it takes to keep it apart."""
    right = axes.get_xlim()[1]
    points = axes.transAxes.inverted().transform(axes.transData.transform([(right, value) for value, _, _ in lines]))
    height = axes.get_position().height * axes.figure.get_figheight() * 72  # pyright: ignore[reportAttributeAccessIssue]
    order = sorted(range(len(lines)), key=lambda i: points[i, 1])
    placed = apart([float(points[i, 1]) for i in order], 1.15 * SIZE / height)
    for i, y in zip(order, placed, strict=True):
        _, text, colour = lines[i]
        axes.plot([1, 1.025], [points[i, 1], y], transform=axes.transAxes, color=colour, linewidth=0.7, clip_on=False)
        axes.text(1.035, y, text, transform=axes.transAxes, va="center_baseline")


def apart(wanted: Sequence[float], gap: float) -> list[float]:
    """The positions in 0..1 nearest, in least squares, to ascending wanted ones, and at least `gap` apart.

    Less i gaps the positions must not descend, so runs that do are pooled to their mean.
    """
    pools: list[list[float]] = []
    for i, y in enumerate(wanted):
        pools.append([y - i * gap])
        while len(pools) > 1 and np.mean(pools[-2]) > np.mean(pools[-1]):
            pools[-2:] = [pools[-2] + pools[-1]]
    level = [float(np.mean(pool)) for pool in pools for _ in pool]
    top = 1 - gap * (len(wanted) - 1)
    return [min(max(y, 0), top) + i * gap for i, y in enumerate(level)]


def inline(figure: Figure, alt: str) -> str:
    """The figure as an <svg> element of the page: no prolog, no style of its own, no ids but those it refers to."""
    file = io.StringIO()
    for patch in (figure.patch, *(axes.patch for axes in figure.axes)):
        patch.set_visible(False)
    figure.savefig(file, format="svg", metadata={"Date": None})
    svg = file.getvalue()
    svg = svg[svg.index("<svg") :].strip()
    svg = re.sub(r"\s*<metadata>.*?</metadata>|\s*<defs>\s*<style.*?</defs>|<!--.*?-->", "", svg, flags=re.DOTALL)
    svg = re.sub(r' id="[a-zA-Z.]+2?d?_\d+"', "", svg)
    svg = re.sub(r' (width|height)="[\d.]+pt"', "", svg, count=2)
    svg = re.sub(r" font-family: [^;\"]*;| transform=\"rotate\(-0 [^\"]*\"", "", svg)
    svg = re.sub(r"#0001([0-9a-f]{2})", shade, svg)
    for colour, variable in VARIABLES.items():
        svg = svg.replace(colour, f"var({variable})")
    svg = re.sub(r"\s*\n\s*", " ", svg)
    return svg.replace("<svg", f'<svg role="img" aria-label="{escape(alt)}"', 1)
