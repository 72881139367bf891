"""What one part of a chain does with its gradients, each setting alone, against the same thing written by hand."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from sidestep.engines.update import Updater, UpdateRule

STEPS = 4


def part() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))


def momentum(parameters: Any) -> torch.optim.Optimizer:
    return torch.optim.SGD(parameters, lr=0.1, momentum=0.9, weight_decay=0.01)


def learn(module: nn.Module, step: int) -> None:
    """Leave a gradient on every parameter, and new statistics in BatchNorm."""
    x = torch.randn(8, 3, generator=torch.Generator().manual_seed(step))
    (module(x) ** 2).sum().backward()


def trained(rule: UpdateRule) -> tuple[nn.Module, Updater]:
    module = part()
    updater = Updater(module, rule)
    for step in range(STEPS):
        learn(module, step)
        updater.clip()
        updater.set_rate(step, set())
        updater.step()
    return module, updater


def by_hand(before: Callable[[nn.Module, torch.optim.Optimizer, int], None]) -> nn.Module:
    module = part()
    optimizer = momentum(module.parameters())
    for step in range(STEPS):
        optimizer.zero_grad()
        learn(module, step)
        before(module, optimizer, step)
        optimizer.step()
    return module


def assert_same(a: nn.Module, b: nn.Module) -> None:
    for (name, x), y in zip(a.state_dict().items(), b.state_dict().values(), strict=True):
        assert torch.equal(x, y), name


def test_the_bare_rule_is_the_optimizer_and_nothing_else() -> None:
    assert_same(trained(UpdateRule(momentum))[0], by_hand(lambda *_: None))


def test_gradients_are_forgotten_after_a_step() -> None:
    module, _ = trained(UpdateRule(momentum))
    assert all(p.grad is None for p in module.parameters())


def test_a_schedule_scales_the_rate_of_every_group() -> None:
    def grouped(parameters: Any) -> torch.optim.Optimizer:
        first, *others = parameters
        return torch.optim.SGD([{"params": [first], "lr": 0.5}, {"params": others}], lr=0.1)

    module = part()
    updater = Updater(module, UpdateRule(grouped, schedule=lambda step: 1 / (1 + step)))
    assert updater.optimizer is not None
    for step in range(3):
        start = [p.detach().clone() for p in module.parameters()]
        learn(module, step)
        gradients = [p.grad for p in module.parameters()]
        updater.set_rate(step, set())
        updater.step()
        rates = [0.5 / (1 + step), *[0.1 / (1 + step)] * (len(start) - 1)]
        for p, before, gradient, rate in zip(module.parameters(), start, gradients, rates, strict=True):
            assert gradient is not None
            # One over a float, times a float: a rounding apart.
            torch.testing.assert_close(p.detach(), before - rate * gradient, rtol=1e-6, atol=1e-7)


def test_the_rate_is_a_function_of_the_step_and_not_of_the_calls_before() -> None:
    updater = trained(UpdateRule(momentum, schedule=lambda step: 0.5**step))[1]
    assert updater.optimizer is not None
    assert updater.optimizer.param_groups[0]["lr"] == 0.1 * 0.5 ** (STEPS - 1)
    updater.set_rate(1, set())
    assert updater.optimizer.param_groups[0]["lr"] == 0.1 * 0.5


def test_clipping_is_torchs_over_the_parts_own_parameters() -> None:
    def clip(module: nn.Module, *_: object) -> None:
        nn.utils.clip_grad_norm_(list(module.parameters()), 0.3)

    clipped = trained(UpdateRule(momentum, clip=0.3))[0]
    assert_same(clipped, by_hand(clip))
    assert not torch.equal(next(clipped.parameters()), next(by_hand(lambda *_: None).parameters()))


def test_the_moving_average_starts_at_the_first_step_and_copies_statistics() -> None:
    average: dict[str, Tensor] = {}
    module = part()
    updater = Updater(module, UpdateRule(momentum, ema=0.7))
    for step in range(STEPS):
        learn(module, step)
        updater.step()
        parameters = dict(module.named_parameters())
        for name, value in module.state_dict().items():
            if step and name in parameters:
                average[name] = torch.lerp(average[name], value, 1 - 0.7)
            else:
                average[name] = value.clone()
    assert_same(module, trained(UpdateRule(momentum))[0])  # what is trained is not what is averaged
    found = updater.for_inference.state_dict()
    assert found.keys() == average.keys()
    assert all(torch.equal(found[name], average[name]) for name in average)
    assert not torch.equal(found["0.weight"], module.state_dict()["0.weight"])


def test_a_part_without_parameters_still_carries_its_statistics_along() -> None:
    module = nn.BatchNorm1d(3, affine=False)
    updater = Updater(module, UpdateRule(momentum, ema=0.9, clip=1.0))
    module(torch.randn(8, 3))
    updater.clip()
    updater.step()
    assert_same(updater.for_inference, module)


def test_frozen_parameters_are_left_alone() -> None:
    module = part()
    frozen = next(module.parameters()).requires_grad_(False)
    before = frozen.clone()
    updater = Updater(module, UpdateRule(momentum))
    learn(module, 0)
    updater.step()
    assert torch.equal(frozen, before)
    assert not any(k.startswith("optim/0.weight/") for k in updater.state_dict())


def test_a_state_names_parameters_and_slots() -> None:
    _, updater = trained(UpdateRule(lambda ps: torch.optim.AdamW(ps, lr=0.1), ema=0.9))
    names = ["0.weight", "0.bias", "1.weight", "1.bias", "2.weight", "2.bias"]
    buffers = ["1.running_mean", "1.running_var", "1.num_batches_tracked"]
    slots = {f"optim/{name}/{slot}" for name in names for slot in ("step", "exp_avg", "exp_avg_sq")}
    assert set(updater.state_dict()) == slots | {f"ema/{name}" for name in [*names, *buffers, "n_averaged"]}


class Counting(torch.optim.SGD):
    """Keeps a count among its settings, as schedule-free optimizers do, and goes by it."""

    def step(self, closure: Any = None) -> Any:
        for group in self.param_groups:
            group["k"] = group.get("k", 0) + 1
            group["lr"] = 0.1 / group["k"]
        return super().step(closure)


@pytest.mark.parametrize(
    "optimizer",
    [momentum, torch.optim.SGD, torch.optim.Adam, torch.optim.Adafactor, Counting],
    ids=["momentum", "plain-sgd", "adam", "factored", "counting"],
)
def test_a_loaded_state_goes_on_bit_for_bit_and_shares_nothing(optimizer: Any) -> None:
    rule = UpdateRule(optimizer, ema=0.8)
    module, updater = trained(rule)
    other = part()
    other.load_state_dict(module.state_dict())
    resumed = Updater(other, rule)
    resumed.load_state_dict({k: v.clone() for k, v in updater.state_dict().items()})
    for step in (STEPS, STEPS + 1):
        for a, b in ((module, updater), (other, resumed)):
            learn(a, step)
            b.step()
    assert_same(module, other)
    assert_same(updater.for_inference, resumed.for_inference)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"clip": 0.0}, "got clip=0.0, expected a norm above 0"),
        ({"clip": -1.0}, "got clip=-1.0, expected a norm above 0"),
        ({"clip": float("nan")}, "got clip=nan, expected a norm above 0"),
        ({"ema": 0.0}, "got ema=0.0, expected a decay between 0 and 1"),
        ({"ema": 1.0}, "got ema=1.0, expected a decay between 0 and 1"),
    ],
)
def test_settings_out_of_range_are_refused(settings: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        UpdateRule(momentum, **settings)  # pyright: ignore[reportArgumentType]
