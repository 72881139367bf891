"""Numbers worked by hand, the gradients of the Bernoulli objective, and refusals.

An expected value with a logarithm is close, not equal: in float32 that is rounded, and what it is made of too.
"""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sidestep.errors import UsageError
from sidestep.families import family_class
from sidestep.families.bernoulli import Bernoulli
from sidestep.families.categorical import Categorical
from sidestep.families.family import Family, cross_entropy_bound
from sidestep.families.gaussian import Gaussian
from sidestep.families.laplace import Laplace

from .laws import CLOSE, raws


def test_flat_parameters_hold_the_first_of_every_unit_first() -> None:
    families = (Bernoulli(), Gaussian(), Laplace(), Categorical(states=3))
    assert [family.width(5) for family in families] == [5, 10, 5, 15]
    # Means 2 and -1, precisions 4 and 2: potentials 8 and -2.
    gaussian = torch.tensor([8.0, -2.0, 4.0, 2.0])
    assert Gaussian().mean_latent(gaussian).tolist() == [2.0, -1.0]
    assert Gaussian().mean(gaussian).tolist() == [2.0, -1.0, -(4 + 0.25) / 2, -(1 + 0.5) / 2]
    # Unit 1 with logits log 1, log 3; unit 2 with log 1, log 1.
    categorical = torch.tensor([0.0, 0.0, math.log(3), 0.0])
    expected = torch.tensor([0.25, 0.5, 0.75, 0.5])
    torch.testing.assert_close(Categorical(states=2).mean(categorical), expected)


def test_what_latents_tell_by_hand() -> None:
    z = torch.tensor([2.0, -3.0])
    assert Laplace().told(z).tolist() == [-2.0, -3.0]
    for family in (Gaussian(), Bernoulli(), Categorical()):
        assert family.told(z).tolist() == [2.0, -3.0]
    assert Gaussian().mean_told(torch.tensor([6.0, -2.0, 3.0, 4.0])).tolist() == [2.0, -0.5]
    assert Laplace().mean_told(torch.tensor([2.0])).tolist() == [-0.5]


def test_messages_by_hand() -> None:
    """Two units, potentials centred over two classes; precisions softplus(0) = log 2 and softplus(log(e^2 - 1)) = 2."""
    two = math.log(math.exp(2) - 1)
    centred = torch.tensor([[-1.0, 2.0], [1.0, -2.0]])
    precision = torch.tensor([[0.0, 2 - math.log(2)], [2 - math.log(2), 0.0]])
    potentials, free = torch.tensor([[1.0, 5.0], [3.0, 1.0]]), torch.tensor([[0.0, two], [two, 0.0]])
    assert Bernoulli().message(potentials).equal(centred)
    assert Categorical(states=2).message(potentials).equal(centred)
    torch.testing.assert_close(Laplace().message(free), precision)
    assert Gaussian().message(potentials).equal(centred)


def test_a_message_tilts_a_gaussians_location_and_leaves_its_precision() -> None:
    """A mean of 3 and precision 2, and b = 4 to the power of a half: mean 3 + 2 / 2."""
    rho = Gaussian().tilted(torch.tensor([6.0, 2.0]), torch.tensor([4.0]), 0.5)
    assert rho.tolist() == [8.0, 2.0] and Gaussian().mean_told(rho).tolist() == [4.0]


def test_the_channels_that_units_tell() -> None:
    """All a categorical's probabilities, one number of every other law's unit."""
    assert [family.units(12) for family in (Bernoulli(), Gaussian(), Laplace(), Categorical(3))] == [12, 12, 12, 4]
    with pytest.raises(
        UsageError, match="got a block with 10 channels for latents of 4 states, expected a multiple; c"
    ):
        Categorical().units(10)


def test_a_gaussian_product_adds_precisions_and_weighs_means_by_them() -> None:
    a, b = torch.tensor([2.0 * 1.0, 2.0]), torch.tensor([6.0 * 5.0, 6.0])  # means 1 and 5, precisions 2 and 6
    assert Gaussian().product(a, b).tolist() == [32.0, 8.0]
    assert Gaussian().mean_latent(Gaussian().product(a, b)).tolist() == [(2 * 1 + 6 * 5) / 8]
    assert Gaussian().product(a, b, 0.5).tolist() == [17.0, 5.0]


def test_gaussian_kl_of_a_shift_by_one_standard_deviation_is_half() -> None:
    standard, shifted, wide = torch.tensor([[0.0, 1.0], [1.0, 1.0], [0.0, 0.25]])
    assert Gaussian().kl(shifted, standard).item() == 0.5
    torch.testing.assert_close(Gaussian().kl(standard, wide), torch.tensor(0.5 * (0.25 - 1) + math.log(2)))


def test_laplace_moments_are_its_scale_and_twice_its_square() -> None:
    eta = torch.tensor([0.5]).expand(100_000, 1)
    z = Laplace().sample(eta, torch.Generator().manual_seed(0)).double()
    assert Laplace().mean(eta)[0].item() == -2.0
    assert Laplace().mean_latent(eta)[0].item() == 0.0
    # Five standard errors over 1e5: Var |z| = 4, Var z = 8, Var z^2 = (24 - 4) 16 = 320.
    for got, expected, variance in ((z.abs(), 2, 4), (z, 0, 8), (z**2, 8, 320)):
        assert abs(got.mean().item() - expected) < 5 * (variance / 1e5) ** 0.5


@pytest.mark.parametrize("family", [Gaussian(), Laplace()])
def test_a_precision_is_the_softplus_of_the_output_and_never_reaches_0(family: Gaussian | Laplace) -> None:
    raw = torch.tensor([[0.0] * family.width(1), [-200.0] * family.width(1)], dtype=torch.bfloat16)
    natural = family.to_natural(raw)
    assert natural.dtype == torch.float32
    torch.testing.assert_close(natural[:, -1], torch.tensor([math.log(2), 0]) + family.least_precision)
    family.check(natural)


def test_a_gaussian_output_of_a_mean_gives_that_mean_whatever_the_precision() -> None:
    natural = Gaussian().to_natural(torch.tensor([[2.0, -5.0], [2.0, 5.0]]))
    assert Gaussian().mean_latent(natural).tolist() == [[2.0], [2.0]]  # a product with 2 is not rounded


@given(a=raws(Bernoulli()), b=raws(Bernoulli()), m=st.floats(0, 1))
@settings(max_examples=30, deadline=None)
def test_bernoulli_kl_and_its_gradients_are_those_written_out(a: torch.Tensor, b: torch.Tensor, m: float) -> None:
    """KL(rho || alpha) = sum_j [rho_j m b_j - softplus(a_j + m b_j) + softplus(a_j)], with rho detached and without."""
    family = Bernoulli()
    a.requires_grad_()
    b.requires_grad_()
    rho, alpha = (a + m * b).sigmoid(), a.sigmoid()
    kl = family.kl(family.product(a, b, m), a)
    written = (rho * m * b - torch.log1p((a + m * b).exp()) + torch.log1p(a.exp())).sum(-1)
    torch.testing.assert_close(kl, written, **CLOSE)
    to_a, to_b = torch.autograd.grad(kl.sum(), (a, b))
    torch.testing.assert_close(to_a, rho * (1 - rho) * m * b + alpha - rho, **CLOSE)
    torch.testing.assert_close(to_b, m**2 * b * rho * (1 - rho), **CLOSE)
    (to_a,) = torch.autograd.grad(family.kl(family.product(a, b, m).detach(), a).sum(), a)
    torch.testing.assert_close(to_a, alpha - rho, **CLOSE)


def test_bernoulli_kl_of_tiny_probabilities_keeps_its_digits_in_float32() -> None:
    """p = e^-40 and q = e^-41: p log(p/q) - p + q = e^-40 - e^-40 + e^-41 up to e^-80, where softplus would leave 0."""
    p, q = torch.tensor([[-40.0], [40.0]]), torch.tensor([[-41.0], [41.0]])
    exact = torch.full((2,), math.exp(-41))
    torch.testing.assert_close(Bernoulli().kl(p, q), exact, rtol=1e-4, atol=0.0)  # differences of floats near 40


def test_the_read_out_of_one_unit_by_hand() -> None:
    """r = 0, b = (log 3, 0): E[e^bz] = (1 + 3) / 2 = 2 and 1, so log 3 - E[z] b = log 3 / 2 and log 3."""
    price = cross_entropy_bound(Bernoulli(), torch.zeros(1, 1, 1), torch.tensor([[[math.log(3)]], [[0.0]]]))
    torch.testing.assert_close(price, torch.tensor([[math.log(3) / 2, math.log(3)]]))


def test_a_message_may_have_precision_0_and_then_changes_nothing() -> None:
    for family, message, a in (
        (Gaussian(), torch.zeros(1, 2), torch.tensor([[1.0, 2.0]])),
        (Laplace(), torch.zeros(1, 1), torch.tensor([[2.0]])),
    ):
        nothing = torch.zeros(3, 1, 1)
        family.check(message, zero=True)
        with pytest.raises(UsageError, match=r"got a precision of 0 .* expected above 0"):
            family.check(message)
        assert family.product(a, message).equal(a)
        assert family.tilted(a, nothing[0]).equal(a)
        price = cross_entropy_bound(family, a[:, None], nothing)
        torch.testing.assert_close(price, torch.full((1, 3), math.log(3)))


@pytest.mark.parametrize(
    ("family", "natural", "text"),
    [
        (Bernoulli(), [math.nan], "got a natural parameter nan for Bernoulli, expected a finite number"),
        (Categorical(states=2), [0.0, math.inf], "got a natural parameter inf for Categorical"),
        (Categorical(states=2), [0.0] * 3, "got 3 natural parameters, expected a multiple of 2 for Categorical"),
        (Gaussian(), [1.0, 1.0, 1.0], "got 3 natural parameters, expected a multiple of 2 for Gaussian"),
        (Gaussian(), [1.0, -0.5], "got a precision of -0.5 for Gaussian, expected above 0; to_natural"),
        (Gaussian(), [1.0, 0.0], "got a precision of 0 for Gaussian, expected above 0"),
        (Gaussian(), [math.nan, 1.0], "got a natural parameter nan for Gaussian"),
        (Laplace(), [1.0, -2.0], "got a precision of -2 for Laplace, expected above 0"),
    ],
)
def test_what_is_outside_the_domain_is_refused_in_one_line(family: Family, natural: list[float], text: str) -> None:
    with pytest.raises(UsageError) as caught:
        family.check(torch.tensor([natural]))
    assert str(caught.value).startswith(text)
    assert "\n" not in str(caught.value)


def test_a_negative_precision_is_refused_in_a_message_too() -> None:
    with pytest.raises(UsageError, match="got a precision of -1 for Gaussian, expected at least 0"):
        Gaussian().check(torch.tensor([1.0, -1.0]), zero=True)


@pytest.mark.parametrize("m", [-0.5, math.nan])
def test_dividing_by_a_message_is_refused(m: float) -> None:
    with pytest.raises(UsageError, match=rf"got m={m}, expected at least 0: alpha \* beta\^m need not be a Laplace"):
        Laplace().product(torch.ones(1, 1), torch.ones(1, 1), m)


def test_a_class_message_that_leaves_the_domain_is_refused() -> None:
    r, b = torch.tensor([[1.0]]), torch.tensor([[0.5], [-1.5]])
    text = "a posterior times a class's message is no Laplace: got a precision of -0.5 for Laplace"
    with pytest.raises(UsageError, match=text):
        cross_entropy_bound(Laplace(), r[:, None], b[:, None])


def test_a_laplace_with_a_location_is_refused_with_the_reason() -> None:
    with pytest.raises(UsageError, match=r"got location=1.0, expected 0: .* no exponential family, and a product of"):
        Laplace(location=1.0)


@pytest.mark.parametrize("law", [Gaussian, Laplace])
def test_a_least_precision_is_what_the_least_output_gives_and_is_above_0(law: type[Gaussian] | type[Laplace]) -> None:
    raw = torch.full((1, law().width(1)), -200.0)
    assert law(least_precision=25.0).to_natural(raw)[0, -1] == 25
    assert law().to_natural(raw)[0, -1] == {Gaussian: 100, Laplace: 1}[law]
    for least in (0.0, -1.0, math.nan, math.inf):
        with pytest.raises(UsageError, match=f"got least_precision={least}, expected a finite number above 0"):
            law(least_precision=least)


def test_one_state_is_refused() -> None:
    with pytest.raises(UsageError, match="got states=1, expected at least 2"):
        Categorical(states=1)


def test_an_unknown_family_is_named_with_the_nearest() -> None:
    with pytest.raises(UsageError, match="unknown family 'gausian'; did you mean 'gaussian'"):
        family_class("gausian")
