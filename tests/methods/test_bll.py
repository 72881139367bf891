"""BLL against formulas written out by hand, its bound against sums over all latents, and what its fields mean.

B batch, C classes, D units, N natural parameters.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Iterator
from itertools import product
from typing import Any, NamedTuple

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sidestep.core.block import Block
from sidestep.core.cell import Batch, Cell
from sidestep.core.cut import CutPlan
from sidestep.core.task import Classification
from sidestep.engines.streaming import Streaming
from sidestep.errors import UsageError
from sidestep.families import FAMILIES
from sidestep.families.bernoulli import Bernoulli
from sidestep.families.family import Family, inner
from sidestep.families.gaussian import LEAST_SQUARE, Gaussian
from sidestep.methods.bll import BLL, mixture, of_label
from sidestep.models.chained import Chained
from sidestep.models.mlp import ResidualMLP
from sidestep.models.vit import vit_tiny
from sidestep.nn import tiles
from sidestep.nn.heads import Pool
from sidestep.nn.latents import Latents, by_position
from sidestep.nn.twins import Twin, twins
from tests import naive
from tests.conftest import CLASSES, adam, engine_for, linear_bll, sgd, small_net, some_batch
from tests.families.laws import STATES, channels, grid, latent_fields, statistics, told


@pytest.fixture
def double() -> Iterator[None]:
    torch.set_default_dtype(torch.double)
    yield
    torch.set_default_dtype(torch.float32)


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def softplus(x: float) -> float:
    return math.log1p(math.exp(x))


# ---- two blocks by hand: Bernoulli, 2 inputs, 2 units, 1 unit, 2 classes, an mlp twin of 2 hidden units

Rows = list[list[float]]
X: Rows = [[1.0, -0.5], [0.3, 2.0]]
Y = [0, 1]
STEP = "extras.twin.step"
SHARED = {"S": "extras.twin.say.layer.weight"}
NAMES = [  # of blocks 1 and 2; what reads a dense state is wrapped, and what adds to one
    {"W": "net.0.weight", "c": "net.0.bias", "V": f"{STEP}.layer.0.layer.weight", "d": f"{STEP}.layer.0.layer.bias"}
    | SHARED,
    {"W": "net.2.weight", "c": "net.2.bias", "V": f"{STEP}.0.weight", "d": f"{STEP}.0.bias"} | SHARED,
]
BLOCKS: list[dict[str, Rows]] = [
    {
        "W": [[0.5, -0.3], [0.2, 0.8]],
        "c": [[0.1, -0.2]],
        "V": [[0.6, -0.7], [0.4, 1.2]],
        "d": [[-0.1, 0.05]],
        "S": [[1.1, -0.9], [-0.2, 0.7]],
    },
    {
        "W": [[0.7, -1.1]],
        "c": [[0.3]],
        "V": [[0.9, -0.4], [-0.6, 0.5]],
        "d": [[0.1, 0.2]],
        "S": [[0.8, -0.5]],
    },
]
ONE_HOT: Rows = [[1.0, 0.0], [0.0, 1.0]]


def size(name: str) -> float:
    """How many times a parameter is what it stands for: a weight that reads a dense state of 2 units is kept larger."""
    return 2**0.5 if name.endswith("layer.weight") else 1.0


class ByHand(NamedTuple):
    kl: float
    miss: float
    gradients: dict[str, Rows]
    alpha: Rows  # of every sample
    u: Rows  # the state, of every class
    b: Rows  # the message, of every class


def by_hand(
    n: int, h: Rows, above: Rows, m: float, w: float, detach: str = "none", likelihood: Any = "plug-in"
) -> ByHand:
    """Block n's objective, the mean over samples, and its gradients, a number at a time."""
    own, keeps, share = BLOCKS[n], (1, 0)[n], (1 / 2, 1)[n]  # the first block adds half a layer to the state above
    W, (c,), V, (d,), S = (own[name] for name in "WcVdS")
    units, classes, hidden = range(len(W)), range(2), range(2)
    pre = [[sum(V[i][k] * above[y][k] for k in classes) + d[i] for i in hidden] for y in classes]
    u = [[keeps * above[y][i] + share * max(pre[y][i], 0.0) for i in hidden] for y in classes]
    said = [[sum(S[j][i] * u[y][i] for i in hidden) for j in units] for y in classes]
    b = [[said[y][j] - (said[0][j] + said[1][j]) / 2 for j in units] for y in classes]
    kl, miss, alphas = 0.0, 0.0, []
    da: Rows = []
    db = [[0.0 for _ in units] for _ in classes]
    for x, y in zip(h, Y, strict=True):
        a = [sum(W[j][i] * x[i] for i in hidden) + c[j] for j in units]
        r = [a[j] + m * b[y][j] for j in units]
        alpha, rho = [sigmoid(v) for v in a], [sigmoid(v) for v in r]
        alphas.append(alpha)
        kl += sum(rho[j] * m * b[y][j] - softplus(r[j]) + softplus(a[j]) for j in units) / 2
        # The classes' weights q, and the likelihood's derivatives by r_j and, directly, by b_j(k).
        if likelihood == "plug-in":
            score = [sum(b[k][j] * rho[j] for j in units) for k in classes]
        else:
            score = [sum(softplus(r[j] + b[k][j]) - softplus(r[j]) for j in units) for k in classes]
        total = sum(math.exp(s) for s in score)
        q = [math.exp(s) / total for s in score]
        miss += (math.log(total) - sum(b[y][j] * rho[j] for j in units)) / 2
        row: list[float] = []
        for j in units:
            spread = rho[j] * (1 - rho[j])
            if likelihood == "plug-in":
                by_r = sum((q[k] - (k == y)) * b[k][j] for k in classes) * spread
                by_b = [(q[k] - (k == y)) * rho[j] for k in classes]
            else:
                by_r = sum(q[k] * (sigmoid(r[j] + b[k][j]) - rho[j]) for k in classes) - b[y][j] * spread
                by_b = [q[k] * sigmoid(r[j] + b[k][j]) - (k == y) * rho[j] for k in classes]
            to_a, to_b = w * (alpha[j] - rho[j]), 0.0
            if detach == "none":
                to_a, to_b = to_a + w * spread * m * b[y][j], w * spread * m**2 * b[y][j]
            if detach != "both":
                to_a, to_b = to_a + by_r, to_b + m * by_r
            row.append(to_a / 2)
            for k in classes:
                db[k][j] += (by_b[k] + (k == y) * to_b) / 2
        da.append(row)
    ds = [[db[y][j] - (db[0][j] + db[1][j]) / 2 for j in units] for y in classes]
    dpre = [[share * sum(ds[y][j] * S[j][i] for j in units) * (pre[y][i] > 0) for i in hidden] for y in classes]
    gradients = {
        "W": [[sum(da[n][j] * h[n][i] for n in range(2)) for i in range(2)] for j in units],
        "c": [[da[0][j] + da[1][j] for j in units]],
        "V": [[sum(dpre[y][i] * above[y][k] for y in classes) for k in classes] for i in hidden],
        "d": [[dpre[0][i] + dpre[1][i] for i in hidden]],
        "S": [[sum(ds[y][j] * u[y][i] for y in classes) for i in hidden] for j in units],
    }
    return ByHand(kl, miss, gradients, alphas, u, b)


def two_blocks(**fields: Any) -> Streaming:
    """An engine whose parameters are BLOCKS'.  The ReLUs that close the blocks give way to the latents' means."""
    model = nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 1), nn.ReLU(), nn.Linear(1, 2))
    method, task = linear_bll(twin_width=2, centre="classes", **fields), Classification(2, torch.tensor(X))
    engine = Streaming(method, method.build(model, task, CutPlan(2, at=("2",))), task, sgd())
    for block, own, names in zip(engine.chain.blocks, BLOCKS, NAMES, strict=True):
        assert {name for name, _ in block.named_parameters()} == set(names.values())
        with torch.no_grad():
            for letter, values in own.items():
                p = block.get_parameter(names[letter])
                p.copy_(torch.tensor(values).reshape(p.shape) * size(names[letter]))
    return engine


def assert_equals(found: Tensor, expected: Rows) -> None:
    """Float64 rounds sums of numbers around 1 by some 1e-16."""
    torch.testing.assert_close(found, torch.tensor(expected).reshape(found.shape), rtol=1e-10, atol=1e-10)


@pytest.mark.usefixtures("double")
@pytest.mark.parametrize("likelihood", ["plug-in", "closed"])
@pytest.mark.parametrize(
    ("m", "w", "detach"),
    [(1.0, 1.0, "none"), (0.5, 0.7, "none"), (0.5, 0.7, "kl"), (0.5, 0.7, "both"), (0.0, 1.0, "none")],
)
def test_loss_and_every_gradient_of_two_blocks_by_hand(m: float, w: float, detach: str, likelihood: Any) -> None:
    engine = two_blocks(m=m, kl_weight=w, detach=detach, likelihood=likelihood)
    second = by_hand(1, by_hand(0, X, ONE_HOT, m, w).alpha, ONE_HOT, m, w, detach, likelihood)
    first = by_hand(0, X, second.u, m, w, detach, likelihood)
    batch = torch.tensor(X), torch.tensor(Y)
    found = engine.gradients(batch)
    assert len(found) == 10
    for n, block in enumerate((first, second)):
        for letter, rows in block.gradients.items():
            name = NAMES[n][letter]
            assert_equals(found[f"blocks.{n}.{name}"] * size(name), rows)
    step = engine.step(batch)
    assert_equals(step.loss, [[w * block.kl + block.miss for block in (first, second)]])
    for name in ("kl", "miss"):
        measured = [step.metrics[f"{n}/{name}"] for n in range(2)]
        assert_equals(torch.stack(measured), [[getattr(block, name) for block in (first, second)]])


@pytest.mark.usefixtures("double")
def test_messages_of_two_blocks_by_hand() -> None:
    """u_2(0) = relu(0.9 + 0.1, -0.6 + 0.2) = (1, 0), u_2(1) = relu(-0.3, 0.7) = (0, 0.7), and so b_2 = +-0.575.

    u_1(0) = u_2(0) + relu(0.6 - 0.1, 0.4 + 0.05) / 2, u_1(1) = u_2(1) + relu(-0.59, 0.84 + 0.05) / 2.
    """
    assert_equals(torch.tensor(by_hand(1, X, ONE_HOT, 1, 1).b), [[0.575], [-0.575]])
    chain = two_blocks().chain.blocks
    states: list[Tensor] = [torch.eye(2)]
    for block in reversed(chain):
        twin = block.extras["twin"]
        assert isinstance(twin, Twin)
        states.append(twin(states[-1]))
    assert_equals(states[1], [[1.0, 0.0], [0.0, 0.7]])
    assert_equals(states[2], [[1.25, 0.225], [0.0, 1.145]])
    first, second = (block.extras["twin"] for block in chain)
    assert isinstance(first, Twin) and isinstance(second, Twin)
    assert_equals(second.messages(states[1])[:, 0], [[0.575], [-0.575]])
    # Said: (1.375 - 0.2025, -0.25 + 0.1575) = (1.1725, -0.0925) and (-1.0305, 0.8015).
    assert_equals(first.messages(states[2])[:, 0], [[1.1015, -0.447], [-1.1015, 0.447]])


@pytest.mark.usefixtures("double")
@pytest.mark.parametrize("n", [0, 1])
def test_a_blocks_loss_reaches_its_own_network_and_twin_and_nothing_of_the_other(n: int) -> None:
    engine = two_blocks()
    batch = torch.tensor(X), torch.tensor(Y)
    alone, both = engine.gradients(batch, losses={n}), engine.gradients(batch)
    assert {name for name, g in alone.items() if g.any()} == {f"blocks.{n}.{name}" for name in NAMES[n].values()}
    assert all(torch.equal(gradient, both[name]) for name, gradient in alone.items() if gradient.any())


# ---- the bound


def latents_of(law: Family, units: int) -> tuple[Tensor, Tensor, Tensor]:
    """T(z), (points, N), and t(z), (points, D), at every value of `units` units, and log weights in a sum over them."""
    over = grid(law)
    index = torch.cartesian_prod(*[torch.arange(len(over.z))] * units).reshape(-1, units)
    z = over.z[index].mT.flatten(1)
    return statistics(law, z), told(law, z), over.log_weight[index].sum(-1)


def cell_of(method: BLL, units: int, y: Tensor, key: int = 0) -> Cell:
    """A cell of a block whose parts are there for their shapes."""
    law = method.law()
    latents = Latents(law, torch.Size([law.width(units) if law.width(1) == STATES else units]), mapped=False)
    block = Block(0, 1, nn.Identity(), latents=latents, twin=twins("linear", [latents], CLASSES, 1)[0])
    return Cell(block, Batch(torch.zeros(len(y), 1), y), Classification(CLASSES, torch.zeros(1, 1)), (), {}, key)


def objective(method: BLL, cell: Cell, a: Tensor, b: Tensor, m: float) -> Tensor:
    """F of every sample, (B,), from alpha's natural parameters (B, N) and the messages (C, N)."""
    b = b[:, None]  # one position
    far, seen = method.matched(method.law(), m, cell.generator(), a[:, None], b[cell.y], b)
    return far + method.miss(cell, seen, b)


SAMPLES = 20


@pytest.mark.parametrize("name", FAMILIES)
def test_in_closed_form_and_in_expectation_the_objective_bounds_the_read_outs_likelihood(name: Any) -> None:
    """1,000 cases each, messages as a twin sends them: F in closed form >= F in expectation >= -log E_alpha[p(y|z)].

    Slack: rounding for sums; for integrals what the trapezoidal rule makes of Laplace's kink, see families/laws.py.
    """
    g = torch.Generator().manual_seed(0)
    discrete = name in ("bernoulli", "categorical")
    method = linear_bll(**latent_fields(name), likelihood="closed")
    law, slack = method.law(), 1e-9 if discrete else 1e-4
    tightest = math.inf
    for i in range(1000 // SAMPLES):
        units = {"bernoulli": 1 + i % 6, "categorical": 1 + i % 3}.get(name, 1)
        t, known, log_weight = latents_of(law, units)
        width = law.width(units)
        raw = 3 * (2 * torch.rand(SAMPLES + CLASSES, width, generator=g, dtype=torch.double) - 1)
        a, b = law.to_natural(raw[:SAMPLES]), law.message(raw[SAMPLES:, : channels(law, units)])
        y = torch.randint(CLASSES, (SAMPLES,), generator=g)
        m = [0.0, 1.0, torch.rand((), generator=g).item()][min(i, 2)]
        rho = law.tilted(a, b[y], m)
        log_p = (known @ b.mT).log_softmax(-1).mT[y]  # (B, points), of the label
        log_alpha, log_rho = (
            (r @ t.mT) - law.log_partition(r)[:, None] + log_weight for r in (a, rho)
        )  # exp(eta . T - A), with the weight of the point
        expected = law.kl(rho, a) - (log_rho.exp() * log_p).sum(-1)
        likelihood = -(log_alpha + log_p).logsumexp(-1)
        closed = objective(method, cell_of(method, units, y), a, b, m)
        assert (closed >= expected - slack).all()
        assert (expected >= likelihood - slack).all()
        tightest = min(tightest, (closed - likelihood).min().item())
    assert tightest < 0.2  # a bound that says something


@pytest.mark.parametrize("m", [0.0, 0.5])
def test_at_the_mean_of_rho_the_objective_is_no_bound(m: float) -> None:
    """One unit, a = 0, b = +-2: p(0 | z) = sigmoid(4 z), so E_alpha[p] = (1/2 + sigmoid(4)) / 2 = 0.741.

    At the mean, m = 0: sigmoid(4 / 2) = 0.881.
    """
    a, b = torch.zeros(1, 1), torch.tensor([[2.0], [-2.0]])
    likelihood = -math.log((0.5 + sigmoid(4)) / 2)
    rho = sigmoid(2 * m)
    far = rho * 2 * m - softplus(2 * m) + softplus(0.0)
    plug_in, closed = linear_bll(likelihood="plug-in"), linear_bll(likelihood="closed")
    task = Classification(2, torch.zeros(1, 1))
    found = {}
    for method in (plug_in, closed):
        cell = cell_of(method, 1, torch.tensor([0]))
        cell.task = task
        found[method.likelihood] = objective(method, cell, a, b, m).item()
    assert found["plug-in"] == pytest.approx(far - math.log(sigmoid(4 * rho)), rel=1e-5)  # float32
    assert found["plug-in"] < likelihood - 0.1
    assert found["closed"] > likelihood


def test_a_sampled_likelihood_averages_to_the_expectation() -> None:
    """Two Bernoulli units; five standard errors of a mean over 20,000 draws, with the seed fixed."""
    n, method = 20_000, linear_bll(likelihood="sample")
    b = torch.tensor([[1.0, -2.0], [0.5, 0.5], [-1.5, 1.0], [0.0, 0.3], [0.0, 0.2]])
    rho, y = torch.tensor([0.4, -0.7]), 2
    cost = objective(method, cell_of(method, 2, torch.full((n,), y)), rho.expand(n, -1), b, 0.0)
    p = rho.sigmoid().tolist()
    expected = 0.0
    for z in product((0, 1), repeat=2):
        score = b @ torch.tensor([float(v) for v in z])
        weight = math.prod(q if v else 1 - q for q, v in zip(p, z, strict=True))
        expected -= weight * score.log_softmax(0)[y].item()
    assert abs(cost.mean().item() - expected) < 5 * cost.std().item() / n**0.5


def all_states(units: int) -> Tensor:
    return torch.cartesian_prod(*[torch.tensor([0.0, 1.0], dtype=torch.double)] * units).reshape(-1, units)


def log_law(a: Tensor, z: Tensor) -> Tensor:
    """log p(z) of Bernoulli units with log-odds a (..., D), at z (points, D): (..., points)."""
    return a @ z.mT + F.logsigmoid(-a).sum(-1, keepdim=True)


def test_over_a_chain_of_latents_the_marginal_objectives_bound_the_likelihood_and_the_block_local_ones_do_not() -> None:
    """x -> z_1 -> z_2 -> y with 3 and 2 Bernoulli units, every sum written out; 500 random networks and messages.

    With alpha_2 the marginal of z_2, and p(y | z_1) what the rest of the network makes of z_1, every F_k is
    -log p(y|x) and a KL.  The blocks know neither: block 2 gets z_1's mean, block 1 asks a read-out of its own.
    """
    g = torch.Generator().manual_seed(0)
    method, law, y = linear_bll(likelihood="closed"), Bernoulli(), torch.tensor([0])
    z1, z2 = all_states(3), all_states(2)
    below = 0
    for _ in range(500):
        a1, c, w = (3 * torch.randn(size, generator=g, dtype=torch.double) for size in ((1, 3), (2,), (2, 3)))
        b1, b2 = (law.message(3 * torch.randn(CLASSES, d, generator=g, dtype=torch.double)) for d in (3, 2))
        m = torch.rand((), generator=g).item()
        log_p1 = log_law(a1, z1)[0]
        log_next = log_law(z1 @ w.mT + c, z2)  # (z_1, z_2): log p(z_2 | z_1)
        log_p2 = (log_p1[:, None] + log_next).logsumexp(0)  # the marginal of z_2
        told2 = (z2 @ b2.mT).log_softmax(-1)[:, 0]  # log p(y | z_2), the network's read-out
        told1 = (log_next + told2).logsumexp(-1)  # log p(y | z_1)
        likelihood = -(log_p2 + told2).logsumexp(0)
        marginal: list[Tensor] = []
        for log_alpha, log_p, message in ((log_p1, told1, z1 @ b1[0]), (log_p2, told2, z2 @ b2[0])):
            log_rho = (log_alpha + m * message).log_softmax(0)
            marginal.append((log_rho.exp() * (log_rho - log_alpha - log_p)).sum())
        assert all(one >= likelihood - 1e-9 for one in marginal)  # rounding
        local = [
            objective(method, cell_of(method, 3, y), a1, b1, m),
            objective(method, cell_of(method, 2, y), a1.sigmoid() @ w.mT + c, b2, m),
        ]
        below += bool(sum(local) / 2 < likelihood - 0.1)
    assert below >= 5


@pytest.mark.usefixtures("double")
def test_a_network_trained_on_means_claims_more_than_one_that_samples_could_hold() -> None:
    """z_1 fair, p(z_2 = 1 | z_1) = sigmoid(8 z_1 - 2), p(y | z_2) = sigmoid(6 z_2): the last block's F by hand.

    Sampled: P(z_2 = 1) = (sigmoid(-2) + sigmoid(6)) / 2 = 0.558.  From the mean of z_1: sigmoid(2) = 0.881.
    """
    model = nn.Sequential(nn.Linear(1, 1), nn.ReLU(), nn.Linear(1, 1), nn.ReLU(), nn.Linear(1, 2))
    method, task = (
        linear_bll(m=0.3, centre="classes", twin="linear", likelihood="closed"),
        Classification(2, torch.zeros(1, 1)),
    )
    engine = Streaming(method, method.build(model, task, CutPlan(2, at=("2",))), task, sgd())
    values = [0.0, 0.0, [3.0, -3.0], 8.0, -2.0, [3.0, -3.0]]  # weight, bias and what the twin says, of both blocks
    with torch.no_grad():
        for (_, p), value in zip(engine.chain.named_parameters(), values, strict=True):
            p.copy_(torch.tensor(value))
    claimed = engine.step((torch.zeros(1, 1), torch.tensor([0]))).loss[1].item()
    r = 2 + 0.3 * 3
    rho = sigmoid(r)
    kl = rho * 0.9 - softplus(r) + softplus(2.0)
    price = math.log(sum(math.exp(softplus(r + b) - softplus(r)) for b in (3, -3))) - 3 * rho
    assert claimed == pytest.approx(kl + price, abs=1e-12)
    on = (sigmoid(-2) + sigmoid(6)) / 2
    assert claimed < -math.log(on * sigmoid(6) + (1 - on) * 0.5) - 0.1


# ---- what the KL teaches


@pytest.mark.parametrize("name", FAMILIES)
def test_to_first_order_in_m_a_centred_message_teaches_what_the_local_cross_entropy_does(name: Any) -> None:
    """dKL(sg rho || alpha)/da = m d(-log p(y | E_alpha[T]))/da + O(m^2), the message b(y) - sum_y' p(y') b(y').

    So halving m quarters the remainder.  Float64, at m = 1e-3.
    """
    method = linear_bll(**latent_fields(name))
    law, g = method.law(), torch.Generator().manual_seed(0)
    width = law.width(2)
    a = law.to_natural(torch.randn(8, width, generator=g, dtype=torch.double)).requires_grad_()
    b = law.message(torch.randn(CLASSES, channels(law, 2), generator=g, dtype=torch.double))
    y = torch.randint(CLASSES, (8,), generator=g)
    log_p = (law.mean_told(a) @ b.mT).log_softmax(-1)
    (local,) = torch.autograd.grad(-log_p[torch.arange(8), y].sum(), a, retain_graph=True)
    message = (b[y] - log_p.exp() @ b).detach()

    def remainder(m: float) -> float:
        (gradient,) = torch.autograd.grad(law.kl(law.tilted(a, message, m).detach(), a).sum(), a)
        return (gradient - m * local).norm().item()

    ratios = [remainder(m) / remainder(m / 2) for m in (2e-3, 1e-3)]
    assert ratios == pytest.approx([4, 4], abs=0.05)  # what is left is of third order
    assert remainder(1e-3) < 0.02 * 1e-3 * local.norm().item()


# ---- at a sample


def test_at_a_sample_that_is_its_mean_the_default_is_plug_in(monkeypatch: pytest.MonkeyPatch) -> None:
    """That the noise is as large as it should be, the conformance tests' `bll-sampled` holds."""
    sampled = engine_for(BLL())
    plug_in = engine_for(BLL(likelihood="plug-in")).gradients(some_batch())
    assert any(not torch.equal(g, plug_in[name]) for name, g in sampled.gradients(some_batch()).items())

    def at_mean(law: Gaussian, natural: Tensor, _: torch.Generator) -> Tensor:
        return law.mean_latent(natural)

    monkeypatch.setattr(Gaussian, "sample", at_mean)
    for name, gradient in sampled.gradients(some_batch()).items():
        assert torch.equal(gradient, plug_in[name]), name


# ---- m over training


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"m": 0.3}, (0.3, 0.3, 0.3)),
        ({"m": "linear:1:0"}, (1.0, 0.75, 0.0)),
        ({"m": "linear:1:0", "m_warmup": 0.5}, (0.0, 0.375, 0.0)),
        ({"m": 0.8, "m_warmup": 0.5}, (0.0, 0.4, 0.8)),
        ({"m": "0:0.2,0.25:0.6,1:0.6", "m_warmup": 0.1}, (0.0, 0.6, 0.6)),
    ],
)
def test_m_at_the_start_after_a_quarter_and_at_the_end(fields: dict[str, Any], expected: tuple[float, ...]) -> None:
    method = linear_bll(**fields)
    cell = cell_of(method, 1, torch.tensor([0]))
    found: list[float] = []
    for progress in (0.0, 0.25, 1.0):
        cell.batch = Batch(cell.batch.x, cell.batch.y, progress=progress)
        found.append(method.mixed(cell))
    assert found == pytest.approx(expected, abs=1e-15)


def test_a_step_takes_the_m_of_its_share_of_the_run() -> None:
    """The second of four: linear from 1 to 0, m = 0.75.  Tolerance: as in test_conformance."""
    engine = engine_for(linear_bll(m="linear:1:0"), small_net(dropout=0.0), total_steps=4)
    engine.step(some_batch(1))
    x, y = some_batch()
    found = engine.gradients((x, y))
    parameters = dict(engine.chain.named_parameters())
    losses = [naive.bll(engine.chain, x, y, m=m) for m in (0.75, 1.0)]
    expected, other = (torch.autograd.grad(loss, list(parameters.values())) for loss in losses)
    for name, gradient in zip(parameters, expected, strict=True):
        torch.testing.assert_close(found[name], gradient, rtol=1e-4, atol=1e-6, msg=name)
    assert any(not torch.allclose(a, b, rtol=1e-3, atol=1e-5) for a, b in zip(expected, other, strict=True))


@pytest.mark.parametrize("fields", [{"m": "linear:1:0"}, {"m": 0.5, "m_warmup": 0.1}])
def test_a_changing_m_asks_for_the_length_of_the_run_in_training_only(fields: dict[str, Any]) -> None:
    engine = engine_for(linear_bll(**fields))
    with pytest.raises(ValueError, match="got an m that changes over training and no total_steps, expected both"):
        engine.step(some_batch())
    answer, of_constant = (e.predict(some_batch()[0])[-1] for e in (engine, engine_for(linear_bll())))
    assert answer is not None and of_constant is not None
    assert torch.equal(answer, of_constant)  # nothing is mixed in at inference
    engine_for(linear_bll(m="linear:1:1")).step(some_batch())


# ---- what the fields mean


def closing_net() -> nn.Sequential:
    """Blocks that end in an activation, written in place."""
    torch.manual_seed(0)

    def unit(inputs: int) -> nn.Sequential:
        return nn.Sequential(nn.Conv2d(inputs, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(inplace=True))

    return nn.Sequential(unit(2), unit(8), unit(8), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, CLASSES))


def token_net() -> nn.Module:
    torch.manual_seed(0)
    return vit_tiny((2, 8, 8), CLASSES, depth=3, width=8, heads=2, patch=4)


NETS = {"dropout": small_net, "closing": closing_net, "tokens": token_net}
WAYS: dict[str, dict[str, Any]] = {
    "twin": {},
    "mirror": {"twin": "mirror"},
    "classifier": {"predict": "classifier"},
    "lifted": {"read_out": "lifted"},
    "sampled": {"draws": 3},
    "lifted-classifier": {"read_out": "lifted", "twin": "linear", "predict": "classifier"},
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("net", NETS)
@pytest.mark.parametrize("family", FAMILIES)
def test_what_is_exported_answers_as_the_last_block_does_bit_for_bit(family: Any, net: str, way: str) -> None:
    method = linear_bll(family=family, **WAYS[way])
    engine = engine_for(method, NETS[net]())
    for step in range(2):
        engine.step(some_batch(step))
    x = some_batch(7)[0]
    answer = engine.predict(x)[-1]
    exported = method.export(engine.inference_chain).eval()
    names = " ".join(exported.state_dict())
    assert ("lift" in names) == (way == "lifted")
    assert "twin" not in names
    with torch.no_grad():
        assert answer is not None and torch.equal(exported(x), answer)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_activation_that_closes_a_block_stays_where_means_are_linear_in_its_output(family: Any) -> None:
    """A Gaussian's are what comes out of it, and nothing is mapped; the others' mean parameters stand in its place."""
    method = linear_bll(family=family)
    for net, mapped in ((closing_net, False), (small_net, family != "gaussian")):
        for block in engine_for(method, net()).chain.blocks:
            latents = block.extras["latents"]
            assert isinstance(latents, Latents)
            assert isinstance(latents.map, nn.Conv2d) == mapped
            kept = family == "gaussian" or net is small_net
            assert any(isinstance(m, nn.ReLU) for m in block.net.modules()) == kept


def test_where_the_twin_answers_the_models_classifier_is_left_out() -> None:
    model = small_net()
    classifier = model[-1]
    assert isinstance(classifier, nn.Linear)
    for method, there in ((linear_bll(), False), (linear_bll(predict="classifier"), True)):
        chain = engine_for(method, model).chain
        assert any(p is classifier.weight for p in chain.blocks[-1].parameters()) == there


def naturals(block: Block) -> list[Tensor]:
    """Alpha's natural parameters, from now on, each time the block runs."""
    found: list[Tensor] = []
    latents = block.extras["latents"]

    def keep(_: nn.Module, __: object, h: Tensor) -> None:
        found.append(latents(h.detach()).detach())

    block.net.register_forward_hook(keep)
    return found


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("bootstrap", [False, True])
def test_the_next_block_gets_the_mean_of_alpha_or_of_rho_in_training_and_of_alpha_at_inference(
    family: Any, bootstrap: bool
) -> None:
    centre: dict[str, Any] = {} if family == "laplace" else {"centre": "classes"}
    method = linear_bll(family=family, bootstrap=bootstrap, m=0.5, **centre)
    engine = engine_for(method, closing_net())
    first, second, _ = engine.chain.blocks
    latents, twin = first.extras["latents"], first.extras["twin"]
    assert isinstance(latents, Latents) and isinstance(twin, Twin)
    raw = naturals(first)
    got: list[Tensor] = []
    said: list[Tensor] = []
    second.net.register_forward_pre_hook(lambda _, inputs: got.append(inputs[0].clone()))
    twin.register_forward_hook(
        lambda _, __, out: said.append(  # pyright: ignore[reportUnknownLambdaType]  # torch types it as Any
            twin.messages(out).detach()
        )
    )
    x, y = some_batch()
    law = method.law()
    engine.step((x, y))
    rho = law.tilted(raw[0], said[0][y], 0.5)
    expected = [latents.features(law.mean_told(natural)) for natural in (raw[0], rho)]
    # Equal but for a Gaussian, whose mean mu is here what lam mu / lam is rounded to.
    torch.testing.assert_close(got[0], expected[bootstrap])
    assert not torch.allclose(expected[0], expected[1])
    engine.predict(x)
    torch.testing.assert_close(got[1], latents.features(law.mean_told(raw[1])))


@pytest.mark.usefixtures("double")
@pytest.mark.parametrize(
    "fields",
    [{}, {"likelihood": "closed"}, {"read_out": "lifted", "likelihood": "plug-in"}, {"bootstrap": True}],
)
@pytest.mark.parametrize("family", FAMILIES)
def test_gradients_by_tiles_of_samples_are_those_of_the_whole_batch(
    family: Any, fields: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Sums over samples are taken in another order: some 1e-15 in float64."""
    (x, y), method = some_batch(), linear_bll(family=family, **fields)
    batch = x.double(), y
    whole = engine_for(method, closing_net()).gradients(batch)
    monkeypatch.setitem(tiles.NUMBERS, "cpu", 8 * 36 * 3)  # three samples of the first block
    for name, gradient in engine_for(method, closing_net()).gradients(batch).items():
        torch.testing.assert_close(gradient, whole[name], rtol=1e-12, atol=1e-13, msg=name)


@pytest.mark.parametrize("family", FAMILIES)
def test_only_at_the_mean_of_rho_is_a_block_paid_for_reading_its_own_message(family: Any) -> None:
    """Inputs that are all alike tell nothing of their labels, so that no honest F is below log C; sampled, its estimate
    from 500 labels is within 0.05 of that after as many steps as take it 0.3 nats below at the mean.
    """
    x, y = torch.ones(500, 3), torch.arange(500) % CLASSES
    reached: dict[str, float] = {}
    for likelihood in ("sample", "closed", "plug-in"):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(3, 16), nn.ReLU(), nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, CLASSES))
        method, task = BLL(family=family, likelihood=likelihood), Classification(CLASSES, x[:2])
        engine = Streaming(method, method.build(model, task, CutPlan(2)), task, adam(1e-2))
        reached[likelihood] = min(engine.step((x, y)).loss[0].item() for _ in range(200))
    assert min(reached["sample"], reached["closed"]) > math.log(CLASSES) - 0.05
    assert reached["plug-in"] < math.log(CLASSES) - 0.3


@pytest.mark.parametrize("likelihood", ["plug-in", "sample", "closed"])
def test_a_soft_one_hot_label_is_the_hard_one(likelihood: Any) -> None:
    x, y = some_batch()
    method = linear_bll(likelihood=likelihood, label_smoothing=0.1)
    hard, soft = (engine_for(method).gradients((x, labels)) for labels in (y, F.one_hot(y, CLASSES).float()))
    for name, gradient in hard.items():
        # A product with a one-hot matrix in place of a row taken: the gradient's sums have another order.
        torch.testing.assert_close(soft[name], gradient, rtol=1e-4, atol=1e-6)


def test_the_models_own_classifier_learns_smoothed_labels_too() -> None:
    """The gradient of its bias is the mean of p less the smoothed label, by the definition of cross-entropy."""
    x, y = some_batch()
    engine = engine_for(linear_bll(predict="classifier", label_smoothing=0.3))
    classifier = engine.chain.blocks[-1].extras["classifier"]
    answers: list[Tensor] = []
    classifier.register_forward_hook(lambda _, __, logits: answers.append(logits.detach()))
    found = next(g for name, g in engine.gradients((x, y)).items() if "classifier" in name and name.endswith("bias"))
    smoothed = 0.7 * F.one_hot(y, CLASSES) + 0.3 / CLASSES
    expected = (answers[0].softmax(-1) - smoothed).mean(0)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)  # float32


def test_a_mixed_label_gets_the_mean_message() -> None:
    """Mixup of labels 1 and 3, 0.7 to 0.3: natural parameters 0.7 b(1) + 0.3 b(3), by what the KL says of it."""
    x, y = some_batch()
    one, three = torch.full_like(y, 1), torch.full_like(y, 3)
    mixed = 0.7 * F.one_hot(one, CLASSES).float() + 0.3 * F.one_hot(three, CLASSES).float()
    engine = engine_for(linear_bll(centre="classes"), closing_net())
    block = engine.chain.blocks[-1]
    latents, twin = block.extras["latents"], block.extras["twin"]
    assert isinstance(latents, Latents) and isinstance(twin, Twin)
    raw = naturals(block)
    b = twin.messages(twin(torch.eye(CLASSES))).detach()
    found = engine.step((x, mixed)).metrics["2/kl"]
    law = Bernoulli()
    expected = law.kl(law.product(raw[0], 0.7 * b[1] + 0.3 * b[3]), raw[0]).sum(-1).mean()  # over positions
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-7)  # float32


def test_the_messages_of_labels_have_one_gradient_on_any_number_of_threads() -> None:
    """That of an index has the sums of whichever thread came first."""
    messages, y = torch.randn(10, 1, 512, requires_grad=True), torch.randint(10, (256,))
    weights = torch.randn(256, 1, 512)
    assert torch.equal(of_label(y, messages), messages[y])
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        found = [torch.autograd.grad((of_label(y, messages) * weights).sum(), messages)[0] for _ in range(20)]
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(found[0], other) for other in found)


def test_under_autocast_messages_and_read_outs_are_computed_in_float32() -> None:
    told, messages = torch.randn(6, 2, 5), torch.randn(CLASSES, 2, 5)
    shares = torch.randn(6, CLASSES).softmax(-1)
    expected = mixture(shares, messages), inner(told, messages), inner(told, messages[:, :1])
    with torch.autocast("cpu", torch.bfloat16):
        found = mixture(shares, messages), inner(told, messages), inner(told, messages[:, :1])
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


@pytest.mark.parametrize("centre", ["prediction", "classes"])
@pytest.mark.parametrize("draws", [0, 2])
def test_a_learned_maps_running_statistics_are_of_what_it_gets_at_inference(centre: Any, draws: int) -> None:
    """The mean of alpha; or samples, from which it is answered with draws."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(2, 6, 3, padding=1), nn.Conv2d(6, 6, 3), Pool(), nn.Linear(6, CLASSES))
    method = linear_bll(read_out="lifted", likelihood="sample", centre=centre, draws=draws, m=0.0)
    engine = engine_for(method, model, sgd(lr=0.0), blocks=2)
    lift = engine.chain.blocks[0].extras["lift"]
    (norm,) = (part for part in lift.modules() if isinstance(part, nn.BatchNorm2d))
    norm.momentum = 1.0  # so that they are the last batch's
    given: list[Tensor] = []
    norm.register_forward_pre_hook(lambda _, args: given.append(args[0].detach()))  # pyright: ignore[reportUnknownLambdaType]  # append's None
    x, y = some_batch()
    engine.step((x, y))
    assert norm.num_batches_tracked is not None and norm.num_batches_tracked.item() == 1
    counted = given[-1] if draws else given[0]
    given.clear()
    engine.predict(x)
    variance = torch.cat(given).var((0, 2, 3))
    # float32; of samples others are drawn at inference.
    torch.testing.assert_close(norm.running_var, counted.var((0, 2, 3)), rtol=1e-4, atol=1e-7)
    torch.testing.assert_close(norm.running_var, variance, rtol=0.3 if draws else 1e-4, atol=1e-7)


@pytest.mark.parametrize("family", FAMILIES)
def test_sampling_is_a_function_of_the_step_and_the_seed(family: Any) -> None:
    method = linear_bll(family=family, likelihood="sample")
    batch = some_batch()
    engines = [engine_for(method, closing_net(), seed=seed) for seed in (0, 0, 1)]
    first, again, seeded = (engine.gradients(batch) for engine in engines)
    engines[1].steps = 1
    later = engines[1].gradients(batch)
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert all(torch.equal(first[name], value) for name, value in engines[0].gradients(batch).items())
    for other in (seeded, later):
        assert any(not torch.equal(first[name], other[name]) for name in first)


def test_a_sample_is_drawn_apart_from_the_noise_of_the_blocks_own_layers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Bernoulli's z = u < 1/2, so a network that draws its u from the cell's generator would know z."""
    drawn: list[Tensor] = []

    class Noise(nn.Module):
        def forward(self, h: Tensor) -> Tensor:
            drawn.append(torch.rand(h.shape))
            return 0 * h

    sampled: list[Tensor] = []

    draw = Bernoulli.sample
    monkeypatch.setattr(Bernoulli, "sample", lambda *args: sampled.append(draw(*args)) or sampled[-1])
    model = nn.Sequential(nn.Sequential(nn.Linear(2000, 2000), Noise(), nn.ReLU()), nn.Linear(2000, CLASSES))
    task = Classification(CLASSES, torch.zeros(1, 2000))
    method = linear_bll(likelihood="sample", m=0.0)
    engine = Streaming(method, method.build(model, task, CutPlan(1)), task, sgd())
    drawn.clear()
    engine.step((torch.randn(4, 2000), torch.arange(4)))
    agree = ((drawn[0] < 0.5).float() == sampled[0]).float().mean().item()
    assert agree == pytest.approx(0.5, abs=5 * (0.25 / 8000) ** 0.5)  # five standard errors; the seed is fixed


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"read_out": "lifted"},
        {"read_out": "lifted", "likelihood": "sample"},
        {"likelihood": "closed"},
        {"predict": "classifier"},
    ],
)
@pytest.mark.parametrize("family", FAMILIES)
def test_in_bfloat16_every_blocks_loss_is_nearly_that_of_float32(family: Any, fields: dict[str, Any]) -> None:
    """A bfloat16 is rounded by up to 2^-9 of itself, and a loss is the mean of what comes of many, drawn alike."""
    method = linear_bll(family=family, **fields)
    half, full = (engine_for(method, closing_net(), autocast=dtype) for dtype in (torch.bfloat16, None))
    found, expected = half.step(some_batch()).loss, full.step(some_batch()).loss
    torch.testing.assert_close(found, expected, rtol=2**-9, atol=0)


def test_linear_twins_wait_for_nothing_and_a_chain_of_twins_for_all_blocks_after() -> None:
    assert [engine_for(linear_bll(twin="linear")).derived.depends(n) for n in range(3)] == [[], [], []]
    assert [engine_for(linear_bll()).derived.depends(n) for n in range(3)] == [[1, 2], [2], []]


@pytest.mark.parametrize("family", ["gaussian", "laplace"])
def test_a_least_precision_is_that_of_the_latents(family: Any) -> None:
    block = engine_for(linear_bll(family=family, least_precision=30.0)).chain.blocks[0]
    latents = block.extras["latents"]
    assert isinstance(latents, Latents)
    h = torch.randn(4, *latents.shape)
    square = by_position(h).square().mean(-1, keepdim=True) + LEAST_SQUARE
    precisions = latents(h).chunk(2, -1)[1] * square if family == "gaussian" else latents(h)
    assert precisions.min() >= 30 * (1 - 1e-6)  # rounding


# ---- refusals


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"family": "poisson"}, "got family='poisson', expected one of gaussian, bernoulli, categorical, laplace"),
        ({"likelihood": "exact"}, "got likelihood='exact', expected one of sample, closed, plug-in"),
        ({"detach": "all"}, "got detach='all', expected one of none, kl, both"),
        ({"twin": "tied"}, "got twin='tied', expected one of linear, mlp, mirror"),
        ({"head": "tree"}, "got head='tree', expected one of auto, linear, conv, mlp"),
        ({"read_out": "raised"}, "got read_out='raised', expected one of auto, linear, lifted"),
        ({"predict": "both"}, "got predict='both', expected one of twin, classifier"),
        ({"m": -1.0}, "got m=-1.0, expected finite values of at least 0"),
        ({"m": math.nan}, "got m=nan, expected finite values"),
        ({"m": "linear"}, "got m='linear', expected a number, linear:FIRST:LAST"),
        ({"m_warmup": 1.0}, r"got m_warmup=1.0, expected a share of training in \[0, 1\)"),
        ({"m_warmup": -0.1}, "got m_warmup=-0.1, expected a share"),
        ({"m_warmup": math.nan}, "got m_warmup=nan, expected a share"),
        ({"m_warmup": 0.5, "m": 0}, "got m_warmup=0.5 with m=0, which does not read it; leave it out"),
        ({"bootstrap": True, "m": 0}, "got bootstrap=True with m=0, which does not read it"),
        (
            {"family": "laplace", "centre": "classes"},
            "got centre=classes with family='laplace', which does not read it",
        ),
        ({"kl_weight": -1.0}, "got kl_weight=-1.0, expected a finite number of at least 0"),
        ({"kl_weight": math.nan}, "got kl_weight=nan, expected a finite number"),
        ({"kl_weight": math.inf}, "got kl_weight=inf, expected a finite number"),
        ({"label_smoothing": 1.0}, r"got label_smoothing=1.0, expected a number in \[0, 1\)"),
        ({"label_smoothing": math.nan}, "got label_smoothing=nan, expected a number"),
        ({"draws": -1}, "got draws=-1, expected 0 for the mean, or a number of samples"),
        ({"draws": 2, "predict": "classifier"}, "got draws with predict='classifier', which reads the mean; use predi"),
        ({"twin_width": 0}, "got twin_width=0, expected at least 1"),
        ({"head_width": -3}, "got head_width=-3, expected at least 1"),
        ({"head_depth": 0}, "got head_depth=0, expected at least 1"),
        ({"likelihood": "closed", "read_out": "lifted"}, "got likelihood='closed' with .* or likelihood='sample'"),
        ({"detach": "both", "read_out": "lifted"}, "got detach='both' with .* teach the messages; .* or detach='kl'"),
        ({"family": "categorical", "states": 1}, "got states=1, expected at least 2"),
        ({"family": "gaussian", "least_precision": 0.0}, "got least_precision=0.0, expected a finite number above 0"),
        ({"least_precision": 9.0}, "got least_precision=9.0 with family='bernoulli', .*=gaussian or laplace"),
        ({"states": 8}, "got states=8 with family='bernoulli', .* out, or use family=categorical"),
        ({"twin": "mirror", "twin_width": 16}, "got twin_width=16 with twin='mirror', .* or use twin=mlp"),
    ],
)
def test_fields_out_of_range_are_refused_in_one_line(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message) as refused:
        linear_bll(**fields)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"family": "categorical", "states": 3}, "got a block with 8 channels for latents of 3 states, expected a mul"),
        ({"head_width": 64}, "got head_width=64 with read_out='linear', .* use read_out=lifted"),
        ({"read_out": "lifted", "head": "linear"}, "got head='linear' for a lifted read-out, expected conv or mlp"),
        ({"read_out": "auto", "likelihood": "closed"}, "got likelihood='closed' with .*; use read_out='linear', or li"),
    ],
)
def test_what_does_not_fit_the_network_is_refused_when_it_is_cut(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        engine_for(linear_bll(**fields))


def test_read_outs_are_lifted_where_a_local_head_has_another_layer_unless_asked_otherwise() -> None:
    layers = [nn.Flatten(), nn.Linear(2 * 8 * 8, 6), nn.ReLU(), nn.Linear(6, 6), nn.ReLU()]
    vectors = nn.Sequential(*layers, nn.Linear(6, CLASSES))
    sums = nn.Sequential(*layers, ResidualMLP(6, 1), nn.Linear(6, CLASSES))
    for model, more in ((small_net(), True), (vectors, False), (sums, True)):
        for method, lifted in ((BLL(), more), (BLL(read_out="linear"), False), (BLL(read_out="lifted"), True)):
            blocks = engine_for(method, model, blocks=2).chain.blocks
            assert all(("lift" in block.extras) is lifted for block in blocks)


def test_a_mirror_of_a_network_that_goes_from_maps_to_tokens_is_refused_with_the_way_out() -> None:
    stem, tokens = nn.Sequential(nn.Conv2d(2, 4, 3), nn.ReLU()), nn.Sequential(nn.Flatten(2), nn.Linear(36, 8))
    units = {"stem": stem, "tokens": tokens, "classifier": nn.Sequential(Pool(), nn.Linear(8, CLASSES))}
    model = Chained(OrderedDict(units))
    with pytest.raises(UsageError, match=r"got blocks of shape \(4, 6, 6\) and \(4, 8\), expected two of a kind"):
        engine_for(linear_bll(twin="mirror"), model, blocks=2)
    engine_for(linear_bll(), model, blocks=2).step(some_batch())


@pytest.mark.parametrize(("bias", "words"), [(1e20, r"got a precision of 0 for Gaussian"), (math.inf, "is NaN or inf")])
def test_a_network_whose_latents_are_no_laws_is_refused_before_training(bias: float, words: str) -> None:
    torch.manual_seed(0)
    first = nn.Linear(4, 6)
    nn.init.constant_(first.bias, bias)
    model = nn.Sequential(first, nn.ReLU(), nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, CLASSES))
    task = Classification(CLASSES, torch.randn(2, 4))
    with pytest.raises(UsageError, match=words):
        BLL().build(model, task, CutPlan(2))
