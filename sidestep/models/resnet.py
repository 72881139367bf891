"""Residual networks (He et al. 2015, arXiv:1512.03385) for any image size.

Images of at most 64 pixels a side get a 3x3 stem of stride 1, larger ones the usual 7x7 of stride 2 with a max-pool.
Convolutions are initialised as He's normal over fan-out; `zero_init_residual` starts the last BatchNorm of each
residual branch at gamma 0 (Goyal et al. 2017, arXiv:1706.02677).
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable

import torch.nn.functional as F
from torch import Tensor, nn

from sidestep.models.chained import Chained, positive


def resnet18(
    input_shape: tuple[int, int, int], num_classes: int, width: int = 64, zero_init_residual: bool = True
) -> Chained:
    """ResNet-18 of basic blocks with 1x1 shortcuts (He et al. 2015, arXiv:1512.03385)."""
    return _resnet(input_shape, num_classes, basic, 1, (2, 2, 2, 2), width, zero_init_residual)


def resnet34(
    input_shape: tuple[int, int, int], num_classes: int, width: int = 64, zero_init_residual: bool = True
) -> Chained:
    """ResNet-34 of basic blocks with 1x1 shortcuts (He et al. 2015, arXiv:1512.03385)."""
    return _resnet(input_shape, num_classes, basic, 1, (3, 4, 6, 3), width, zero_init_residual)


def resnet50(
    input_shape: tuple[int, int, int], num_classes: int, width: int = 64, zero_init_residual: bool = True
) -> Chained:
    """ResNet-50 of bottlenecks, stride in the 3x3, known as v1.5 (He et al. 2015, arXiv:1512.03385)."""
    return _resnet(input_shape, num_classes, bottleneck, 4, (3, 4, 6, 3), width, zero_init_residual)


def resnet20(
    input_shape: tuple[int, int, int], num_classes: int, width: int = 16, zero_init_residual: bool = True
) -> Chained:
    """ResNet-20 for CIFAR, parameter-free shortcuts, option A (He et al. 2015, arXiv:1512.03385, section 4.2)."""
    return _resnet(input_shape, num_classes, basic_a, 1, (3, 3, 3), width, zero_init_residual)


class Residual(nn.Module):
    """relu(branch(x) + shortcut(x)); the branch ends with a BatchNorm."""

    def __init__(self, branch: nn.Sequential, shortcut: nn.Module) -> None:
        super().__init__()
        self.branch = branch
        self.shortcut = shortcut
        self.act = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:  # (B, N, H, W) -> (B, N', H', W')
        return self.act(self.branch(x) + self.shortcut(x))


class PadShortcut(nn.Module):
    """Option A: every `stride`-th pixel, and zeros for the new channels, half of them on either side."""

    def __init__(self, new_channels: int, stride: int) -> None:
        super().__init__()
        self.new_channels = new_channels
        self.stride = stride

    def forward(self, x: Tensor) -> Tensor:  # (B, N, H, W) -> (B, N + new, ceil(H / stride), ceil(W / stride))
        before = self.new_channels // 2
        return F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, before, self.new_channels - before))


def basic(fan_in: int, channels: int, stride: int) -> Residual:
    """Two 3x3 convolutions."""
    return Residual(_basic_branch(fan_in, channels, stride), _projection(fan_in, channels, stride))


def basic_a(fan_in: int, channels: int, stride: int) -> Residual:
    """Two 3x3 convolutions and a shortcut without parameters."""
    same = fan_in == channels and stride == 1
    shortcut = nn.Identity() if same else PadShortcut(channels - fan_in, stride)
    return Residual(_basic_branch(fan_in, channels, stride), shortcut)


def bottleneck(fan_in: int, channels: int, stride: int) -> Residual:
    """1x1 down to a quarter of the channels, 3x3, 1x1 up."""
    inner = channels // 4
    branch = nn.Sequential(
        *_conv(fan_in, inner, 1), nn.ReLU(), *_conv(inner, inner, 3, stride), nn.ReLU(), *_conv(inner, channels, 1)
    )
    return Residual(branch, _projection(fan_in, channels, stride))


def _resnet(
    input_shape: tuple[int, int, int],
    num_classes: int,
    block: Callable[[int, int, int], Residual],
    expansion: int,
    depths: tuple[int, ...],
    width: int,
    zero_init_residual: bool,
) -> Chained:
    positive(width=width)
    small = max(input_shape[1:]) <= 64
    stem = nn.Sequential(*_conv(input_shape[0], width, 3 if small else 7, 1 if small else 2), nn.ReLU())
    if not small:
        stem.append(nn.MaxPool2d(3, stride=2, padding=1))
    units: OrderedDict[str, nn.Module] = OrderedDict(stem=stem)
    fan_in = width
    for stage, depth in enumerate(depths):
        channels = width * expansion * 2**stage
        for i in range(depth):
            units[f"layer{stage + 1}_{i}"] = unit = block(fan_in, channels, 2 if stage > 0 and i == 0 else 1)
            if zero_init_residual:
                nn.init.zeros_(unit.branch[-1].get_parameter("weight"))
            fan_in = channels
    units["classifier"] = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(fan_in, num_classes))
    return Chained(units)


def _conv(fan_in: int, channels: int, kernel: int, stride: int = 1) -> tuple[nn.Conv2d, nn.BatchNorm2d]:
    conv = nn.Conv2d(fan_in, channels, kernel, stride, padding=kernel // 2, bias=False)
    nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")
    return conv, nn.BatchNorm2d(channels)


def _basic_branch(fan_in: int, channels: int, stride: int) -> nn.Sequential:
    return nn.Sequential(*_conv(fan_in, channels, 3, stride), nn.ReLU(), *_conv(channels, channels, 3))


def _projection(fan_in: int, channels: int, stride: int) -> nn.Module:
    if fan_in == channels and stride == 1:
        return nn.Identity()
    return nn.Sequential(*_conv(fan_in, channels, 1, stride))
