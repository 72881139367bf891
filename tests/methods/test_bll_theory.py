"""What BLL's theory speaks of, against sums over all latents, autograd's own adjoints, and directions known beforehand.

B batch, C classes, N natural parameters.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sidestep.core.cell import Batch
from sidestep.core.cut import CutPlan
from sidestep.core.keys import generator
from sidestep.core.task import Classification
from sidestep.engines.streaming import Streaming
from sidestep.families.bernoulli import Bernoulli
from sidestep.families.family import inner
from sidestep.methods.bll import BLL
from sidestep.methods.bll_theory import bound_and_gap, weight_angle
from sidestep.methods.latent_block import parts
from sidestep.methods.local_ce import LocalCE
from tests.conftest import CLASSES, linear_bll, sgd
from tests.families.laws import latent_fields


def flat_engine(method: BLL) -> tuple[Streaming, Tensor]:
    torch.manual_seed(0)
    hidden = [part for _ in range(2) for part in (nn.Linear(6, 6), nn.Sigmoid())]
    model = nn.Sequential(nn.Linear(5, 6), nn.Sigmoid(), *hidden, nn.Linear(6, CLASSES))
    x = torch.randn(12, 5, generator=torch.Generator().manual_seed(1))
    task = Classification(CLASSES, x[:2])
    return Streaming(method, method.build(model, task, CutPlan(3)), task, sgd()), x


def test_angles_are_those_to_the_networks_own_jacobian() -> None:
    """The first block's messages, set to the Jacobian, then against it, then to what is orthogonal to it."""
    engine, x = flat_engine(linear_bll(twin="linear"))
    first, second, last = engine.chain.blocks
    latents = [parts(block)[0] for block in (first, second, last)]
    own = parts(last)[1]

    def answer(z: Tensor) -> Tensor:
        """Mean logits of what the first block's means are, (B, 6)."""
        h = second.net(latents[0].features(z[:, None])).sigmoid()
        return (last.net(h).sigmoid() @ own.messages(own(torch.eye(CLASSES)))[:, 0].mT).mean(0)

    jacobian = torch.autograd.functional.jacobian(answer, first.net(x).sigmoid()).sum(1)  # (C, 6)
    jacobian = jacobian - jacobian.mean(0)
    say = parts(first)[1].say
    assert isinstance(say, nn.Linear)
    sideways = torch.randn(CLASSES, 6, generator=torch.Generator().manual_seed(3))
    sideways = sideways - sideways.mean(0)
    sideways -= jacobian * (sideways * jacobian).sum() / jacobian.square().sum()
    for weight, degrees in ((jacobian, 0.0), (-2 * jacobian, 180.0), (sideways, 90.0)):
        with torch.no_grad():
            say.weight.copy_(weight.mT)
        found = diagnosed(engine, x)["angle"]
        # acos is steep at its ends: a cosine off by 1e-7 is 0.03 degrees.
        assert found[0] == pytest.approx(degrees, abs=0.1)
        assert found[1] is not None and 0 < found[1] < 180 and found[2] is None


@pytest.mark.parametrize(
    "method",
    [
        BLL(),
        linear_bll(family="gaussian"),
        linear_bll(read_out="lifted", twin="mirror"),
        linear_bll(predict="classifier"),
        linear_bll(family="categorical", states=3),
    ],
    ids=["default", "gaussian", "lifted", "classifier", "categorical"],
)
def test_a_twin_drawn_by_itself_knows_little_of_the_forward_weights(method: BLL) -> None:
    """Random directions in some 24 numbers: all within 50 degrees of orthogonal, on average within 10."""
    engine, x = flat_engine(method)
    seen: list[float] = []
    for seed in range(20):
        torch.manual_seed(seed)
        for block in engine.chain.blocks[:2]:
            for layer in parts(block)[1].modules():
                if isinstance(layer, nn.Linear):
                    layer.reset_parameters()
        seen += [a for a in diagnosed(engine, x)["angle"][:2] if a is not None]
    assert len(seen) == 40
    assert abs(sum(seen) / 40 - 90) < 10 and all(40 < a < 140 for a in seen)


@pytest.mark.parametrize("conv", [False, True])
def test_the_angle_between_a_mirror_and_the_weights_it_goes_back_over(conv: bool) -> None:
    """0 where it is the forward map's adjoint, which torch computes by itself; None where shapes differ."""
    torch.manual_seed(0)
    if conv:
        ahead, step = nn.Conv2d(2, 3, 3, padding=1, bias=False), nn.Conv2d(3, 2, 3, padding=1, bias=False)
        x, y = torch.randn(1, 2, 5, 5), torch.randn(1, 3, 5, 5)
    else:
        ahead, step = nn.Linear(4, 3, bias=False), nn.Linear(3, 4, bias=False)
        x, y = torch.randn(1, 4), torch.randn(1, 3)
    (adjoint,) = torch.autograd.grad((ahead(x.requires_grad_()) * y).sum(), x)
    net = nn.Sequential(ahead, nn.BatchNorm2d(3) if conv else nn.Sigmoid())
    found = weight_angle(nn.Sequential(step, nn.ReLU()), net)
    assert found is not None and 45 < found < 135
    with torch.no_grad():
        step.weight.copy_(ahead.weight.transpose(0, 1).flip(2, 3) if conv else ahead.weight.mT)
    torch.testing.assert_close(step(y), adjoint)  # float32: sums of another order
    # acos is steep at its ends: a cosine off by 1e-7 is 0.03 degrees.
    assert weight_angle(nn.Sequential(step, nn.ReLU()), net) == pytest.approx(0, abs=0.1)
    assert weight_angle(step, nn.Sequential(ahead, nn.Linear(3, 3))) is None
    assert weight_angle(nn.Linear(3, 5), nn.Linear(4, 3)) is None


def test_a_mirror_alone_has_weights_to_compare() -> None:
    engine, x = flat_engine(linear_bll(twin="mirror"))
    found = diagnosed(engine, x)["weight_angle"]
    assert [a is None for a in found] == [False, False, True] and all(30 < a < 150 for a in found[:2] if a is not None)
    assert "weight_angle" not in diagnosed(*flat_engine(linear_bll()))


# ---------------------------------------------------------------------------------- bounds measured


@pytest.mark.parametrize("m", [0.0, 0.5, 1.0])
def test_the_measured_bound_and_its_gap_are_the_enumerated_ones(m: float) -> None:
    """Three binary units, many samples of one law: F is the sum over all eight states, the gap from below."""
    law, count = Bernoulli(), 4000
    random = torch.Generator().manual_seed(2)
    a, b = (2 * torch.randn(3, generator=random, dtype=torch.float64) for _ in range(2))
    rho, prices = law.product(a, b, m), torch.randn(2, 2, 2, generator=random, dtype=torch.float64).exp()

    def price(z: Tensor) -> Tensor:
        return prices[tuple(z.long().unbind(-1))]

    z = torch.cartesian_prod(*[torch.tensor([0.0, 1.0], dtype=torch.float64)] * 3)
    exact = (law.log_prob(z, rho).exp() * (law.log_prob(z, rho) - law.log_prob(z, a) + price(z))).sum()
    truth = -(law.log_prob(z, a) - price(z)).logsumexp(0)
    a_each, rho_each = (eta.expand(count, 1, 3) for eta in (a, rho))  # one position
    bound, gap = bound_and_gap(law, a_each, rho_each, lambda t: price(t[:, 0]), random)
    # Of 16 draws for each of 4,000: three standard errors, the spread of one draw being about 1.
    assert bound == pytest.approx(exact.item(), abs=3 / (16 * count) ** 0.5)
    assert 0 < gap < (exact - truth).item() + 3 / (16 * count) ** 0.5


def test_a_bound_at_the_posterior_has_no_gap() -> None:
    """p(z|y) of one binary unit has the log-odds a + price(0) - price(1)."""
    law, a = Bernoulli(), torch.tensor([[[0.3]], [[-1.2]]], dtype=torch.float64)
    price = torch.tensor([0.4, 1.7], dtype=torch.float64)
    bound, gap = bound_and_gap(law, a, a + price[0] - price[1], lambda z: price[z[:, 0, 0].long()], generator(0))
    exact = -torch.stack([law.log_prob(torch.full((2, 1, 1), z).double(), a) - price[z] for z in (0, 1)]).logsumexp(0)
    # Sums of float64 numbers of size 1.
    assert gap == pytest.approx(0, abs=1e-14) and bound == pytest.approx(exact.mean().item(), abs=1e-14)


@pytest.mark.parametrize("family", ["bernoulli", "gaussian", "categorical", "laplace"])
def test_the_bound_of_a_linear_read_out_is_the_closed_form(family: Any) -> None:
    """At m = 0, where KL is 0: log sum_y' exp(A(a + b_y') - A(a)) - b_y . E[t(z)], of every block's own parts.

    It is above the expected price under alpha, of which 400 draws say where it is but for four standard errors.
    """
    method = linear_bll(**latent_fields(family), m=0.0)
    engine, x = flat_engine(method)
    found = diagnosed(engine, x)
    for k, block in enumerate(engine.chain.blocks):
        latents, twin, _ = parts(block)
        assert twin.classes == CLASSES and len(found["bound"]) == 3
        h = x
        for before in engine.chain.blocks[:k]:
            own = parts(before)[0]
            h = own.features(own.family.mean_told(own(before.net(h))))
        a, random = latents(block.net(h)), generator(9)
        state = torch.eye(CLASSES)
        for behind in reversed(engine.chain.blocks[k:]):
            state = parts(behind)[1](state)
        y, law, messages = torch.arange(len(x)) % CLASSES, latents.family, twin.messages(state)
        steps = [law.log_partition(law.tilted(a, b)) - law.log_partition(a) for b in messages]  # (B, 1) each
        prices = torch.stack(steps, -1).sum(1).logsumexp(-1) - (messages[y] * law.mean_told(a)).sum((1, 2))
        bound, gap = found["bound"][k], found["gap"][k]
        assert bound is not None and gap is not None
        assert bound == pytest.approx(prices.mean().item(), rel=1e-5)  # float32
        drawn = torch.stack([F.cross_entropy(inner(law.told(law.sample(a, random)), messages), y) for _ in range(400)])
        assert bound >= drawn.mean().item() - 4 * drawn.std().item() / 400**0.5
        assert 0 <= gap <= bound + 1e-6  # a label's likelihood is at most 1


def diagnosed(engine: Streaming, x: Tensor) -> Mapping[str, Sequence[float | None]]:
    y = torch.arange(len(x)) % CLASSES
    with torch.no_grad():
        return engine.method.diagnostics(engine.chain, Batch(x, y, progress=1.0), engine.task)


def test_a_method_without_a_theory_of_its_own_has_no_diagnostics() -> None:
    engine, x = flat_engine(linear_bll())
    assert LocalCE().diagnostics(engine.chain, Batch(x, None), engine.task) == {}
