"""Equal blocks computed as one learn what they learn one by one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from sidestep.core.cut import CutPlan
from sidestep.core.method import Method
from sidestep.core.task import Classification
from sidestep.engines.stacked import ELEMENTWISE, LARGEST_ON_CPU
from sidestep.engines.streaming import Streaming
from sidestep.engines.update import UpdateRule
from sidestep.methods.backprop import Backprop
from sidestep.methods.bll import BLL
from sidestep.methods.local_ce import LocalCE
from sidestep.methods.sid import SID
from tests.conftest import adam, sgd

CLASSES, WIDTH = 5, 16


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(WIDTH, WIDTH)

    def forward(self, h: Tensor) -> Tensor:
        return h + self.layer(h).relu()


def network(depth: int) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(12, WIDTH), *(Residual() for _ in range(depth)), nn.Linear(WIDTH, CLASSES))


def batch(step: int) -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(step)
    return torch.randn(8, 12, generator=g), torch.randint(CLASSES, (8,), generator=g)


@dataclass
class Case:
    method: Method
    blocks: int
    stacks: list[int]  # how many blocks are in each

    def engine(self, rule: UpdateRule | None = None, **options: Any) -> Streaming:
        task = Classification(CLASSES, batch(0)[0][:2])
        model = network(6)
        torch.manual_seed(1)
        return Streaming(
            self.method, self.method.build(model, task, CutPlan(self.blocks)), task, rule or sgd(), **options
        )


CASES = {
    "modules": Case(SID(form="shared"), 7, [7]),
    "modules, weights of their own": Case(
        SID(form="shared", alpha="linear:1:0.2", direction="paper", label_smoothing=0.1), 7, [7]
    ),
    "modules that do not talk": Case(SID(form="shared", belief="none", alpha="linear:1:0.2"), 5, [5]),
    "trunk after an unequal block": Case(SID(), 6, [5]),
    "local heads between unequal ends": Case(LocalCE(label_smoothing="sid"), 6, [4]),
    "more than one stack": Case(SID(form="shared"), 2 * LARGEST_ON_CPU + 1, [21, 22, 22]),
}
RULES = {"sgd": sgd(), "adam, clipped and averaged": adam(clip=0.05, ema=0.8)}
every_case = pytest.mark.parametrize("stackable", CASES.values(), ids=CASES)


def close(a: Tensor, b: Tensor, atol: float = 2e-6) -> bool:
    """Batched products add up in another order: some units in the last place of float32, grown by five steps."""
    return torch.allclose(a, b, rtol=1e-4, atol=atol)


@every_case
@pytest.mark.parametrize("rule", RULES.values(), ids=RULES)
def test_parameters_losses_and_answers_are_those_of_blocks_one_by_one(stackable: Case, rule: UpdateRule) -> None:
    ours, theirs = stackable.engine(rule, stacked=True, accumulate=2), stackable.engine(rule, accumulate=2)
    assert [len(stack.blocks) for stack in ours.parts.stacks.values()] == stackable.stacks
    before = {k: v.clone() for k, v in ours.state_dict().items()}
    for step in range(5):
        found, expected = ours.step(batch(step)), theirs.step(batch(step))
        assert close(found.loss, expected.loss)
        assert found.metrics.keys() == expected.metrics.keys()
        assert all(close(v, expected.metrics[k]) for k, v in found.metrics.items())
    state, wanted = ours.state_dict(), theirs.state_dict()
    assert state.keys() == wanted.keys()
    # Adam divides by a gradient's size, so where that is little more than rounding, its moves of 3e-3 are too.
    learnt = [k for k in wanted if "/optim/" not in k]
    assert [k for k in learnt if not close(state[k].float(), wanted[k].float(), atol=1e-5)] == []
    assert all(not torch.equal(state[k], v) for k, v in before.items() if k.startswith("blocks.") and "weight" in k)
    x = batch(9)[0]
    for a, b in zip(ours.predict(x), theirs.predict(x), strict=True):
        assert a is not None and b is not None and close(a, b)


@every_case
def test_gradients_are_found_where_the_other_engine_leaves_them(stackable: Case) -> None:
    ours, theirs = stackable.engine(stacked=True), stackable.engine()
    for only in (None, [2]):
        found, expected = ours.gradients(batch(0), only), theirs.gradients(batch(0), only)
        assert found.keys() == expected.keys()
        assert all(close(found[k], expected[k]) for k in expected)
    assert all(p.grad is None for _, p in ours.chain.named_parameters())


@pytest.mark.parametrize("rule", RULES.values(), ids=RULES)
def test_a_state_goes_from_one_engine_to_the_other_and_back(rule: UpdateRule) -> None:
    case = CASES["local heads between unequal ends"]
    first = case.engine(rule)
    for step in range(2):
        first.step(batch(step))
    stacked, again = case.engine(rule, stacked=True), case.engine(rule)
    stacked.load_state_dict({k: v.clone() for k, v in first.state_dict().items()})
    handed_on = stacked.state_dict()
    assert handed_on.keys() == first.state_dict().keys()
    assert all(torch.equal(v, handed_on[k]) for k, v in first.state_dict().items())
    again.load_state_dict({k: v.clone() for k, v in handed_on.items()})
    for step in range(2, 5):
        for engine in (first, stacked, again):
            engine.step(batch(step))
    for (name, a), (_, b), (_, c) in zip(
        *(engine.chain.named_parameters() for engine in (first, again, stacked)), strict=True
    ):
        assert torch.equal(a, b), name
        assert close(a, c), name


def test_the_parameters_live_in_one_tensor_and_one_optimizer_moves_them() -> None:
    engine = CASES["modules"].engine(stacked=True)
    (stack,) = engine.parts.stacks.values()
    for n, block in enumerate(stack.blocks):
        for whole, own in zip(stack.parameters.values(), block.parameters(), strict=True):
            assert own.data_ptr() == whole[n].data_ptr()
    calls: list[int] = []
    assert stack.updater.optimizer is not None
    stack.updater.optimizer.register_step_post_hook(lambda *_: calls.append(1))
    engine.step(batch(0))
    assert calls == [1]


def test_only_matrices_are_decayed_in_a_stack_as_in_a_block() -> None:
    def decaying(parameters: Any) -> torch.optim.Optimizer:
        parameters = list(parameters)
        return torch.optim.SGD(
            [
                {"params": [p for p in parameters if p.dim() > 1], "weight_decay": 0.5},
                {"params": [p for p in parameters if p.dim() <= 1], "weight_decay": 0.0},
            ],
            lr=0.1,
        )

    ours, theirs = (CASES["modules"].engine(UpdateRule(decaying), stacked=s) for s in (True, False))
    for engine in (ours, theirs):
        engine.step(batch(0))
    for (name, a), (_, b) in zip(ours.chain.named_parameters(), theirs.chain.named_parameters(), strict=True):
        assert close(a, b), name


class Dropping(Residual):
    def __init__(self) -> None:
        super().__init__()
        self.dropout = nn.Dropout(0.1)


class Normed(Residual):
    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(WIDTH)


class Tied(Residual):
    def __init__(self) -> None:
        super().__init__()
        self.again = nn.Linear(WIDTH, WIDTH)
        self.again.weight = self.layer.weight


@pytest.mark.parametrize(
    ("method", "unit", "words"),
    [
        (Backprop(), Residual, r"one Up or Each pass .*, got Up\(forward\).*, Down\(backward\).*; use streaming"),
        (BLL(), Residual, r"one Up or Each pass .*, got Down\(feedback\), Up\(forward\) .*, Each\(match\)"),
        (SID(), Dropping, r"got Dropout \(block 1, net.*dropout\), whose masks would be others"),
        (SID(), Normed, r"got BatchNorm1d \(block 1, net.*norm\), which has buffers"),
        (SID(), Tied, "got a parameter in two places of block 1"),
        (SID(), None, "got no two blocks in a row that are equal but for their parameters"),
    ],
)
def test_what_cannot_be_stacked_is_refused_with_the_reason(
    method: Method, unit: type[nn.Module] | None, words: str
) -> None:
    widths = [8, 9, 10, 11]
    middle = (
        [unit() for _ in range(3)]
        if unit
        else [nn.Linear(a, b) for a, b in zip([WIDTH, *widths], widths, strict=False)]
    )
    model = nn.Sequential(nn.Linear(12, WIDTH), *middle, nn.Linear(WIDTH if unit else 11, CLASSES))
    task = Classification(CLASSES, batch(0)[0][:2])
    chain = method.build(model, task, CutPlan(4))
    with pytest.raises(ValueError, match=words):
        Streaming(method, chain, task, sgd(), stacked=True)


class Scaled(Residual):
    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = factor

    def forward(self, h: Tensor) -> Tensor:
        return h + self.factor * self.layer(h).relu()


@pytest.mark.parametrize("method", [SID(), LocalCE()], ids=["sid", "local_ce"])
@pytest.mark.parametrize("factors", [(1.0, 9.0, 1.0), (1.0, 0.9, 0.8), (1.0, -1.0, 1.0)], ids=str)
def test_blocks_that_differ_in_what_their_modules_do_not_show_are_found_out(
    method: Method, factors: tuple[float, ...]
) -> None:
    """At the start all have about the same objective, log C, whatever they make of their input."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(12, WIDTH), *(Scaled(f) for f in factors), nn.Linear(WIDTH, CLASSES))
    task = Classification(CLASSES, batch(0)[0][:2])
    engine = Streaming(method, method.build(model, task, CutPlan(4)), task, sgd(), stacked=True)
    before = {k: v.clone() for k, v in engine.state_dict().items()}
    with pytest.raises(ValueError, match=r"got another answer of block . in a stack .*, expected equal blocks"):
        engine.step(batch(0))
    assert all(
        torch.equal(before[k], v) for k, v in engine.state_dict().items() if k.startswith(("blocks.1", "blocks.2"))
    )


def test_what_a_stack_hands_on_in_training_is_what_the_pass_sends_with_labels() -> None:
    """Bootstrapped latents pass rho on: others learn from that, not from what inference sends."""
    found: dict[tuple[bool, bool], Tensor] = {}
    for stacked, bootstrap in ((False, False), (False, True), (True, True)):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(12, WIDTH), *(Residual() for _ in range(3)), nn.Linear(WIDTH, CLASSES))
        task = Classification(CLASSES, batch(0)[0][:2])
        method = BLL(twin="linear", likelihood="plug-in", least_precision=1.0, bootstrap=bootstrap)
        engine = Streaming(method, method.build(model, task, CutPlan(4)), task, sgd(), stacked=stacked)
        for step in range(20):
            found[stacked, bootstrap] = engine.step(batch(step)).loss
    # Batched sums are taken in another order.
    torch.testing.assert_close(found[True, True], found[False, True], rtol=1e-4, atol=1e-5)
    assert (found[False, True] - found[False, False]).abs().max() > 1e-2


def test_a_pass_that_draws_is_refused_at_the_first_step() -> None:
    """Only the computation shows it."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(12, WIDTH), *(Residual() for _ in range(3)), nn.Linear(WIDTH, CLASSES))
    task = Classification(CLASSES, batch(0)[0][:2])
    method = BLL(twin="linear", likelihood="sample")
    engine = Streaming(method, method.build(model, task, CutPlan(4)), task, sgd(), stacked=True)
    with pytest.raises(
        ValueError, match=r"^a pass that cannot be stacked, Up\(match\).*: .*random.*; use streaming\.$"
    ):
        engine.step(batch(0))


def test_frozen_blocks_and_compiled_ones_are_not_stacked() -> None:
    assert [s.indices for s in CASES["modules"].engine(stacked=True, freeze=[3]).parts.stacks.values()] == [
        range(3),
        range(4, 7),
    ]
    with pytest.raises(ValueError, match="give one of --engine stacked and --compile"):
        CASES["modules"].engine(stacked=True, compile=True)


def test_an_optimizer_that_does_not_move_each_number_by_itself_is_refused() -> None:
    """Adafactor, say, scales a step by the root mean square of the whole tensor: of a stack, of all blocks."""
    with pytest.raises(ValueError, match=r"got Adafactor, .*, such as Adam or SGD; use streaming\.$"):
        CASES["modules"].engine(UpdateRule(torch.optim.Adafactor), stacked=True)


@pytest.mark.parametrize("kind", sorted(ELEMENTWISE, key=str), ids=lambda kind: kind.__name__)
def test_optimizers_that_are_let_in_learn_in_a_stack_as_in_a_block(kind: Any) -> None:
    case = CASES["modules"]
    rule = UpdateRule(lambda parameters: kind(parameters, lr=1e-3))
    ours, theirs = case.engine(rule, stacked=True), case.engine(rule)
    for step in range(5):
        ours.step(batch(step))
        theirs.step(batch(step))
    # Where a gradient is little more than rounding, a step that is divided by its size is, too.
    state, wanted = ours.state_dict(), theirs.state_dict()
    assert state.keys() == wanted.keys()
    assert [k for k in wanted if "/optim/" not in k and not close(state[k], wanted[k], atol=1e-5)] == []
