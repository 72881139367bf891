"""From a configuration to what trains and judges: all that happens once a step, and evaluation in batches."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sidestep.assemble import EVAL_BATCH, Assembly, Data, assemble
from sidestep.config import resolve
from sidestep.core.task import Regression
from sidestep.data.samples import Samples
from sidestep.evaluate import evaluate
from sidestep.measure import probes, readouts, regression
from sidestep.measure.uncertainty import uncertainty

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


# ---------------------------------------------------------------------- batches of evaluation


HELD = 359  # digits' test samples: one batch as it is, seven of 50 and one of 9, or one and a last one of one sample
SMALLER = [50, HELD - 1]


def taken(made: Assembly, steps: int = 3) -> Assembly:
    for step in range(steps):
        made.engine.step(made.batches(step))
    return made


def in_batches(size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    assert HELD < EVAL_BATCH
    for module in ("assemble", "measure.probes"):
        monkeypatch.setattr(f"sidestep.{module}.EVAL_BATCH", size)


def close(found: object, expected: object) -> None:
    """Products of batches of other sizes are added up in another order: float32 rounding of logits around 1."""
    a, b = (torch.tensor(values, dtype=torch.float64) for values in (found, expected))
    torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("size", SMALLER)
def test_classes_are_judged_alike_however_many_batches_they_come_in(size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """With BatchNorm in blocks and heads, which in training mode would refuse the last sample alone."""
    made = taken(assembled("sid", model="simplecnn_bn"))
    test = made.data.test
    assert test is not None and len(test) == HELD
    whole, answers, sure = evaluate(made, test), readouts.collect(made, test), uncertainty(made, test)
    sent = probes.collect(made, test, HELD - 2)
    in_batches(size, monkeypatch)
    parts = evaluate(made, test)
    assert parts["accuracy"] == whole["accuracy"]
    for name in ("nll", "brier"):  # ECE jumps where rounding moves a sample to another bin
        close(parts[name], whole[name])
    for name in ("D", "C", "e", "D_population"):
        close(parts["descent"][name], whole["descent"][name])  # pyright: ignore[reportIndexIssue]  # it holds objects
    logits, y = readouts.collect(made, test)
    assert torch.equal(y, answers[1]) and logits.shape == answers[0].shape
    torch.testing.assert_close(logits, answers[0], rtol=1e-5, atol=1e-5)  # as above, before any mean is taken
    again = uncertainty(made, test)
    assert again["samples"] == HELD and again["accuracy"] == sure["accuracy"]
    close(again["nll"], sure["nll"])
    features, labels = probes.collect(made, test, HELD - 2)
    assert torch.equal(labels, sent[1])
    for a, b in zip(features, sent[0], strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("size", SMALLER)
def test_numbers_are_judged_alike_however_many_batches_they_come_in(size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of floats: an image of bytes is answered by intensities that are drawn anew for every batch."""
    torch.manual_seed(0)
    x, y = torch.randn(HELD, 6), torch.randn(HELD, 3)
    data = Data(Samples(x, y, ()), Samples(x[:99], y[:99], ()), test := Samples(x, y, ()), (), ())
    net = nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 6))
    config = resolve("local_ce", {"blocks": 2, "batch_size": 32, "precision": "fp32", "device": "cpu"}, custom=True)
    made = taken(assemble(config, data=data, model=net))
    assert isinstance(made.task, Regression)
    whole, every = evaluate(made, test), regression.deviations(made, test)
    moments = regression.collect(made, test, slice(None))
    in_batches(size, monkeypatch)
    parts = evaluate(made, test)
    close([parts["nll"], parts["rmse"]], [whole["nll"], whole["rmse"]])
    found = regression.deviations(made, test)
    assert found["samples"] == HELD
    for name in ("nll", "scale", "nll_scaled", "nll_constant", "nll_per_number"):
        close(found[name], every[name])
    for a, b in zip(regression.collect(made, test, slice(None)), moments, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)
