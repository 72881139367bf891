"""The table that drives the conformance tests: one row per method and form."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import pytest
import torch
from torch import Tensor, nn

from sidestep.core.block import Chain
from sidestep.core.method import Method
from sidestep.core.task import Classification
from sidestep.engines.streaming import Streaming
from sidestep.engines.update import UpdateRule
from sidestep.methods.backprop import Backprop, BackpropCheckpointed
from sidestep.methods.bll import BLL
from sidestep.methods.bll_released import BLLReleased
from sidestep.methods.deep_supervision import DeepSupervision
from sidestep.methods.local_ce import LocalCE
from sidestep.methods.sid import SID
from tests import naive

CLASSES = naive.CLASSES
BLOCKS = 3


@dataclass(frozen=True)
class Case:
    """A method, what the program says of it, and its objective written from the paper."""

    id: str
    method: Method
    isolated: bool  # every block's loss reaches its own parameters only
    naive: Callable[[Chain, Tensor, Tensor], Tensor]  # (chain, x, y) -> (), the sum of all objectives
    rate: float = 1e-2  # from which 64 samples are learnt by heart
    is_mean: bool = True  # over samples, of nothing drawn, so that a batch's objective is the mean of its halves'


linear_bll = partial(BLL, family="bernoulli", read_out="linear", likelihood="plug-in")
"""BLL as most formulas are worked out, where nothing else is said: Bernoulli latents, read linearly, at the mean."""

HALVES = [0.5, 0.25, 0.125]  # r_i at alpha = 0.5

CASES = [
    Case("backprop", Backprop(), False, naive.backprop),
    Case("backprop-smoothed", Backprop(label_smoothing=0.1), False, partial(naive.backprop, smoothing=0.1)),
    Case("backprop_checkpointed", BackpropCheckpointed(), False, naive.backprop),
    Case(
        "deep_supervision",
        DeepSupervision(label_smoothing="sid"),
        False,
        partial(naive.with_heads, smoothings=HALVES, isolated=False),
    ),
    Case(
        "local_ce", LocalCE(label_smoothing=0.1), True, partial(naive.with_heads, smoothings=[0.1] * 3, isolated=True)
    ),
    Case(
        "local_ce-headed",
        LocalCE(last="head", head_depth=2),
        True,
        partial(naive.with_heads, smoothings=[0.0] * 3, isolated=True),
    ),
    Case("sid-trunk", SID(), True, partial(naive.sid, alphas=[0.5] * 3, direction="code", smoothing=0.0)),
    Case(
        "sid-trunk-paper",
        SID(direction="paper", label_smoothing=0.1, alpha="linear:1:0.3"),
        True,
        partial(naive.sid, alphas=[1.0, 0.65, 0.3], direction="paper", smoothing=0.1),
    ),
    Case(
        "sid-shared",
        SID(form="shared", alpha="1,0.5,0.25"),
        False,
        partial(naive.sid, alphas=[1.0, 0.5, 0.25], direction="code", smoothing=0.0),
    ),
    Case(
        "sid-trunk-residual",
        SID(belief="residual", label_smoothing=0.1),
        True,
        partial(naive.sid, alphas=[0.5] * 3, direction="code", smoothing=0.1, residual=True),
    ),
    Case(
        "sid-trunk-parallel",
        SID(belief="none", direction="paper", label_smoothing=0.1, alpha=0.3),
        True,
        partial(naive.parallel_heads, alphas=[0.3] * 3, direction="paper", smoothing=0.1),
    ),
    Case(
        "sid-shared-parallel",
        SID(form="shared", belief="none", alpha="1,0.5,0.25"),
        False,
        partial(naive.parallel_heads, alphas=[1.0, 0.5, 0.25], direction="code", smoothing=0.0),
    ),
    Case("bll", linear_bll(), True, naive.bll),
    Case(
        "bll-bootstrapped",
        linear_bll(centre="classes", bootstrap=True),
        True,
        partial(naive.bll, predicted=False, bootstrap=True),
    ),
    Case(
        "bll-linear",
        linear_bll(twin="linear", predict="classifier", family="gaussian", likelihood="closed"),
        True,
        partial(naive.bll, chained=False, classifier=True, family="gaussian"),
        rate=3e-2,
    ),
    Case(
        "bll-lifted",
        BLL(twin="mirror", likelihood="plug-in", read_out="lifted", head_width=16),
        True,
        partial(naive.bll, family="gaussian", lifted=True),
        rate=1e-3,
    ),
    Case(
        "bll-sampled",
        BLL(),
        True,
        partial(naive.bll, family="gaussian", lifted=True, sampled=True),
        rate=1e-3,
        is_mean=False,
    ),
    Case(
        "bll-gaussian",
        linear_bll(
            family="gaussian", least_precision=1.0, likelihood="closed", m=0.5, kl_weight=0.7, label_smoothing=0.1
        ),
        True,
        partial(naive.bll, m=0.5, w=0.7, smoothing=0.1, family="gaussian", least=1.0),
    ),
    Case("bll_released", BLLReleased(heads="trained"), True, naive.bll_released, is_mean=False),
]

MEANS = [case for case in CASES if case.is_mean]

in_each_precision = pytest.mark.parametrize("autocast", [None, torch.bfloat16], ids=["float32", "bfloat16"])

FIGURES: dict[str, list[float]] = {}
"""What tests of faults have measured, by what it is."""


@pytest.fixture
def figure() -> Callable[[str, float], None]:
    """Note a figure of this name; all of a name are summed up when the tests are over."""
    return lambda name, value: FIGURES.setdefault(name, []).append(value)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    for name, values in FIGURES.items():
        low, middle, high = min(values), statistics.median(values), max(values)
        terminalreporter.write_line(f"{name}: {middle:.2f} ({low:.2f} to {high:.2f}), {len(values)} times")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "case" in metafunc.fixturenames:
        metafunc.parametrize("case", CASES, ids=[case.id for case in CASES])


def small_net(seed: int = 0, dropout: float = 0.1) -> nn.Sequential:
    """A convolutional chain with everything that is easily got wrong: BatchNorm, dropout, in-place ReLU, pooling."""
    torch.manual_seed(seed)

    def unit(inputs: int, outputs: int) -> nn.Sequential:
        conv = nn.Conv2d(inputs, outputs, 3, padding=1, bias=False)
        return nn.Sequential(conv, nn.BatchNorm2d(outputs), nn.ReLU(inplace=True), nn.Dropout(dropout))

    readout = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, CLASSES)]
    return nn.Sequential(unit(2, 8), unit(8, 8), nn.MaxPool2d(2), unit(8, 8), unit(8, 8), *readout)


def some_batch(seed: int = 0, size: int = 16) -> tuple[torch.Tensor, torch.Tensor]:
    g = torch.Generator().manual_seed(seed)
    return torch.randn(size, 2, 8, 8, generator=g), torch.randint(CLASSES, (size,), generator=g)


def small_task() -> Classification:
    return Classification(CLASSES, some_batch()[0][:2])


def sgd(lr: float = 0.05, **more: object) -> UpdateRule:
    return UpdateRule(lambda ps: torch.optim.SGD(ps, lr=lr, momentum=0.9, nesterov=True, weight_decay=5e-4), **more)  # pyright: ignore[reportArgumentType]


def adam(lr: float = 3e-3, **more: object) -> UpdateRule:
    return UpdateRule(lambda ps: torch.optim.AdamW(ps, lr=lr, fused=True), **more)  # pyright: ignore[reportArgumentType]


def engine_for(
    method: Method,
    model: nn.Module | None = None,
    rule: UpdateRule | None = None,
    blocks: int = BLOCKS,
    **options: object,
) -> Streaming:
    """An engine over freshly built blocks, equal for equal arguments."""
    from sidestep.core.cut import CutPlan

    model = small_net() if model is None else model
    device = next(model.parameters()).device
    torch.manual_seed(1)
    task = Classification(CLASSES, some_batch()[0][:2].to(device))
    chain = method.build(model, task, CutPlan(blocks=blocks))
    for _, part in chain.parts():
        part.to(device)
    return Streaming(method, chain, task, rule or sgd(), **options)  # pyright: ignore[reportArgumentType]
