from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sidestep.bench.reference import ReferenceSID
from sidestep.core.cut import CutPlan
from sidestep.core.task import Classification
from sidestep.engines.streaming import Streaming
from sidestep.engines.update import UpdateRule
from sidestep.methods.sid import SID
from sidestep.models import build

CLASSES = 10
MODULES = 3


def reference(alpha: float = 0.5) -> ReferenceSID:
    """The naive loop on the extractor of `simplecnn`, for 8 x 8 images."""
    torch.manual_seed(0)
    extractor = nn.Sequential(*list(build("simplecnn", (1, 8, 8), CLASSES))[:-1])
    return ReferenceSID(extractor, 128, CLASSES, modules=MODULES, alpha=alpha)


def some_batch(dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(0)
    return torch.randn(16, 1, 8, 8, generator=g).to(dtype), torch.randint(CLASSES, (16,), generator=g)


def gradients(sid: ReferenceSID, batch: tuple[Tensor, Tensor]) -> list[Tensor]:
    parameters = list(sid.network.parameters())
    return list(torch.autograd.grad(sid.loss(batch), parameters))


@pytest.mark.parametrize("alpha", [0.3, 1.0])
def test_loss_and_gradients_are_those_of_the_equations(alpha: float) -> None:
    sid = reference(alpha)
    sid.network.double()
    x, y = some_batch(torch.double)
    z = sid.extractor(x)
    one_hot = F.one_hot(y, CLASSES).double()
    p = torch.full_like(one_hot, 1 / CLASSES)
    logits: list[Tensor] = []
    deltas: list[Tensor] = []
    loss = torch.zeros((), dtype=torch.double)
    for module in sid.beliefs:
        logits.append(module(torch.cat([p, z], 1)))
        q = logits[-1].detach().softmax(1)
        target = -q.gather(1, y[:, None]).log().squeeze(1)
        loss += (alpha * target + (1 - alpha) * (p * (p / q).log()).sum(1)).mean()
        deltas.append((q - (alpha * one_hot + (1 - alpha) * p)) / len(y))
        p = q
    expected = torch.autograd.grad(logits, list(sid.network.parameters()), deltas)
    # float64 on both sides; the softmax's own derivative rounds otherwise than the closed form.
    torch.testing.assert_close(sid.loss((x, y)).detach(), loss, rtol=1e-12, atol=0)
    for found, wanted in zip(gradients(sid, (x, y)), expected, strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-9, atol=1e-13)


@pytest.mark.parametrize("alpha", [0.3, 1.0])
def test_the_engine_finds_the_same_gradients_and_predictions_on_the_same_weights(alpha: float) -> None:
    sid = reference(alpha)
    batch = some_batch()
    task, method = Classification(CLASSES, batch[0][:2]), SID(alpha=alpha, form="shared")
    chain = method.build(build("simplecnn", (1, 8, 8), CLASSES), task, CutPlan(blocks=MODULES))
    own = dict(chain.named_parameters())
    with torch.no_grad():
        for ours, theirs in zip(own.values(), sid.network.parameters(), strict=True):
            ours.copy_(theirs)
    engine = Streaming(method, chain, task, UpdateRule(torch.optim.Adam))
    found = engine.gradients(batch)
    # float32, with beliefs kept as logarithms and the modules' gradients added in another order.
    for name, wanted in zip(own, gradients(sid, batch), strict=True):
        torch.testing.assert_close(found[name], wanted, rtol=1e-4, atol=1e-6, msg=lambda m, name=name: f"{name}: {m}")
    last = engine.predict(batch[0])[-1]
    assert last is not None
    torch.testing.assert_close(last, sid.predict(batch[0]), rtol=1e-5, atol=1e-6)


def test_no_module_learns_through_the_belief_of_the_one_before() -> None:
    sid = reference()
    x, y = some_batch()
    first = list(sid.beliefs[0].parameters())
    before = torch.autograd.grad(sid.loss((x, y)), first)
    with torch.no_grad():
        for parameter in sid.beliefs[1].parameters():
            parameter.add_(0.1)  # changes every later belief, and nothing that module 0 may feel
    for a, b in zip(before, torch.autograd.grad(sid.loss((x, y)), first), strict=True):
        assert torch.equal(a, b)


def test_a_step_is_one_adam_step_of_every_part() -> None:
    sid = reference()
    twin = copy.deepcopy(sid.network)
    batch = some_batch()
    # Adam treats every element alone: one optimizer for all is the same as one for each part.
    adam = torch.optim.Adam(twin.parameters(), lr=1e-3)
    for p, gradient in zip(twin.parameters(), gradients(sid, batch), strict=True):
        p.grad = gradient
    adam.step()
    expected = sid.loss(batch).item()
    assert sid.step(batch) == expected
    for a, b in zip(sid.network.parameters(), twin.parameters(), strict=True):
        assert torch.equal(a, b)


def test_it_learns_a_batch_by_heart() -> None:
    sid = reference()
    x, y = some_batch()
    for _ in range(150):
        sid.step((x, y))
    assert torch.equal(sid.predict(x).argmax(-1), y)
