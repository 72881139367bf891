"""Several engines that share the blocks compute, bit for bit, what one computes that has them all."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from sidestep.core.emit import Message
from sidestep.engines.messages import packed, unpacked
from sidestep.engines.streaming import StepMetrics, Streaming
from sidestep.engines.update import UpdateRule
from sidestep.engines.wire import Edge, LocalWire, When, Work, in_turn
from sidestep.methods.backprop import Backprop
from sidestep.methods.local_ce import LocalCE
from tests.conftest import BLOCKS, CASES, CLASSES, Case, adam, engine_for, in_each_precision, sgd, small_net, some_batch
from tests.test_conformance import states_equal

STEPS = 4
SHARES = [[range(2), range(2, 3)], [range(1), range(1, 3)], [range(n, n + 1) for n in range(BLOCKS)]]
BACKPROP = next(case for case in CASES if case.id == "backprop")
every_share = pytest.mark.parametrize("shares", SHARES, ids=["2+1", "1+2", "1+1+1"])
RULES: dict[str, UpdateRule] = {
    "sgd": sgd(),
    "adam, clipped and averaged": adam(clip=0.1, ema=0.9, schedule=lambda step: 1 / (1 + step)),
}


def shared_out(case: Case, shares: list[range], rule: UpdateRule, **options: Any) -> tuple[LocalWire, list[Streaming]]:
    wire = LocalWire()
    return wire, [engine_for(case.method, rule=rule, own=own, wire=wire, **options) for own in shares]


def training(engine: Streaming, begun: Callable[[int], object] = lambda step: None) -> Work[list[StepMetrics]]:
    found: list[StepMetrics] = []
    for step in range(STEPS):
        begun(step)
        found.append((yield from engine.stepping(some_batch(step))))
    return found


def merged(engines: list[Streaming]) -> dict[str, Tensor]:
    return {k: v for engine in engines for k, v in engine.state_dict().items()}


@every_share
@in_each_precision
@pytest.mark.parametrize("rule", RULES.values(), ids=RULES)
def test_parameters_losses_and_answers_are_those_of_one_engine(
    case: Case, shares: list[range], rule: UpdateRule, autocast: torch.dtype | None
) -> None:
    """With BatchNorm and dropout, and two micro-batches a step."""
    alone = engine_for(case.method, rule=rule, accumulate=2, autocast=autocast)
    expected = [alone.step(some_batch(step)) for step in range(STEPS)]
    wire, engines = shared_out(case, shares, rule, accumulate=2, autocast=autocast)
    found = in_turn([training(engine) for engine in engines], wire)
    assert states_equal(merged(engines), alone.state_dict())
    for step, whole in enumerate(expected):
        parts = [its[step] for its in found]
        losses = torch.stack([part.loss for part in parts])
        assert torch.equal(losses.nan_to_num().sum(0), whole.loss.nan_to_num())  # NaN where a block is elsewhere
        assert states_equal({k: v for part in parts for k, v in part.metrics.items()}, whole.metrics)
    x = some_batch(STEPS)[0]
    answers = in_turn([engine.predicting(x) for engine in engines], wire)
    logits = [next((a for a in each if a is not None), None) for each in zip(*answers, strict=True)]
    for a, b in zip(logits, alone.predict(x), strict=True):
        assert (a is None and b is None) or (a is not None and b is not None and torch.equal(a, b))
    assert not wire.arrived  # nothing was sent that nobody asked for


@every_share
def test_an_engine_whose_blocks_are_all_frozen_has_no_gradients_to_clip(shares: list[range]) -> None:
    rule = adam(clip=0.1)
    alone = engine_for(Backprop(), rule=rule, freeze=[2])
    wire, engines = shared_out(BACKPROP, shares, rule, freeze=[2])
    for step in range(2):
        alone.step(some_batch(step))
        in_turn([engine.stepping(some_batch(step)) for engine in engines], wire)
    assert states_equal(merged(engines), alone.state_dict())


def test_an_engine_runs_ahead_just_where_no_later_block_is_waited_for(case: Case) -> None:
    """The first of two begins its last step before the second begins its own first, or waits for it at every step."""
    wire, engines = shared_out(case, SHARES[0], sgd())
    begun: list[tuple[int, int]] = []
    works = [training(engine, lambda step, k=k: begun.append((k, step))) for k, engine in enumerate(engines)]
    in_turn(works, wire)
    ahead = begun[:STEPS] == [(0, step) for step in range(STEPS)]
    locks = engines[0].derived.locks
    assert ahead == (not locks["update"])


@every_share
def test_a_state_is_resumed_by_another_number_of_engines(case: Case, shares: list[range]) -> None:
    rule = RULES["adam, clipped and averaged"]
    alone = engine_for(case.method, rule=rule)
    for step in range(2):
        alone.step(some_batch(step))
    saved = {k: v.clone() for k, v in alone.state_dict().items()}
    wire, engines = shared_out(case, shares, rule)
    for engine in engines:
        engine.load_state_dict(saved)
    again = engine_for(case.method, small_net(seed=99), rule)
    again.load_state_dict(merged(engines))
    for step in range(2, 4):
        alone.step(some_batch(step))
        again.step(some_batch(step))
        in_turn([engine.stepping(some_batch(step)) for engine in engines], wire)
    assert states_equal(alone.state_dict(), again.state_dict())
    assert states_equal(alone.state_dict(), merged(engines))


@every_share
def test_what_an_engine_leaves_to_another_is_all_that_this_one_needs(case: Case, shares: list[range]) -> None:
    """Of the others' parameters, and of the first engine's averages, nothing is held any more."""
    rule = RULES["adam, clipped and averaged"]
    alone = engine_for(case.method, rule=rule)
    wire = LocalWire()
    engines: list[Streaming] = []
    for own in shares:
        whole = engine_for(case.method, rule=rule)
        engines.append(whole.share(own, wire))
        whole.leave_to(engines[-1])
        held = {id(t) for t in engines[-1].parts.tensors()}
        assert all(t.numel() == 0 for t in whole.parts.tensors() if id(t) not in held)
    for step in range(2):
        alone.step(some_batch(step))
        in_turn([engine.stepping(some_batch(step)) for engine in engines], wire)
    assert states_equal(merged(engines), alone.state_dict())


def test_a_buffer_that_is_elsewhere_too_is_kept() -> None:
    whole, table = engine_for(LocalCE()), torch.arange(3.0)
    for block in whole.chain.blocks:
        block.register_buffer("table", table)
    whole.leave_to(whole.share(range(1), LocalWire()))
    assert torch.equal(table, torch.arange(3.0))


@every_share
def test_all_states_come_together_at_the_first_engine_a_part_at_a_time(shares: list[range]) -> None:
    alone = engine_for(BACKPROP.method, rule=adam(ema=0.9))
    wire, engines = shared_out(BACKPROP, shares, adam(ema=0.9))
    alone.step(some_batch())
    in_turn([engine.stepping(some_batch()) for engine in engines], wire)
    lengths: list[int] = []
    for engine in engines:

        def send(edge: Edge, message: Message, send: Callable[[Edge, Message], None] = engine.relay.send) -> None:
            lengths.append(len(message) - 1)  # beside the names
            send(edge, message)

        engine.relay.send = send
    works = [engine.relay.gather("state", When(False, 1), engine.state_dict()) for engine in engines]
    found = in_turn(works, wire)
    assert states_equal(found[0], alone.state_dict())
    assert [state.keys() for state in found[1:]] == [engine.state_dict().keys() for engine in engines[1:]]
    parts = [name.partition("/")[0] for name in alone.state_dict()]
    assert max(lengths) == max(parts.count(part) for part in parts)
    assert not wire.arrived


def test_a_message_leaves_before_its_sender_differentiates() -> None:
    order: list[str] = []

    class Watched(LocalWire):
        def send(self, edge: Edge, message: Message) -> None:
            order.append(f"send {edge.source}")
            super().send(edge, message)

    engine = engine_for(LocalCE(), own=range(2), wire=Watched())
    first = next(engine.chain.blocks[1].parameters())
    first.register_post_accumulate_grad_hook(lambda _: order.append("gradient 1"))
    engine.step(some_batch())
    assert order == ["send 1", "gradient 1"]


def test_what_goes_up_names_its_samples() -> None:
    """Of 16, in two micro-batches.  Gradients that come down name none; at inference a batch is whole."""
    rows: set[tuple[str, int, int]] = set()

    class Watched(LocalWire):
        def send(self, edge: Edge, message: Message) -> None:
            rows.add((edge.what, edge.target - edge.source, edge.rows))
            super().send(edge, message)

    wire = Watched()
    engines = [engine_for(Backprop(), own=own, wire=wire, accumulate=2) for own in SHARES[0]]
    x, y = some_batch()
    assert len(x) == 16
    in_turn([engine.stepping((x, y)) for engine in engines], wire)
    in_turn([engine.predicting(x) for engine in engines], wire)
    assert rows == {("0 forward", 1, 8), ("1 backward", -1, 0), ("0 read", 1, 16)}


def test_a_message_is_a_copy_with_its_dtype_and_memory_format() -> None:
    wire, edge = LocalWire(), Edge("0 match", When(True, 3), 1, 2)
    h = torch.randn(2, 3, 4, 5, dtype=torch.bfloat16).to(memory_format=torch.channels_last)
    before = h.clone()
    wire.send(edge, (h,))
    h.zero_()
    (found,) = wire.receive(edge)
    assert found.dtype == torch.bfloat16 and found.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(found, before)
    assert str(edge) == "0 match from block 1 to 2, step 3, micro-batch 0"


class Skipping(nn.Module):
    """Leaves its second layer out at random, so that it has a gradient in some steps only."""

    def __init__(self) -> None:
        super().__init__()
        self.always, self.sometimes = nn.Linear(8, 8), nn.Linear(8, 8)

    def forward(self, h: Tensor) -> Tensor:
        h = self.always(h)
        return h if self.training and torch.rand(()) < 0.5 else h + self.sometimes(h)


def test_what_goes_up_has_one_layout_whichever_gradients_there_are() -> None:
    """A wire between processes refuses a message of another layout than in the step before."""
    layouts: dict[str, set[tuple[torch.Size, ...]]] = {}

    class Watched(LocalWire):
        def send(self, edge: Edge, message: Message) -> None:
            layouts.setdefault(edge.what, set()).add(tuple(m.shape for m in message))
            super().send(edge, message)

    def network() -> nn.Sequential:
        torch.manual_seed(0)
        return nn.Sequential(nn.Flatten(), nn.Linear(128, 8), *(Skipping() for _ in range(4)), nn.Linear(8, CLASSES))

    wire, rule = Watched(), adam(clip=0.1)
    alone = engine_for(Backprop(), network(), rule)
    own = [engine_for(Backprop(), network(), rule, own=share, wire=wire) for share in SHARES[0]]
    for step in range(8):
        alone.step(some_batch(step))
        in_turn([engine.stepping(some_batch(step)) for engine in own], wire)
    assert len(layouts["norms"]) == len(layouts["norm"]) == 1
    for (name, p), found in zip(alone.state_dict().items(), merged(own).values(), strict=True):
        assert torch.equal(p, found), name


def test_gradients_that_a_hub_is_not_asked_for_have_the_layout_of_those_that_it_is() -> None:
    like = torch.randn(2, 3), torch.randn(4)
    message = packed([None, like[1]], like)
    assert [m.shape for m in message[1:]] == [m.shape for m in packed([*like], like)[1:]]
    none, some = unpacked(message)
    assert none is None and some is not None and torch.equal(some, like[1])


def test_a_step_whose_message_does_not_come_leaves_no_gradients() -> None:
    class Broken(LocalWire):
        def receive(self, edge: Edge) -> Message:
            raise ConnectionError(str(edge))

    engine = engine_for(Backprop(), own=range(1), wire=Broken())
    before = {k: v.clone() for k, v in engine.state_dict().items() if "running" not in k and "tracked" not in k}
    with pytest.raises(ConnectionError, match="1 backward from block 1 to 0, step 0"):
        engine.step(some_batch())
    assert all(p.grad is None for _, p in engine.chain.named_parameters())
    assert engine.steps == 0 and all(torch.equal(engine.state_dict()[k], v) for k, v in before.items())


def test_engines_that_all_wait_are_told_for_what() -> None:
    wire, engines = shared_out(BACKPROP, SHARES[0], sgd())
    with pytest.raises(AssertionError, match="everybody waits: 0 forward from block 1 to 2, step 0, micro-batch 0"):
        in_turn([engines[1].stepping(some_batch())], wire)


def test_an_engine_with_some_of_the_blocks_needs_a_wire() -> None:
    with pytest.raises(ValueError, match=r"got own=range\(0, 2\) of 3 blocks and no wire; give one"):
        engine_for(LocalCE(), own=range(2))
    with pytest.raises(
        ValueError, match=r"got own=range\(2, 4\), expected one or more consecutive blocks, from 0 to 2"
    ):
        engine_for(LocalCE(), own=range(2, 4), wire=LocalWire())
