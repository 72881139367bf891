"""What the models share: a chain of named units, and a check of their options."""

from __future__ import annotations

from torch import nn

from sidestep.errors import UsageError


class Chained(nn.Sequential):
    """A network whose children, run in order, are the units at which it may be cut; the last is the read-out."""

    def chain(self) -> dict[str, nn.Module]:
        """The units in order, by name; the last one takes features to logits (B, classes)."""
        return dict(self.named_children())


def positive(**values: int) -> None:
    """Refuse an option below 1."""
    for name, value in values.items():
        if value < 1:
            raise UsageError(f"{name}={value}; expected an integer of at least 1.")


def rate(**values: float) -> None:
    """Refuse a probability outside [0, 1)."""
    for name, value in values.items():
        if not 0 <= value < 1:
            raise UsageError(f"{name}={value}; expected a number in [0, 1).")
