"""How a cell is run, apart from any engine."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from sidestep.core.cell import frozen_statistics

KEEPERS = {
    "batch norm": lambda: nn.BatchNorm1d(4),
    "instance norm": lambda: nn.InstanceNorm1d(4, affine=True, track_running_stats=True),
    "spectral norm": lambda: nn.utils.parametrizations.spectral_norm(nn.Linear(6, 6)),
}


@pytest.mark.parametrize("kind", KEEPERS)
def test_inside_frozen_statistics_training_leaves_every_buffer_as_it_was(kind: str) -> None:
    torch.manual_seed(0)
    module, x = nn.Sequential(KEEPERS[kind]()), torch.randn(5, 4, 6)
    before = {name: buffer.clone() for name, buffer in module.named_buffers()}
    with frozen_statistics(module):
        y = module(x)
        y.square().sum().backward()
    assert before and all(torch.equal(buffer, before[name]) for name, buffer in module.named_buffers())
    expected = module(x)  # from the same state, so the same; now the state moves
    assert torch.equal(y, expected)
    assert any(not torch.equal(buffer, before[name]) for name, buffer in module.named_buffers())
    assert all(p.grad is not None for p in module.parameters())
