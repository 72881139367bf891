"""What is to be learnt: the targets, and how far an answer is from them.

Classes, of inputs or of their tokens; or numbers, an input's own among them.

B batch, T tokens, C classes; `...` is B, or B, T where every token has a label of its own.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import final

import torch
import torch.nn.functional as F
from torch import Tensor

from sidestep.errors import UsageError

LOG_2PI = math.log(2 * math.pi)
NARROWEST = 14.0
"""The largest log-precision of an answer, either way: a deviation of e^-7, narrower than a step of 1/256 between grey
levels, below which the likelihood of numbers that were rounded means nothing."""


class Task(ABC):
    """What is to be learnt of inputs of one shape.  Final subclasses are frozen dataclasses."""

    sample: Tensor  # (1 or more, ...) an example input, in the form the network gets it
    per_token: bool = False  # every token of an input has a label of its own

    @property
    @abstractmethod
    def outputs(self) -> int:
        """How many numbers an answer has for a label: logits, or means and log-precisions."""

    @abstractmethod
    def answer_shape(self, x: Tensor) -> torch.Size:
        """The shape of a network's answer to inputs x."""

    @property
    @abstractmethod
    def meaning(self) -> str:
        """What an answer holds, in words, and what to do about a network that answers otherwise."""

    def check_answer(self, shape: torch.Size) -> None:
        """Refuse a network whose answer to the sample has another shape.  Raises UsageError."""
        expected = self.answer_shape(self.sample)
        if shape != expected:
            raise UsageError(
                f"the network answers with shape {tuple(shape[1:])}, expected {tuple(expected[1:])} {self.meaning}"
            )

    @abstractmethod
    def loss(self, answer: Tensor, y: Tensor, smoothing: float | Tensor = 0.0) -> Tensor:
        """The mean negative log-likelihood of the targets, (), in nats a label or a number."""

    def check_smoothable(self, smoothing: object) -> None:  # noqa: B027  # where there are labels nothing is refused
        """Raises ValueError for label smoothing, a number or words, where there are no labels to smooth."""

    @abstractmethod
    def check_targets(self, x: Tensor, y: Tensor, *, values: bool) -> None:
        """Refuse targets y of inputs x that cannot be learnt from, by their shape and type, or by their values too."""

    def check(self, x: Tensor, y: Tensor) -> None:
        """Refuse a batch that cannot be learnt from, before a forward pass can spoil BatchNorm statistics.

        Values are looked at on the CPU only: on an accelerator that would wait for it at every step.
        """
        for what, value in (("inputs", x), ("targets", y)):
            if not isinstance(value, Tensor):  # pyright: ignore[reportUnnecessaryIsInstance]  # of a caller without one
                raise ValueError(f"got {what} of type {type(value).__name__}, expected a tensor: a batch is (x, y).")
        if len(x) == 0:
            raise ValueError("got an empty batch, expected at least one sample.")
        if len(x) != len(y):
            raise ValueError(f"got {len(x)} inputs and {len(y)} labels; expected as many of each.")
        if x.shape[1:] != self.sample.shape[1:]:
            raise ValueError(
                f"got inputs of shape {tuple(x.shape[1:])}, expected {tuple(self.sample.shape[1:])}, "
                "which the network was built for."
            )
        if x.is_floating_point() and x.dtype != self.sample.dtype:
            raise ValueError(
                f"got inputs of {x.dtype}, expected {self.sample.dtype} as the task's sample; convert them."
            )
        values = x.device.type == "cpu"
        if values and x.is_floating_point() and not bool(torch.isfinite(x).all()):
            raise ValueError("got NaN or Inf in the inputs, expected finite numbers; clean the data before training.")
        self.check_targets(x, y, values=values)


@final
@dataclass(frozen=True)
class Classification(Task):
    """Classification into C classes, of inputs of one shape or of each of their tokens."""

    num_classes: int
    sample: Tensor  # (1 or more, ...) an example input, in the form the network gets it
    per_token: bool = False  # labels are (B, T), one for every token

    @property
    def outputs(self) -> int:
        return self.num_classes

    def answer_shape(self, x: Tensor) -> torch.Size:
        return torch.Size((*self.label_shape(x), self.num_classes))

    @property
    def meaning(self) -> str:
        return f"logits for the data's {self.num_classes} classes; change the network's last layer or num_classes."

    def label_shape(self, x: Tensor) -> torch.Size:
        """How many labels inputs x (B, T, ...) have: (B,), or (B, T)."""
        return x.shape[: 2 if self.per_token else 1]

    def target(self, y: Tensor, smoothing: float = 0.0) -> Tensor:
        """The target distribution t = (1 - s) y + s / C, (..., C).  y: (...) class indices, or (B, C) soft labels."""
        one_hot = (y if y.is_floating_point() else F.one_hot(y, self.num_classes)).float()
        return torch.lerp(one_hot, torch.full_like(one_hot, 1 / self.num_classes), smoothing) if smoothing else one_hot

    def loss(self, answer: Tensor, y: Tensor, smoothing: float | Tensor = 0.0) -> Tensor:
        """Mean cross-entropy between the target of `target` and softmax(answer), in nats.  answer: (..., C) logits."""
        if self.per_token:
            answer, y = answer.flatten(0, -2), y.flatten()
        if isinstance(smoothing, Tensor):  # torch's own takes a number only
            uniform = -F.log_softmax(answer.float(), -1).mean()
            return torch.lerp(F.cross_entropy(answer.float(), y), uniform, smoothing)
        return F.cross_entropy(answer.float(), y, label_smoothing=smoothing)

    def check_targets(self, x: Tensor, y: Tensor, *, values: bool) -> None:
        hard = y.shape == self.label_shape(x) and y.dtype == torch.int64
        soft = not self.per_token and y.dim() == 2 and y.is_floating_point()
        if not (hard or soft):
            wanted = f"{'(B, T)' if self.per_token else '(B,)'} class indices of torch.int64"
            raise ValueError(
                f"got labels of shape {tuple(y.shape)} and {y.dtype}, expected {wanted}"
                + ("." if self.per_token else f", or (B, {self.num_classes}) soft labels of a floating type.")
            )
        if soft and y.shape[1] != self.num_classes:
            raise ValueError(f"got soft labels over {y.shape[1]} classes, expected {self.num_classes}.")
        if not values:
            return
        if hard:
            low, high = torch.stack(y.aminmax()).tolist()
            if not 0 <= low <= high < self.num_classes:
                raise ValueError(
                    f"got labels {low}..{high}, expected 0..{self.num_classes - 1}; "
                    "map or drop the others (-100 is not ignored here)."
                )
        # What bfloat16 leaves of a sum of 1.
        elif not bool(((y >= 0).all(-1) & ((y.sum(-1) - 1).abs() < 0.02)).all()):
            raise ValueError("got soft labels that are no distribution, expected rows of at least 0 that sum to 1.")


@final
@dataclass(frozen=True)
class Regression(Task):
    """Numbers with how sure one is of each, y ~ N(mean, deviation): targets (B, D) or (B, D, ...).

    An answer (B, 2 D, ...) has all means, then the logarithm of all precisions.
    """

    shape: torch.Size  # of one sample's target
    sample: Tensor

    @property
    def outputs(self) -> int:
        return 2 * self.shape[0]

    def answer_shape(self, x: Tensor) -> torch.Size:
        return torch.Size((len(x), self.outputs, *self.shape[1:]))

    @property
    def meaning(self) -> str:
        return "means and log-precisions; change its last layer, or give integers if the targets are classes."

    def surprise(self, answer: Tensor, y: Tensor) -> Tensor:
        """-log p(y) of every number, shaped like y, in nats."""
        mean, log_precision = moments(answer)
        return 0.5 * (LOG_2PI - log_precision + log_precision.exp() * (y - mean).square())

    def loss(self, answer: Tensor, y: Tensor, smoothing: float | Tensor = 0.0) -> Tensor:
        """Mean of `surprise`, ().  Raises ValueError for smoothing, which is of classes."""
        self.check_smoothable(smoothing)
        return self.surprise(answer, y).mean()

    def check_smoothable(self, smoothing: object) -> None:
        if smoothing:
            raise ValueError(f"got label_smoothing={smoothing} for targets that are numbers, expected 0.")

    def check_targets(self, x: Tensor, y: Tensor, *, values: bool) -> None:
        if y.shape[1:] != self.shape or not y.is_floating_point():
            raise ValueError(
                f"got targets of shape {tuple(y.shape)} and {y.dtype}, expected (B, {', '.join(map(str, self.shape))}) "
                "of a floating type."
            )
        if values and not bool(y.isfinite().all()):
            raise ValueError("got NaN or Inf in the targets, expected finite numbers; clean the data before training.")


def moments(answer: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and log-precision, (B, D, ...), of a regression's answer (B, 2 D, ...)."""
    mean, log_precision = answer.float().chunk(2, 1)
    return mean, log_precision.clamp(-NARROWEST, NARROWEST)


def classes(task: Task, what: str) -> Classification:
    """The task if it is one of classes.  Raises ValueError, naming what needs them."""
    if not isinstance(task, Classification):
        raise ValueError(f"{what} is for classes, got targets that are numbers; sidestep methods says who takes them.")
    return task
