"""A step as one CUDA graph: the device gets all of its kernels at once, where Python would hand them out one by one."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Generic, TypeVar, final

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only

T = TypeVar("T")
WARM_UP = 3
"""Steps before the recording: optimizers make their state in them, and libraries their workspaces."""


@final
class CapturedStep(Generic[T]):
    """Trains as `step` does, from batches (x, y) of one shape; a batch of another is trained on eagerly.

    A graph repeats what it has recorded, number by number.  So a step cannot be recorded that draws, that waits for
    the device, or that reads what Python changes between steps; learning rates have to be tensors on the device, and
    optimizers capturable.

    step: one update; what it returns may hold tensors, of which every call gets its own.
    """

    def __init__(self, step: Callable[[tuple[Tensor, Tensor]], T], device: torch.device) -> None:
        if device.type != "cuda":
            raise ValueError(f"got a CUDA graph on {device}, expected a CUDA device; leave --cuda-graph out.")
        self.step = step
        self.stream = torch.cuda.Stream(device)
        self.forget()

    def forget(self) -> None:
        """Begin anew: what was recorded no longer lies where it lay."""
        self.warm = 0
        self.graph: torch.cuda.CUDAGraph | None = None
        self.batch: tuple[Tensor, Tensor] | None = None
        self.left: T | None = None

    def __call__(self, batch: tuple[Tensor, Tensor]) -> T:
        if self.warm < WARM_UP:
            return self._warm_up(batch)
        if self.graph is None:
            self._record(batch)
        assert self.graph is not None and self.batch is not None and self.left is not None
        if any(own.shape != new.shape or own.dtype != new.dtype for own, new in zip(self.batch, batch, strict=True)):
            return self.step(batch)
        for own, new in zip(self.batch, batch, strict=True):
            own.copy_(new)
        self.graph.replay()
        return tree_map_only(Tensor, Tensor.clone, self.left)

    def _warm_up(self, batch: tuple[Tensor, Tensor]) -> T:
        """A step on the stream that is recorded from later, where autograd remembers to be."""
        self.stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self.stream), warnings.catch_warnings():
            # Adam warns of steps that are not recorded, though these are on their way to be.
            warnings.filterwarnings("ignore", message="This instance was constructed with capturable=True")
            if self.warm:
                found = self.step(batch)
            else:
                with Draws() as draws:
                    found = self.step(batch)
                draws.refuse()
        torch.cuda.current_stream().wait_stream(self.stream)
        self.warm += 1
        return found

    def _record(self, batch: tuple[Tensor, Tensor]) -> None:
        x, y = batch
        self.batch = (x.clone(), y.clone())
        graph = torch.cuda.CUDAGraph()
        try:
            with torch.cuda.graph(graph, stream=self.stream):
                self.left = self.step(self.batch)
        except RuntimeError as error:
            reason = str(error).partition("\n")[0]
            raise ValueError(
                f"got a step that CUDA cannot record ({reason}), expected one that never waits for the device; "
                "leave --cuda-graph out."
            ) from error
        self.graph = graph


class Draws(TorchDispatchMode):
    """Notices what draws random numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def __torch_dispatch__(
        self,
        func: Any,
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        if torch.Tag.nondeterministic_seeded in func.tags and not _drops_nothing(func, args, kwargs or {}):
            self.found.append(str(func))
        return func(*args, **(kwargs or {}))

    def refuse(self) -> None:
        """Raise ValueError if anything was drawn."""
        if self.found:
            raise ValueError(
                f"got a step that draws ({self.found[0]}), expected one without randomness, which a CUDA graph would "
                "not draw from the step's own seed; leave --cuda-graph out, or the dropout."
            )


def _drops_nothing(func: Any, args: Sequence[object], kwargs: Mapping[str, object]) -> bool:
    """Whether an operation that may drop something is told to drop nothing, as attention is."""
    arguments = func._schema.arguments
    given = {a.name: a.default_value for a in arguments} | dict(zip((a.name for a in arguments), args, strict=False))
    return (given | dict(kwargs)).get("dropout_p") == 0
