"""VGG-11 with BatchNorm, for any image size."""

from __future__ import annotations

from collections import OrderedDict

from torch import nn

from sidestep.models.chained import Chained, positive

# (channels as a multiple of the width, followed by a pool)
LAYERS = ((1, True), (2, True), (4, False), (4, True), (8, False), (8, True), (8, False), (8, True))


def vgg11_bn(input_shape: tuple[int, int, int], num_classes: int, width: int = 64) -> Chained:
    """VGG-11 with BatchNorm, global average pool and one linear layer (Simonyan and Zisserman 2015, arXiv:1409.1556).

    A max-pool that would leave less than 1 pixel is left out.
    """
    positive(width=width)
    fan_in, side = input_shape[0], min(input_shape[1:])
    units: OrderedDict[str, nn.Module] = OrderedDict()
    for i, (multiple, pool) in enumerate(LAYERS, 1):
        channels = multiple * width
        conv = nn.Conv2d(fan_in, channels, 3, padding=1)
        nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")
        nn.init.zeros_(conv.get_parameter("bias"))
        units[f"conv{i}"] = unit = nn.Sequential(conv, nn.BatchNorm2d(channels), nn.ReLU())
        if pool and side >= 2:
            unit.append(nn.MaxPool2d(2))
            side //= 2
        fan_in = channels
    units["classifier"] = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(fan_in, num_classes))
    return Chained(units)
