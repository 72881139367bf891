"""A convolutional autoencoder that says how sure it is of every pixel.

B batch, L latent numbers.
"""

from __future__ import annotations

from collections import OrderedDict

from torch import Tensor, nn

from sidestep.models.chained import Chained, positive

SCALE = 0.1
"""What the last layer is multiplied by: without, a step of an adaptive optimizer is too large for log-precisions."""


def autoencoder(input_shape: tuple[int, int, int], num_classes: int, width: int = 32, latent: int = 32) -> Chained:
    """Two strided convolutions, `latent` numbers, and back, with variance channels (arXiv:2305.14974).

    num_classes: the channels of its answer (B, num_classes, height, width): means, and then log-precisions.
    """
    positive(width=width, latent=latent)
    channels, height, breadth = input_shape
    half = ((height + 1) // 2, (breadth + 1) // 2)
    quarter = ((half[0] + 1) // 2, (half[1] + 1) // 2)
    units: OrderedDict[str, nn.Module] = OrderedDict(
        down1=convolution(channels, width, stride=2),
        down2=convolution(width, 2 * width, stride=2),
        code=nn.Sequential(
            nn.Flatten(), nn.Linear(2 * width * quarter[0] * quarter[1], latent), nn.BatchNorm1d(latent), nn.ReLU()
        ),
        open=nn.Sequential(
            nn.Linear(latent, 2 * width * quarter[0] * quarter[1], bias=False),
            nn.Unflatten(1, (2 * width, *quarter)),
            nn.BatchNorm2d(2 * width),
            nn.ReLU(),
        ),
        up1=nn.Sequential(nn.Upsample(half), *convolution(2 * width, width)),
        up2=nn.Sequential(nn.Upsample((height, breadth)), *convolution(width, width)),
        classifier=Numbers(width, num_classes, 3, padding=1),
    )
    return Chained(units)


def convolution(inputs: int, outputs: int, stride: int = 1) -> nn.Sequential:
    conv = nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(outputs), nn.ReLU())


class Numbers(nn.Conv2d):
    """A last convolution, multiplied by `SCALE`."""

    def forward(self, input: Tensor) -> Tensor:
        return SCALE * super().forward(input)
