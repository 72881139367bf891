"""The order of samples, and batches as a pure function of the step."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from sidestep.core.keys import generator, global_rng, key
from sidestep.data.augment import Augment, to_float
from sidestep.data.sources import Samples, Source
from sidestep.errors import DataError, UsageError


def epoch_order(n: int, seed: int, epoch: int) -> Tensor:
    """A permutation of 0..n-1, a pure function of its arguments: the same on every rank and for every thread count."""
    return torch.randperm(n, generator=generator(key(seed, "order", epoch)))


class Batches:
    """Training batches as a pure function of the step: nothing to save, nothing to restore.

    The last incomplete batch of an epoch is dropped.  `Samples` that fit in a quarter of a GPU's free memory are kept
    there.

    mean, std: one value a channel (dimension 1), for images in 0..1; empty to leave the samples as they are.
    channels_last: whether images come in that memory format, which may change between batches.
    reconstruct: the targets are the samples themselves, as `intensities`.

    Raises DataError where there are fewer samples than a batch.
    """

    def __init__(
        self,
        source: Source,
        batch_size: int,
        *,
        seed: int,
        augment: Augment | None = None,
        mean: Sequence[float],
        std: Sequence[float],
        device: torch.device | str = "cpu",
        channels_last: bool = False,
        reconstruct: bool = False,
    ):
        if batch_size < 1:
            raise UsageError(f"batch size {batch_size}; expected at least 1.")
        if len(source) < batch_size:
            raise DataError(
                f"got {len(source)} training samples, expected at least one batch of {batch_size}; "
                f"use a batch size of at most {len(source)}, or more data."
            )
        self.steps_per_epoch = len(source) // batch_size
        self._device = torch.device(device)
        self._source, self._home = _settle(source, self._device)
        self._batch_size, self._seed, self._augment = batch_size, seed, augment or Augment()
        self._reconstruct, self.channels_last = reconstruct, channels_last
        self._normalise = _normaliser(mean, std, self._device)
        self._epoch, self._order = -1, torch.empty(0, dtype=torch.int64)

    def __call__(self, step: int) -> tuple[Tensor, Tensor]:
        """The batch of a step, counted from 0 over all epochs, on the device.

        Returns x (B, ...) float32, normalised, and y (B,) int64 or, after mixup, (B, classes) float32; or the targets
        of a regression, float32.
        """
        epoch, batch = divmod(step, self.steps_per_epoch)
        if epoch != self._epoch:
            self._epoch, self._order = epoch, epoch_order(len(self._source), self._seed, epoch).to(self._home)
        start = batch * self._batch_size
        with global_rng(key(self._seed, "data", step)):  # which a Dataset's own transforms draw from
            x, y = self._source.fetch(self._order[start : start + self._batch_size])
        random = generator(key(self._seed, "augment", step), self._device)
        rounded = x.dtype == torch.uint8
        x, y = self._augment(x.to(self._device), y.to(self._device), random, self._source.num_classes)
        if self._reconstruct:
            y = intensities(x, generator(key(self._seed, "intensities", step), self._device) if rounded else None)
        return _formatted(self._normalise(x), self.channels_last), y


def eval_batches(
    source: Source,
    batch_size: int,
    *,
    mean: Sequence[float],
    std: Sequence[float],
    device: torch.device | str = "cpu",
    channels_last: bool = False,
    reconstruct: bool = False,
) -> Iterator[tuple[Tensor, Tensor]]:
    """Every sample once, in order, unaugmented, as `Batches` would normalise it; the last batch may be short."""
    normalise = _normaliser(mean, std, device)
    for number, indices in enumerate(torch.arange(len(source)).split(batch_size)):
        with global_rng(key(0, "data", "held out", number)):
            raw, y = source.fetch(indices)
        x, y = to_float(raw.to(device)), y.to(device)
        if reconstruct:
            random = generator(key(0, "intensities", "held out", number), x.device)
            y = intensities(x, random if raw.dtype == torch.uint8 else None)
        yield _formatted(normalise(x), channels_last), y


def intensities(x: Tensor, random: torch.Generator | None) -> Tensor:
    """What a network that reconstructs x is to answer: x itself, or with `random` where x in 0..1 was rounded to bytes.

    A byte n stands for any number between n / 256 and (n + 1) / 256, and one of them is drawn: else a density could be
    as large as one likes where a pixel is always black (Theis et al., arXiv:1511.01844, section 3.1).
    """
    if random is None:
        return x.clone()
    noise = torch.rand(x.shape, generator=random, device=x.device, dtype=x.dtype)
    return (255 * x + noise) / 256


def _settle(source: Source, device: torch.device) -> tuple[Source, torch.device]:
    """The source where its samples are best fetched from, and the device that is."""
    if device.type == "cuda" and isinstance(source, Samples):
        free, _ = torch.cuda.mem_get_info(device)
        if source.x.nbytes <= free / 4:
            return replace(source, x=source.x.to(device), y=source.y.to(device)), device
    return source, torch.device("cpu")


def _normaliser(mean: Sequence[float], std: Sequence[float], device: torch.device | str) -> Callable[[Tensor], Tensor]:
    # On the device once: a copy from the host at every step would wait for the device.
    centre, spread = (torch.tensor(values, dtype=torch.float32, device=device) for values in (mean, std))

    def normalise(x: Tensor) -> Tensor:
        """In place: what a source fetches is its own tensor."""
        if len(mean):
            column = (-1,) + (1,) * (x.dim() - 2)
            x.sub_(centre.view(column)).div_(spread.view(column))
        return x

    return normalise


def _formatted(x: Tensor, channels_last: bool) -> Tensor:
    return x.contiguous(memory_format=torch.channels_last) if channels_last and x.dim() == 4 else x
