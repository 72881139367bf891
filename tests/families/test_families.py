"""What holds for every family: against torch.distributions, sums and integrals over z, and autograd."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch import distributions as td
from torch.autograd import gradcheck

from sidestep.families import FAMILIES as TABLE
from sidestep.families import family_class
from sidestep.families.categorical import Categorical
from sidestep.families.family import Family, cross_entropy_bound, inner
from sidestep.families.laplace import Laplace

from .laws import (
    CLOSE,
    CONTINUOUS,
    DISCRETE,
    FAMILIES,
    NAMES,
    D,
    by_unit,
    channels,
    grid,
    natural_at,
    raws,
    said,
    statistics,
    told,
    torch_law,
)

few = settings(max_examples=30, deadline=None)
every_family = pytest.mark.parametrize("family", FAMILIES, ids=NAMES)
every_density = pytest.mark.parametrize("family", CONTINUOUS, ids=NAMES[1::2])
every_discrete = pytest.mark.parametrize("family", DISCRETE, ids=NAMES[::2])
QUANTITIES = ("log_partition", "mean", "mean_latent", "entropy", "kl", "log_prob", "cross_entropy_bound")


def quantity(family: Family, name: str, p: Tensor, q: Tensor, z: Tensor) -> Tensor:
    match name:
        case "kl":
            return family.kl(p, q)
        case "log_prob":
            return family.log_prob(z, p)
        case "cross_entropy_bound":
            return cross_entropy_bound(family, p[..., None, :], said(family, q)[:, None], check=False)
        case _:
            return getattr(family, name)(p)


def some_z(family: Family, p: Tensor, seed: int = 0) -> Tensor:
    return family.sample(p, torch.Generator().manual_seed(seed)).detach()


def test_the_table_names_the_families_under_test() -> None:
    assert [family_class(name).__name__ for name in TABLE] == sorted(NAMES)
    assert all(isinstance(family_class(name)(), Family) for name in TABLE)  # each can be made by its name alone


@every_family
@given(data=st.data())
@few
def test_densities_entropy_kl_and_means_are_those_of_torch_distributions(family: Family, data: st.DataObject) -> None:
    p, q = (family.to_natural(data.draw(raws(family))) for _ in range(2))
    law, other = torch_law(family, p), torch_law(family, q)
    z = some_z(family, p)
    unit = by_unit if isinstance(family, Categorical) else lambda x: x
    torch.testing.assert_close(family.log_prob(z, p), law.log_prob(unit(z)), **CLOSE)
    torch.testing.assert_close(family.entropy(p), law.entropy(), **CLOSE)
    torch.testing.assert_close(family.kl(p, q), td.kl_divergence(law, other), **CLOSE)
    torch.testing.assert_close(unit(family.mean_latent(p)), law.mean, **CLOSE)


@every_family
@given(data=st.data())
@few
def test_the_gradient_of_the_log_partition_is_the_mean(family: Family, data: st.DataObject) -> None:
    natural = family.to_natural(data.draw(raws(family))).requires_grad_()
    (gradient,) = torch.autograd.grad(family.log_partition(natural).sum(), natural)
    torch.testing.assert_close(gradient, family.mean(natural), **CLOSE)


@every_family
@given(data=st.data())
@few
def test_the_log_density_is_linear_in_the_statistics(family: Family, data: st.DataObject) -> None:
    """log p(z) = eta . T(z) - A(eta), and so KL(p || q) = A(q) - A(p) - (q - p) . E_p[T]: Bregman's divergence."""
    p, q = (family.to_natural(data.draw(raws(family))) for _ in range(2))
    z = some_z(family, p)
    linear = (p * statistics(family, z)).sum(-1) - family.log_partition(p)
    torch.testing.assert_close(family.log_prob(z, p), linear, **CLOSE)
    bregman = family.log_partition(q) - family.log_partition(p) - ((q - p) * family.mean(p)).sum(-1)
    torch.testing.assert_close(family.kl(p, q), bregman, **CLOSE)


# A kink of slope eta costs the trapezoidal rule of step h (h eta)^2 / 12 of the integral, 7e-6 at 9, the sharpest
# product here; what is smooth costs nothing.
INTEGRAL: dict[str, Any] = {"rtol": 1e-5, "atol": 1e-5}


@every_family
@given(data=st.data())
@few
def test_log_partition_and_moments_are_those_of_the_integral(family: Family, data: st.DataObject) -> None:
    natural = family.to_natural(data.draw(raws(family, rows=1, d=1)))
    over = grid(family)
    log_values = (natural * statistics(family, over.z)).sum(-1)
    log_partition = over.log_integral(log_values)
    torch.testing.assert_close(log_partition, family.log_partition(natural)[0], **INTEGRAL)
    log_p = log_values - log_partition
    torch.testing.assert_close(over.expectation(log_p, statistics(family, over.z)), family.mean(natural)[0], **INTEGRAL)
    torch.testing.assert_close(over.expectation(log_p, over.z), family.mean_latent(natural)[0], **INTEGRAL)
    torch.testing.assert_close(-over.expectation(log_p, log_p[:, None])[0], family.entropy(natural)[0], **INTEGRAL)


@every_family
@given(data=st.data(), m=st.floats(0, 2))
@few
def test_the_product_of_messages_is_the_normalised_product_of_densities(
    family: Family, data: st.DataObject, m: float
) -> None:
    a, b = (family.to_natural(data.draw(raws(family, rows=1, d=1))) for _ in range(2))
    over = grid(family)
    raw = family.log_prob(over.z, a) + m * family.log_prob(over.z, b)
    rho = family.product(a, b, m)
    torch.testing.assert_close((raw - over.log_integral(raw)).exp(), family.log_prob(over.z, rho).exp(), **INTEGRAL)


@every_family
@given(data=st.data())
@few
def test_what_a_sample_tells_is_told_by_its_mean_in_as_many_numbers(family: Family, data: st.DataObject) -> None:
    p = family.to_natural(data.draw(raws(family)))
    z = some_z(family, p)
    assert family.told(z).equal(told(family, z))
    assert family.told(z).shape == family.mean_told(p).shape == (len(z), channels(family))
    assert family.mean_told(p).equal(family.mean(p)[:, : channels(family)])


@every_family
@given(data=st.data(), m=st.floats(0, 10))
@few
def test_a_message_times_any_law_is_a_law_for_every_m(family: Family, data: st.DataObject, m: float) -> None:
    """Even of outputs whose softplus underflows or is linear."""
    a = family.to_natural(data.draw(raws(family, bound=30)))
    b = family.message(data.draw(raws(family, rows=4, bound=1000))[:, : channels(family)])
    assert b.isfinite().all()
    for message in b:
        family.check(family.tilted(a, message, m))


@every_family
@given(data=st.data(), m=st.floats(0, 2))
@few
def test_shortcuts_say_what_they_are_short_for_and_so_do_their_gradients(
    family: Family, data: st.DataObject, m: float
) -> None:
    raw = data.draw(raws(family)).requires_grad_()
    a = family.to_natural(raw)
    b = family.message(data.draw(raws(family, rows=3))[:, : channels(family)])[0].requires_grad_()
    for short, whole, inputs in (
        (family.mean_of(raw), family.mean_told(a), (raw,)),
        (family.tilting_kl(a, b, m), family.kl(family.tilted(a, b, m), a), (raw, b)),
    ):
        torch.testing.assert_close(short, whole, **CLOSE)
        weight = torch.linspace(1, 2, whole.numel(), dtype=whole.dtype).view_as(whole)
        gradients = (torch.autograd.grad(x, inputs, weight, retain_graph=True) for x in (short, whole))
        torch.testing.assert_close(*gradients, **CLOSE)


@every_family
@given(data=st.data())
@few
def test_what_a_message_leaves_out_is_common_to_all_classes_and_changes_no_read_out(
    family: Family, data: st.DataObject
) -> None:
    raw = data.draw(raws(family, rows=4))[:, : channels(family)]
    message = family.message(raw)
    whole = F.softplus(raw) if isinstance(family, Laplace) else raw  # precisions
    torch.testing.assert_close(message - message[0], whole - whole[0], **CLOSE)
    t = told(family, some_z(family, family.to_natural(data.draw(raws(family)))))
    read, other = ((t @ b.mT).softmax(-1) for b in (message, whole))
    torch.testing.assert_close(read, other, rtol=1e-8, atol=1e-8)  # logits up to 1e3 times those digits


@every_family
def test_the_gradient_of_a_message_is_that_of_finite_differences(family: Family) -> None:
    raw = torch.linspace(-3, 3, 4 * channels(family), dtype=torch.double).reshape(4, -1)
    assert gradcheck(family.message, (raw.requires_grad_(),))


@every_family
def test_messages_are_at_least_float32(family: Family) -> None:
    raw = torch.linspace(-3, 3, 4 * channels(family), dtype=torch.double).reshape(4, -1)
    assert family.message(raw).dtype == torch.double
    half = raw.bfloat16()
    assert family.message(half).equal(family.message(half.float()))


@every_family
def test_products_are_sums_so_their_order_does_not_matter_and_m_0_changes_nothing(family: Family) -> None:
    a, b, c = (natural_at(family, seed) for seed in range(3))
    there, back = family.product(family.product(a, b), c), family.product(a, family.product(c, b))
    torch.testing.assert_close(there, back, **CLOSE)
    assert family.product(a, b, 0.0).equal(a)


@every_family
@pytest.mark.parametrize("name", QUANTITIES)
def test_gradients_are_those_of_finite_differences(family: Family, name: str) -> None:
    p, q = (natural_at(family, seed).requires_grad_() for seed in (1, 2))
    z = some_z(family, p)
    assert gradcheck(lambda p, q: quantity(family, name, p, q, z), (p, q))


@every_family
def test_the_gradient_of_to_natural_is_that_of_finite_differences(family: Family) -> None:
    raw = torch.linspace(-30, 30, 2 * family.width(D), dtype=torch.double).reshape(2, -1)
    assert gradcheck(family.to_natural, (raw.requires_grad_(),))


@every_family
@pytest.mark.parametrize("name", QUANTITIES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_extreme_outputs_of_a_network_give_finite_values_and_gradients(
    family: Family, name: str, dtype: torch.dtype
) -> None:
    """All pairs of corners of a cube of +-80 with 0, for both laws."""
    values = torch.tensor([-80.0, 0.0, 80.0], dtype=dtype)
    corners = torch.cartesian_prod(*[values] * (2 * family.width(1)))
    raw_p, raw_q = (half.clone().requires_grad_() for half in corners.chunk(2, -1))
    p, q = family.to_natural(raw_p), family.to_natural(raw_q)
    family.check(p)
    value = quantity(family, name, p, q, some_z(family, p))
    reached = value.sum() + 0 * (p.sum() + q.sum())  # not every quantity depends on both
    gradients = torch.autograd.grad(reached, (raw_p, raw_q))
    assert value.dtype == torch.float32
    assert all(x.isfinite().all() for x in (value, *gradients))
    if name == "kl":
        assert value.min() >= -1e-6  # rounding
        assert value[(p == q).all(-1)].abs().max() <= 1e-6


@every_family
@pytest.mark.parametrize("name", QUANTITIES)
def test_half_precision_and_autocast_compute_in_float32_and_double_in_double(family: Family, name: str) -> None:
    p, q = (natural_at(family, seed).bfloat16() for seed in (1, 2))
    z = some_z(family, p)
    exact = quantity(family, name, p.float(), q.float(), z)
    assert quantity(family, name, p, q, z).equal(exact)
    with torch.autocast("cpu", torch.bfloat16):
        assert quantity(family, name, p, q, z).equal(exact)
        assert quantity(family, name, p.float(), q.float(), z).equal(exact)
    double = quantity(family, name, p.double(), q.double(), z.double())
    assert double.dtype == torch.double
    torch.testing.assert_close(double.float(), exact, rtol=1e-4, atol=1e-5)  # float32, with terms around 10


@every_family
@pytest.mark.parametrize("name", QUANTITIES)
def test_vmap_over_layers_is_a_loop_over_them(family: Family, name: str) -> None:
    p, q = (torch.stack([natural_at(family, seed + k) for k in range(3)]) for seed in (1, 4))
    z = some_z(family, p)
    together = torch.vmap(lambda p, q, z: quantity(family, name, p, q, z))(p, q, z)
    apart = torch.stack([quantity(family, name, *of) for of in zip(p, q, z, strict=True)])
    torch.testing.assert_close(together, apart, **CLOSE)


@every_family
def test_one_generator_state_gives_one_sample_and_the_global_generator_is_left_alone(family: Family) -> None:
    natural = natural_at(family, 0, rows=50)
    state = torch.get_rng_state()
    g = torch.Generator().manual_seed(5)
    first, second = family.sample(natural, g), family.sample(natural, g)
    assert some_z(family, natural, 5).equal(first)
    assert not first.equal(second)
    assert torch.get_rng_state().equal(state)


@every_family
def test_samples_under_vmap_are_drawn_apart_for_every_layer(family: Family) -> None:
    natural = natural_at(family, 0, rows=50).expand(2, -1, -1)
    g = torch.Generator().manual_seed(0)
    first, second = torch.vmap(lambda natural: family.sample(natural, g), randomness="different")(natural)
    assert not first.equal(second)


@every_family
def test_moments_of_samples_are_the_means(family: Family) -> None:
    n = 20_000
    natural = natural_at(family, 3, rows=1)
    t = statistics(family, some_z(family, natural.expand(n, -1)))
    error = (t.mean(0) - family.mean(natural)[0]).abs()
    # Five standard errors of a mean over n; the seed is fixed, so this holds or fails for good.
    assert (error <= 5 * t.std(0) / n**0.5).all()


@every_family
def test_the_log_prob_of_a_sample_averages_to_minus_the_entropy(family: Family) -> None:
    n = 20_000
    natural = natural_at(family, 4, rows=1).expand(n, -1)
    log_p = family.log_prob(some_z(family, natural), natural)
    assert (log_p.mean() + family.entropy(natural)[0]).abs() <= 5 * log_p.std() / n**0.5  # as above


@every_density
def test_continuous_samples_are_reparameterised(family: Family) -> None:
    """With the noise held, z is a differentiable function of the natural parameters."""
    natural = natural_at(family, 1).requires_grad_()
    assert gradcheck(lambda natural: family.sample(natural, torch.Generator().manual_seed(2)), (natural,))


@every_discrete
def test_discrete_samples_are_discrete_and_pass_the_gradient_of_the_mean(family: Family) -> None:
    natural = natural_at(family, 1, rows=50).requires_grad_()
    z = family.sample(natural, torch.Generator().manual_seed(2))
    assert ((z == 0) | (z == 1)).all()
    if isinstance(family, Categorical):
        assert by_unit(z).sum(-1).eq(1).all()
    weight = torch.randn(z.shape, dtype=torch.double, generator=torch.Generator().manual_seed(0))
    through, exact = (torch.autograd.grad((weight * x).sum(), natural)[0] for x in (z, family.mean_latent(natural)))
    assert through.equal(exact)


def expected_negative_log_softmax(family: Family, r: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """E[-log softmax_y(b_y . T(z))] and what it is with the logarithm outside, over every z of the discrete D units."""
    states = grid(family).z
    index = torch.cartesian_prod(*[torch.arange(len(states))] * D)
    z = states[index].mT.flatten(1)  # (points, P D)
    p = family.log_prob(z, r[:, None]).exp()  # (B, points)
    logits = z @ b.mT  # (points, C)
    inside = p @ -logits.log_softmax(-1)
    outside = (p @ logits.exp().sum(-1, keepdim=True)).log() - p @ logits
    return inside, outside


@every_discrete
@given(data=st.data())
@few
def test_the_read_outs_price_is_its_sum_over_all_states_and_bounds_the_expectation(
    family: Family, data: st.DataObject
) -> None:
    r, b = data.draw(raws(family)), data.draw(raws(family, rows=4))
    price = cross_entropy_bound(family, r[:, None], b[:, None])
    inside, outside = expected_negative_log_softmax(family, r, b)
    torch.testing.assert_close(price, outside, **CLOSE)
    assert (price >= inside - 1e-9).all()  # rounding, where Jensen's inequality is an equality


@every_density
@given(data=st.data())
@few
def test_the_read_outs_price_is_its_integral(family: Family, data: st.DataObject) -> None:
    r, b = family.to_natural(data.draw(raws(family, d=1, rows=1))), said(family, data.draw(raws(family, d=1, rows=3)))
    over = grid(family)
    logits = told(family, over.z) @ b.mT  # (points, C)
    log_p = family.log_prob(over.z, r)
    normaliser = over.log_integral((log_p[:, None] + logits).logsumexp(-1))
    outside = normaliser - over.expectation(log_p, logits)
    price = cross_entropy_bound(family, r[:, None], b[:, None])[0]
    # The price is at most around 1e3 here, and off by that times the integral's relative error.
    torch.testing.assert_close(price, outside, rtol=1e-5, atol=1e-5)
    assert (price >= over.expectation(log_p, -logits.log_softmax(-1)) - 1e-5).all()


@every_family
def test_equal_messages_for_all_classes_price_each_at_log_c_and_their_own_kl(family: Family) -> None:
    """log C + A(r + b) - A(r) - b . E[T] = log C + KL(r || r + b): the bound's gap for a read-out that says nothing."""
    r, b = natural_at(family, 1), natural_at(family, 2, rows=1)[:, : channels(family)]
    expected = torch.tensor(5.0).double().log() + family.kl(r, family.tilted(r, b))
    price = cross_entropy_bound(family, r[:, None], b[:, None].expand(5, -1, -1))
    torch.testing.assert_close(price, expected[:, None].expand(-1, 5), **CLOSE)


@every_family
@given(data=st.data())
@few
def test_over_positions_a_read_out_sums_what_it_says_of_each(family: Family, data: st.DataObject) -> None:
    """Three positions with messages of their own, or with one for all; the KLs in the price add up alike."""
    r = family.to_natural(torch.stack([data.draw(raws(family)) for _ in range(3)], 1))  # (B, S, P D)
    raw = torch.stack([data.draw(raws(family, rows=4))[:, : channels(family)] for _ in range(3)], 1)
    b = family.message(raw)  # (C, S, channels)
    for own in (b, b[:, :1]):
        each = own.expand(-1, 3, -1)
        logits = torch.einsum("bsn,csn->bc", family.mean_told(r), each)
        torch.testing.assert_close(inner(family.mean_told(r), own), logits, **CLOSE)
        far = torch.stack([family.kl(r, family.tilted(r, one)).sum(1) for one in each], 1)  # (B, C)
        price = (logits + far).logsumexp(1, keepdim=True) - logits
        torch.testing.assert_close(cross_entropy_bound(family, r, own), price, **CLOSE)
