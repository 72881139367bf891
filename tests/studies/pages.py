"""Looking into a study's page, and making it of every part of its rows."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from pathlib import Path

from sidestep.report.study import Page, write_page
from sidestep.report.tables import Table
from sidestep.studies.study import Row


def columns(page: Page, heading: str, caption: str = "") -> dict[str, list[str]]:
    """A section's table with this caption: its cells from the top, by column.  Equal heads: the last counts."""
    (found,) = [t for s in page.sections if s.heading == heading for c, t in s.tables if c == caption]
    return {head: [row[i] for row in found.rows] for i, head in enumerate(found.head)}


def tables(made: Page) -> dict[str, Table]:
    """All tables of a page, by "heading: caption"."""
    return {f"{section.heading}: {caption}": table for section in made.sections for caption, table in section.tables}


def written_of_every_part(page: Callable[[Sequence[Row]], Page], rows: Sequence[Row], folder: Path) -> None:
    """Of nothing, of one row, of halves, and beside failures: a page, with no number that is none."""
    kept = ("labels", "command", "device", "commit")
    failures: list[Row] = [{key: row[key] for key in kept} | {"failed": "diverged"} for row in rows]
    parts: list[Sequence[Row]] = [[], failures, [*failures, *rows]]
    parts += [[row] for row in rows] + [rows[::2], rows[1::2], rows[: len(rows) // 2], rows[len(rows) // 2 :]]
    for part in parts:
        write_page(page(part), folder / "page.html")
        html = (folder / "page.html").read_text(encoding="utf-8")
        assert not re.search(r"\b([Nn]a[Nn]|None|null|inf)\b", re.sub(r"<[^>]*>", " ", html))
