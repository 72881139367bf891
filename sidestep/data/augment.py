"""Augmentation batched on the device: a few tensor operations a batch, every random number from one generator.

The images are (N, C, H, W); what lies outside of one is black, before normalisation, as when PIL images are cropped.
"""

from __future__ import annotations

import math
import random
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Generator, Tensor

from sidestep.errors import UsageError, unknown

GEOMETRIC = ("rotate", "shear_x", "shear_y", "translate_x", "translate_y")
OPS = ("identity", "brightness", "contrast", "colour", "solarize", "posterize", *GEOMETRIC)
"""What `randaugment` chooses from: of the published list, the operations that are arithmetic on a batch."""


@dataclass(frozen=True)
class Augment:
    """Crop, flip, RandAugment, cutout and mixup, in this order; each is off by default.

    Raises UsageError for a value out of range, and when anything but mixup is asked for samples that are no images.
    """

    crop: int = 0  # zero padding in pixels on each side, then a random window of the original size
    flip: bool = False  # left to right, every second image
    randaugment: int = 0  # operations an image, each drawn from OPS
    magnitude: int = 9  # their strength, 0..30
    cutout: int = 0  # side in pixels of a black square, which may lie partly outside
    mixup: float = 0.0  # alpha of Beta(alpha, alpha), the law of a batch's mixing weight

    def __post_init__(self) -> None:
        for name in ("crop", "randaugment", "cutout", "mixup"):
            if not 0 <= getattr(self, name) < math.inf:
                raise UsageError(f"augmentation {name}:{getattr(self, name)}; expected a number from 0.")
        if not 0 <= self.magnitude <= 30:
            raise UsageError(f"augmentation magnitude:{self.magnitude}; expected 0 to 30.")

    def __call__(self, x: Tensor, y: Tensor, generator: Generator, num_classes: int) -> tuple[Tensor, Tensor]:
        """x: (N, C, H, W) uint8, (N, ...) float or (N, T) int64; y: (N,) or (N, T) int64.

        generator: on x's device, fresh for each batch.

        Returns x as float (images in 0..1, tokens as they are) and y, which mixup turns into (N, num_classes) shares
        that sum to 1.
        """
        if self.mixup and (y.is_floating_point() or not (x.is_floating_point() or x.dtype == torch.uint8)):
            raise UsageError("mixup is for images and floats with classes, got tokens or numbers; use --augment none.")
        if x.dtype != torch.uint8 and (self.crop or self.flip or self.randaugment or self.cutout):
            raise UsageError("crop, flip, randaugment and cutout are for uint8 images; these samples admit mixup only.")
        if self.crop or self.flip:
            x = crop_flip(x, self.crop, self.flip, generator)
        x = to_float(x)
        for _ in range(self.randaugment):
            op = torch.randint(len(OPS), (len(x),), generator=generator, device=x.device)
            sign = torch.randint(2, (len(x),), generator=generator, device=x.device) * 2 - 1
            x = apply_ops(x, op, sign * (self.magnitude / 30))
        if self.cutout:
            x = cutout(x, self.cutout, generator)
        return mixup(x, y, self.mixup, generator, num_classes) if self.mixup else (x, y)


def parse(text: str) -> Augment:
    """`crop,flip,cutout:8,randaugment:2,magnitude:9,mixup:0.2`, or any part of it, or `none`.

    A word without its number means the usual one.  Raises UsageError for an unknown word or a bad number.
    """
    usual = {"crop": 4, "flip": True, "cutout": 8, "randaugment": 2, "magnitude": 9, "mixup": 0.2}
    fields: dict[str, Any] = {}
    for word in [] if text == "none" else text.split(","):
        name, colon, number = word.strip().partition(":")
        if name == "none":
            raise UsageError(f"augmentation {text!r}; expected none to stand alone; leave it out, or all others.")
        if name not in usual:
            raise unknown("augmentation", name, [*usual, "none"])
        kind = type(usual[name])
        try:
            if colon and kind is bool:
                raise ValueError
            fields[name] = kind(number) if colon else usual[name]
        except ValueError:
            expected = name if kind is bool else f"{name}:{usual[name]}"
            raise UsageError(f"augmentation {word.strip()!r}; expected for example {expected!r}.") from None
    return Augment(**fields)


def to_float(x: Tensor) -> Tensor:
    """uint8 images in 0..1, other samples as they are; a copy unless x is float32 or int64 already."""
    if x.dtype == torch.uint8:
        return x.float().div_(255)
    return x.float() if x.is_floating_point() else x


def crop_flip(x: Tensor, padding: int, flip: bool, generator: Generator) -> Tensor:
    """Draws the windows' upper left corners (2, N) in 0..2*padding, then, to flip, (N,) below 0.5 of uniforms."""
    n, channels, height, width = x.shape
    corner = torch.randint(2 * padding + 1, (2, n, 1), generator=generator, device=x.device)
    rows, columns = corner[0] + torch.arange(height, device=x.device), corner[1] + torch.arange(width, device=x.device)
    if flip:
        flipped = torch.rand((n, 1), generator=generator, device=x.device) < 0.5
        columns = torch.where(flipped, columns.flip(1), columns)
    # One gather for both, on flattened pixels: the fastest of the ways tried, and it stays in uint8.
    pixel = (rows[:, :, None] * (width + 2 * padding) + columns[:, None, :]).view(n, 1, -1)
    padded = F.pad(x, (padding,) * 4).flatten(2)
    return padded.gather(2, pixel.expand(-1, channels, -1)).view(x.shape)


def cutout(x: Tensor, side: int, generator: Generator) -> Tensor:
    """Draws the squares' centres, rows then columns, uniformly over the pixels (DeVries and Taylor 2017)."""
    inside = []
    for size in x.shape[2:]:
        centre = torch.randint(size, (len(x), 1), generator=generator, device=x.device)
        offset = torch.arange(size, device=x.device) - centre + side // 2
        inside.append((offset >= 0) & (offset < side))
    return x.masked_fill((inside[0][:, :, None] & inside[1][:, None, :])[:, None], 0.0)


def apply_ops(x: Tensor, op: Tensor, strength: Tensor) -> Tensor:
    """Apply to each image its operation, at its strength in -1..1.

    x: (N, C, H, W) in 0..1; op: (N,) indices into OPS; strength: (N,).  Ranges as in torchvision's RandAugment, without
    its rounding to 8 bits between operations.  Every image goes through the same four steps, at which an operation
    that is not its own is neutral: no grouping by operation, so no waiting for the device.
    """
    column = (-1, 1, 1, 1)
    chosen = {name: op == i for i, name in enumerate(OPS)}

    grey = x.mean(1, keepdim=True)
    if x.shape[1] == 3:
        grey = 0.299 * x[:, :1] + 0.587 * x[:, 1:2] + 0.114 * x[:, 2:]
    base = torch.where(chosen["colour"].view(column), grey, 0)
    base = torch.where(chosen["contrast"].view(column), grey.mean((2, 3), keepdim=True), base)
    blended = chosen["brightness"] | chosen["contrast"] | chosen["colour"]
    x = torch.where(blended.view(column), torch.lerp(base, x, (1 + 0.9 * strength).view(column)).clamp(0, 1), x)

    size = strength.abs().view(column)
    x = torch.where(chosen["solarize"].view(column) & (x >= 1 - size), 1 - x, x)
    step = torch.exp2((4 * size).round())
    x = torch.where(chosen["posterize"].view(column), (x * 255).round().div(step).floor() * step / 255, x)
    return _warp(x, chosen, strength)


def _warp(x: Tensor, chosen: dict[str, Tensor], strength: Tensor) -> Tensor:
    """The geometric operations as one affine map a sample, in pixels from the centre, output to input."""
    height, width = x.shape[2:]
    at = {name: torch.where(chosen[name], strength, 0) for name in GEOMETRIC}
    angle = math.radians(30) * at["rotate"]
    shift_x, shift_y = ((150 / 331 * n * at[k]).round() for n, k in ((width, "translate_x"), (height, "translate_y")))
    across = 0.3 * at["shear_x"] - angle.sin()
    down = 0.3 * at["shear_y"] + angle.sin()
    # affine_grid counts in half sides.
    rows = [angle.cos(), across * height / width, 2 * shift_x / width]
    rows += [down * width / height, angle.cos(), 2 * shift_y / height]
    grid = F.affine_grid(torch.stack(rows, 1).view(-1, 2, 3), list(x.shape), align_corners=False)
    return F.grid_sample(x, grid, mode="nearest", align_corners=False)


def mixup(x: Tensor, y: Tensor, alpha: float, generator: Generator, num_classes: int) -> tuple[Tensor, Tensor]:
    """One weight a batch, and a partner for each sample from a permutation of the batch (Zhang et al. 2018)."""
    # From the generator's seed and not its stream: a scalar drawn on the device would have to be waited for.
    weight = random.Random(generator.initial_seed()).betavariate(alpha, alpha)
    partner = torch.randperm(len(x), generator=generator, device=x.device)
    target = F.one_hot(y, num_classes).float()
    return (
        x * weight + x[partner] * (1 - weight),
        target * weight + target[partner] * (1 - weight),
    )
