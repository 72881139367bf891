"""Every method does what every method must.  A new method is a row in CASES."""

from __future__ import annotations

from contextlib import nullcontext

import pytest
import torch
from torch import Tensor

from sidestep.core import cell, cut
from sidestep.core.cell import finish_cell
from sidestep.core.cut import CutPlan
from sidestep.core.emit import Emit, Message
from sidestep.core.task import Classification
from sidestep.engines.streaming import Streaming
from sidestep.engines.update import UpdateRule
from sidestep.families.family import Family
from sidestep.families.gaussian import Gaussian
from sidestep.families.laplace import Laplace
from tests.conftest import (
    BLOCKS,
    CASES,
    CLASSES,
    MEANS,
    Case,
    adam,
    engine_for,
    in_each_precision,
    sgd,
    small_net,
    some_batch,
)


def states_equal(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def test_overfits_64_samples(case: Case) -> None:
    steps = 150
    # To 0, so that BatchNorm's running statistics become those of a network at rest.
    rule = adam(case.rate, schedule=lambda step: 1 - step / steps)
    engine = engine_for(case.method, small_net(dropout=0.0), rule)
    x, y = some_batch(size=64)
    for _ in range(steps):
        engine.step((x, y))
    last = engine.predict(x)[-1]
    assert last is not None
    assert (last.argmax(-1) == y).float().mean() >= 0.98


def assert_gradients_are_naive(case: Case, blocks: int) -> None:
    """Tolerance: sums over classes, blocks and samples are taken in another order.  In float32 that is some 1e-6 of a
    gradient's largest entry, of BLL's up to 4e-5, by CPU: a small entry is what large terms leave of each other.  The
    hand-worked case of BLL in `test_bll` is held to 1e-10 in float64.
    """
    engine = engine_for(case.method, small_net(dropout=0.0), blocks=blocks)
    x, y = some_batch()
    found = engine.gradients((x, y))
    parameters = dict(engine.chain.named_parameters())
    expected = torch.autograd.grad(case.naive(engine.chain, x, y), list(parameters.values()))
    assert found.keys() == parameters.keys()
    for (name, gradient), naive in zip(found.items(), expected, strict=True):
        atol = max(1e-6, 1e-4 * float(naive.abs().max()))
        torch.testing.assert_close(gradient, naive, rtol=1e-4, atol=atol, msg=name)


def test_equals_the_objective_written_from_the_paper(case: Case) -> None:
    """Gradients of every parameter against one plain autograd graph over the same network."""
    assert_gradients_are_naive(case, BLOCKS)


ONE = [case for case in CASES if "," not in str(getattr(case.method, "alpha", ""))]
"""Those that do not list a number for each of three blocks."""


@pytest.mark.parametrize("one", ONE, ids=lambda case: case.id)
def test_one_block_is_the_whole_network_taught_answering_and_exported(one: Case) -> None:
    assert_gradients_are_naive(one, 1)
    engine = engine_for(one.method, blocks=1)
    engine.step(some_batch())
    x = some_batch(1)[0]
    (answer,) = engine.predict(x)
    assert answer is not None and answer.shape == (16, CLASSES)
    exported = one.method.export(engine.inference_chain).eval()
    with torch.no_grad():
        assert torch.equal(exported(x), answer)


def test_same_seed_same_bits(case: Case) -> None:
    states = []
    for _ in range(2):
        engine = engine_for(case.method, rule=adam(clip=1.0, ema=0.9), seed=3, accumulate=2)
        torch.manual_seed(len(states))  # whatever the global generator holds must not matter
        for step in range(4):
            engine.step(some_batch(step))
        states.append(engine.state_dict())
    assert states_equal(*states)


def test_another_seed_other_bits(case: Case) -> None:
    """Guards the test above: dropout really draws from the seed."""
    engines = [engine_for(case.method, seed=seed) for seed in (0, 1)]
    for engine in engines:
        engine.step(some_batch())
    assert not states_equal(engines[0].state_dict(), engines[1].state_dict())


@in_each_precision
def test_a_resumed_engine_continues_bit_for_bit(case: Case, autocast: torch.dtype | None) -> None:
    rule = adam(clip=0.5, ema=0.9, schedule=lambda step: 1 / (1 + step))
    straight = engine_for(case.method, rule=rule, autocast=autocast)
    for step in range(3):
        straight.step(some_batch(step))
    saved = {k: v.clone() for k, v in straight.state_dict().items()}
    resumed = engine_for(case.method, small_net(seed=99), rule, autocast=autocast)
    resumed.load_state_dict(saved)
    for engine in (straight, resumed):
        for step in range(3, 6):
            engine.step(some_batch(step))
    assert states_equal(straight.state_dict(), resumed.state_dict())


def test_nothing_that_requires_grad_crosses_a_cut(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    attached: list[bool] = []  # noted as they cross: the receiver may make leaves of them

    def watched(emit: Emit, scale: float = 1.0) -> Message:
        message = finish_cell(emit, scale)
        attached.extend(m.requires_grad or m.grad_fn is not None for m in message)
        return message

    monkeypatch.setattr("sidestep.engines.streaming.finish_cell", watched)
    engine_for(case.method).step(some_batch())
    assert attached or all(p.order == "each" for p in case.method.program())
    assert not any(attached)


def test_gradients_reach_the_blocks_the_program_says(case: Case) -> None:
    """Only block n's loss is differentiated: it reaches n, and others only where gradients cross or a hub is shared."""
    engine = engine_for(case.method)
    assert engine.derived.isolated == case.isolated
    for n in range(3):
        found = engine.gradients(some_batch(), losses={n})
        reached = {name.split(".")[1] for name, g in found.items() if name.startswith("blocks") and g.any()}
        has_loss = n == 2 or "backprop" not in case.id
        assert reached == ({str(m) for m in engine.derived.reaches(n)} if has_loss else set())
        assert any(name.startswith("hub") and bool(g.any()) for name, g in found.items()) == ("shared" in case.id)


def test_later_blocks_alter_an_update_only_where_the_program_says(case: Case) -> None:
    for later in range(3):
        engine = engine_for(case.method)
        before = engine.gradients(some_batch())
        with torch.no_grad():
            for p in engine.chain.blocks[later].parameters():
                p.add_(0.1 * torch.randn_like(p))
        after = engine.gradients(some_batch())
        for n in range(later):
            changed = any(not torch.equal(before[k], after[k]) for k in before if k.startswith(f"blocks.{n}."))
            assert changed == (later in engine.derived.depends(n))


def test_inference_twice_is_equal_and_changes_nothing(case: Case) -> None:
    engine = engine_for(case.method, rule=sgd(ema=0.9))
    engine.step(some_batch())
    before = {k: v.clone() for k, v in engine.state_dict().items()}
    first, second = engine.predict(some_batch()[0]), engine.predict(some_batch()[0])
    for a, b in zip(first, second, strict=True):
        assert (a is None and b is None) or (a is not None and b is not None and torch.equal(a, b))
    assert states_equal(before, engine.state_dict())


def test_asking_for_gradients_changes_nothing(case: Case) -> None:
    engine = engine_for(case.method)
    before = {k: v.clone() for k, v in engine.state_dict().items()}
    engine.gradients(some_batch())
    assert states_equal(before, engine.state_dict())


def test_the_exported_network_answers_like_the_engine(case: Case) -> None:
    engine = engine_for(case.method, rule=sgd(ema=0.5))
    for step in range(3):
        engine.step(some_batch(step))
    x = some_batch(7)[0]
    answer = engine.predict(x)[-1]
    assert answer is not None
    assert answer.shape == (16, CLASSES)
    exported = case.method.export(engine.inference_chain).eval()
    with torch.no_grad():
        assert torch.equal(exported(x), answer)


@pytest.mark.parametrize("mean", MEANS, ids=lambda case: case.id)
def test_accumulated_steps_average_the_micro_batches(mean: Case) -> None:
    """Without BatchNorm and dropout, two halves make the whole batch's gradient.

    Tolerance: the sums over samples are taken in another order, which costs some 1e-7 relative in float32.
    """
    from torch import nn

    def net() -> nn.Sequential:
        torch.manual_seed(0)
        units = [nn.Sequential(nn.Linear(128 if i == 0 else 16, 16), nn.Tanh()) for i in range(3)]
        return nn.Sequential(nn.Flatten(), *units, nn.Linear(16, CLASSES))

    whole, halves = engine_for(mean.method, net(), sgd()), engine_for(mean.method, net(), sgd(), accumulate=2)
    loss = whole.step(some_batch()).loss, halves.step(some_batch()).loss
    torch.testing.assert_close(loss[0], loss[1], equal_nan=True, rtol=1e-5, atol=1e-6)
    for (name, a), (_, b) in zip(whole.chain.named_parameters(), halves.chain.named_parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6, msg=name)


def test_a_step_mixes_no_devices_and_waits_for_none(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tensors on `meta` stand for an accelerator's: who reads one, or adds one to a tensor of the CPU's, raises."""
    meta = torch.device("meta")
    # What a network is checked by is read, once, when it is built; for `meta` there is neither noise nor autocast.
    monkeypatch.setattr(cut, "_verify", lambda *_: None)
    for family in (Family, Gaussian, Laplace):
        monkeypatch.setattr(family, "check", lambda *_: None)
    monkeypatch.setattr(cell, "generator", lambda *_: None)
    monkeypatch.setattr(torch, "autocast", lambda *_, **__: nullcontext())
    x, y = (part.to(meta) for part in some_batch())
    task = Classification(CLASSES, x[:2])
    chain = case.method.build(small_net().to(meta), task, CutPlan(BLOCKS))
    for _, part in chain.parts():
        part.to(meta)
    rule = UpdateRule(lambda parameters: torch.optim.AdamW(parameters), clip=1.0, ema=0.9)
    engine = Streaming(case.method, chain, task, rule, total_steps=2)
    for _ in range(2):
        engine.step((x, y))
    assert all(p.device == meta for _, p in chain.named_parameters())
    assert [a is not None for a in engine.predict(x)][-1]
