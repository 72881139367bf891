"""A slice of the network with what its method hangs on it, and the chain of all slices."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import torch
from torch import nn


class Block(nn.Module):
    """One slice of the network (`net`) and whatever its method hangs on it (`extras`: a head, a twin, ...).

    All parameters of a block are updated together, from that block's own objective.
    """

    def __init__(self, index: int, count: int, net: nn.Module, **extras: nn.Module) -> None:
        super().__init__()
        self.index = index
        self.count = count
        self.net = net
        self.extras = nn.ModuleDict(extras)

    @property
    def is_first(self) -> bool:
        return self.index == 0

    @property
    def is_last(self) -> bool:
        return self.index == self.count - 1


@dataclass
class Chain:
    """The blocks in order, and the hub: the part all blocks share (SID's published extractor), if there is one."""

    blocks: list[Block]
    hub: nn.Module | None = None
    at: tuple[str, ...] = field(default=())  # the unit that opens each block but the first

    def parts(self) -> Iterator[tuple[str, nn.Module]]:
        """(id, module) of everything that is updated on its own.  The id is the key in checkpoints and reports."""
        if self.hub is not None:
            yield "hub", self.hub
        for block in self.blocks:
            yield f"blocks.{block.index}", block

    def named_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        for part, module in self.parts():
            for name, parameter in module.named_parameters():
                yield f"{part}.{name}", parameter

    def state_dict(self) -> dict[str, torch.Tensor]:
        """Parameters and buffers of every part, keyed `blocks.<index>.<name>` and `hub.<name>`."""
        return {f"{part}.{k}": v for part, module in self.parts() for k, v in module.state_dict().items()}

    def load_state_dict(self, state: dict[str, torch.Tensor]) -> None:
        for part, module in self.parts():
            prefix = part + "."
            module.load_state_dict({k[len(prefix) :]: v for k, v in state.items() if k.startswith(prefix)})

    def train(self, mode: bool = True) -> None:
        for _, module in self.parts():
            module.train(mode)
