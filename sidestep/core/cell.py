"""A cell is one pass at one block.  Every engine runs cells with these functions, so all compute the same numbers."""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from functools import lru_cache

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm  # pyright: ignore[reportPrivateUsage]  # the base of all of them

from sidestep.errors import UsageError

from .block import Block
from .emit import Emit, Message
from .keys import generator, global_rng, key
from .program import Pass
from .task import Classification, Task


@dataclass(frozen=True)
class Batch:
    """One (micro-)batch.  y is None at inference."""

    x: Tensor  # (B, ...)
    y: Tensor | None  # targets, as the task has them
    step: int = 0
    micro: int = 0
    progress: float | None = None  # share of the run's steps that is done; None where nobody said how many there are
    targets: dict[float, Tensor] = field(default_factory=dict[float, Tensor])  # by smoothing, once they were asked for


@dataclass
class Cell:
    """What a pass may see: its own block, the batch, the hub's output, and what it kept at this block this step."""

    block: Block
    batch: Batch
    task: Task
    shared: Message  # the hub's output, as leaves of this block's own
    kept: dict[str, Tensor]
    key: int  # of (seed, step, micro-batch, block, pass)
    index: Tensor | None = None  # () the block, where equal blocks are computed as one

    def own(self, values: Sequence[float]) -> float | Tensor:
        """Of values that are one a block, this block's."""
        if self.index is None:
            return values[self.block.index]
        if len(set(values)) == 1:
            return values[0]
        return on_device(tuple(values), self.index.device)[self.index]

    @property
    def y(self) -> Tensor:
        assert self.batch.y is not None, "a training pass ran without labels"
        return self.batch.y

    @property
    def training(self) -> bool:
        """Whether there is something to learn from; a pass used for inference too leaves out its loss if not."""
        return self.batch.y is not None

    def target(self, smoothing: float = 0.0) -> Tensor:
        """The target distribution of `Classification.target`, (..., C), made once for all blocks."""
        made = self.batch.targets
        assert isinstance(self.task, Classification), "a method for classes ran on another task"
        if smoothing not in made:
            made[smoothing] = self.task.target(self.y, smoothing)
        return made[smoothing]

    def generator(self) -> torch.Generator:
        """A method's own randomness, the same in every engine; the block's dropout draws from the cell's key itself.

        It begins anew with every call: two draws of a pass are to be from one generator.
        """
        return generator(key(self.key, "method"), self.batch.x.device)

    def randn(self, *shape: int) -> Tensor:
        """Standard normal noise, the first of `generator`."""
        return torch.randn(*shape, device=self.batch.x.device, generator=self.generator())


@dataclass(frozen=True)
class Context:
    """How cells are run: everything an engine fixes once.  `autocast` None means float32."""

    task: Task
    seed: int
    device: torch.device
    autocast: torch.dtype | None = None

    def precision(self) -> AbstractContextManager[object]:
        return nullcontext() if self.autocast is None else torch.autocast(self.device.type, self.autocast)

    def cell_key(self, batch: Batch, block: int, name: str) -> int:
        return key(self.seed, batch.step, batch.micro, block, name)


@lru_cache(maxsize=64)
def on_device(values: tuple[float, ...], device: torch.device) -> Tensor:
    """Numbers as a tensor there, (n,) float32, sent once: sending waits for the device, as no recorded step may."""
    return torch.tensor(values, dtype=torch.float32, device=device)


def run_hub(
    encode: Callable[[nn.Module | None, Batch], Message],
    hub: nn.Module | None,
    batch: Batch,
    context: Context,
) -> Message:
    """Run the part all blocks share, keyed like a cell of its own."""
    if hub is None:
        return ()
    with global_rng(key(context.seed, batch.step, batch.micro, "hub"), context.device), context.precision():
        return encode(hub, batch)


def check_gradients_enabled() -> None:
    """Refuse to train where torch records nothing to differentiate."""
    if not torch.is_grad_enabled():
        raise UsageError(
            "got training inside torch.no_grad() or inference_mode(), expected gradients; call it outside."
        )


def leaves(output: Message, grad: bool) -> Message:
    """A hub's output as one block gets it; its gradient, if that is wanted, is found on what this returns."""
    return tuple(v.detach().requires_grad_(grad) for v in output)


def run_cell(p: Pass, cell: Cell, message: Message, context: Context) -> Emit:
    """Run one pass at one block.

    With `p.input_grad` the incoming message is made of leaves, except at the block where it enters from outside: nobody
    asks for the gradient of the data.
    """
    from_outside = cell.block.is_first if p.order == "up" else cell.block.is_last
    if p.input_grad and not from_outside:
        message = tuple(m.requires_grad_() if m.is_floating_point() else m for m in message)
    with ExitStack() as stack:
        stack.enter_context(global_rng(cell.key, context.device))
        stack.enter_context(context.precision())
        if not p.grad:
            stack.enter_context(torch.no_grad())
        if p.replays is not None:
            stack.enter_context(frozen_statistics(cell.block))
        emit = p.fn(cell if p.reads else replace(cell, kept={}), *message)
        if emit.loss is not None and not emit.loss.requires_grad and torch.is_grad_enabled():
            _check_teaches(p, cell)
    cell.kept.update(emit.keep)
    return emit


def _check_teaches(p: Pass, cell: Cell) -> None:
    """Refuse an objective that would teach a block nothing; of a block that is frozen it need not."""
    if any(parameter.requires_grad for parameter in cell.block.parameters()):
        raise UsageError(
            f"got an objective of block {cell.block.index} (pass {p.name}) that no parameter has a gradient of, "
            "expected one to differentiate; look for a detach() or no_grad() on its way, or freeze the block."
        )


def finish_cell(emit: Emit, scale: float = 1.0) -> Message:
    """Differentiate inside the block, and return the message with the gradients it was asked to send, detached.

    What asks for no gradient is left out: the objective, or pull, of frozen parameters on what nobody pulls back.
    """
    roots: list[tuple[Tensor, Tensor | None]] = []
    if emit.loss is not None:
        roots.append((emit.loss * scale if scale != 1.0 else emit.loss, None))
    roots = [(root, gradient) for root, gradient in (*roots, *emit.pull) if root.requires_grad]
    if roots:
        torch.autograd.backward([root for root, _ in roots], [gradient for _, gradient in roots])
    sent = [m.detach() for m in emit.send]
    for leaf in emit.send_grad:
        if leaf.grad is None:
            raise UsageError(
                "got a block whose objective has no gradient of its input, expected one to send back; look for a "
                "detach() or no_grad() in the network's forward, or use a method whose gradients do not cross the cuts."
            )
        sent.append(leaf.grad.detach())
        leaf.grad = None
    return tuple(sent)


@contextmanager
def frozen_statistics(*modules: nn.Module) -> Generator[None, None, None]:
    """Compute as in training, but leave buffers, such as running statistics, alone.

    A replayed cell must not count twice.
    """
    parts = [m for module in modules for m in module.modules() if m.training]
    # A BatchNorm is told to keep none, which saves the work, and tensors that a graph would hold.
    norms = [m for m in parts if isinstance(m, _BatchNorm) and m.track_running_stats]
    others = [b for m in parts if m not in norms for b in m.buffers(recurse=False)]
    before = [(buffer, _version(buffer), buffer.clone()) for buffer in others]
    for m in norms:
        m.track_running_stats = False
    try:
        yield
    finally:
        for m in norms:
            m.track_running_stats = True
        with torch.no_grad():
            for buffer, version, value in before:
                if _version(buffer) != version:
                    buffer.copy_(value)


def _version(tensor: Tensor) -> int:
    """How often it has been written to."""
    return tensor._version  # pyright: ignore[reportPrivateUsage]  # torch's own errors show it, and no other way tells
