"""Multilayer perceptrons on the flattened image: a plain one, and one of equal residual blocks.  (B batch, W width)"""

from __future__ import annotations

from collections import OrderedDict
from math import prod

from torch import Tensor, nn

from sidestep.errors import unknown
from sidestep.models.chained import Chained, positive

ACTIVATIONS: dict[str, type[nn.Module]] = {"relu": nn.ReLU, "sigmoid": nn.Sigmoid, "tanh": nn.Tanh, "gelu": nn.GELU}


def mlp(
    input_shape: tuple[int, int, int], num_classes: int, depth: int = 8, width: int = 256, activation: str = "relu"
) -> Chained:
    """Multilayer perceptron: `depth` hidden layers, He initialisation (He et al. 2015, arXiv:1502.01852)."""
    positive(depth=depth, width=width)
    if activation not in ACTIVATIONS:
        raise unknown("activation", activation, ACTIVATIONS)
    act = ACTIVATIONS[activation]
    units: OrderedDict[str, nn.Module] = OrderedDict()
    units["layer0"] = nn.Sequential(nn.Flatten(), he_linear(prod(input_shape), width), act())
    for i in range(1, depth):
        units[f"layer{i}"] = nn.Sequential(he_linear(width, width), act())
    units["classifier"] = nn.Linear(width, num_classes)
    return Chained(units)


def resmlp(
    input_shape: tuple[int, int, int], num_classes: int, depth: int = 16, width: int = 256, expansion: int = 1
) -> Chained:
    """Residual MLP: `depth` equal pre-norm blocks x + W2 relu(W1 LN(x)) (Xiong et al. 2020, arXiv:2002.04745).

    The linear stem is part of the first unit, so that any number of blocks that divides `depth` can be cut
    into equal parts, whatever the image size.
    """
    positive(depth=depth, width=width, expansion=expansion)
    units: OrderedDict[str, nn.Module] = OrderedDict()
    stem = nn.Linear(prod(input_shape), width)
    units["block0"] = nn.Sequential(nn.Flatten(), stem, ResidualMLP(width, expansion))
    for i in range(1, depth):
        units[f"block{i}"] = ResidualMLP(width, expansion)
    units["classifier"] = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, num_classes))
    return Chained(units)


class ResidualMLP(nn.Module):
    """x + W2 relu(W1 LN(x))."""

    def __init__(self, width: int, expansion: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.up = he_linear(width, expansion * width)
        self.act = nn.ReLU()
        self.down = he_linear(expansion * width, width)

    def forward(self, x: Tensor) -> Tensor:  # (B, W) -> (B, W)
        return x + self.down(self.act(self.up(self.norm(x))))


def he_linear(fan_in: int, fan_out: int) -> nn.Linear:
    """A linear layer with He's normal initialisation and zero bias."""
    layer = nn.Linear(fan_in, fan_out)
    nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
    nn.init.zeros_(layer.bias)
    return layer
