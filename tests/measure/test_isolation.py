from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from sidestep.core.block import Chain
from sidestep.core.cell import Cell
from sidestep.core.cut import CutPlan
from sidestep.core.emit import Emit
from sidestep.core.method import Method
from sidestep.core.program import Program, Up
from sidestep.core.task import Task
from sidestep.measure.isolation import audit, audit_text, numbers
from sidestep.methods.backprop import Backprop
from sidestep.methods.bll import BLL
from sidestep.methods.local_ce import LocalCE
from sidestep.methods.local_heads import read_out
from sidestep.methods.sid import SID
from tests.conftest import Case, adam, engine_for, sgd, small_net, some_batch

ALL = [[1, 2], [2], []]
NONE = [[], [], []]
# What each block's loss reaches, and which later blocks change each block's update.
EXPECTED: dict[str, tuple[list[list[int]], list[list[int]]]] = {
    "backprop": ([[], [], [0, 1, 2]], ALL),
    "backprop-smoothed": ([[], [], [0, 1, 2]], ALL),
    "backprop_checkpointed": ([[], [], [0, 1, 2]], ALL),
    "deep_supervision": ([[0], [0, 1], [0, 1, 2]], ALL),
    "local_ce": ([[0], [1], [2]], NONE),
    "local_ce-headed": ([[0], [1], [2]], NONE),
    "sid-trunk": ([[0], [1], [2]], NONE),
    "sid-trunk-paper": ([[0], [1], [2]], NONE),
    "sid-trunk-residual": ([[0], [1], [2]], NONE),
    "sid-trunk-parallel": ([[0], [1], [2]], NONE),
    "sid-shared": ([[0], [1], [2]], NONE),
    "sid-shared-parallel": ([[0], [1], [2]], NONE),
    "bll": ([[0], [1], [2]], ALL),  # by the messages of a twin, not by gradients
    "bll-bootstrapped": ([[0], [1], [2]], ALL),  # by the messages of a twin, not by gradients
    "bll-linear": ([[0], [1], [2]], NONE),
    "bll-lifted": ([[0], [1], [2]], ALL),
    "bll-sampled": ([[0], [1], [2]], ALL),
    "bll-gaussian": ([[0], [1], [2]], ALL),
    "bll_released": ([[0], [1], [2]], NONE),
}


def column(found: dict[str, Any], name: str) -> list[Any]:
    return [block[name] for block in found["blocks"]]


def test_every_method_is_found_as_isolated_as_its_program_says(case: Case) -> None:
    found: dict[str, Any] = audit(engine_for(case.method), some_batch())
    reaches, depends = EXPECTED[case.id]
    assert found["agrees"]
    assert found["isolated"] == case.isolated
    assert column(found, "reaches") == reaches
    assert column(found, "depends_on_later") == depends
    assert column(found, "has_loss") == [bool(r) for r in reaches]
    assert column(found, "derived_reaches") == reaches
    assert column(found, "derived_depends_on_later") == depends
    assert all(column(found, "agrees"))


def test_a_shared_extractor_is_named_and_never_called_isolated(case: Case) -> None:
    engine = engine_for(case.method)
    found: dict[str, Any] = audit(engine, some_batch())
    if "shared" not in case.id:
        assert found["shared"] == []
        assert found["shared_depends_on"] == []
        assert column(found, "reaches_shared") == [False] * 3
        return
    assert engine.chain.hub is not None
    assert found["shared"] == [f"hub.{name}" for name, _ in engine.chain.hub.named_parameters()]
    assert found["shared_depends_on"] == [0, 1, 2]
    assert column(found, "reaches_shared") == [True] * 3
    assert not found["gradients_cross"]  # not over the cuts
    assert found["locks"] == {"forward": "parallel" not in case.id, "backward": False, "update": True}


def test_a_frozen_extractor_leaves_the_blocks_isolated() -> None:
    model = small_net().requires_grad_(False)
    engine = engine_for(SID(form="shared"), model)
    found: dict[str, Any] = audit(engine, some_batch())
    assert found["isolated"]
    assert found["agrees"]
    assert found["shared"] == []
    assert found["locks"]["update"] is False
    assert engine.chain.hub is not None
    before = [p.clone() for p in engine.chain.hub.parameters()]
    engine.step(some_batch())
    assert all(torch.equal(p, q) for p, q in zip(engine.chain.hub.parameters(), before, strict=True))


@pytest.mark.parametrize("block", range(3))
def test_a_frozen_block_is_reached_by_no_loss_and_contradicts_nothing(case: Case, block: int) -> None:
    engine = engine_for(case.method, freeze=[block])
    found: dict[str, Any] = audit(engine, some_batch())
    assert found["agrees"] and all(column(found, "agrees"))
    assert not any(block in reached for reached in column(found, "reaches"))
    assert column(found, "depends_on_later")[block] == []


def test_with_all_but_the_last_block_frozen_backprop_is_isolated() -> None:
    found: dict[str, Any] = audit(engine_for(Backprop(), freeze=[0, 1]), some_batch())
    assert found["isolated"] and found["agrees"]
    assert column(found, "reaches") == [[], [], [2]]


def test_one_block_has_nobody_to_reach() -> None:
    found: dict[str, Any] = audit(engine_for(Backprop(), blocks=1), some_batch())
    assert found["agrees"]
    assert found["isolated"]
    assert column(found, "reaches") == [[0]]


def test_an_audit_changes_nothing(case: Case) -> None:
    engine = engine_for(case.method, rule=adam(ema=0.9))
    engine.step(some_batch())
    before = {k: v.clone() for k, v in engine.state_dict().items()}
    torch.manual_seed(5)
    random.seed(5)
    expected = torch.rand(1), random.random()
    torch.manual_seed(5)
    random.seed(5)
    audit(engine, some_batch(1))
    assert (torch.rand(1), random.random()) == expected
    after = engine.state_dict()
    assert after.keys() == before.keys()
    assert all(torch.equal(after[k], before[k]) for k in before)
    assert all(p.grad is None for _, p in engine.chain.named_parameters())


# ---- planted leaks: methods that break what their programs say


def local_loss(cell: Cell, out: Tensor) -> Tensor:
    return cell.task.loss(read_out(cell.block, out), cell.y)


@dataclass(frozen=True)
class LeakBackward(LocalCE):
    """Block n's loss has a tensor in it that block n-1 made and nobody detached."""

    memory: dict[int, Tensor] = field(default_factory=dict[int, Tensor])

    def program(self) -> Program:
        return (Up(self.leak),)

    def leak(self, cell: Cell, h: Tensor) -> Emit:
        out = cell.block.net(h)
        loss = local_loss(cell, out)
        if not cell.block.is_first:
            loss = loss + self.memory.pop(cell.block.index - 1)
        # A graph of its own, since the block's is gone when its loss has been differentiated.
        self.memory[cell.block.index] = cell.block.net(h).square().mean()
        return Emit(send=(out,), loss=loss)


@dataclass(frozen=True)
class LeakForward(LocalCE):
    """Block n's loss reads block n+1's parameters, detached or not."""

    detached: bool = True
    blocks: list[nn.Module] = field(default_factory=list[nn.Module])

    def build(self, model: nn.Module, task: Task, plan: CutPlan) -> Chain:
        chain = super().build(model, task, plan)
        self.blocks.extend(chain.blocks)
        return chain

    def program(self) -> Program:
        return (Up(self.leak),)

    def leak(self, cell: Cell, h: Tensor) -> Emit:
        out = cell.block.net(h)
        loss = local_loss(cell, out)
        if not cell.block.is_last:
            other = next(self.blocks[cell.block.index + 1].parameters())
            loss = loss * (1 + (other.detach() if self.detached else other).square().mean())
        return Emit(send=(out,), loss=loss)


def test_a_gradient_that_leaks_into_the_block_before_is_found() -> None:
    engine = engine_for(LeakBackward())
    assert engine.derived.isolated  # so says the program, which cannot know
    found: dict[str, Any] = audit(engine, some_batch())
    assert column(found, "reaches") == [[0], [0, 1], [1, 2]]
    assert column(found, "derived_reaches") == [[0], [1], [2]]
    assert column(found, "agrees") == [True, False, False]
    assert not found["isolated"]
    assert not found["agrees"]


def test_a_later_blocks_parameters_read_ahead_are_found() -> None:
    """Isolated by gradients, and yet its update depends on a block it should not know: the two are not the same."""
    found: dict[str, Any] = audit(engine_for(LeakForward()), some_batch())
    assert column(found, "depends_on_later") == [[1], [2], []]
    assert column(found, "reaches") == [[0], [1], [2]]
    assert found["isolated"]
    assert column(found, "agrees") == [False, False, True]
    assert not found["agrees"]


def test_a_gradient_that_leaks_into_a_later_block_is_found() -> None:
    found: dict[str, Any] = audit(engine_for(LeakForward(detached=False)), some_batch())
    assert column(found, "reaches") == [[0, 1], [1, 2], [2]]
    assert not found["isolated"]
    assert not found["agrees"]


def test_the_same_method_without_its_leak_passes() -> None:
    """Guards the tests above: it is the leak that is found, not the way it is planted."""
    found: dict[str, Any] = audit(engine_for(LocalCE(), rule=sgd()), some_batch())
    assert found["isolated"]
    assert found["agrees"]


# ---- in words


@pytest.mark.parametrize(
    ("blocks", "text"), [([], ""), ([2], "3"), ([0, 1], "1, 2"), ([0, 1, 2], "1-3"), ([0, 2, 3], "1, 3, 4")]
)
def test_blocks_are_counted_from_1_for_people(blocks: list[int], text: str) -> None:
    assert numbers(blocks) == text


def described(method: Method, freeze: Sequence[int] = ()) -> str:
    about = {"method": "m", "model": "net", "count": 3, "data": "d"}
    return audit_text(audit(engine_for(method, freeze=freeze), some_batch()) | about)


def test_the_verdict_is_said_in_words() -> None:
    isolated = described(LocalCE())
    assert "\nisolated: every block's loss reaches its own parameters only\n" in isolated
    assert isolated.endswith("measured and derived agree")
    crossing = described(Backprop())
    assert "\nnot isolated: losses reach the parameters of other blocks\n" in crossing
    assert "    1  (none, or it has no loss) " in crossing
    assert "\nlater blocks send: Down(backward)\n" in crossing
    assert "    2  (none, or it has no loss) " in described(LocalCE(), freeze=[1])  # it has one, which reaches nothing


def test_what_an_update_depends_on_is_named() -> None:
    """A twin's messages, which are no gradients; with a twin of one map a block nothing is sent down."""
    chained, alone = described(BLL()), described(BLL(twin="linear"))
    assert "\nisolated: " in chained and "\nlater blocks send: Down(feedback)\n" in chained
    assert "later blocks send" not in alone + described(LocalCE())
    leaking = described(LeakBackward())
    assert leaking.count("<-- the program says otherwise") == 2
    assert leaking.endswith("MEASURED CONTRADICTS DERIVED")
