"""The twin network of BLL (arXiv:2305.14974): it runs from the targets back to the input, one state per block.

Twin block k makes its state of the state of k + 1, which reaches it detached; from its own state it reads the messages
b_k(y), one for every class, and, for a lifted read-out, an embedding of every class.  Where targets are numbers, it
runs on those of the batch: C is then how many samples there are.

C classes, W width of a state, S positions of a block's features, D channels.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, TypeVar, get_args

import torch
from torch import Tensor, nn

from sidestep.errors import UsageError, unknown
from sidestep.families.family import at_least_float32

from .latents import Latents, by_position

TwinKind = Literal["linear", "mlp", "mirror"]
"""linear: one map per block, straight from the one-hot class, no chain (as released).  mlp: states (C, W); the last
block's is a hidden layer on the classes, and each block before adds a Kth of one of its own, K being the number of
blocks.  mirror: the forward network's shapes, reversed: a state looks like the block's features, (C, *shape), or like
those of a token where each has a label of its own."""


PROBES = 256  # samples by which the scale of messages about numbers is set


class Twin(nn.Module):
    """One block's part of the twin: `step` makes its state, `say` reads the messages off it, `embed` the embeddings."""

    def __init__(
        self, step: nn.Module, say: nn.Module, latents: Latents, classes: int, embed: nn.Module | None = None
    ) -> None:
        super().__init__()
        self.step, self.say, self.embed = step, say, embed
        self.classes = classes  # 0 where targets are numbers
        self.family, self.positions = latents.family, latents.positions

    def forward(self, state: Tensor) -> Tensor:
        """The state of the block after, for every class, as this block's."""
        return self.step(state)

    def messages(self, state: Tensor) -> Tensor:
        """b_k(y) of every class, (C, S, D) centred over classes; (C, 1, D) of all positions alike.

        Shared out over the positions: a read-out is a mean over them, as that of a classifier behind a pool is.
        """
        return self.family.message(by_position(self.say(state))) / self.positions

    def weights(self, state: Tensor, messages: Tensor) -> Tensor | None:
        """What a read-out of classes compares with: embeddings where there are any, else the messages; else None."""
        if not self.classes:
            return None
        return messages if self.embed is None else self.embeddings(state)

    def embeddings(self, state: Tensor) -> Tensor:
        """Of every class, (C, L), centred over classes."""
        assert self.embed is not None
        found = at_least_float32(self.embed(state.flatten(1)))
        return found - found.mean(0)


def twins(
    kind: TwinKind,
    latents: Sequence[Latents],
    targets: int,
    width: int,
    lifted: Sequence[int] = (),
    *,
    one_hot: bool = True,
) -> list[Twin]:
    """The twin of every block, the first block's first.  width: W, of mlp; lifted: L of a block's embeddings, if any.

    targets: how many classes there are, or else how many numbers are to be predicted.

    Drawn by themselves: nothing is copied from the forward network, and nothing tied to it.  Raises UsageError where no
    mirror is known for two blocks' shapes.
    """
    if kind not in get_args(TwinKind):
        raise unknown("twin", kind, get_args(TwinKind))
    made: list[Twin] = []
    state, dense = (torch.eye(targets), False) if one_hot else (torch.randn(PROBES, targets), True)
    for own, length in reversed(list(zip(latents, lifted or [0] * len(latents), strict=True))):
        mirrored = own.shape[-1:] if own.per_token else own.shape
        shape = {"linear": state.shape[1:], "mlp": torch.Size([width]), "mirror": mirrored}[kind]
        step: nn.Module = nn.Identity()
        if kind != "linear":
            step, dense = nn.Sequential(backwards(state.shape[1:], shape, dense), nn.ReLU()), True
            if kind == "mlp" and made:
                step = Residual(step, 1 / len(latents))
        say = pointwise(shape, own.channels)
        embed = nn.Linear(shape.numel(), length, bias=False) if length else None
        with torch.no_grad():
            state = step(state)
            begin(say, state, own.channels)
            if embed is not None:
                begin(embed, state.flatten(1), length)
        read = None if embed is None else reading(embed, dense)
        made.append(Twin(step, reading(say, dense), own, targets if one_hot else 0, read))
    return made[::-1]


def begin(layer: nn.Linear | nn.Conv2d, state: Tensor, features: int) -> None:
    """Scales a layer so that what it says of the classes begins as a linear classifier of so many features does.

    That is uniform within 1/sqrt(D), so of deviation 1/sqrt(3 D).  state: of every class, (C, ...).
    """
    # A narrow state may be 0 for all classes.
    if (spread := layer(state).std(0).mean()) > 0:
        layer.weight /= (3 * features) ** 0.5 * spread


class Residual(nn.Module):
    """Adds a share of what a layer makes of a state to that state.

    All layers of a chain learn at once, each from its own block, so that what the first block is told moves with every
    layer after: through 64 plain ones it was noise.  Shares of 1/K let it move about as far as one layer does.
    """

    def __init__(self, layer: nn.Module, share: float) -> None:
        super().__init__()
        self.layer, self.share = layer, share

    def forward(self, state: Tensor) -> Tensor:
        # In full precision: bfloat16 would round away what a block of many adds.
        return at_least_float32(state) + self.share * self.layer(state)


class Equalised(nn.Module):
    """A layer whose weights are sqrt(D) times as large, and its input as much smaller, D being the input's channels.

    The same function, learnt at about the pace of a table over classes, whose input has length 1 too.  Without that a
    step of Adam, which moves every weight by the rate, moves what D inputs add up to D times as far; at the rates that
    suit normalised networks a chain of twins was noise.  (Equalised learning rate: Karras et al., arXiv:1710.10196,
    section 4.1.)
    """

    def __init__(self, layer: nn.Linear | nn.Conv2d) -> None:
        super().__init__()
        self.layer, self.scale = layer, layer.weight.shape[1] ** -0.5
        with torch.no_grad():
            layer.weight /= self.scale

    def forward(self, state: Tensor) -> Tensor:
        return self.layer(state * self.scale)


def reading(layer: nn.Linear | nn.Conv2d, dense: bool) -> nn.Module:
    """A layer on a dense state, equalised; on one-hot classes it is a table, and stays as it is."""
    return Equalised(layer) if dense else layer


def backwards(above: torch.Size, here: torch.Size, dense: bool) -> nn.Module:
    """A layer from a state of the block after, (C, *above), to one of this block's, (C, *here); He initialisation.

    dense: whether that state is no one-hot class.
    """
    if len(above) == 1:
        layer = reading(he(nn.Linear(above[0], here.numel())), dense)
        return layer if len(here) == 1 else nn.Sequential(layer, nn.Unflatten(1, here))
    if len(above) == len(here) == 3:
        conv = he(nn.Conv2d(above[0], here[0], 3, padding=1))
        return nn.Sequential(nn.Upsample(tuple(here[1:])), reading(conv, dense))
    if len(above) == len(here) == 2 and above[0] == here[0]:
        return reading(he(nn.Linear(above[1], here[1])), dense)
    raise UsageError(
        f"got blocks of shape {tuple(here)} and {tuple(above)}, expected two of a kind for twin=mirror; use twin=mlp."
    )


def pointwise(shape: torch.Size, width: int) -> nn.Linear | nn.Conv2d:
    """A linear map of a state's channels, the same at every position."""
    if len(shape) == 3:
        return nn.Conv2d(shape[0], width, 1, bias=False)
    return nn.Linear(shape[-1], width, bias=False)


Layer = TypeVar("Layer", nn.Linear, nn.Conv2d)


def he(layer: Layer) -> Layer:
    nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
    return layer
