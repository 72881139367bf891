"""A block that carries latents and a part of the twin: what hangs on it, and what its read-out pays for a target."""

from __future__ import annotations

from torch import Tensor, nn

from sidestep.core.block import Block
from sidestep.core.cell import Cell
from sidestep.core.task import Regression, Task
from sidestep.families.family import at_least_float32
from sidestep.nn.latents import Latents
from sidestep.nn.twins import Twin

Said = tuple[Tensor | None, Tensor | None]
"""A twin's messages, and what the read-out compares with."""


def parts(block: Block) -> tuple[Latents, Twin, nn.Module | None]:
    latents, twin = block.extras["latents"], block.extras["twin"]
    assert isinstance(latents, Latents) and isinstance(twin, Twin)
    lift = block.extras["lift"] if "lift" in block.extras else None  # noqa: SIM401  # a ModuleDict has no get
    return latents, twin, lift


def surprise(cell: Cell, answer: Tensor, smoothing: float = 0.0) -> Tensor:
    """-log p(y) of every label, (...), or of all numbers of a sample, (B,)."""
    if isinstance(cell.task, Regression):
        return cell.task.surprise(answer, cell.y).flatten(1).sum(1)
    return -(cell.target(smoothing) * at_least_float32(answer).log_softmax(-1)).sum(-1)


def numbers(task: Task) -> int:
    """How many numbers a target has that F_k is a sum over."""
    return task.shape.numel() if isinstance(task, Regression) else 1
