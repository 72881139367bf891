"""From a configuration to what trains: the optimizer, and all that happens once a step."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sidestep.assemble import Assembly, assemble
from sidestep.config import resolve

# 1,438 samples are two batches: two epochs are four steps, of which half is the way up.  The rates are .1 times
# 1/2, 1, (1 + cos 60)/2, (1 + cos 120)/2.
STEPS, RATES = 4, (0.05, 0.1, 0.075, 0.025)
ONCE_A_STEP: dict[str, Any] = {
    "epochs": 2,
    "batch_size": 512,
    "val_fraction": 0.0,
    "accumulate": 2,
    "lr": 0.1,
    "schedule": "cosine",
    "warmup": 0.5,
    "clip": 0.5,
    "ema": 0.9,
    "weight_decay": 0.01,
}
SGD = {"optimizer": "sgd", "momentum": 0.9, "nesterov": True}


def assembled(method: str = "backprop", **keys: Any) -> Assembly:
    return assemble(resolve(method, {"precision": "fp32", "device": "cpu", "augment": "none", "blocks": 2} | keys))


def plain_optimizer(flags: dict[str, Any], network: nn.Module) -> torch.optim.Optimizer:
    """Weights decay by .01, biases and gains of normalisation do not.  Fused as ours is, whose bits are others."""
    weights = [p for p in network.parameters() if p.dim() > 1]
    others = [p for p in network.parameters() if p.dim() <= 1]
    groups = [{"params": weights, "weight_decay": 0.01}, {"params": others, "weight_decay": 0.0}]
    if flags["optimizer"] == "sgd":
        nesterov = flags["nesterov"] and flags["momentum"] > 0  # torch refuses the one without the other
        return torch.optim.SGD(groups, momentum=flags["momentum"], nesterov=nesterov, fused=True)
    return {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}[flags["optimizer"]](groups, fused=True)


@pytest.mark.parametrize(
    "flags",
    [SGD, SGD | {"nesterov": False}, SGD | {"momentum": 0.0}, {"optimizer": "adam"}, {"optimizer": "adamw"}],
    ids=["nesterov", "momentum", "no-momentum", "adam", "adamw"],
)
def test_a_configuration_trains_as_a_plain_loop_of_its_settings_bit_for_bit(flags: dict[str, Any]) -> None:
    ours = assembled(model="simplecnn_bn", **ONCE_A_STEP, **flags)
    assert ours.total_steps == STEPS
    network = copy.deepcopy(ours.model).train()
    optimizer = plain_optimizer(flags, network)
    average: dict[str, Tensor] = {}
    norms: list[float] = []
    for step, rate in enumerate(RATES):
        x, y = ours.batches(step)
        ours.engine.step((x, y))
        for half in (slice(0, 256), slice(256, 512)):
            (F.cross_entropy(network(x[half]), y[half]) / 2).backward()
        norms.append(float(nn.utils.clip_grad_norm_(network.parameters(), 0.5)))
        for group in optimizer.param_groups:
            group["lr"] = rate
        optimizer.step()
        optimizer.zero_grad()
        for name, p in network.named_parameters():
            average[name] = average[name].lerp(p.detach(), 1 - 0.9) if step else p.detach().clone()
    assert max(norms) > 0.5  # something was clipped
    expected = network.state_dict()
    assert all(torch.equal(value, expected[name]) for name, value in ours.model.state_dict().items())
    # Names of the blocks and of the network are others, their order is the same.
    inference = [p for _, p in ours.engine.inference_chain.named_parameters()]
    assert all(torch.equal(a, b) for a, b in zip(inference, average.values(), strict=True))
