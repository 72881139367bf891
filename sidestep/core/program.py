"""A training step is a short program of passes over a chain of blocks.

A pass at a block is a cell.  Up[n] needs Up[n-1], Down[n] needs Down[n+1], Each[n] needs no other block; every cell may
read what earlier passes kept at the same block, unless its pass says that it does not, and need not wait for them.
Because the program is data, the order of work, the locks and what a block's update depends on are derived from it, and
the derived claims can be checked against what is measured.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, TypeAlias

if TYPE_CHECKING:
    from .emit import Emit

Order: TypeAlias = Literal["up", "down", "each"]


@dataclass(frozen=True)
class Pass:
    """One sweep over the blocks, or one visit to each of them.  Made by `Up`, `Down` and `Each`."""

    fn: Callable[..., Emit]  # fn(cell, *message) -> Emit
    order: Order
    input_grad: bool = False  # the incoming message becomes a leaf, and its gradient leaves the block later
    grad: bool = True  # False: runs without a graph
    replays: str | None = None  # recomputes that pass: same random key, BatchNorm statistics untouched
    reads: bool = True  # False: it is shown nothing that earlier passes kept, and need not wait for them

    @property
    def name(self) -> str:
        return self.fn.__name__

    @property
    def random_name(self) -> str:
        """The name that goes into the random key."""
        return self.replays or self.name

    def __str__(self) -> str:
        notes = [
            "gradients of the input leave the block" if self.input_grad else "",
            "" if self.grad else "no graph",
            f"replays {self.replays}" if self.replays else "",
            "" if self.reads else "reads no earlier pass",
        ]
        text = ", ".join(note for note in notes if note)
        return f"{self.order.capitalize()}({self.name})" + (f"  [{text}]" if text else "")


def Up(
    fn: Callable[..., Emit],
    *,
    input_grad: bool = False,
    grad: bool = True,
    replays: str | None = None,
    reads: bool = True,
) -> Pass:
    """A sweep from the first block to the last."""
    return Pass(fn, "up", input_grad, grad, replays, reads)


def Down(
    fn: Callable[..., Emit],
    *,
    input_grad: bool = False,
    grad: bool = True,
    replays: str | None = None,
    reads: bool = True,
) -> Pass:
    """A sweep from the last block to the first."""
    return Pass(fn, "down", input_grad, grad, replays, reads)


def Each(fn: Callable[..., Emit], *, grad: bool = True, replays: str | None = None) -> Pass:
    """A visit to every block, in any order."""
    return Pass(fn, "each", False, grad, replays)


Program: TypeAlias = tuple[Pass, ...]
CellId: TypeAlias = tuple[int, int]  # (pass, block)


def plan(program: Program, count: int, own: range | None = None) -> list[CellId]:
    """The cells at the blocks `own`, in the order in which one process runs them; None is all blocks.

    All of them go sweep by sweep, an Each riding on the sweep before it, so that few graphs are alive.  Some of them go
    as early as their arrows allow if every cell takes equally long, so that sweeps from both ends pass each other.
    That is one order of all cells, which every process keeps to: no two wait for each other.
    """
    sweeps: list[list[int]] = []
    for i, p in enumerate(program):
        if p.order == "each" and sweeps:
            sweeps[-1].append(i)
        else:
            sweeps.append([i])
    cells: list[CellId] = []
    for sweep in sweeps:
        blocks = range(count - 1, -1, -1) if program[sweep[0]].order == "down" else range(count)
        cells += [(i, n) for n in blocks for i in sweep]
    if own is None or len(own) == count:
        return cells
    early = earliest(program, count, cells)
    return sorted((cell for cell in cells if cell[1] in own), key=early.__getitem__)


def earliest(program: Program, count: int, cells: Sequence[CellId]) -> dict[CellId, int]:
    """How many cells have to come before each of these one after another; they are in an order that may be run."""
    found: dict[CellId, int] = {}
    for cell in cells:
        found[cell] = max((found[before] + 1 for before in needs(program, count, cell)), default=0)
    return found


def needs(program: Program, count: int, cell: CellId) -> list[CellId]:
    """The cells that have to come before a cell: of its pass, and of those that it may read from."""
    i, n = cell
    direct = [(j, n) for j in range(i)] if program[i].reads else []
    before = {"up": n - 1, "down": n + 1, "each": -1}[program[i].order]
    if 0 <= before < count:
        direct.append((i, before))
    return direct


@dataclass(frozen=True)
class Derived:
    """What follows from the program alone.  Blocks are counted from 0."""

    count: int
    program: Program
    hub_trained: bool

    @property
    def last_pass(self) -> int:
        return len(self.program) - 1

    def depends(self, block: int) -> list[int]:
        """The later blocks whose change can alter this block's update within the same step."""
        seen: set[CellId] = set()
        front: list[CellId] = [(self.last_pass, block)]
        while front:
            cell = front.pop()
            if cell not in seen:
                seen.add(cell)
                front += needs(self.program, self.count, cell)
        return sorted({n for _, n in seen if n > block})

    def reaches(self, block: int) -> list[int]:
        """The blocks whose parameters this block's loss can reach by gradients."""
        return list(range(block + 1)) if self.gradients_cross else [block]

    @property
    def gradients_cross(self) -> bool:
        return self.count > 1 and any(p.input_grad for p in self.program)

    @property
    def isolated(self) -> bool:
        """Whether every block's loss reaches that block's own parameters only."""
        return not (self.gradients_cross or self.hub_trained)

    @property
    def locks(self) -> dict[str, bool]:
        """Forward: a block waits for earlier ones.  Backward: its update waits for later ones.  Update: the next
        step waits until all blocks are done, because gradients come back or a shared part is trained."""
        later = any(self.depends(n) for n in range(self.count))
        return {
            "forward": any(p.order == "up" for p in self.program),
            "backward": later,
            "update": later or self.hub_trained,
        }

    @property
    def in_a_row(self) -> int:
        """How many cells of a step have to run one after another on any number of processes."""
        return 1 + max(earliest(self.program, self.count, plan(self.program, self.count)).values())

    def peak(self, weight: Mapping[CellId, float], own: range | None = None) -> float:
        """The most bytes alive at once, if a cell leaves `weight` bytes behind (a graph, or what it keeps).

        What a cell leaves lives to its block's last cell.  own: the blocks of the process, None being all.
        """
        alive: dict[int, float] = {}
        most = 0.0
        for i, n in plan(self.program, self.count, own):
            alive[n] = alive.get(n, 0.0) + weight[i, n]
            most = max(most, sum(alive.values()))
            if i == self.last_pass:
                del alive[n]
        return most
