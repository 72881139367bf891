"""What is to be learnt: the targets, and how far an answer is from them.

B batch, T tokens, C classes; `...` is B, or B, T where every token has a label of its own.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class Task:
    """Classification into C classes, of inputs of one shape or of each of their tokens."""

    num_classes: int
    sample: Tensor  # (1 or more, ...) an example input, in the form the network gets it
    per_token: bool = False  # labels are (B, T), one for every token

    def label_shape(self, x: Tensor) -> torch.Size:
        """How many labels inputs x (B, T, ...) have: (B,), or (B, T)."""
        return x.shape[: 2 if self.per_token else 1]

    def target(self, y: Tensor, smoothing: float = 0.0) -> Tensor:
        """The target distribution t = (1 - s) y + s / C, (..., C).  y: (...) class indices, or (B, C) soft labels."""
        one_hot = y if y.is_floating_point() else F.one_hot(y, self.num_classes).float()
        return torch.lerp(one_hot, torch.full_like(one_hot, 1 / self.num_classes), smoothing) if smoothing else one_hot

    def loss(self, logits: Tensor, y: Tensor, smoothing: float = 0.0) -> Tensor:
        """Mean cross-entropy between the target of `target` and softmax(logits), in nats.  logits: (..., C)."""
        if self.per_token:
            logits, y = logits.flatten(0, -2), y.flatten()
        return F.cross_entropy(logits.float(), y, label_smoothing=smoothing)

    def check(self, x: Tensor, y: Tensor) -> None:
        """Refuse a batch that cannot be learnt from, before a forward pass can spoil BatchNorm statistics.

        Values are looked at on the CPU only: on an accelerator that would wait for it at every step.
        """
        if len(x) == 0:
            raise ValueError("got an empty batch, expected at least one sample.")
        if len(x) != len(y):
            raise ValueError(f"got {len(x)} inputs and {len(y)} labels; expected as many of each.")
        if x.shape[1:] != self.sample.shape[1:]:
            raise ValueError(
                f"got inputs of shape {tuple(x.shape[1:])}, expected {tuple(self.sample.shape[1:])}, "
                "which the network was built for."
            )
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
        if x.device.type == "cpu":
            self._check_values(x, y)

    def _check_values(self, x: Tensor, y: Tensor) -> None:
        if x.is_floating_point() and not bool(torch.isfinite(x).all()):
            raise ValueError("got NaN or Inf in the inputs, expected finite numbers; clean the data before training.")
        if not y.is_floating_point():
            low, high = torch.stack(y.aminmax()).tolist()
            if not 0 <= low <= high < self.num_classes:
                raise ValueError(
                    f"got labels {low}..{high}, expected 0..{self.num_classes - 1}; "
                    "map or drop the others (-100 is not ignored here)."
                )
        # What bfloat16 leaves of a sum of 1.
        elif not bool(((y >= 0).all(-1) & ((y.sum(-1) - 1).abs() < 0.02)).all()):
            raise ValueError("got soft labels that are no distribution, expected rows of at least 0 that sum to 1.")
