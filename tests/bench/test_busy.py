"""The work that cores are calibrated with: a part's step, its messages, and that it changes nothing."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn

from sidestep.bench.busy import PartStep, still


def sgd(parameters: Any) -> torch.optim.Optimizer:
    return torch.optim.SGD(parameters, 0.1, momentum=0.9)


def test_a_part_sends_two_messages_as_long_as_its_input_with_every_micro_batch_and_stays_as_it_is() -> None:
    torch.manual_seed(0)
    net, x, y = nn.Linear(3, 2), torch.randn(4, 3), torch.zeros(4)
    before, optimizer = copy.deepcopy(net.state_dict()), still(sgd, net)
    sent: list[Tensor] = []
    PartStep(net, optimizer, 2, sent.append).step((x, y))
    assert [message.shape for message in sent] == 4 * [(2, 3)]
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    # The update was computed: it is what has a rate of 0.
    moved = optimizer.state[net.weight]["momentum_buffer"]
    (expected,) = torch.autograd.grad(net(x).square().mean(), net.weight)
    # Two halves summed in another order.
    assert torch.allclose(moved, expected, rtol=1e-5, atol=1e-7)
