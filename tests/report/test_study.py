"""The page of a study: its words, its tables, and every row with the command that makes it again."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from sidestep.report.figures import Line, differences, lines
from sidestep.report.study import Page, Section, write_page
from sidestep.report.tables import Table
from tests.report.test_build import HOSTILE
from tests.report.test_build import Page as Read

COMMAND = 'sidestep train sid --data mnist --batch-size 128 --set sid.belief="none" --seed 3'


def row(**changes: object) -> dict[str, Any]:
    known = {"labels": {"arm": "SID", "data": "mnist"}, "seed": 3, "val_accuracy": 0.98765, "test_accuracy": 0.97}
    return known | {"device": "a device", "commit": "abc123", "command": COMMAND} | changes


def study(*rows: dict[str, Any], words: str = "words") -> Page:
    table = Table(["arm", words], [[words, "97.00 ± 0.10"]])
    svg = lines("depth", [Line("SID", [1, 2], [3, 4])], "blocks", "error, %")
    forest = differences("against backprop", [("SID", 0.5, 0.1, 0.9, [0.5])], "points")
    figures = [(f"{words}, a figure", svg, f"{words}, a note"), ("Differences.", forest, "")]
    section = Section(f"{words}, a heading", f"{words}, a text", [(f"{words}, a caption", table)], figures)
    return Page(f"{words}?", f"{words}: 97.00 %.", [section, Section("Bare")], rows)


def written(page: Page, tmp_path: Path) -> tuple[str, Read]:
    write_page(page, tmp_path / "study.html")
    html = (tmp_path / "study.html").read_text(encoding="utf-8")
    return html, Read(html)


def rows_of(html: str) -> list[str]:
    """The text of every row, its white space one space each."""
    return [" ".join(Read(item).text.split()) for item in re.findall(r"<li>(.*?)</li>", html, re.DOTALL)]


def test_the_page_holds_question_answer_and_sections_in_their_order(tmp_path: Path) -> None:
    html, page = written(study(row()), tmp_path)
    assert page.headings == ["words?", "words, a heading", "Bare", "Every row"]
    parts = ("words: 97.00 %.", "words, a text", "words, a caption", "words, a figure", "words, a note", "1 in all")
    assert sorted(parts, key=page.text.index) == list(parts)
    assert page.tables == [[["arm", "words"], ["words", "97.00 ± 0.10"]]]
    assert html.count("<svg ") == html.count("<figcaption><b>") - 1 == 2  # two figures, and a table's caption


def test_a_row_has_its_labels_seed_accuracies_provenance_and_whole_command(tmp_path: Path) -> None:
    html, _ = written(study(row()), tmp_path)
    assert rows_of(html) == [
        f"arm SID data mnist seed 3 validation 98.77 % test 97.00 % a device, commit abc123 {COMMAND}"
    ]


def test_a_row_lacks_what_was_not_measured_and_labels_may_differ(tmp_path: Path) -> None:
    bare = row(labels={"blocks": 16}, test_accuracy=None)
    del bare["seed"], bare["val_accuracy"]
    html, _ = written(study(row(labels={"arm": "BLL"}, seed=0, test_accuracy=0.0), bare), tmp_path)
    assert rows_of(html) == [
        f"arm BLL seed 0 validation 98.77 % test 0.00 % a device, commit abc123 {COMMAND}",
        f"blocks 16 a device, commit abc123 {COMMAND}",
    ]
    assert not re.search(r"\b([Nn]a[Nn]|None|null)\b", html)


def test_a_failed_row_says_how_in_place_of_accuracies(tmp_path: Path) -> None:
    html, _ = written(study(row(failed="diverged at step 7"), row(failed=None, seed=4)), tmp_path)
    assert rows_of(html) == [
        f"arm SID data mnist seed 3 diverged at step 7 a device, commit abc123 {COMMAND}",
        f"arm SID data mnist seed 4 validation 98.77 % test 97.00 % a device, commit abc123 {COMMAND}",
    ]


def test_a_command_can_break_between_its_words_only(tmp_path: Path) -> None:
    html, _ = written(study(row()), tmp_path)
    (code,) = re.findall(r"<code>(.*?)</code>", html)
    assert code.split(" <wbr>") == COMMAND.replace('"', "&#34;").split(" ")


def test_words_cannot_put_markup_on_the_page(tmp_path: Path) -> None:
    facts = {"device": HOSTILE, "commit": HOSTILE, "command": HOSTILE}
    labels = {HOSTILE: HOSTILE}
    html, page = written(
        study(row(labels=labels, **facts), row(labels=labels, failed=HOSTILE, **facts), words=HOSTILE), tmp_path
    )
    assert "<script" not in html
    assert rows_of(html)[1] == f"{HOSTILE} {HOSTILE} seed 3 {HOSTILE} {HOSTILE}, commit {HOSTILE} {HOSTILE}"
    # Title twice, answer, a section's five words, two cells; the rows' labels (two words), facts, and the failure.
    assert page.text.count(HOSTILE) == 10 + 5 + 6
    assert page.inside == []  # every element that was opened is closed


def test_the_page_asks_for_nothing_and_knows_every_variable_it_names(tmp_path: Path) -> None:
    html, _ = written(study(row()), tmp_path)
    without_names = re.sub(r' xmlns(:\w+)?="[^"]*"', "", html)
    assert not re.search(r"https?://|@import|<script|<link|<iframe|<object", without_names)
    assert set(re.findall(r"var\((--[\w-]+)\)", html)) <= set(re.findall(r"(--[\w-]+):", html))
    ids = re.findall(r' id="([^"]*)"', html)
    assert len(ids) == len(set(ids)) > 4


def test_equal_pages_give_equal_bytes(tmp_path: Path) -> None:
    one, again = tmp_path / "one.html", tmp_path / "again.html"
    write_page(study(row()), one)
    write_page(study(row()), again)
    assert one.read_bytes() == again.read_bytes()
