"""What `bench step` and `bench memory` leave in a study's rows: candidates beside plain backprop, the base of both.

The row of such a piece has an entry a candidate under `rows`; rows of other pieces are passed over.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from sidestep.report.figures import Line, lines
from sidestep.report.study import Section
from sidestep.report.tables import Column, Format, Table, fixed, significant
from sidestep.studies.rows import by_label, names, pick
from sidestep.studies.study import Grid, Machine, Part, Row

Groups = Mapping[str, Sequence[Row]]
Entry = dict[str, Any]

STEP, MEMORY = "step_ms", "peak_activation_mb"
"""The number that an entry is of, in ms or in MB of 2**20 bytes; its `ratio` is that over plain backprop's."""
FLOOR = "floor_ms"
"""The least that a step could take; benches from before it was measured lack it."""
PLAIN = "plain backprop"
CHECKPOINTED = "checkpointed backprop"
"""No candidate's own name: the fastest of those whose segments take about the least memory."""
NEAR = 1.05
SEGMENTS = (
    "Checkpointing is by segments of 1, 2, 4 or 8 blocks: of those that need at most 5 % more than the least memory, "
    "the fastest."
)
LEAST = (
    "The least a step could take is its FLOPs at the measured rate of a matrix product, or the bytes it has to move at "
    "that of a copy, whichever is more."
)
IDLE = 0.5
"""The most load, a mean over a minute before a bench begins, of a machine with nothing else to do."""
TIMES = fixed(2)
CAPTIONS = {"Step time": STEP, "Peak memory of a step": MEMORY}
EAGER, COMPILED, GRAPHS = "eager", "compiled", "as CUDA graphs"
"""How steps are run: labels of rows under `run`."""


def grids(
    arms: Mapping[str, str],
    common: str,
    variants: Mapping[str, Mapping[str, str]],
    seeds: Mapping[Machine, int],
    smoke: str = "",
) -> list[Grid]:
    """Step time and memory of arms, which are the words after `bench step` and `bench memory`."""
    return [
        Grid(
            {arm: f"bench {kind} {words}" for arm, words in arms.items()},
            common,
            {"measured": {measured: ""}, **variants},
            seeds,
            smoke=f"{smoke} {few}",
        )
        for kind, measured, few in (("step", "step time", "--steps 1"), ("memory", "memory", ""))
    ]


def apart(rows: Sequence[Row]) -> tuple[list[Row], list[Row]]:
    """Those of runs, and those of benches."""
    return [row for row in rows if "rows" not in row], [row for row in rows if "rows" in row]


def entry(rows: Sequence[Row], candidate: str, key: str) -> Entry | None:
    """What was measured of a candidate, among the bench rows of one setting."""
    entries: list[Entry] = [e for row in rows for e in row.get("rows", [])]
    if candidate == CHECKPOINTED:
        candidate = checkpointed(entries)
    return next((e for e in entries if e["name"] == candidate and key in e), None)


def checkpointed(entries: Sequence[Entry]) -> str:
    """The name of CHECKPOINTED among these; the one of least memory where none of them was timed, "" without any."""
    known = [e for e in reversed(entries) if e["name"].startswith("plain checkpointed/")]  # the first counts
    sizes = {e["name"]: e[MEMORY] for e in known if MEMORY in e}
    times = {e["name"]: e[STEP] for e in known if STEP in e}
    if not sizes:
        return ""
    near = [name for name, size in sizes.items() if size <= NEAR * min(sizes.values())]
    fastest = min((name for name in near if name in times), key=lambda name: times[name], default=None)
    return fastest or min(sizes, key=lambda name: sizes[name])


def ratio(
    found: Entry, key: str = "ratio", of: Callable[[float], float] = lambda r: r, form: Format = TIMES
) -> str | None:
    """A ratio, or what `of` makes of it, with its quartiles where it was measured again and again: "0.74 (0.70–0.79)".

    By default that to plain backprop.  None where it was not measured.
    """
    if key not in found:
        return None
    middle = form(of(found[key]))
    if f"{key}_low" not in found:
        return middle
    low, high = sorted(of(found[f"{key}_{end}"]) for end in ("low", "high"))
    return f"{middle} ({form(low)}–{form(high)})"


def tables(timed: Groups, candidates: Mapping[str, str], count: str, where: str = "") -> list[tuple[str, Table]]:
    """Step time and memory of a group a line, for `Section.tables`; none where nothing was measured.

    candidates: what each is called here.  count: what the groups' names count.  where: ends the captions.
    """
    found = [(caption + where, side_by_side(timed, candidates, key, count)) for caption, key in CAPTIONS.items()]
    return [(caption, table) for caption, table in found if table]


def side_by_side(timed: Groups, candidates: Mapping[str, str], key: str, count: str) -> Table | None:
    """Plain backprop's step or memory, and how many times as much the candidates take."""

    def cells(candidate: str, show: Callable[[Entry], str | None]) -> list[str | None]:
        found = [entry(rows, candidate, key) for rows in timed.values()]
        return [None if e is None else show(e) for e in found]

    unit = "ms" if key == STEP else "MiB"
    columns: list[Column] = [(f"plain backprop, {unit}", cells(PLAIN, lambda e: significant(e[key])))]
    columns += [(f"{called} ÷ that", cells(candidate, ratio)) for candidate, called in candidates.items()]
    for candidate, called in {PLAIN: "plain backprop", **candidates}.items() if key == STEP else ():
        columns.append(
            (f"{called}, least ms", cells(candidate, lambda e: significant(e[FLOOR]) if FLOOR in e else None))
        )
    if CHECKPOINTED in candidates:
        columns.append(("blocks a segment", cells(CHECKPOINTED, lambda e: e["name"].partition("/")[2])))
    return Table.of(list(timed), columns, count)


def costs(rows: Sequence[Row], candidates: Mapping[str, str]) -> str:
    """ "SID takes 0.09 of the memory and 1.06 (1.05–1.08) of the step time of plain backprop"."""
    told: list[str] = []
    for candidate, called in candidates.items():
        found = {what: entry(rows, candidate, key) for what, key in (("memory", MEMORY), ("step time", STEP))}
        shares = [f"{ratio(e)} of the {what}" for what, e in found.items() if e]
        told += [f"{called} takes {' and '.join(shares)} of plain backprop"] if shares else []
    return "; ".join(told)


def over_depth(
    where: str, series: Mapping[str, tuple[Groups, str]], count: str, *, ratios: bool = True
) -> list[tuple[str, str, str]]:
    """Step time and memory over depth, for `Section.figures`; none where nothing was measured.

    where: sets the figures apart from others of the page.  series: a line's name -> its groups by depth, and its
    candidate.  ratios: to plain backprop, else ms and MiB.
    """
    figures: list[tuple[str, str, str]] = []
    for caption, key in CAPTIONS.items():
        of = "ratio" if ratios else key
        drawn: list[Line] = []
        for name, (groups, candidate) in series.items():
            found = {int(depth): e for depth, rows in groups.items() if (e := entry(rows, candidate, key))}
            if found:
                low, high = ([e[f"{of}_{end}"] for e in found.values() if key == STEP] for end in ("low", "high"))
                drawn.append(Line(name, list(found), [e[of] for e in found.values()], low or None, high or None))
        unit = "÷ plain backprop" if ratios else "ms a step" if key == STEP else "MiB"
        if drawn:
            title = f"{caption} over {count}"
            figures.append((f"{title}.", lines(f"{title}, {where}", drawn, count, unit, log_x=True, log_y=True), ""))
    return figures


def by_run(
    rows: Sequence[Row], runs: Sequence[str], count: str, candidates: Mapping[str, str], heading: str, text: str
) -> list[Part]:
    """What an answer says of the greatest count, and the section; nothing where nothing was measured.

    runs: the labels `run` of rows, the first of which goes without saying.  count: what the label of that name counts.
    """
    series: dict[str, tuple[Groups, str]] = {}
    found: list[tuple[str, Table]] = []
    told: list[str] = []
    for run in runs:
        its = pick(rows, run=run)
        timed = by_label(its, count, sorted(names(its, count), key=int))
        found += tables(timed, candidates, count, f", {run}")
        told += [f"With {n} {count}, {run}: {costs(its, candidates)}." for n, its in timed.items()][-1:]
        for candidate, called in {PLAIN: "backprop", **candidates}.items():
            if run == runs[0]:
                series[called] = (timed, candidate)
            elif candidate != CHECKPOINTED:  # which the tables have: more lines than these cannot be told apart
                series[f"{called}, {run}"] = (timed, candidate)
    figures = over_depth(heading, series, count, ratios=False)
    return [(" ".join(told), Section(heading, f"{text} {taken(rows)}", found, figures))] if found else []


def taken(rows: Sequence[Row]) -> str:
    """What benches of step time and memory are worth, and where they were taken; empty where there are none."""
    benched = places(rows)
    return benched and (
        "Times are medians of steps taken in turn with plain backprop’s, quartiles in brackets; they hold for a "
        "machine with nothing else to do, and one taken beside other work is not to be believed. Memory is what a step "
        "needs beside parameters and optimizer state; on a GPU gradients and workspaces count. "
        f"{LEAST + ' ' if any(FLOOR in e for row in rows for e in row.get('rows', ())) else ''}{benched}"
    )


def places(rows: Sequence[Row]) -> str:
    """On what the benches among these rows were taken, and which beside other work; empty where there are none."""
    found = dict.fromkeys(
        f"{row['device']} ({row['precision']}, threads: {row['threads']}, torch {row['torch']}, commit {row['commit']})"
        for row in rows
        if "rows" in row
    )
    return f"Benched on {'; '.join(found)}.{beside(rows)}" if found else ""


def beside(rows: Sequence[Row]) -> str:
    """Names the times that were taken beside other work; empty where none were, as far as rows say."""
    found = [
        f"{', '.join(row['labels'].values())} ({TIMES(row['load'])})"
        for row in rows
        if row.get("load", 0) > IDLE and not any(MEMORY in e for e in row.get("rows", ()))
    ]
    what = " Taken beside other work, or right after the study’s own, the load of the minute before in brackets: "
    return f"{what}{'; '.join(found)}." if found else ""
