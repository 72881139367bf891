"""docs/evidence.md: a line for each of the fourteen demands, naming studies, commands and files that exist."""

from __future__ import annotations

import re
from pathlib import Path

from sidestep.commands import COMMANDS
from sidestep.studies import STUDIES

ROOT = Path(__file__).parent.parent
TEXT = (ROOT / "docs" / "evidence.md").read_text(encoding="utf-8")


def test_every_demand_has_its_line_and_says_where_it_stands() -> None:
    rows = [line.split("|")[1:-1] for line in TEXT.splitlines() if re.match(r"\| \d+ ", line)]
    assert [int(row[0]) for row in rows] == list(range(1, 15))
    for number, demand, state, *_ in rows:
        assert demand.strip() and state.strip(), f"demand {number}"


def test_the_commands_and_files_it_names_exist() -> None:
    commands = re.findall(r"`sidestep (\w+)((?: [^`]*)?)`", TEXT)
    assert commands
    for command, rest in commands:
        assert command in COMMANDS
        if command == "study":
            assert {word for word in rest.split() if not word.startswith("-")} <= {*STUDIES, "NAME"}
    for file in re.findall(r"`(results/[\w.-]+\.jsonl)`", TEXT):
        assert (ROOT / file).is_file() or "NAME" in file, file
