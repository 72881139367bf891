from __future__ import annotations

import copy
from collections.abc import Callable, Iterable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sidestep.bench.plain import CheckpointedStep, DeepSupervisionStep, PlainStep, PlainTraining
from sidestep.core.block import Chain
from sidestep.core.cut import CutPlan
from sidestep.core.method import Method
from sidestep.core.task import Classification
from sidestep.engines.streaming import Streaming
from sidestep.engines.update import UpdateRule
from sidestep.methods.backprop import Backprop, BackpropCheckpointed
from sidestep.methods.deep_supervision import DeepSupervision

CLASSES = 5
STEPS = 5


def conv_net() -> nn.Sequential:
    """Four convolutions with BatchNorm and in-place ReLU, a pool between them, and a linear read-out."""
    torch.manual_seed(0)

    def unit(inputs: int, outputs: int) -> nn.Sequential:
        conv = nn.Conv2d(inputs, outputs, 3, padding=1, bias=False)
        return nn.Sequential(conv, nn.BatchNorm2d(outputs), nn.ReLU(inplace=True))

    read_out = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, CLASSES)]
    return nn.Sequential(unit(2, 8), unit(8, 8), nn.MaxPool2d(2), unit(8, 8), unit(8, 8), *read_out)


def batches() -> list[tuple[Tensor, Tensor]]:
    g = torch.Generator().manual_seed(0)
    return [(torch.randn(16, 2, 8, 8, generator=g), torch.randint(CLASSES, (16,), generator=g)) for _ in range(STEPS)]


def sgd(parameters: Iterable[nn.Parameter]) -> torch.optim.SGD:
    return torch.optim.SGD(parameters, lr=0.05, momentum=0.9, weight_decay=5e-4)


def plain_version(chain: Chain, make: Callable[..., PlainTraining], options: dict[str, Any]) -> PlainTraining:
    """The same network on the same weights, as one graph."""
    nets = [block.net for block in chain.blocks]
    optimizer = sgd(p for _, p in chain.named_parameters())
    if make is DeepSupervisionStep:
        return make(nets, [block.extras["head"] for block in chain.blocks[:-1]], optimizer, **options)
    return make(nn.Sequential(*nets) if make is PlainStep else nets, optimizer, **options)


def test_a_plain_step_is_the_loop_written_by_hand() -> None:
    net, by_hand = conv_net(), conv_net()
    x, y = batches()[0]
    loss = PlainStep(net, torch.optim.SGD(net.parameters(), lr=0.1), label_smoothing=0.1).step((x, y))
    log_p = F.log_softmax(by_hand(x), -1)
    target = 0.9 * F.one_hot(y, CLASSES) + 0.1 / CLASSES
    expected = -(target * log_p).sum(-1).mean()
    gradients = torch.autograd.grad(expected, list(by_hand.parameters()))
    # torch's cross-entropy adds the smoothed part in another order: float32 rounding, and no more.
    torch.testing.assert_close(loss, expected.detach(), rtol=1e-6, atol=0)
    for p, q, gradient in zip(net.parameters(), by_hand.parameters(), gradients, strict=True):
        torch.testing.assert_close(p, q - 0.1 * gradient, rtol=1e-5, atol=1e-7)
        assert p.grad is None


def test_without_smoothing_it_is_the_same_bit_for_bit() -> None:
    net, by_hand = conv_net(), conv_net()
    optimizer, other = sgd(net.parameters()), sgd(by_hand.parameters())
    step = PlainStep(net, optimizer)
    for x, y in batches():
        loss = step.step((x, y))
        other.zero_grad()
        expected = F.cross_entropy(by_hand(x), y)
        expected.backward()
        other.step()
        assert torch.equal(loss, expected.detach())
    assert_equal(net.state_dict(), by_hand.state_dict())


def test_clipping_limits_the_norm_of_the_whole_step() -> None:
    net = conv_net()
    before = [p.detach().clone() for p in net.parameters()]
    PlainStep(net, torch.optim.SGD(net.parameters(), lr=1.0), clip=0.01).step(batches()[0])
    moved = torch.cat([(p.detach() - q).flatten() for p, q in zip(net.parameters(), before, strict=True)])
    # Moves of 1e-4 on weights near 1 keep about three digits in float32.
    torch.testing.assert_close(moved.norm(), torch.tensor(0.01), rtol=1e-3, atol=0)


def test_soft_labels_are_learnt_like_the_hard_ones_they_stand_for() -> None:
    nets = conv_net(), conv_net()
    x, y = batches()[0]
    for net, target in zip(nets, (y, F.one_hot(y, CLASSES).float()), strict=True):
        PlainStep(net, sgd(net.parameters())).step((x, target))
    for p, q in zip(nets[0].parameters(), nets[1].parameters(), strict=True):
        # Soft labels are a sum over classes, of which all but one term are 0, divided by the batch at another place.
        torch.testing.assert_close(p, q, rtol=1e-5, atol=1e-7)


def test_checkpointing_gives_the_bits_of_plain_backprop_statistics_included() -> None:
    net = conv_net()
    again = copy.deepcopy(net)
    plain = PlainStep(net, sgd(net.parameters()))
    checkpointed = CheckpointedStep([again[:2], again[2:4], again[4:]], sgd(again.parameters()))
    for batch in batches():
        assert torch.equal(plain.step(batch), checkpointed.step(batch))
    assert_equal(net.state_dict(), again.state_dict())


def test_every_segment_but_the_last_is_computed_again() -> None:
    """The last one's graph is wanted at once: to compute it again costs time and saves nothing."""
    net = conv_net()
    segments = [net[:2], net[2:4], net[4:]]
    runs = [0, 0, 0]

    def counted(n: int) -> None:
        runs[n] += 1

    for n, segment in enumerate(segments):
        segment.register_forward_pre_hook(lambda *_, n=n: counted(n))
    CheckpointedStep(segments, sgd(net.parameters())).step(batches()[0])
    assert runs == [2, 2, 1]


CONTROLS: list[tuple[type[Method], Callable[..., PlainTraining]]] = [
    (Backprop, PlainStep),
    (BackpropCheckpointed, CheckpointedStep),
    (DeepSupervision, DeepSupervisionStep),
]


@pytest.mark.parametrize("autocast", [None, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize("clip", [None, 0.5], ids=["free", "clipped"])
@pytest.mark.parametrize(("method", "make"), CONTROLS, ids=[make.__name__ for _, make in CONTROLS])
def test_the_program_of_each_control_gives_the_bits_of_plain_autograd(
    method: Callable[..., Method],
    make: Callable[..., PlainTraining],
    clip: float | None,
    autocast: torch.dtype | None,
) -> None:
    control = method(label_smoothing=0.1)
    task = Classification(CLASSES, batches()[0][0][:2])
    chain = control.build(conv_net(), task, CutPlan(blocks=3))
    twin = copy.deepcopy(chain)
    engine = Streaming(control, chain, task, UpdateRule(sgd, clip=clip), autocast=autocast)
    plain = plain_version(twin, make, {"label_smoothing": 0.1, "autocast": autocast, "clip": clip})
    for batch in batches():
        loss = engine.step(batch).loss.nansum()
        # One scalar is added up in another order; what is learnt from it is compared bit for bit.
        torch.testing.assert_close(plain.step(batch), loss, rtol=1e-6, atol=0)
    assert_equal(chain.state_dict(), twin.state_dict())


def assert_equal(a: dict[str, Tensor], b: dict[str, Tensor]) -> None:
    """Every parameter and every buffer, bit for bit."""
    assert a.keys() == b.keys()
    assert [name for name in a if not torch.equal(a[name], b[name])] == []
