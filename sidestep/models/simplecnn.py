"""The networks of SID's released code: its extractor with a classifier, with BatchNorm, and as a cascade of beliefs.

B batch, C classes, D = 128 features z.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import NamedTuple

import torch
from torch import Tensor, nn

from sidestep.errors import UsageError
from sidestep.models.chained import Chained, positive

FEATURES = 128


def simplecnn(input_shape: tuple[int, int, int], num_classes: int) -> Chained:
    """The extractor of SID's released code (4 convolutions, 128 features) and a linear classifier."""
    return Chained(OrderedDict(extractor(input_shape), classifier=nn.Linear(FEATURES, num_classes)))


def simplecnn_bn(
    input_shape: tuple[int, int, int], num_classes: int, pooled: bool = False, strided: bool = False
) -> Chained:
    """`simplecnn` with BatchNorm after each convolution, as SID's published log had it; nearer to it with `strided`.

    pooled, strided: see `extractor`.
    """
    units = extractor(input_shape, norm=True, pooled=pooled, strided=strided)
    return Chained(OrderedDict(units, classifier=nn.Linear(FEATURES, num_classes)))


def belief_cascade(
    input_shape: tuple[int, int, int],
    num_classes: int,
    modules: int = 5,
    width: int = 256,
    norm: bool = False,
    pooled: bool = False,
    strided: bool = False,
    module_norm: bool = False,
) -> Chained:
    """SID's released backprop baseline: the extractor, then `modules` belief modules with a softmax between them.

    What runs along the chain after the extractor is one tensor [p; z] (B, C + D): the belief, uniform at first,
    and the features.  The classifier is the last module, its logits are the output.  norm, pooled, strided: see
    `extractor`.  module_norm: BatchNorm on a module's hidden units.
    """
    positive(modules=modules, width=width)

    def module() -> nn.Sequential:
        norms = [nn.BatchNorm1d(width)] if module_norm else []
        return nn.Sequential(nn.Linear(num_classes + FEATURES, width), *norms, nn.ReLU(), nn.Linear(width, num_classes))

    units = extractor(input_shape, norm, pooled, strided)
    units["embed"] = nn.Sequential(units["embed"], PrependUniform(num_classes))
    for i in range(1, modules):
        units[f"module{i}"] = Refine(module(), num_classes)
    units["classifier"] = module()
    return Chained(units)


class Layer(NamedTuple):
    """A convolution: so many channels out of it, its stride, and whether the larger of two by two is kept after it."""

    channels: int
    stride: int = 1
    pool: bool = False


RELEASED = (Layer(32), Layer(64, pool=True), Layer(128), Layer(128, pool=True))
POOLED = (Layer(32, pool=True), Layer(64, pool=True), Layer(128, pool=True))
STRIDED = (Layer(32), Layer(64, stride=2), Layer(128, stride=2), Layer(128, stride=2))


def extractor(
    input_shape: tuple[int, int, int], norm: bool = False, pooled: bool = False, strided: bool = False
) -> OrderedDict[str, nn.Module]:
    """Units from an image to D features; as released 257,344 parameters with 3 channels, 76.40 M MACs at 32x32.

    norm: BatchNorm after each convolution.  pooled: three convolutions instead of four, each followed by a pool, and
    features of all that is left instead of its mean (355,744 parameters with `norm`, 10.58 M MACs).  strided: steps of
    two in place of pools, from the second convolution on (257,696 parameters with `norm`, 12.70 M MACs).

    The network of the authors' log was not released: these are guesses, by its loss (docs/LOG.md).
    """
    if pooled and strided:
        raise UsageError("got pooled=true and strided=true, expected one of them; drop the other.")
    fan_in, height, width = input_shape
    units: OrderedDict[str, nn.Module] = OrderedDict()
    for i, layer in enumerate(POOLED if pooled else STRIDED if strided else RELEASED, 1):
        unit = nn.Sequential(nn.Conv2d(fan_in, layer.channels, 3, stride=layer.stride, padding=1, bias=not norm))
        if norm:
            unit.append(nn.BatchNorm2d(layer.channels))
        unit.append(nn.ReLU())
        if layer.pool and min(height, width) >= 2:
            unit.append(nn.MaxPool2d(2))
            height, width = height // 2, width // 2
        units[f"conv{i}"] = unit
        fan_in = layer.channels
    flat = [nn.Flatten(), nn.Linear(fan_in * height * width if pooled else fan_in, FEATURES)]
    units["embed"] = nn.Sequential(*flat) if pooled else nn.Sequential(nn.AdaptiveAvgPool2d(1), *flat)
    return units


class PrependUniform(nn.Module):
    """z -> [p_0; z], p_0 the uniform belief."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.num_classes = num_classes

    def forward(self, z: Tensor) -> Tensor:  # (B, D) -> (B, C + D)
        return torch.cat([z.new_full((len(z), self.num_classes), 1 / self.num_classes), z], 1)


class Refine(nn.Module):
    """[p; z] -> [softmax(net([p; z])); z]."""

    def __init__(self, net: nn.Module, num_classes: int) -> None:
        super().__init__()
        self.net = net
        self.num_classes = num_classes

    def forward(self, x: Tensor) -> Tensor:  # (B, C + D) -> (B, C + D)
        return torch.cat([self.net(x).softmax(1), x[:, self.num_classes :]], 1)
