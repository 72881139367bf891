"""A study: a question, the command lines whose results answer it, and the page that those results become.

A piece of evidence is the row that one command line leaves; whoever runs that line again gets the same numbers (equal
device type, torch version, precision and threads).  So a study is data: arms, crossed with variants and seeds.
"""

from __future__ import annotations

import shlex
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import product
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from sidestep.report.study import Page

Row = dict[str, Any]
Machine = Literal["cpu", "gpu"]


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
    smoke: str = ""  # words that make it small

    def pieces(self, machine: Machine, seed: int) -> Iterator[Piece]:
        """Those of one seed, in the order in which a reader wants them: an arm after the other, variant by variant."""
        if seed >= self.seeds.get(machine, 0):
            return
        for chosen in product(*(variant.items() for variant in self.variants.values())):
            for arm, words in self.arms.items():
                own = " ".join([words, self.common, *(more for _, more in chosen)])
                # A bench is no function of the seed.
                own += f" --seed {seed} --no-report" if own.startswith("train") else ""
                own += " --device cuda" if machine == "gpu" else ""
                labels = {"arm": arm, **dict(zip(self.variants, (name for name, _ in chosen), strict=True))}
                yield Piece(labels, tuple(shlex.split(own)))


@dataclass(frozen=True)
class Study:
    """What `sidestep study NAME` runs and shows."""

    question: str
    grids: Sequence[Grid]
    page: Callable[[Sequence[Row]], Page]

    def pieces(self, machine: Machine = "cpu", seeds: int | None = None, smoke: bool = False) -> list[Piece]:
        """All of them, without repetition: every arm's first seed before any arm's second."""
        most = max((grid.seeds.get(machine, 0) for grid in self.grids), default=0)
        if smoke:
            # What a GPU would run, on digits and without one.
            found = [p.on_digits(f"{g.smoke} --device cpu") for g in self.grids for p in g.pieces("gpu", 0)]
            found += [p.on_digits(f"{g.smoke} --device cpu") for g in self.grids for p in g.pieces("cpu", 0)]
        else:
            count = most if seeds is None else min(seeds, most)
            found = [p for seed in range(count) for g in self.grids for p in g.pieces(machine, seed)]
        return list({piece.command: piece for piece in found}.values())
