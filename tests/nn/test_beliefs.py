"""SID's objective and its theory.  T1 to T7 are the statements, in the order in which they are derived:

T1  the paper's objective is least at the normalised geometric mean t^alpha p_{i-1}^(1-alpha) / Z, its value -log Z
T4  the code's objective is least at the mixture alpha t + (1-alpha) p_{i-1}, and KL(t||p) shrinks by (1-alpha) there
T5  what well-specified blocks reach on the population
T6  the telescoped descent is an identity

All in float64, whose rounding the tolerances allow for.
"""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.distributions import Categorical, kl_divergence

from sidestep.nn.beliefs import (
    BeliefModule,
    Cascade,
    Direction,
    descent,
    distance,
    local_objective,
    movement,
    population,
    uniform,
)
from sidestep.nn.divergences import kl
from sidestep.nn.heads import Head
from sidestep.nn.per_block import remainders

BATCH = 6
DIRECTIONS: tuple[Direction, ...] = ("code", "paper")
CLOSE: dict[str, Any] = {"rtol": 1e-9, "atol": 1e-11}

alpha_values = st.floats(0.05, 1.0)
seeds = st.integers(0, 10_000)
class_counts = st.integers(2, 6)


def double(values: list[Any]) -> Tensor:
    return torch.tensor(values, dtype=torch.double)


def log_beliefs(seed: int, classes: int, rows: int = BATCH, spread: float = 2.0) -> Tensor:
    noise = torch.randn(rows, classes, dtype=torch.double, generator=torch.Generator().manual_seed(seed))
    return F.log_softmax(spread * noise, -1)


def one_hot(seed: int, classes: int) -> Tensor:
    y = torch.randint(classes, (BATCH,), generator=torch.Generator().manual_seed(seed))
    return F.one_hot(y, classes).double()


def target(seed: int, classes: int, direction: Direction) -> Tensor:
    """One-hot for the code's direction, which admits it, and with full support for the paper's."""
    hard = one_hot(seed, classes)
    return hard if direction == "code" else 0.9 * hard + 0.1 / classes


def divergence(p: Tensor, q: Tensor) -> Tensor:
    return kl_divergence(Categorical(probs=p), Categorical(probs=q))


# ---- divergences and the objective, against torch's own


def test_kl_by_hand() -> None:
    p, q = double([[0.5, 0.5, 0.0]]), double([[0.25, 0.25, 0.5]])
    torch.testing.assert_close(kl(p.log(), q.log()), double([math.log(2)]), **CLOSE)
    assert torch.equal(kl(q.log(), p.log()), double([math.inf]))
    assert torch.equal(kl(p.log(), p.log()), double([0.0]))


def test_the_first_belief_is_uniform() -> None:
    p = uniform((2,), 4, torch.device("cpu")).exp()
    torch.testing.assert_close(p, torch.full((2, 4), 0.25), rtol=1e-6, atol=0)  # log 4 in float32


@given(seeds, class_counts, alpha_values)
def test_the_objective_is_the_weighted_sum_of_two_divergences(seed: int, classes: int, alpha: float) -> None:
    log_p, log_prev = log_beliefs(seed, classes), log_beliefs(seed + 1, classes)
    p, prev, soft = log_p.exp(), log_prev.exp(), log_beliefs(seed + 2, classes).exp()
    code = alpha * divergence(soft, p) + (1 - alpha) * divergence(prev, p)
    paper = alpha * divergence(p, soft) + (1 - alpha) * divergence(p, prev)
    torch.testing.assert_close(local_objective(soft, log_p, log_prev, alpha, "code"), code, **CLOSE)
    torch.testing.assert_close(local_objective(soft, log_p, log_prev, alpha, "paper"), paper, **CLOSE)


@given(seeds, class_counts, alpha_values)
def test_for_one_hot_targets_it_is_what_the_released_code_computes(seed: int, classes: int, alpha: float) -> None:
    log_p, log_prev, hard = log_beliefs(seed, classes), log_beliefs(seed + 1, classes), one_hot(seed, classes)
    released = alpha * F.kl_div(log_p, hard, reduction="batchmean")
    released += (1 - alpha) * F.kl_div(log_p, log_prev.exp(), reduction="batchmean")
    torch.testing.assert_close(local_objective(hard, log_p, log_prev, alpha, "code").mean(), released, **CLOSE)


@given(seeds, class_counts, alpha_values)
def test_its_gradient_is_the_belief_less_the_mixture(seed: int, classes: int, alpha: float) -> None:
    logits = torch.randn(BATCH, classes, dtype=torch.double, generator=torch.Generator().manual_seed(seed))
    logits.requires_grad_()
    log_prev, t = log_beliefs(seed + 1, classes), one_hot(seed, classes)
    loss = local_objective(t, F.log_softmax(logits, -1), log_prev, alpha, "code").sum()
    (gradient,) = torch.autograd.grad(loss, logits)
    expected = logits.detach().softmax(-1) - (alpha * t + (1 - alpha) * log_prev.exp())
    torch.testing.assert_close(gradient, expected, **CLOSE)


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_a_belief_that_underflows_leaves_loss_and_gradient_finite(direction: Direction) -> None:
    """In float32 exp(-200) is 0: beliefs travel as logarithms so that this costs nothing."""
    logits = torch.tensor([[0.0, -200.0, 3.0]], requires_grad=True)
    log_prev = F.log_softmax(torch.tensor([[-200.0, 0.0, 0.0]]), -1)
    t = torch.tensor([[0.05, 0.9, 0.05]])
    loss = local_objective(t, F.log_softmax(logits, -1), log_prev, 0.5, direction).sum()
    loss.backward()
    assert logits.grad is not None
    assert bool(loss.isfinite()) and bool(logits.grad.isfinite().all())


# ---- minimisers: T1 and T4


def minimiser(t: Tensor, prev: Tensor, alpha: float, direction: Direction) -> Tensor:
    if direction == "code":
        return alpha * t + (1 - alpha) * prev
    geometric = t**alpha * prev ** (1 - alpha)
    return geometric / geometric.sum(-1, keepdim=True)


@given(seeds, class_counts, alpha_values, st.sampled_from(DIRECTIONS))
def test_no_belief_is_better_than_the_minimiser(seed: int, classes: int, alpha: float, direction: Direction) -> None:
    t, log_prev = log_beliefs(seed, classes).exp(), log_beliefs(seed + 1, classes)
    best = minimiser(t, log_prev.exp(), alpha, direction)
    least = local_objective(t, best.log(), log_prev, alpha, direction)
    anywhere = log_beliefs(seed + 2, classes)
    nearby = F.log_softmax(best.log() + 0.01 * anywhere, -1)
    for log_p in (anywhere, nearby, log_prev, t.log()):
        assert bool((local_objective(t, log_p, log_prev, alpha, direction) >= least - 1e-12).all())


@given(seeds, class_counts, alpha_values)
def test_the_papers_least_value_is_minus_log_z(seed: int, classes: int, alpha: float) -> None:
    t, log_prev = log_beliefs(seed, classes).exp(), log_beliefs(seed + 1, classes)
    best = minimiser(t, log_prev.exp(), alpha, "paper")
    z = (t**alpha * log_prev.exp() ** (1 - alpha)).sum(-1)
    torch.testing.assert_close(local_objective(t, best.log(), log_prev, alpha, "paper"), -z.log(), **CLOSE)


@given(seeds, class_counts, alpha_values)
def test_exact_minimisers_of_the_code_contract_geometrically_to_one_hot_targets(
    seed: int, classes: int, alpha: float
) -> None:
    t, p = one_hot(seed, classes), log_beliefs(seed + 1, classes).exp()
    for _ in range(4):
        after = minimiser(t, p, alpha, "code")
        assert bool((kl(t.log(), after.log()) <= (1 - alpha) * kl(t.log(), p.log()) + 1e-12).all())
        p = after


def test_exact_minimisers_of_the_paper_do_not() -> None:
    """KL(p*||t) <= (1-alpha) KL(p||t) is false in general: of 200 random cases some break it, in log-odds none does."""
    alpha, t, p = 0.5, log_beliefs(0, 4, rows=200).exp(), log_beliefs(1, 4, rows=200).exp()
    after = minimiser(t, p, alpha, "paper")
    assert bool((kl(after.log(), t.log()) > (1 - alpha) * kl(p.log(), t.log())).any())
    odds, odds_after = ((q / t).log() - (q / t).log()[:, :1] for q in (p, after))
    torch.testing.assert_close(odds_after, (1 - alpha) * odds, **CLOSE)


# ---- descent: T6

alpha_lists = st.lists(alpha_values, min_size=1, max_size=5).flatmap(
    lambda found: st.sampled_from([tuple(found), (1.0, *found[1:])])
)


@given(seeds, class_counts, alpha_lists, st.sampled_from(DIRECTIONS))
def test_the_telescoped_descent_is_an_identity(
    seed: int, classes: int, alpha: tuple[float, ...], direction: Direction
) -> None:
    t = target(seed, classes, direction)
    beliefs = [log_beliefs(seed + 1 + i, classes) for i in range(len(alpha))]
    found = descent(t, beliefs, alpha, direction)
    scale = found["D"].abs().max().item() / min(alpha)
    torch.testing.assert_close(found["identity"], double([[0.0] * BATCH]), rtol=0, atol=1e-12 * (1 + scale))


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_descent_measures_what_it_says(direction: Direction) -> None:
    classes, alpha = 4, (1.0, 0.3)
    t = log_beliefs(0, classes).exp()
    beliefs = [double([[0.25] * classes] * BATCH), *(log_beliefs(i, classes).exp() for i in (1, 2))]

    def directed(p: Tensor, q: Tensor) -> Tensor:
        return divergence(p, q) if direction == "code" else divergence(q, p)

    def objective(i: int, p: Tensor) -> Tensor:
        return alpha[i] * directed(t, p) + (1 - alpha[i]) * directed(beliefs[i], p)

    found = descent(t, [p.log() for p in beliefs[1:]], alpha, direction)
    close: dict[str, Any] = CLOSE | {"atol": 1e-7}  # p_0 is made in float32
    torch.testing.assert_close(found["D"], torch.stack([directed(t, p) for p in beliefs]), **close)
    torch.testing.assert_close(found["C"], torch.stack([directed(beliefs[i], beliefs[i + 1]) for i in (0, 1)]), **close)
    slack = torch.stack([objective(i, beliefs[i + 1]) - objective(i, beliefs[i]) for i in (0, 1)])
    torch.testing.assert_close(found["e"], slack, **close)
    torch.testing.assert_close(distance(t, beliefs[1].log(), direction), found["D"][1], **CLOSE)
    torch.testing.assert_close(movement(beliefs[1].log(), beliefs[2].log(), direction), found["C"][1], **CLOSE)


@given(seeds, class_counts, alpha_lists, st.sampled_from(DIRECTIONS))
def test_exact_minimisers_have_no_positive_slack_and_descend(
    seed: int, classes: int, alpha: tuple[float, ...], direction: Direction
) -> None:
    t = target(seed, classes, direction)
    beliefs = [double([[1 / classes] * classes] * BATCH)]
    for a in alpha:
        beliefs.append(minimiser(t, beliefs[-1], a, direction))
    # With alpha 1 and one-hot targets the minimiser is the label itself, and its zeros have no logarithm.
    beliefs = [p.clamp_min(1e-300) for p in beliefs]
    found = descent(t, [p.log() for p in beliefs[1:]], alpha, direction)
    assert bool((found["e"] <= 1e-6).all())  # p_0 is made in float32
    assert bool((found["D"].diff(dim=0) <= 1e-6).all())


# ---- population: T5


@settings(max_examples=40)
@given(seeds, class_counts, alpha_lists, st.floats(0.01, 0.5), st.sampled_from(DIRECTIONS))
def test_population_beliefs_are_the_exact_minimisers_block_after_block(
    seed: int, classes: int, alpha: tuple[float, ...], smoothing: float, direction: Direction
) -> None:
    """Of the objective's mean over y ~ P, convex in p: its gradient with respect to the logits is 0 there."""
    p_y = log_beliefs(seed, classes).exp()
    targets = (1 - smoothing) * torch.eye(classes, dtype=torch.double) + smoothing / classes  # (C labels, C)
    log_prev = double([[1 / classes] * classes] * BATCH).log()
    for p, a in zip(population(p_y, alpha, smoothing, direction), alpha, strict=True):
        logits = p.log().requires_grad_()
        log_p = F.log_softmax(logits, -1)
        of_label = [local_objective(t.expand(BATCH, -1), log_p, log_prev, a, direction) for t in targets]
        (gradient,) = torch.autograd.grad((p_y * torch.stack(of_label, 1)).sum(), logits)
        torch.testing.assert_close(gradient, torch.zeros_like(gradient), rtol=0, atol=1e-12)
        log_prev = p.log()


def test_population_of_the_code_by_hand() -> None:
    """P = (1, 0), alpha = 1/2, no smoothing: 3/4, 7/8; with s = 0.2 the target is (0.9, 0.1)."""
    p_y = double([[1.0, 0.0]])
    first, second = population(p_y, (0.5, 0.5), 0.0, "code")
    torch.testing.assert_close(first, double([[0.75, 0.25]]), **CLOSE)
    torch.testing.assert_close(second, double([[0.875, 0.125]]), **CLOSE)
    (smoothed,) = population(p_y, (0.5,), 0.2, "code")
    torch.testing.assert_close(smoothed, double([[0.7, 0.3]]), **CLOSE)


def test_population_of_the_paper_by_hand() -> None:
    """s = 0.2 over 2 classes: Lambda = log 9; alpha = 1/2 leaves odds of 9^(1/2) where P is certain."""
    (found,) = population(double([[1.0, 0.0]]), (0.5,), 0.2, "paper")
    torch.testing.assert_close(found, double([[0.75, 0.25]]), **CLOSE)


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_a_first_weight_of_1_leaves_nothing_of_the_uniform_belief(direction: Direction) -> None:
    assert remainders((1.0, 0.5, 0.2)) == (0.0, 0.0, 0.0)
    first, *others = population(log_beliefs(0, 3).exp(), (1.0, 0.5, 0.2), 0.1, direction)
    assert all(torch.equal(first, other) for other in others)


# ---- the network inference runs


def test_a_cascade_passes_features_and_beliefs_on() -> None:
    torch.manual_seed(0)
    nets = [nn.Linear(4, 4), nn.Linear(4, 4)]
    heads = [Head(torch.Size([4]), 3, "linear", belief=3) for _ in nets]
    x = torch.randn(5, 4)
    cascade = Cascade(list(zip(nets, heads, strict=True)))
    h = nets[0](x)
    p = heads[0](h, torch.full((5, 3), 1 / 3)).softmax(-1)
    expected = heads[1](nets[1](h), p)
    # Float32: the cascade goes through logarithms.
    torch.testing.assert_close(cascade(x), expected, rtol=1e-5, atol=1e-6)


def test_a_cascade_on_an_extractor_gives_every_module_the_same_features() -> None:
    torch.manual_seed(0)
    extractor, modules = nn.Linear(4, 6), [BeliefModule(6, 3, hidden=8) for _ in range(3)]
    x = torch.randn(5, 4)
    z, p = extractor(x), torch.full((5, 3), 1 / 3)
    logits = torch.empty(0)
    for module in modules:
        logits = module(z, p)
        p = logits.softmax(-1)
    found = Cascade([(nn.Identity(), module) for module in modules], extractor)(x)
    torch.testing.assert_close(found, logits, rtol=1e-5, atol=1e-6)  # as above
