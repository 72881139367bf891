"""A study: a question, the command lines whose results answer it, and the page that those results become.

A piece of evidence is the row that one command line leaves; whoever runs that line again gets the same numbers (equal
device type, torch version, precision and threads).  So a study is data: arms, crossed with variants and seeds.

A grid may tune: every arm is tried once with each of its candidates, on a seed of its own and without the test set, and
the candidate that is best on validation is what the arm's runs are made with.
"""

from __future__ import annotations

import math
import shlex
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import product
from typing import Any, Literal

from sidestep.report.study import Page, Section, joined

Row = dict[str, Any]
Part = tuple[str, Section | None]
"""What a study's answer says of something, "" for nothing, and the section that shows it, if one does."""
Machine = Literal["cpu", "gpu"]
MACHINES: tuple[Machine, ...] = ("cpu", "gpu")
ON_GPU = " --device cuda"
TRIAL_SEED = 1000
"""Of trials: no run's own, whose validation split would have been chosen on."""


@dataclass(frozen=True)
class Piece:
    """One command line, and the words under which its row is found."""

    labels: Mapping[str, str]
    words: tuple[str, ...]  # after `sidestep`

    @property
    def command(self) -> str:
        return shlex.join(["sidestep", *self.words])

    def on_digits(self, more: str) -> Piece:
        """The same line in a size for tests: the last word on a flag counts."""
        kind = "--epochs 1 --set batch_size=32" if self.words[0] == "train" else ""
        return Piece(self.labels, (*self.words, *shlex.split(f"{kind} --data digits {more}")))


@dataclass(frozen=True)
class Grid:
    """Arms of one size and recipe, each crossed with every variant and seed."""

    arms: Mapping[str, str]  # name -> the words that set it apart, its command first: "train sid --blocks 5"
    common: str = ""  # words that all have
    variants: Mapping[str, Mapping[str, str]] = field(default_factory=dict[str, Mapping[str, str]])
    """What else is varied: label -> name -> words.  All combinations are run."""
    seeds: Mapping[Machine, int] = field(default_factory=lambda: {"cpu": 1, "gpu": 3})
    """How many on a machine; 0 where the grid is too much for it, or says nothing there."""
    first_seed: int = 0
    candidates: Mapping[str, str] = field(default_factory=dict[str, str])
    """What is tried on validation, for every arm and variant: name -> words.  Nothing is tuned without."""
    trial: str = ""  # a trial's words in place of the variants': one trial of a candidate then serves them all
    smoke: str = ""  # words that make it small

    def pieces(self, machine: Machine, seed: int, rows: Sequence[Row] = ()) -> Iterator[Piece]:
        """Those of one seed, in the order in which a reader wants them: an arm after the other, variant by variant.

        rows: what there is already.  An arm whose candidates have not all been tried yet is left out.
        """
        if seed >= self.seeds.get(machine, 0):
            return
        for trials, labels, words in self._tuned_arms(machine):
            best = choose(trials, rows) if trials else ("", "")
            if best is not None:
                tuned = {"tuned": best[0]} if trials else {}
                yield _piece(labels | tuned, f"{words} {best[1]}", machine, self.first_seed + seed)

    def trials(self, machine: Machine) -> Iterator[Piece]:
        """Every candidate of every arm that is run at all."""
        if self.seeds.get(machine, 0):
            for trials, _, _ in self._tuned_arms(machine):
                yield from (piece for piece, _ in trials.values())

    def _tuned_arms(self, machine: Machine) -> Iterator[tuple[Trials, dict[str, str], str]]:
        for chosen in product(*(variant.items() for variant in self.variants.values())):
            varied = dict(zip(self.variants, (name for name, _ in chosen), strict=True))
            varying = " ".join(more for _, more in chosen)
            for arm, own in self.arms.items():
                labels = {"arm": arm} if self.trial else {"arm": arm, **varied}
                words = f"{own} {self.common} {self.trial or varying}"
                trials = {
                    name: (_piece(labels | {"trial": name}, f"{words} {more} --test never", machine, TRIAL_SEED), more)
                    for name, more in self.candidates.items()
                }
                yield trials, {"arm": arm, **varied}, f"{own} {self.common} {varying}"


def rates(*values: str) -> dict[str, str]:
    """Candidates that differ in their learning rate."""
    return {f"rate {lr}": f"--lr {lr}" for lr in values}


Trials = Mapping[str, tuple[Piece, str]]
"""Candidate -> the piece that tries it, and its words."""


def choose(trials: Trials, rows: Sequence[Row]) -> tuple[str, str] | None:
    """The candidate that is best on validation and its words, the first of equals; None before all were tried.

    One that diverged is not chosen.
    """
    left = {row["command"]: row for row in rows}
    tried = {name: left.get(piece.command) for name, (piece, _) in trials.items()}
    reached = {name: judged(row) for name, row in tried.items() if row}
    if len(reached) < len(trials):
        return None
    best = max(reached, key=reached.__getitem__)
    return best, trials[best][1]


def judged(row: Row) -> float:
    """What a run is chosen by, more being better: its validation accuracy, or its loss where it is judged by that."""
    by_loss = "val_loss" in row
    reached = None if "failed" in row else row["val_loss" if by_loss else "val_accuracy"]
    if reached is None:  # as strict JSON has it where it was NaN
        return -math.inf
    return -reached if by_loss else reached


def machine_of(command: str) -> Machine:
    """On what a piece's command line runs: the last word counts."""
    return "gpu" if command.endswith(ON_GPU) else "cpu"


def _piece(labels: Mapping[str, str], words: str, machine: Machine, seed: int) -> Piece:
    # A bench is no function of the seed.
    words += f" --seed {seed} --no-report" if words.startswith("train") else ""
    words += ON_GPU if machine == "gpu" else ""
    return Piece(labels, tuple(shlex.split(words)))


@dataclass(frozen=True)
class Study:
    """What `sidestep study NAME` runs and shows."""

    question: str
    grids: Sequence[Grid]
    parts: Callable[[Sequence[Row]], Sequence[Part]]
    """What there is to say and to show of rows, in its order."""

    def pieces(
        self, machine: Machine = "cpu", seeds: int | None = None, smoke: bool = False, rows: Sequence[Row] = ()
    ) -> list[Piece]:
        """All that can be known from these rows, without repetition: trials, then every arm's first seed, its second...

        smoke: what any machine would run, on digits and on this one's CPU, with nothing chosen between candidates.
        """
        found = self._smoke() if smoke else self._all(machine, seeds, rows)
        return list({piece.command: piece for piece in found}.values())

    def shown(self, rows: Sequence[Row]) -> Page:
        """The page of these rows, of which there is at least one; each machine's apart, for no two are to be paired."""
        known = self.labelled(rows)
        found = {machine: [row for row in known if machine_of(row["command"]) == machine] for machine in MACHINES}
        pages = {f"a {machine.upper()}": self.page(its) for machine, its in found.items() if its}
        return joined(pages) if pages else self.page([])

    def page(self, rows: Sequence[Row]) -> Page:
        """The page of one machine's rows, under the labels that they have; runs that are in no mean are named."""
        parts = self.parts(rows)
        told = [text for text, _ in parts if text] or ["Too little has run yet."]
        if lost := [row for row in rows if "failed" in row and "trial" not in row["labels"]]:
            named = [f"{', '.join(row['labels'].values())} (`{row['command']}`)" for row in lost]
            told.append(f"Diverged, and in no mean: {'; '.join(named)}.")
        return Page(self.question, " ".join(told), [section for _, section in parts if section], rows)

    def labelled(self, rows: Sequence[Row]) -> list[Row]:
        """The rows, each under the labels of every piece that is its command: what grids share is run once.

        A run of a candidate that its trials do not choose, or no longer, is left out: means are of one setting.
        """
        labels: dict[str, list[Mapping[str, str]]] = {}
        for piece in (*self._smoke(), *(p for machine in MACHINES for p in self._all(machine, None, rows))):
            known = labels.setdefault(piece.command, [])
            if piece.labels not in known:
                known.append(piece.labels)
        return [
            row | {"labels": dict(own)}
            for row in rows
            for own in labels.get(row["command"], [] if "tuned" in row["labels"] else [row["labels"]])
        ]

    def _smoke(self) -> list[Piece]:
        return [
            piece.on_digits(f"{grid.smoke} --device cpu")
            for grid in self.grids
            for machine in MACHINES
            for piece in (*grid.trials(machine), *replace(grid, candidates={}).pieces(machine, 0))
        ]

    def _all(self, machine: Machine, seeds: int | None, rows: Sequence[Row]) -> list[Piece]:
        most = max((grid.seeds.get(machine, 0) for grid in self.grids), default=0)
        count = most if seeds is None else min(seeds, most)
        found = [piece for grid in self.grids for piece in grid.trials(machine)]
        return found + [piece for seed in range(count) for g in self.grids for piece in g.pieces(machine, seed, rows)]
