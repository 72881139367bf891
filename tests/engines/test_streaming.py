from __future__ import annotations

import copy
import gc
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks

from sidestep.core.block import Chain
from sidestep.core.cell import Batch, Cell
from sidestep.core.cut import CutPlan
from sidestep.core.emit import Emit, Message
from sidestep.core.program import Down, Each, Program, Up
from sidestep.core.task import Task
from sidestep.engines.compiled import compile_calls
from sidestep.engines.streaming import Streaming
from sidestep.engines.update import UpdateRule
from sidestep.errors import UsageError
from sidestep.methods.backprop import Backprop
from sidestep.methods.local_ce import LocalCE
from sidestep.methods.sid import SID
from tests.conftest import CLASSES, Case, engine_for, sgd, small_net, some_batch

STEPS = 3
SMOOTHING = 0.1


def still_net() -> nn.Sequential:
    """Without dropout, so that a loop by hand draws nothing."""
    return small_net(dropout=0.0)


def halving(step: int) -> float:
    return 0.5**step


# ---- a local method's step, against the loop one would write by hand


class ByHand:
    """Greedy local cross-entropy over the blocks of a chain, one optimizer each; its averages, if asked for."""

    def __init__(self, chain: Chain) -> None:
        self.nets = [block.net for block in chain.blocks]
        self.heads = [block.extras["head"] for block in chain.blocks[:-1]] + [nn.Identity()]
        self.parts = [nn.ModuleList(pair) for pair in zip(self.nets, self.heads, strict=True)]
        self.averages: list[dict[str, Tensor]] = []

    def train(
        self,
        batches: Iterator[tuple[Tensor, Tensor]],
        schedule: Callable[[int], float] | None = None,
        weight_decay: float = 0.0,
        clip: float | None = None,
        ema: float | None = None,
        accumulate: int = 1,
        autocast: torch.dtype | None = None,
    ) -> list[Tensor]:
        """Losses (K,) of every step."""
        optimizers = [sgd_of(part.parameters(), weight_decay) for part in self.parts]
        losses: list[Tensor] = []
        for step, (x, y) in enumerate(batches):
            lines: list[list[Tensor]] = [[] for _ in self.parts]
            for h, target in zip(x.chunk(accumulate), y.chunk(accumulate), strict=True):
                for net, head, line in zip(self.nets, self.heads, lines, strict=True):
                    with nullcontext() if autocast is None else torch.autocast("cpu", autocast):
                        out = net(h)
                        loss = F.cross_entropy(head(out).float(), target, label_smoothing=SMOOTHING)
                    (loss / accumulate).backward()
                    line.append(loss.detach())
                    h = out.detach()
            for part, optimizer in zip(self.parts, optimizers, strict=True):
                if schedule is not None:
                    optimizer.param_groups[0]["lr"] = 0.05 * schedule(step)
                if clip is not None:
                    nn.utils.clip_grad_norm_(part.parameters(), clip)
                optimizer.step()
                optimizer.zero_grad()
            if ema is not None:
                self._average(ema)
            losses.append(torch.stack([torch.stack(line).mean() for line in lines]))
        return losses

    def _average(self, decay: float) -> None:
        if not self.averages:
            self.averages = [{k: v.clone() for k, v in part.state_dict().items()} for part in self.parts]
            return
        for average, part in zip(self.averages, self.parts, strict=True):
            parameters = dict(part.named_parameters())
            for k, v in part.state_dict().items():
                average[k] = torch.lerp(average[k], v, 1 - decay) if k in parameters else v.clone()


def sgd_of(parameters: Any, weight_decay: float = 0.0) -> torch.optim.SGD:
    return torch.optim.SGD(parameters, lr=0.05, momentum=0.9, weight_decay=weight_decay)


def batches() -> Iterator[tuple[Tensor, Tensor]]:
    return (some_batch(step) for step in range(STEPS))


def rule_of(settings: dict[str, Any]) -> tuple[UpdateRule, dict[str, Any]]:
    """(The update rule, what is left for the engine)."""
    engine = dict(settings)
    optimizer = partial(sgd_of, weight_decay=engine.pop("weight_decay", 0.0))
    return UpdateRule(
        optimizer, engine.pop("schedule", None), engine.pop("clip", None), engine.pop("ema", None)
    ), engine


ALONE: dict[str, dict[str, Any]] = {
    "plain": {},
    "schedule": {"schedule": halving},
    "weight_decay": {"weight_decay": 0.01},
    "clip": {"clip": 0.3},
    "ema": {"ema": 0.7},
    "accumulate": {"accumulate": 4},
    "bf16": {"autocast": torch.bfloat16},
}
TOGETHER = {name: value for settings in ALONE.values() for name, value in settings.items()}


def assert_trains_like_the_loop_by_hand(settings: dict[str, Any], compile: bool = False) -> None:
    rule, options = rule_of(settings)
    engine = engine_for(LocalCE(label_smoothing=SMOOTHING), still_net(), rule, compile=compile, **options)
    hand = ByHand(copy.deepcopy(engine.chain))
    expected = hand.train(batches(), **settings)
    found = [engine.step(batch).loss for batch in batches()]
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
    for block, part in zip(engine.chain.blocks, hand.parts, strict=True):
        for (name, a), b in zip(block.state_dict().items(), part.state_dict().values(), strict=True):
            assert torch.equal(a, b), name
    for block, average in zip(engine.inference_chain.blocks, hand.averages, strict=False):
        for (name, a), b in zip(block.state_dict().items(), average.values(), strict=True):
            assert torch.equal(a, b), name


@pytest.mark.parametrize("settings", [*ALONE.values(), TOGETHER], ids=[*ALONE, "together"])
def test_every_setting_alone_and_all_together_give_the_bits_of_the_loop_by_hand(settings: dict[str, Any]) -> None:
    assert_trains_like_the_loop_by_hand(settings)


def test_the_settings_really_change_what_is_learnt() -> None:
    """Guards the test above."""
    states: list[Tensor] = []
    for settings in ALONE.values():
        rule, options = rule_of(settings)
        engine = engine_for(LocalCE(label_smoothing=SMOOTHING), still_net(), rule, **options)
        for batch in batches():
            engine.step(batch)
        states.append(next(engine.inference_chain.blocks[1].parameters()).detach().clone())
    for i, state in enumerate(states):
        assert not any(torch.equal(state, other) for other in states[:i])


def test_compiled_blocks_train_the_same_with_everything_on(monkeypatch: pytest.MonkeyPatch) -> None:
    """Bit for bit, since the backend is torch's own kernels: what is tested is the capture, and what it leaves alone.

    The default backend rounds otherwise by fusing, and needs a C++ compiler, which a machine may lack.
    """
    compiled: list[nn.Module] = []

    def compile(module: nn.Module) -> None:
        compiled.append(module)
        compile_calls(module, backend="aot_eager")

    monkeypatch.setattr("sidestep.engines.streaming.compile_calls", compile)
    assert_trains_like_the_loop_by_hand(TOGETHER, compile=True)
    assert len(compiled) == 3 + 2  # nets and heads; not the passes around them


def test_a_compiled_sequential_is_captured_whole_keeps_its_hooks_and_its_copies_are_not_compiled() -> None:
    """`nn.Sequential.compile()` captures nothing, silently: every call then runs eagerly."""
    net, seen = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2)), list[object]()
    net.register_forward_hook(lambda _, __, out: seen.append(out))  # pyright: ignore[reportUnknownLambdaType]  # torch types a hook's arguments as Any
    x = torch.randn(3, 4)
    expected = net(x)
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    compile_calls(net, backend="aot_eager")
    assert torch.equal(net(x), expected)
    assert len(seen) == 2
    assert torch._dynamo.utils.counters["stats"]["calls_captured"] == 3
    assert copy.deepcopy(net)._compiled_call_impl is None


def test_each_of_many_unlike_modules_is_captured() -> None:
    """The compiler gives up on the ninth version of one function, and then runs eagerly for good."""
    nets = [nn.Linear(4, 2 + i) for i in range(10)]
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    for net in nets:
        compile_calls(net, backend="aot_eager")
        net(torch.randn(3, 4))
    assert torch._dynamo.utils.counters["stats"]["calls_captured"] == len(nets)


def test_blocks_of_unlike_shapes_are_each_compiled_for_their_own() -> None:
    """Else all after the second would be compiled for sizes that vary, though none does."""
    nets = [nn.Conv2d(2, 2, 3), nn.Sequential(nn.Flatten(), nn.Linear(8, 4)), nn.Linear(4, 4), nn.Conv2d(2, 3, 3)]
    inputs = [torch.randn(3, 2, 4, 4), torch.randn(3, 2, 2, 2), torch.randn(5, 4), torch.randn(6, 2, 7, 7)]
    symbolic: list[bool] = []

    def backend(graph: Any, examples: Sequence[object]) -> object:
        symbolic.append(any(isinstance(example, torch.SymInt) for example in examples))
        return graph

    torch._dynamo.reset()
    for net, x in zip(nets, inputs, strict=True):
        expected = net(x)
        compile_calls(net, backend=backend)
        assert torch.equal(net(x), expected)
    assert symbolic == [False] * len(nets)


def test_the_moving_average_is_what_predicts() -> None:
    engine = engine_for(LocalCE(), still_net(), sgd(ema=0.7))
    for batch in batches():
        engine.step(batch)
    x = some_batch(9)[0]
    h = x
    for block, found in zip(copy.deepcopy(engine.inference_chain).blocks, engine.predict(x), strict=True):
        block.eval()
        with torch.no_grad():
            h = block.net(h)
            expected = h if block.is_last else block.extras["head"](h)
        assert found is not None and torch.equal(found, expected)
    trained, averaged = (next(chain.blocks[0].parameters()) for chain in (engine.chain, engine.inference_chain))
    assert not torch.equal(trained, averaged)


def test_the_moving_average_of_a_frozen_hub_has_its_running_statistics() -> None:
    network = small_net(dropout=0.0).requires_grad_(False)
    engine = engine_for(SID(form="shared"), network, sgd(ema=0.9), blocks=3)
    for batch in batches():
        engine.step(batch)
    hub, average = engine.chain.hub, engine.inference_chain.hub
    assert hub is not None and average is not None and hub is not average
    start = dict(small_net(dropout=0.0).named_buffers())
    for name, buffer in hub.named_buffers():
        assert torch.equal(buffer, dict(average.named_buffers())[name])
    assert any(not torch.equal(a, b) for a, b in zip(hub.buffers(), start.values(), strict=True))


def test_gradients_that_the_caller_has_left_are_not_learnt_from() -> None:
    left, cleared = still_net(), still_net()
    (100 * left(some_batch()[0])).square().sum().backward()
    engines = [engine_for(Backprop(), network, sgd()) for network in (left, cleared)]
    found = [engine.gradients(some_batch(1), losses=[]) for engine in engines]
    assert all(torch.equal(a, b) for a, b in zip(found[0].values(), found[1].values(), strict=True))
    for engine in engines:
        engine.step(some_batch())
    assert all(torch.equal(p, q) for p, q in zip(left.parameters(), cleared.parameters(), strict=True))


# ---- where gradients cross


@pytest.mark.parametrize("accumulate", [1, 2])
def test_clipped_backprop_is_a_plain_step_clipped_over_the_whole_network(accumulate: int) -> None:
    network = still_net()
    plain = copy.deepcopy(network)
    engine = engine_for(Backprop(), network, UpdateRule(sgd_of, clip=0.2), accumulate=accumulate)
    optimizer = sgd_of(plain.parameters())
    for x, y in batches():
        engine.step((x, y))
        for micro_x, micro_y in zip(x.chunk(accumulate), y.chunk(accumulate), strict=True):
            (F.cross_entropy(plain(micro_x), micro_y) / accumulate).backward()
        nn.utils.clip_grad_norm_(plain.parameters(), 0.2)
        optimizer.step()
        optimizer.zero_grad()
    for (name, a), b in zip(plain.state_dict().items(), network.state_dict().values(), strict=True):
        assert torch.equal(a, b), name


def test_a_loss_is_reported_where_a_block_has_one() -> None:
    x, y = some_batch()
    network = still_net()
    expected = F.cross_entropy(copy.deepcopy(network)(x), y)
    loss = engine_for(Backprop(), network).step((x, y)).loss
    assert loss[:2].isnan().all()
    assert torch.equal(loss[2], expected.detach())
    assert not loss.requires_grad


def test_gradients_are_those_of_each_blocks_own_loss() -> None:
    engine = engine_for(LocalCE(), still_net())
    found = engine.gradients(some_batch())
    h, y = some_batch()
    for block in copy.deepcopy(engine.chain).blocks:
        out = block.net(h.detach())
        logits = out if block.is_last else block.extras["head"](out)
        gradients = torch.autograd.grad(F.cross_entropy(logits, y), list(block.parameters()))
        for (name, _), gradient in zip(block.named_parameters(), gradients, strict=True):
            assert torch.equal(found.pop(f"blocks.{block.index}.{name}"), gradient)
        h = out
    assert not found


# ---- what is not trained


@pytest.mark.parametrize("frozen", range(3))
def test_a_frozen_block_stays_and_the_rest_trains_as_beside_one_put_back_after_every_step(
    case: Case, frozen: int
) -> None:
    engine, free = engine_for(case.method, freeze=(frozen,)), engine_for(case.method)
    before = [p.clone() for p in engine.chain.blocks[frozen].parameters()]
    start = {k: v.clone() for k, v in state_of(free).items()}
    for batch in batches():
        found, expected = engine.step(batch).loss, free.step(batch).loss
        assert torch.equal(found.nan_to_num(), expected.nan_to_num())
        with torch.no_grad():
            for p, kept in zip(free.chain.blocks[frozen].parameters(), before, strict=True):
                p.copy_(kept)
    assert all(torch.equal(a, b) for a, b in zip(before, engine.chain.blocks[frozen].parameters(), strict=True))
    own = f"blocks.{frozen}/optim/"
    assert_unchanged(engine, {k: v for k, v in state_of(free).items() if not k.startswith(own)})
    moved = {k.split("/")[0] for k, v in engine.state_dict().items() if k in start and not torch.equal(v, start[k])}
    assert {f"blocks.{n}" for n in range(3)} - {f"blocks.{frozen}"} <= moved


def test_a_frozen_block_has_no_part_in_the_norm_that_clips_the_rest() -> None:
    network = still_net()
    engine = engine_for(Backprop(), network, UpdateRule(sgd_of, clip=0.2), freeze=(1,))
    plain = copy.deepcopy(engine.chain)
    trained = [p for n in (0, 2) for p in plain.blocks[n].parameters()]
    optimizer = sgd_of(trained)
    for x, y in batches():
        engine.step((x, y))
        for block in plain.blocks:
            x = block.net(x)
        F.cross_entropy(x, y).backward()
        nn.utils.clip_grad_norm_(trained, 0.2)
        optimizer.step()
        optimizer.zero_grad()
    for (name, p), (_, q) in zip(engine.chain.named_parameters(), plain.named_parameters(), strict=True):
        assert torch.equal(p, q), name


@pytest.mark.parametrize("block", [0, 2], ids=["first", "last"])
def test_what_the_caller_has_frozen_of_a_block_stays_and_the_rest_trains(case: Case, block: int) -> None:
    network = small_net()
    slices = CutPlan(blocks=3)(network, some_batch()[0][:2])
    frozen = list(slices.nets[block].requires_grad_(False).parameters())
    engine = engine_for(case.method, network)
    before = {name: p.clone() for name, p in engine.chain.named_parameters()}
    for batch in batches():
        engine.step(batch)
    kept = {name for name, p in engine.chain.named_parameters() if torch.equal(before[name], p)}
    own = {id(p) for p in frozen}
    assert {name for name, p in engine.chain.named_parameters() if id(p) in own} <= kept != before.keys()


def test_where_everything_is_frozen_there_is_nothing_to_train() -> None:
    with pytest.raises(UsageError, match="all of whose parameters are frozen, expected some to train"):
        engine_for(Backprop(), small_net().requires_grad_(False))


class Cutting(nn.Module):
    """Stops gradients in its forward."""

    def forward(self, h: Tensor) -> Tensor:
        return h.detach()


def test_a_network_that_stops_gradients_is_no_backprops() -> None:
    torch.manual_seed(0)
    layers = [nn.Linear(16, 16), nn.Sequential(Cutting(), nn.Linear(16, 16)), nn.Linear(16, CLASSES)]
    network = nn.Sequential(nn.Sequential(nn.Flatten(), nn.Linear(128, 16)), *layers)
    with pytest.raises(UsageError, match="got a block whose objective has no gradient of its input, expected one to"):
        engine_for(Backprop(), network).step(some_batch())


def test_nothing_is_learnt_or_audited_without_gradients() -> None:
    engine = engine_for(LocalCE())
    start = {k: v.clone() for k, v in state_of(engine).items()}
    for work in (engine.step, engine.gradients):
        with torch.no_grad(), pytest.raises(UsageError, match=r"got training inside torch\.no_grad\(\)"):
            work(some_batch())
    assert_unchanged(engine, start)


def test_a_block_that_is_not_there_cannot_be_frozen() -> None:
    with pytest.raises(ValueError, match="got freeze=3, expected blocks, from 0 to 2"):
        engine_for(LocalCE(), freeze=(0, 3))


# ---- the order of work


class Saved:
    """Stands in a graph for a tensor it saved, and dies with it."""

    def __init__(self, tensor: Tensor) -> None:
        self.tensor = tensor.detach()


@pytest.mark.parametrize("streams", [True, False], ids=["one sweep", "two sweeps"])
def test_a_block_has_moved_and_its_graph_is_gone_before_the_next_one_starts(streams: bool) -> None:
    """For a program of one sweep.  Backprop shows the contrary, and with it that the test can see it."""
    engine = engine_for(LocalCE() if streams else Backprop(), small_net())
    alive: weakref.WeakSet[Saved] = weakref.WeakSet()
    start = [[p.detach().clone() for p in block.parameters()] for block in engine.chain.blocks]
    seen: list[tuple[bool, int]] = []

    def on_entry(index: int) -> None:
        before = zip(engine.chain.blocks[index - 1].parameters(), start[index - 1], strict=True)
        seen.append((all(not torch.equal(p, q) for p, q in before), len(alive)))

    for index in (1, 2):
        engine.chain.blocks[index].net.register_forward_pre_hook(lambda *_, index=index: on_entry(index))

    def pack(tensor: Tensor) -> Saved:
        saved = Saved(tensor)
        alive.add(saved)
        return saved

    gc.disable()  # freed by being let go of, not by a collector that happens to pass
    try:
        with saved_tensors_hooks(pack, lambda saved: saved.tensor):
            engine.step(some_batch())
    finally:
        gc.enable()
    assert len(seen) == 2
    for moved, graph in seen:
        assert moved == streams
        assert (graph == 0) == streams
    assert len(alive) == 0


@dataclass(frozen=True)
class Watching(LocalCE):
    """Counts, when a block starts, what earlier blocks emitted and is still alive."""

    emitted: list[weakref.ref[Emit]] = field(default_factory=list[weakref.ref[Emit]])
    alive: list[int] = field(default_factory=list[int])

    def program(self) -> Program:
        return (Up(self.watched),)

    def watched(self, cell: Cell, h: Tensor) -> Emit:
        self.alive.append(sum(emit() is not None for emit in self.emitted))
        emit = self.learn(cell, h)
        self.emitted.append(weakref.ref(emit))
        return emit


def test_of_what_a_block_emits_only_the_message_outlives_its_cell() -> None:
    method = Watching()
    engine_for(method).step(some_batch())
    assert method.alive == [0, 0, 0]


class Cut(LocalCE):
    def learn(self, cell: Cell, h: Tensor) -> Emit:
        emit = super().learn(cell, h)
        assert emit.loss is not None
        return replace(emit, loss=emit.loss.detach()) if cell.block.index == 1 else emit


def test_an_objective_without_a_gradient_is_refused_unless_its_block_is_frozen() -> None:
    with pytest.raises(UsageError, match=r"objective of block 1 \(pass learn\) that no parameter has a gradient of"):
        engine_for(Cut(), still_net()).step(some_batch())
    engine = engine_for(Cut(), still_net(), freeze=(1,))
    before = [[p.clone() for p in block.parameters()] for block in engine.chain.blocks]
    engine.step(some_batch())
    assert [
        any(not torch.equal(p, old) for p, old in zip(block.parameters(), its, strict=True))
        for block, its in zip(engine.chain.blocks, before, strict=True)
    ] == [True, False, True]


# ---- what a pass is told of the run, and sweeps at inference


@dataclass(frozen=True)
class Told(LocalCE):
    """Notes what share of the run every cell is told is done."""

    shares: list[float | None] = field(default_factory=list[float | None])

    def program(self) -> Program:
        return (Up(self.noted),)

    def noted(self, cell: Cell, h: Tensor) -> Emit:
        self.shares.append(cell.batch.progress)
        return self.learn(cell, h)


def test_every_cell_is_told_what_share_of_the_steps_is_done() -> None:
    """Blocks and micro-batches of a step alike; asking for gradients is no step, and past its end a run is done."""
    method = Told()
    engine = engine_for(method, accumulate=2, total_steps=4)
    for step in range(6):
        assert engine.progress == min(step / 4, 1.0)
        method.shares.clear()
        engine.gradients(some_batch())
        engine.step(some_batch())
        assert method.shares == [min(step / 4, 1.0)] * 3 * (1 + 2)


def test_a_resumed_engine_goes_on_at_its_share_of_the_run() -> None:
    first, second = (engine_for(Told(), total_steps=4) for _ in range(2))
    first.step(some_batch())
    second.load_state_dict(first.state_dict())
    assert second.progress == 0.25


def test_where_nobody_said_how_many_steps_there_are_a_cell_is_told_none() -> None:
    method = Told()
    engine = engine_for(method)
    engine.step(some_batch())
    assert method.shares == [None] * 3 and engine.progress is None


@pytest.mark.parametrize("steps", [0, -1])
def test_a_run_without_steps_is_refused(steps: int) -> None:
    with pytest.raises(ValueError, match=f"got total_steps={steps}, expected 1 or more"):
        engine_for(LocalCE(), total_steps=steps)


@dataclass(frozen=True)
class Counting(LocalCE):
    """Down, every block sends how many are after it; each doubles that; and up it is added to the logits."""

    def inference(self) -> Program:
        return Down(self.down), Each(self.double), Up(self.up)

    def sink(self, batch: Batch, shared: Message, task: Task) -> Message:
        return (torch.zeros(()),)

    def down(self, cell: Cell, after: Tensor) -> Emit:
        return Emit(send=(after + 1,), keep={"after": after})

    def double(self, cell: Cell) -> Emit:
        return Emit(keep={"after": 2 * cell.kept["after"]})

    def up(self, cell: Cell, h: Tensor) -> Emit:
        emit = self.read(cell, h)
        assert emit.logits is not None
        return Emit(send=emit.send, logits=emit.logits + cell.kept["after"])


def test_inference_may_sweep_down_before_it_sweeps_up() -> None:
    plain, counting = engine_for(LocalCE()), engine_for(Counting())
    x = some_batch()[0]
    for after, a, b in zip((2, 1, 0), plain.predict(x), counting.predict(x), strict=True):
        assert a is not None and b is not None and torch.equal(a + 2 * after, b)
    visits: list[tuple[int, int, list[str]]] = []
    counting.infer(x, lambda block, message, emit: visits.append((block.index, len(message), [*emit.keep])))
    kept = ["after"]
    down_and_each = [visit for n in (2, 1, 0) for visit in ((n, 1, kept), (n, 0, kept))]
    assert visits == [*down_and_each, *((n, 1, []) for n in range(3))]


# ---- bad input, and what an engine refuses


def state_of(engine: Streaming) -> dict[str, Tensor]:
    return {k: v.clone() for k, v in engine.state_dict().items()}


def assert_unchanged(engine: Streaming, before: dict[str, Tensor]) -> None:
    after = engine.state_dict()
    assert after.keys() == before.keys()
    assert [k for k in before if not torch.equal(before[k], after[k])] == []


def spoilt(kind: str) -> tuple[Tensor, Tensor]:
    x, y = some_batch()
    if kind == "nan":
        x[3, 0, 1, 1] = torch.nan
    if kind == "label -100":
        y[2] = -100
    if kind == "label too large":
        y[2] = CLASSES
    return {
        "shape": (x[:, :, :4], y),
        "fewer labels": (x, y[:3]),
        "empty": (x[:0], y[:0]),
        "float labels": (x, y.float()),
        "soft labels of another width": (x, torch.full((16, CLASSES + 1), 1 / (CLASSES + 1))),
    }.get(kind, (x, y))


@pytest.mark.parametrize(
    "kind",
    [
        "nan",
        "label -100",
        "label too large",
        "shape",
        "fewer labels",
        "empty",
        "float labels",
        "soft labels of another width",
    ],
)
def test_a_bad_batch_is_refused_before_anything_is_touched(kind: str) -> None:
    engine = engine_for(LocalCE(), rule=sgd(ema=0.9), accumulate=2)
    engine.step(some_batch(1))
    before = state_of(engine)
    with pytest.raises(ValueError, match="got "):
        engine.step(spoilt(kind))
    with pytest.raises(ValueError, match="got "):
        engine.gradients(spoilt(kind))
    assert_unchanged(engine, before)


def test_a_batch_that_accumulation_does_not_divide_is_refused() -> None:
    engine = engine_for(LocalCE(), accumulate=3)
    before = state_of(engine)
    with pytest.raises(ValueError, match="got 16 samples, expected a multiple of accumulate=3"):
        engine.step(some_batch())
    assert_unchanged(engine, before)


def test_no_micro_batches_are_refused() -> None:
    with pytest.raises(ValueError, match="got accumulate=0, expected 1 or more"):
        engine_for(LocalCE(), accumulate=0)


@pytest.mark.parametrize("left", ["all", "a part of a block"])
def test_a_step_trains_in_train_mode_however_the_network_was_left(left: str) -> None:
    """Whoever holds the network, or an export of it, may have put it in eval mode."""
    engine, untouched = engine_for(LocalCE()), engine_for(LocalCE())
    if left == "all":
        engine.predict(some_batch()[0])
    else:
        engine.method.export(engine.chain).eval()
    for e in (engine, untouched):
        e.step(some_batch())
    assert_unchanged(engine, state_of(untouched))


# ---- state


def test_a_state_is_keyed_by_part() -> None:
    network = nn.Sequential(nn.Flatten(), nn.Linear(128, 4), nn.BatchNorm1d(4), nn.Linear(4, CLASSES))
    engine = engine_for(LocalCE(), network, sgd(ema=0.9), blocks=1)
    engine.step(some_batch())
    parameters = {f"net.{i}.{name}" for i in ("0.1", "0.2", "1") for name in ("weight", "bias")}
    buffers = {f"net.0.2.{name}" for name in ("running_mean", "running_var", "num_batches_tracked")}
    expected = {"steps", "blocks.0/ema/n_averaged"}
    expected |= {f"blocks.0/{kind}/{name}" for kind in ("model", "ema") for name in parameters | buffers}
    expected |= {f"blocks.0/optim/{name}/momentum_buffer" for name in parameters}
    assert set(engine.state_dict()) == expected
    assert engine.state_dict()["steps"].item() == 1


def test_the_parts_of_a_shared_network_are_the_hub_and_the_blocks(case: Case) -> None:
    parts = {k.split("/")[0] for k in engine_for(case.method).state_dict()} - {"steps"}
    hub = {"hub"} if case.id.startswith("sid-shared") else set[str]()
    assert parts == hub | {f"blocks.{n}" for n in range(3)}


def wide_net() -> nn.Sequential:
    """Like small_net in all names, not in its shapes."""
    net = small_net()
    last = net[-4]
    assert isinstance(last, nn.Sequential)
    last[0] = nn.Conv2d(8, 16, 3, padding=1, bias=False)
    last[1] = nn.BatchNorm2d(16)
    net[-1] = nn.Linear(16, CLASSES)
    return net


@pytest.mark.parametrize(
    ("other", "named"),
    [
        (lambda: engine_for(LocalCE(), blocks=2), "blocks.0/model/"),
        (lambda: engine_for(Backprop()), "extras.head"),
        (lambda: engine_for(LocalCE(), wide_net()), "blocks.2/model/"),
        (lambda: engine_for(LocalCE(), rule=sgd(ema=0.9)), "ema/"),
    ],
    ids=["another cut", "another method", "another width", "with averages"],
)
def test_the_state_of_another_chain_is_refused_and_changes_nothing(other: Callable[[], Streaming], named: str) -> None:
    engine = engine_for(LocalCE())
    engine.step(some_batch())
    foreign = other()
    foreign.step(some_batch(1))
    for loading, state in ((engine, foreign.state_dict()), (foreign, engine.state_dict())):
        before = state_of(loading)
        with pytest.raises(ValueError, match=f"the saved state and this network differ at '.*{named}") as refused:
            loading.load_state_dict(state)
        assert "\n" not in str(refused.value)
        assert_unchanged(loading, before)


def test_a_loaded_state_is_a_copy() -> None:
    first, second = engine_for(LocalCE(), rule=sgd(ema=0.9)), engine_for(LocalCE(), rule=sgd(ema=0.9))
    first.step(some_batch())
    second.load_state_dict(first.state_dict())
    before = state_of(first)
    second.step(some_batch(1))
    assert_unchanged(first, before)
