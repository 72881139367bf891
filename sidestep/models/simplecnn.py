"""The networks of SID's released code: its extractor with a classifier, with BatchNorm, and as a cascade of beliefs.

B batch, C classes, D = 128 features z.
"""

from __future__ import annotations

from collections import OrderedDict

import torch
from torch import Tensor, nn

from sidestep.models.chained import Chained, positive

FEATURES = 128


def simplecnn(input_shape: tuple[int, int, int], num_classes: int) -> Chained:
    """The extractor of SID's released code (4 convolutions, 128 features) and a linear classifier."""
    return Chained(OrderedDict(extractor(input_shape), classifier=nn.Linear(FEATURES, num_classes)))


def simplecnn_bn(input_shape: tuple[int, int, int], num_classes: int) -> Chained:
    """`simplecnn` with BatchNorm after each convolution, which SID's published log was made with."""
    return Chained(OrderedDict(extractor(input_shape, norm=True), classifier=nn.Linear(FEATURES, num_classes)))


def belief_cascade(
    input_shape: tuple[int, int, int], num_classes: int, modules: int = 5, width: int = 256, norm: bool = False
) -> Chained:
    """SID's released backprop baseline: the extractor, then `modules` belief modules with a softmax between them.

    What runs along the chain after the extractor is one tensor [p; z] (B, C + D): the belief, uniform at first,
    and the features.  The classifier is the last module, its logits are the output.  norm: with BatchNorm after each
    convolution, like the network of the published log.
    """
    positive(modules=modules, width=width)

    def module() -> nn.Sequential:
        return nn.Sequential(nn.Linear(num_classes + FEATURES, width), nn.ReLU(), nn.Linear(width, num_classes))

    units = extractor(input_shape, norm)
    units["embed"] = nn.Sequential(units["embed"], PrependUniform(num_classes))
    for i in range(1, modules):
        units[f"module{i}"] = Refine(module(), num_classes)
    units["classifier"] = module()
    return Chained(units)


def extractor(input_shape: tuple[int, int, int], norm: bool = False) -> OrderedDict[str, nn.Module]:
    """Units from an image to D features; 257,344 parameters with 3 channels, 76.40 M MACs at 32x32."""
    fan_in, side = input_shape[0], min(input_shape[1:])
    units: OrderedDict[str, nn.Module] = OrderedDict()
    for i, (channels, pool) in enumerate([(32, False), (64, True), (128, False), (128, True)], 1):
        unit = nn.Sequential(nn.Conv2d(fan_in, channels, 3, padding=1, bias=not norm))
        if norm:
            unit.append(nn.BatchNorm2d(channels))
        unit.append(nn.ReLU())
        if pool and side >= 2:
            unit.append(nn.MaxPool2d(2))
            side //= 2
        units[f"conv{i}"] = unit
        fan_in = channels
    units["embed"] = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(fan_in, FEATURES))
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
