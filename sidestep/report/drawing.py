"""What every figure is drawn with: a panel of axes, their ticks, names beside lines, and SVG in the page's colours."""

from __future__ import annotations

import io
import re
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
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


def name_lines(
    axes: Axes, ends: Mapping[int, float], count: int, others: Sequence[tuple[float, str, str]] = ()
) -> None:
    """Name the blocks at the ends of their lines, some of them where they are many, and others as in `end_labels`."""
    blocks = list(ends)
    if len(blocks) > FEW:
        blocks = [blocks[round(i * (len(blocks) - 1) / (FEW - 1))] for i in range(FEW)]
    end_labels(axes, [*((ends[k], f"block {k + 1}", depth(k, count)) for k in blocks), *others])


def end_labels(axes: Axes, lines: Sequence[tuple[float, str, str]]) -> None:
    """Text beside the right ends of lines, moved up or down no more than it takes to keep it apart."""
    right = axes.get_xlim()[1]
    points = axes.transAxes.inverted().transform(axes.transData.transform([(right, value) for value, _, _ in lines]))
    # Typed as a figure or a part of one, which has no height of its own; `panel` makes figures.
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
