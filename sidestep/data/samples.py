"""Labelled samples: what a training loop reads."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Protocol

import torch
from PIL import Image
from torch import Tensor

from sidestep.data.cache import pixels
from sidestep.data.files import IMAGE_COLUMNS, LABEL_COLUMNS, Part, column_of
from sidestep.errors import DataError

INPUTS = (*IMAGE_COLUMNS, "x", "input", "inputs", "features", "tokens")
TARGETS = (*LABEL_COLUMNS, "y", "target", "targets")
"""What items of a Dataset may be called, a dict each."""


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

    @cached_property
    def digest(self) -> str:
        """Of all targets, and of the first and the last x: tells data apart at little cost."""
        found = hashlib.sha256()
        for part in (self.x[:1], self.x[-1:], self.y):
            found.update(f"{part.dtype} {tuple(part.shape)}".encode())
            found.update(part.cpu().numpy().tobytes())
        return found.hexdigest()[:12]

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

    An item may also be a dict of both, by the names that a table's columns have.

    x: a tensor or array, taken as it is, or a PIL image, which becomes (C, H, W) uint8; every x of one shape.
    y: an integer 0..num_classes-1, or (T,) of them, one for every token of x; or (D,) floats.

    Each fetch checks what it got and raises DataError; `check` fetches everything once.
    """

    def __init__(self, data: Any, num_classes: int | None = None):
        _check_count(len(data), "the data set")
        self.data = data
        x, self._like = self._pair(0)
        self.shape = tuple(as_tensor(x, "the input of sample 0").shape)
        if self._like.is_floating_point():
            self.num_classes = 0
        else:
            self.num_classes = num_classes or 1 + max(int(self._pair(i)[1].max()) for i in range(len(data)))

    def __len__(self) -> int:
        return len(self.data)

    def check(self) -> None:
        for i in range(len(self)):
            self.fetch(torch.tensor([i]))

    def fetch(self, indices: Tensor) -> tuple[Tensor, Tensor]:
        wanted, xs, ys = indices.tolist(), list[Tensor](), list[Tensor]()
        for i in wanted:
            raw, y = self._pair(i)
            x = as_tensor(raw, f"the input of sample {i}")
            if tuple(x.shape) != self.shape:
                raise DataError(
                    f"sample {i} has shape {tuple(x.shape)}; expected {self.shape} as sample 0 has; resize it."
                )
            if (y.shape, y.dtype) != (self._like.shape, self._like.dtype):
                raise DataError(
                    f"sample {i} has a target of shape {tuple(y.shape)} and {y.dtype}; expected "
                    f"{tuple(self._like.shape)} and {self._like.dtype} as sample 0 has; correct or drop it."
                )
            xs.append(x)
            ys.append(y)
        x, y = torch.stack(xs), torch.stack(ys)
        y = numbers(y) if y.is_floating_point() else y
        check_values(x, y, self.num_classes, "the data set", wanted)
        return x, y

    def _pair(self, i: int) -> tuple[Any, Tensor]:
        """A sample's input as it comes, and its target, int64 or float32."""
        item = self.data[i]
        if isinstance(item, Mapping):
            names, where = [str(name) for name in item], f"sample {i}"
            item = [item[column_of(names, known, where)] for known in (INPUTS, TARGETS)]
        if not isinstance(item, tuple | list) or len(item) != 2:
            size = f" of {len(item)}" if isinstance(item, tuple | list) else ""
            raise DataError(f"sample {i} is a {type(item).__name__}{size}; expected (x, y), or a dict of both.")
        x, y = item
        y = as_tensor(y, f"the target of sample {i}")
        return x, y if y.is_floating_point() else y.long()


def checked(part: Part, num_classes: int | None, name: str, where: str) -> Samples:
    """The samples of a part in which nothing is bad; `where` names it in an error."""
    x, y = as_tensor(part.x, f"{where}: x"), as_tensor(part.y, f"{where}: y")
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


def as_tensor(value: Any, where: str) -> Tensor:
    """What a user holds as a tensor here: on the CPU, without its graph, and float32 if it is of floats.

    Of an image its pixels, (C, H, W) uint8.  `where` names it in an error.
    """
    try:
        tensor = torch.as_tensor(pixels(value) if isinstance(value, Image.Image) else value, device="cpu").detach()
    except (TypeError, ValueError, RuntimeError) as error:
        reason = str(error).partition("\n")[0]
        raise DataError(
            f"{where} is of type {type(value).__name__} ({reason}); expected a tensor, an array, an image or numbers."
        ) from None
    return tensor.float() if tensor.is_floating_point() else tensor
