"""The page of a study: its question, the answer in numbers, what shows it, and every row with its command."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from sidestep.files import write_text_atomic
from sidestep.report.build import template
from sidestep.report.tables import PERCENT, Table


@dataclass(frozen=True)
class Section:
    heading: str
    text: str = ""
    """One paragraph."""
    tables: Sequence[tuple[str, Table]] = ()
    """A caption and a table each."""
    figures: Sequence[tuple[str, str, str]] = ()
    """A title, an SVG of `figures` and a note each."""


@dataclass(frozen=True)
class Page:
    title: str
    """The question."""
    answer: str
    """One paragraph of numbers that a reader can check against the tables."""
    sections: Sequence[Section]
    rows: Sequence[Mapping[str, Any]]
    """What the page was made from.  Each has `labels` (words by their names), `device`, `commit` and `command`; it may
    have `seed`, and `val_accuracy` and `test_accuracy` (fractions) or, in their place, how the run `failed`."""


def joined(pages: Mapping[str, Page]) -> Page:
    """Pages of one question as one that says where each answer and section is from; a single one as it is."""
    first, *others = pages.values()
    if not others:
        return first
    return Page(
        first.title,
        " ".join(f"On {where}: {page.answer}" for where, page in pages.items()),
        [replace(s, heading=f"{s.heading}, on {where}") for where, page in pages.items() for s in page.sections],
        [row for page in pages.values() for row in page.rows],
    )


def write_page(page: Page, out: Path) -> None:
    """Write one HTML file that needs nothing else.  Equal pages give equal bytes."""
    html = template("study.html.jinja").render(title=page.title, result=page.answer, page=page, percent=PERCENT)
    write_text_atomic(out, html)
