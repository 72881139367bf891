"""A learning rule: how the network is dressed, and the short program that one training step runs."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal, get_args, get_origin, get_type_hints

from torch import Tensor, nn

from .block import Chain
from .cell import Batch
from .cut import CutPlan
from .emit import Message
from .program import Program
from .task import Task


class Method(ABC):
    """A learning rule.  Final subclasses are frozen dataclasses whose fields are the hyperparameters."""

    __dataclass_fields__: ClassVar[dict[str, Any]]
    reference: ClassVar[str]
    needs: ClassVar[str] = "any chain"  # what it asks of the network or the data, for `sidestep methods`

    @abstractmethod
    def build(self, model: nn.Module, task: Task, plan: CutPlan) -> Chain:
        """Cut the network by the plan and hang the method's own parts on the blocks.  Raises ValueError."""

    @abstractmethod
    def program(self) -> Program:
        """The passes of one training step, in running order."""

    @abstractmethod
    def inference(self) -> Program:
        """The passes that set `Emit.logits`, run without labels."""

    def encode(self, hub: nn.Module | None, batch: Batch) -> Message:
        """Run the hub; each block gets the result as leaves of its own."""
        return ()

    def source(self, batch: Batch, shared: Message, task: Task) -> Message:
        """What enters the first block of an Up pass."""
        return (batch.x,)

    def sink(self, batch: Batch, shared: Message, task: Task) -> Message:
        """What enters the last block of a Down pass."""
        return ()

    def descent(
        self, logits: Sequence[Tensor], y: Tensor, task: Task, p_y: Tensor | None = None
    ) -> Mapping[str, Tensor]:
        """What this method's theory speaks of, measured: name -> (blocks, B).  Empty where there is no such theory.

        logits: (B, C) of every block; y: labels; p_y: (B, C) the true P(y|x), by default certain of y.
        """
        return {}

    def diagnostics(self, chain: Chain, batch: Batch, task: Task) -> Mapping[str, Sequence[float | None]]:
        """What of this method's theory cannot be read off its answers, on a few samples: name -> a value a block.

        Asked for after every epoch, so it may wait for the device.  None for a block that has none.  Empty where there
        is no such theory.  batch: with targets, and with how much of the run is done; the chain's modules are in
        evaluation mode.
        """
        return {}

    def export(self, chain: Chain) -> nn.Module:
        """The network that inference needs, x -> logits: without heads, unless beliefs are passed on."""
        return nn.Sequential(*(block.net for block in chain.blocks))

    def check_choices(self) -> None:
        """Raises ValueError for a field that is one of some words, by its type, and has another value."""
        for name, kind in get_type_hints(type(self)).items():
            if get_origin(kind) is Literal and (own := getattr(self, name)) not in get_args(kind):
                raise ValueError(f"got {name}={own!r}, expected one of {', '.join(get_args(kind))}.")

    def check_left_out(self, names: Sequence[str], where: str, instead: str = "") -> None:
        """Raises ValueError for a field that was set and is not read: comparing its values would compare nothing."""
        for name in names:
            own = getattr(self, name)
            if own != self.__dataclass_fields__[name].default:
                raise ValueError(f"got {name}={own} with {where}, which does not read it; leave it out{instead}.")

    def check_read(self, read_with: Mapping[str, tuple[str, Sequence[str]]]) -> None:
        """`check_left_out` of fields that only some values of another field read.

        read_with: name -> that other's name, and those values.
        """
        for name, (other, values) in read_with.items():
            chosen = getattr(self, other)
            if chosen not in values:
                self.check_left_out([name], f"{other}={chosen!r}", f", or use {other}={' or '.join(values)}")
