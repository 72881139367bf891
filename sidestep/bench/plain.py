"""Plain autograd training, with no engine: the oracle of the tests, the baseline of every speed and memory figure."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Generator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from typing import TypedDict, Unpack

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm  # pyright: ignore[reportPrivateUsage]  # the base of all of them
from torch.optim import Optimizer
from torch.utils.checkpoint import checkpoint

from sidestep.precision import computed_in


class Options(TypedDict, total=False):
    label_smoothing: float  # of every loss; 0 if left out
    autocast: torch.dtype | None  # of forward and loss; None for float32
    clip: float | None  # largest norm of the whole gradient; None not to clip


class PlainTraining(ABC):
    """One graph over `network`, one backward pass, and one optimizer that holds all parameters."""

    def __init__(self, network: nn.Module, optimizer: Optimizer, **options: Unpack[Options]) -> None:
        self.network = network
        self.optimizer = optimizer
        self.label_smoothing = options.get("label_smoothing", 0.0)
        self.autocast = options.get("autocast")
        self.clip = options.get("clip")

    @abstractmethod
    def loss(self, x: Tensor, y: Tensor) -> Tensor:
        """The objective on one batch, ()."""

    def step(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        """One update from a batch (x, y): x (B, ...), y (B,) class indices or (B, C) soft labels.

        Returns the loss, (), detached and not synchronised.
        """
        x, y = batch
        self.network.train()
        with computed_in(x.device, self.autocast):
            loss = self.loss(x, y)
        loss.backward()
        if self.clip is not None:
            # In the optimizer's order: the last bits of a norm depend on it.
            nn.utils.clip_grad_norm_([p for group in self.optimizer.param_groups for p in group["params"]], self.clip)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return loss.detach()

    def cross_entropy(self, logits: Tensor, y: Tensor) -> Tensor:
        return F.cross_entropy(logits.float(), y, label_smoothing=self.label_smoothing)


class PlainStep(PlainTraining):
    """Backpropagation through the whole of `network`, x -> logits (B, C)."""

    def loss(self, x: Tensor, y: Tensor) -> Tensor:
        return self.cross_entropy(self.network(x), y)


class CheckpointedStep(PlainTraining):
    """Backpropagation that keeps the input of each segment and computes the segment again (arXiv:1604.06174).

    But for the last, whose graph is wanted at once, as in torch.utils.checkpoint.checkpoint_sequential.

    segments: run in order, they are the network, x -> logits (B, C).
    """

    def __init__(self, segments: Sequence[nn.Module], optimizer: Optimizer, **options: Unpack[Options]) -> None:
        super().__init__(nn.ModuleList(segments), optimizer, **options)
        self.segments = list(segments)

    def loss(self, x: Tensor, y: Tensor) -> Tensor:
        h = x
        for segment in self.segments[:-1]:
            h = checkpoint(
                segment,
                h,
                use_reentrant=False,
                context_fn=partial(_first_and_again, segment),
                # A CUDA graph is recorded of steps that draw nothing only, and the state is not to be had meanwhile.
                preserve_rng_state=not (x.is_cuda and torch.cuda.is_current_stream_capturing()),
            )
        return self.cross_entropy(self.segments[-1](h), y)


class DeepSupervisionStep(PlainTraining):
    """A head's cross-entropy at every cut, in one graph with one backward pass (arXiv:1409.5185).

    nets: the slices in order, the last ending in logits; heads: one for each slice but the last.
    """

    def __init__(
        self,
        nets: Sequence[nn.Module],
        heads: Sequence[nn.Module],
        optimizer: Optimizer,
        **options: Unpack[Options],
    ) -> None:
        super().__init__(nn.ModuleList([*nets, *heads]), optimizer, **options)
        self.nets, self.heads = list(nets), list(heads)

    def loss(self, x: Tensor, y: Tensor) -> Tensor:
        h = x
        losses: list[Tensor] = []
        for net, head in zip(self.nets, [*self.heads, nn.Identity()], strict=True):
            h = net(h)
            losses.append(self.cross_entropy(head(h), y))
        return torch.stack(losses).sum()


def _first_and_again(segment: nn.Module) -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
    return nullcontext(), _statistics_kept(segment)


@contextmanager
def _statistics_kept(segment: nn.Module) -> Generator[None, None, None]:
    """Let BatchNorm count a batch once though it is computed twice.

    A momentum of 0 rather than no statistics: the second run has to save the same tensors as the first.
    """
    norms = [m for m in segment.modules() if isinstance(m, _BatchNorm) and m.track_running_stats]
    before = [(m.momentum, m.num_batches_tracked) for m in norms]
    for m in norms:
        m.momentum, m.num_batches_tracked = 0.0, None
    try:
        yield
    finally:
        for m, (momentum, seen) in zip(norms, before, strict=True):
            m.momentum, m.num_batches_tracked = momentum, seen
