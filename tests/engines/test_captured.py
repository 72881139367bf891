"""Steps as CUDA graphs: what is recorded and what is refused, with a device that is made up, and on one that is not."""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import contextmanager, nullcontext
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sidestep.engines import captured
from sidestep.engines.captured import WARM_UP, CapturedStep, Draws
from sidestep.engines.streaming import Streaming
from sidestep.engines.update import Updater, UpdateRule
from sidestep.methods.local_ce import LocalCE
from sidestep.methods.sid import SID
from tests.conftest import Case, engine_for, small_net, some_batch

Batch = tuple[Tensor, Tensor]


class Device:
    """Stands for CUDA.  A recording runs what it records, and replays it into the tensors that it left."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.step: Callable[[], tuple[Tensor]] | None = None
        self.left: tuple[Tensor] | None = None

        def itself(*_: object) -> Device:
            return self

        fakes: dict[str, object] = {
            "Stream": itself,
            "current_stream": itself,
            "stream": nullcontext,
            "CUDAGraph": itself,
            "graph": self.recording,
        }
        for name, fake in fakes.items():
            monkeypatch.setattr(captured.torch.cuda, name, fake)

    def wait_stream(self, other: object) -> None: ...

    @contextmanager
    def recording(self, graph: object, stream: object) -> Generator[None]:
        yield

    def replay(self) -> None:
        assert self.step is not None and self.left is not None
        for kept, new in zip(self.left, self.step(), strict=True):
            kept.copy_(new)


@pytest.fixture
def device(monkeypatch: pytest.MonkeyPatch) -> Device:
    return Device(monkeypatch)


class Doubling:
    """A step that says twice its inputs' sum, and how often it was called from Python."""

    def __init__(self, device: Device) -> None:
        self.device, self.calls = device, 0

    def __call__(self, batch: Batch) -> tuple[Tensor]:
        self.calls += 1
        x, _ = batch
        found = (2 * x.sum(),)
        self.device.step, self.device.left = (lambda: (2 * x.sum(),)), found
        return found


def some(step: int, size: int = 4) -> Batch:
    return torch.full((size,), float(step)), torch.zeros(size, dtype=torch.int64)


def test_after_a_warm_up_a_step_is_recorded_once_and_replayed_on_every_batch(device: Device) -> None:
    step = Doubling(device)
    recorded = CapturedStep(step, torch.device("cuda"))
    found = [recorded(some(n))[0] for n in range(WARM_UP + 4)]
    # Each call's own tensors, though a recording writes to the same ones.
    assert [float(f) for f in found] == [8.0 * n for n in range(WARM_UP + 4)]
    assert step.calls == WARM_UP + 1


def test_a_batch_of_another_shape_is_trained_on_eagerly_and_what_moved_is_recorded_anew(device: Device) -> None:
    step = Doubling(device)
    recorded = CapturedStep(step, torch.device("cuda"))
    for n in range(WARM_UP + 1):
        recorded(some(n))
    graph = recorded.graph
    assert float(recorded(some(5, size=3))[0]) == 30.0
    assert step.calls == WARM_UP + 2 and recorded.graph is graph
    recorded.forget()
    assert float(recorded(some(7))[0]) == 56.0 and recorded.graph is None
    assert step.calls == WARM_UP + 3


def test_what_cuda_refuses_to_record_is_said_in_a_line(device: Device) -> None:
    def waits(batch: Batch) -> tuple[Tensor]:
        if recorded.warm == WARM_UP:
            raise RuntimeError("operation not permitted when stream is capturing\nCompile with TORCH_USE_CUDA_DSA")
        return (batch[0],)

    recorded = CapturedStep(waits, torch.device("cuda"))
    for n in range(WARM_UP):
        recorded(some(n))
    with pytest.raises(ValueError, match=r"cannot record \(operation not permitted when stream is capturing\), exp"):
        recorded(some(0))


def test_no_graph_is_recorded_where_there_is_no_cuda() -> None:
    with pytest.raises(ValueError, match="got a CUDA graph on cpu, expected a CUDA device; leave --cuda-graph out"):
        engine_for(LocalCE(), small_net(dropout=0.0), cuda_graph=True)


Q = torch.ones(1, 1, 2, 4)
DRAWING: list[Callable[[], object]] = [
    lambda: nn.Dropout(0.1)(torch.ones(3)),
    lambda: F.scaled_dot_product_attention(Q, Q, Q, dropout_p=0.1),
    lambda: torch.randn(2, generator=torch.Generator()),
    lambda: torch.empty(3).bernoulli_(0.5),
    lambda: torch.distributions.Laplace(torch.zeros(2), 1.0).rsample(),
]
STILL: list[Callable[[], object]] = [
    lambda: nn.Dropout(0.0)(torch.ones(3)),
    lambda: F.scaled_dot_product_attention(Q, Q, Q),
]


def test_what_draws_is_found_and_what_could_but_drops_nothing_is_not() -> None:
    for drawing in DRAWING:
        with Draws() as draws:
            drawing()
        with pytest.raises(ValueError, match=r"got a step that draws \(aten\.\w+"):
            draws.refuse()
    with Draws() as draws:
        for still in STILL:
            still()
    draws.refuse()


def test_a_method_draws_only_where_it_samples(case: Case) -> None:
    """So all others can be recorded, on a network without dropout."""
    engine, batch = engine_for(case.method, small_net(dropout=0.0)), some_batch()
    with Draws() as draws:
        engine.step(batch)
    assert bool(draws.found) == (getattr(case.method, "likelihood", None) == "sample")


def test_a_rate_that_is_a_tensor_is_moved_in_its_place_and_means_the_same() -> None:
    """A rounding apart: a float32 rate beside a float64 one."""

    def trained(rate: Any) -> tuple[nn.Module, object]:
        torch.manual_seed(0)
        layer = nn.Linear(3, 2)
        rule = UpdateRule(lambda ps: torch.optim.Adam(ps, lr=rate, fused=True), schedule=lambda step: 0.5**step)
        updater = Updater(layer, rule)
        for step in range(3):
            layer(torch.ones(1, 3)).square().sum().backward()
            updater.set_rate(step, set())
            updater.step()
        assert updater.optimizer is not None
        return layer, updater.optimizer.param_groups[0]["lr"]

    rate = torch.tensor(0.1)
    (layer, _), (other, kept) = trained(0.1), trained(rate)
    assert kept is rate and float(rate) == pytest.approx(0.025, rel=1e-7)
    torch.testing.assert_close(other.state_dict(), layer.state_dict(), rtol=1e-6, atol=1e-7)


cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA")


def on_cuda(method: Any, graph: bool, dropout: float = 0.0) -> Streaming:
    def adam(parameters: Any) -> torch.optim.Optimizer:
        rate = torch.tensor(0.01, device="cuda")
        return torch.optim.Adam(parameters, lr=rate, fused=True, capturable=True)

    rule = UpdateRule(adam, schedule=lambda step: 0.9**step, clip=1.0)
    net = small_net(dropout=dropout).cuda()
    return engine_for(method, net, rule, cuda_graph=graph)


@cuda
@pytest.mark.parametrize("method", [LocalCE(), SID()])
def test_a_recorded_step_trains_as_an_eager_one(method: Any) -> None:
    """Kernels may be chosen otherwise while recording, hence the tolerance."""
    engines = [on_cuda(method, graph) for graph in (False, True)]
    for step in range(WARM_UP + 5):
        x, y = (part.cuda() for part in some_batch(step))
        losses = [engine.step((x, y)).loss for engine in engines]
        torch.testing.assert_close(losses[1], losses[0], rtol=1e-4, atol=1e-5)
    states = [engine.state_dict() for engine in engines]
    for name in states[0]:
        torch.testing.assert_close(states[1][name], states[0][name], rtol=1e-4, atol=1e-5)


@cuda
def test_dropout_is_refused_at_the_first_step() -> None:
    x, y = (part.cuda() for part in some_batch())
    with pytest.raises(ValueError, match="got a step that draws"):
        on_cuda(LocalCE(), True, dropout=0.5).step((x, y))
