"""Parts of a network under backpropagation, each timed alone: what the rivals' simulations are made of."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import Optimizer

from sidestep.measure.timing import now
from sidestep.precision import computed_in
from sidestep.simulate.rivals import Stage

ROUNDS = 12
WARMUP = 2


class Timed:
    """Seconds of what is done in turn with other things, by name; the median of the rounds after the warm-up."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.seconds: dict[str, list[float]] = {}

    def __call__(self, name: str, work: Callable[[], object]) -> None:
        began = now(self.device)
        work()
        self.seconds.setdefault(name, []).append(now(self.device) - began)

    def median(self, name: str) -> float:
        return statistics.median(self.seconds[name][WARMUP:])


class _Part:
    """What a stage does with a micro-batch, and at the end of a step."""

    def __init__(self, stage: nn.Module, given: Tensor, target: Tensor | None, autocast: torch.dtype | None) -> None:
        self.stage, self.given, self.target, self.autocast = stage, given, target, autocast
        self.answer = given
        self.gradient: Tensor | None = None

    def forward(self) -> None:
        with computed_in(self.given.device, self.autocast):
            self.answer = self.stage(self.given)
            if self.target is not None:
                self.answer = F.cross_entropy(self.answer, self.target)

    def backward(self) -> None:
        self.answer.backward(self.gradient)
        self.given.grad = None

    def inputs_gradient(self) -> None:
        torch.autograd.grad(self.answer, self.given, self.gradient)

    def update(self, optimizer: Optimizer, micros: int) -> None:
        for p in self.stage.parameters():
            if p.grad is not None:
                p.grad.div_(micros)  # as the pipeline does
        optimizer.step()
        optimizer.zero_grad()


def stages_alone(
    stages: Sequence[nn.Module],
    make: Callable[..., Optimizer],
    batch: tuple[Tensor, Tensor],
    micros: int,
    autocast: torch.dtype | None = None,
) -> list[Stage]:
    """Every stage, in order, on a micro-batch of its predecessor's outputs; they are trained by it.

    make: an optimizer of parameters.  The time of weights' gradients is what a stage takes more where they are asked
    for.
    """
    x, y = (part.chunk(micros)[0] for part in batch)
    found: list[Stage] = []
    for k, stage in enumerate(stages):
        first, last = k == 0, k == len(stages) - 1
        part = _Part(stage.train(), x.requires_grad_(not first), y if last else None, autocast)
        timed, optimizer = Timed(x.device), make(stage.parameters())
        for _ in range(WARMUP + ROUNDS):
            timed("forward", part.forward)
            part.gradient = None if last else torch.ones_like(part.answer)
            timed("first backward", part.backward)
            part.forward()
            timed("backward", part.backward)  # adds to what is there, which takes longer where weights are many
            timed("update", partial(part.update, optimizer, micros))
            if not first:
                part.forward()
                timed("inputs' gradient", part.inputs_gradient)
        backward = timed.median("first backward") + (micros - 1) * timed.median("backward")
        backward /= micros
        weights = backward if first else max(backward - timed.median("inputs' gradient"), 0.0)
        with torch.no_grad():
            part.forward()
        given, x = x, part.answer.detach()
        times = timed.median("forward"), backward, timed.median("update")
        found.append(Stage(*times, size=x.nbytes, given=given.nbytes, weights=weights))
    return found


def buckets(network: nn.Module, first: int = 1 << 20, more: int = 25 << 20) -> list[int]:
    """Bytes of the gradients that DistributedDataParallel adds up at once: the last layers' first."""
    found, limit = [0], first
    for parameter in reversed([p for p in network.parameters() if p.requires_grad]):
        found[-1] += parameter.nbytes
        if found[-1] >= limit:
            found.append(0)
            limit = more
    return [size for size in found if size]
