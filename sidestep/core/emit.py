"""What a pass leaves behind at a block, and what crosses a cut."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TypeAlias

from torch import Tensor

Message: TypeAlias = tuple[Tensor, ...]
"""What crosses a cut.  The engine detaches it: no graph ever leaves a block."""


@dataclass
class Emit:
    """What one pass leaves behind at one block.

    The engine differentiates `loss` and `pull` in one backward call, and only inside the block; `send_grad`
    names leaves of the block whose gradients then travel on as part of the message.
    """

    send: Message = ()  # to the next block in the pass's direction
    loss: Tensor | None = None  # () the block's local objective
    pull: tuple[tuple[Tensor, Tensor], ...] = ()  # (output, its gradient): vector-Jacobian products to take
    send_grad: Message = ()  # leaves whose .grad, after backward, is appended to `send`
    keep: Mapping[str, Tensor] = field(default_factory=dict[str, Tensor])  # for later passes at this block
    logits: Tensor | None = None  # a read-out, as the task has answers: for inference and per-block metrics
    metrics: Mapping[str, Tensor] = field(default_factory=dict[str, Tensor])  # detached scalars
