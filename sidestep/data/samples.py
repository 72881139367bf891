"""Labelled samples: what a training loop reads."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import torch
from PIL import Image
from torch import Tensor

from sidestep.data.cache import pixels
from sidestep.data.files import Part
from sidestep.errors import DataError


class Source(Protocol):
    """What a training loop reads: samples of one shape, fetched by index as new tensors.

    Each has a class, or one for each of its tokens; or numbers, and then there are no classes.
    """

    @property
    def shape(self) -> tuple[int, ...]: ...  # of one sample
    @property
    def num_classes(self) -> int: ...
    def __len__(self) -> int: ...
    def fetch(
        self, indices: Tensor
    ) -> tuple[Tensor, Tensor]: ...  # (B,) -> x (B, ...), y (B,) or (B, T) int64, or (B, D) float32


@dataclass(frozen=True)
class Samples:
    """Labelled samples held as tensors."""

    x: Tensor  # (N, C, H, W) uint8 images, (N, ...) float32, or (N, T) int64 tokens
    y: Tensor  # (N,) int64, 0..C-1; or (N, T), one for every token; or (N, D, ...) float32
    classes: tuple[str, ...]  # none where y is numbers
    name: str = ""
    text: bool = False  # a token's label is the next token

    @property
    def num_classes(self) -> int:
        return len(self.classes)

    @property
    def shape(self) -> tuple[int, ...]:
        """One sample's shape."""
        return tuple(self.x.shape[1:])

    def __len__(self) -> int:
        return len(self.y)

    def fetch(self, indices: Tensor) -> tuple[Tensor, Tensor]:
        """The samples at `indices`, (B,) on the samples' own device, as copies."""
        return self.x.index_select(0, indices), self.y.index_select(0, indices)

    def take(self, indices: Tensor) -> Samples:
        x, y = self.fetch(indices)
        return replace(self, x=x, y=y)

    def with_labels(self, y: Tensor) -> Samples:
        return replace(self, y=y)


class DatasetSamples:
    """A map-style Dataset of (x, y), fetched item by item, so that its own transforms run each time.

    x: a tensor or array, taken as it is, or a PIL image, which becomes (C, H, W) uint8; every x of one shape.
    y: an integer 0..num_classes-1, or (T,) of them, one for every token of x; or (D,) floats.

    Each fetch checks what it got and raises DataError.
    """

    def __init__(self, data: Any, num_classes: int | None = None):
        _check_count(len(data), "the data set")
        self.data = data
        self.numbers = torch.as_tensor(data[0][1]).is_floating_point()
        labels = () if self.numbers else (int(torch.as_tensor(data[i][1]).max()) for i in range(len(data)))
        self.num_classes = num_classes or 1 + max(labels, default=-1)
        self.shape = tuple(_tensor(data[0][0]).shape)

    def __len__(self) -> int:
        return len(self.data)

    def fetch(self, indices: Tensor) -> tuple[Tensor, Tensor]:
        wanted = indices.tolist()
        items = [self.data[i] for i in wanted]
        xs = [_tensor(x) for x, _ in items]
        for i, x in zip(wanted, xs, strict=True):
            if tuple(x.shape) != self.shape:
                raise DataError(
                    f"sample {i} has shape {tuple(x.shape)}; expected {self.shape} as sample 0 has; resize it."
                )
        x, y = torch.stack(xs), torch.stack([torch.as_tensor(y) for _, y in items])
        y = numbers(y) if self.numbers else y.long()
        check_values(x, y, self.num_classes, "the data set", wanted)
        return x, y


def checked(part: Part, num_classes: int | None, name: str, where: str) -> Samples:
    """The samples of a part in which nothing is bad; `where` names it in an error."""
    x, y = torch.as_tensor(part.x), torch.as_tensor(part.y)
    if x.is_floating_point():
        x = x.float()
    kind, dim = x.dtype, x.dim()
    if not {torch.uint8: dim == 4, torch.int64: dim == 2, torch.float32: dim >= 2}.get(kind, False):
        raise DataError(
            f"{where}: x is {tuple(x.shape)} of {kind}; expected (N, C, H, W) of torch.uint8, (N, ...) of floats, "
            "or (N, T) tokens of torch.int64."
        )
    tokens = dim == (2 if kind == torch.int64 else 3)
    if y.is_floating_point() and len(y) == len(x):
        _check_count(len(y), where)
        check_values(x, y, 0, where)
        return Samples(x, numbers(y), (), name)
    if y.is_floating_point() or y.shape not in (x.shape[:1], x.shape[: 2 if tokens else 1]):
        raise DataError(
            f"{where}: y is {tuple(y.shape)} of {y.dtype}; expected one integer for each of {len(x)} samples"
            + (", or for each of their tokens." if tokens else ".")
        )
    _check_count(len(y), where)
    y = y.long()
    classes = part.classes
    if classes is None or num_classes not in (None, len(classes)):
        classes = tuple(str(c) for c in range(num_classes or max(int(y.max()), 0) + 1))
    check_values(x, y, len(classes), where)
    return Samples(x, y, classes, name, part.text)


def numbers(y: Tensor) -> Tensor:
    """Targets that are numbers as (N, D, ...) float32."""
    return (y[:, None] if y.dim() == 1 else y).float()


def _check_count(n: int, where: str) -> None:
    if n < 2:
        raise DataError(f"{where} has {n} sample{'' if n else 's'}; expected at least 2; add more.")


def check_values(x: Tensor, y: Tensor, num_classes: int, where: str, indices: Sequence[int] | None = None) -> None:
    """indices: the samples' numbers in their source, where they are not 0, 1, 2, ..."""

    def first(bad: Tensor) -> str:
        i = int(bad.nonzero()[0, 0])
        return f"{where}: sample {indices[i] if indices else i}"

    if y.is_floating_point():
        if not y.isfinite().all():
            raise DataError(f"{first(~y.isfinite())} has a target that is NaN or Inf; correct or drop it.")
    elif (outside := (y < 0) | (y >= num_classes)).any():
        label = int(y[outside][0])
        raise DataError(f"{first(outside)} has label {label}; expected 0..{num_classes - 1}; correct or drop it.")
    if x.is_floating_point() and not x.isfinite().all():
        broken = ~x.isfinite().flatten(1).all(1)
        raise DataError(f"{first(broken)} holds NaN or Inf; expected finite values; correct or drop it.")


def _tensor(x: Any) -> Tensor:
    return torch.from_numpy(pixels(x)) if isinstance(x, Image.Image) else torch.as_tensor(x)
