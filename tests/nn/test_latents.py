"""Layouts by hand: a family wants the first parameter of every unit first, a network has channels and positions."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from sidestep.errors import UsageError
from sidestep.families import FAMILIES, family_class
from sidestep.families.bernoulli import Bernoulli
from sidestep.families.categorical import Categorical
from sidestep.families.family import Family
from sidestep.families.gaussian import Gaussian
from sidestep.families.laplace import Laplace
from sidestep.nn.heads import Head
from sidestep.nn.latents import (
    ACTIVATIONS,
    Latents,
    Passed,
    ReadOut,
    answer_at,
    by_position,
    lifted_width,
    lifting,
    opened,
)

# ---- what closes a block


@pytest.mark.parametrize("kind", ACTIVATIONS)
def test_the_activation_that_closes_a_block_is_taken_off_and_nothing_else(kind: type[nn.Module]) -> None:
    unit = nn.Sequential(nn.Linear(3, 3), nn.ReLU(), nn.Linear(3, 3), kind())
    body = nn.Sequential(nn.Flatten(), nn.Sequential(nn.Linear(4, 3), nn.Tanh()), nn.Sequential(unit))
    names = [name for name, _ in body.named_modules()]
    made, closing = opened(body)
    assert closing is unit[-1] and closing is not None
    assert [name for name, _ in body.named_modules()] == names  # left as it was
    assert [name for name, _ in made.named_modules()] == [name for name in names if name != "2.0.3"]
    assert {id(p) for p in made.parameters()} == {id(p) for p in body.parameters()}
    x = torch.randn(5, 2, 2)
    assert torch.equal(closing(made(x)), body(x))


def test_an_activation_that_stands_in_several_places_is_taken_off_at_the_end_only() -> None:
    act = nn.ReLU()
    body = nn.Sequential(nn.Linear(4, 4), act, nn.Linear(4, 4), nn.Sequential(act, nn.Linear(4, 4), act))
    made, closing = opened(body)
    x = torch.randn(5, 4)
    assert closing is act
    assert torch.equal(act(made(x)), body(x))


class Residual(nn.Sequential):
    """Ends in an activation, but is not its last layer alone."""

    def forward(self, input: Tensor) -> Tensor:
        return input + super().forward(input)


@pytest.mark.parametrize(
    "last", [nn.MaxPool1d(1), nn.Linear(3, 3), nn.Sequential(), nn.Sequential(nn.ReLU(), nn.Dropout()), nn.PReLU()]
)
def test_a_block_that_ends_in_something_else_stays_whole(last: nn.Module) -> None:
    body = nn.Sequential(nn.Linear(3, 3), last)
    made, closing = opened(body)
    assert made is body and closing is None


def test_the_inside_of_a_module_with_a_forward_of_its_own_is_left_alone() -> None:
    body = nn.Sequential(Residual(nn.Linear(3, 3), nn.ReLU()))
    assert opened(body) == (body, None)


# ---- in and out


def of(family: Family, *shape: int) -> Latents:
    return Latents(family, torch.Size(shape), mapped=False)


LAYOUTS: dict[str, tuple[tuple[int, ...], list[object], list[list[float]]]] = {
    # Two units; of the last two three positions each.
    "vector": ((2,), [1.0, 2.0], [[1.0, 2.0]]),
    "maps": ((2, 1, 3), [[[1.0, 2.0, 3.0]], [[4.0, 5.0, 6.0]]], [[1.0, 4.0], [2.0, 5.0], [3.0, 6.0]]),
    "tokens": ((3, 2), [[1.0, 4.0], [2.0, 5.0], [3.0, 6.0]], [[1.0, 4.0], [2.0, 5.0], [3.0, 6.0]]),
}
every_layout = pytest.mark.parametrize(("shape", "features", "rows"), LAYOUTS.values(), ids=LAYOUTS)


@every_layout
def test_features_are_natural_parameters_and_their_means_features_again(
    shape: tuple[int, ...], features: list[object], rows: list[list[float]]
) -> None:
    h, natural = torch.tensor([features]), torch.tensor([rows])
    latents = of(Bernoulli(), *shape)
    assert (latents.width, latents.positions) == (2, len(rows))
    assert torch.equal(latents(h), natural)
    assert torch.equal(latents.features(natural), h)
    assert torch.equal(Passed(latents)(h), h.sigmoid())


def test_maps_whose_channels_come_last_in_memory_are_not_copied() -> None:
    """4 x 4 x 4 maps, as a network for images keeps them: in and out without a new tensor."""
    h = torch.randn(2, 4, 4, 4).to(memory_format=torch.channels_last)
    natural = by_position(h)
    assert natural.data_ptr() == h.data_ptr() and torch.equal(natural[1, 4 * 2 + 3], h[1, :, 2, 3])
    again = of(Bernoulli(), 4, 4, 4).features(natural)
    assert again.data_ptr() == h.data_ptr() and again.is_contiguous(memory_format=torch.channels_last)


def test_tokens_with_labels_of_their_own_are_samples_of_one_position() -> None:
    latents = Latents(Bernoulli(), torch.Size([3, 2]), mapped=False, per_token=True)
    h = torch.randn(4, 3, 2)
    assert latents.positions == 1 and torch.equal(latents(h), h[:, :, None])
    assert torch.equal(latents.features(h[:, :, None]), h)


@every_layout
def test_a_categorical_units_states_stand_in_the_channels_at_one_position(
    shape: tuple[int, ...], features: list[object], rows: list[list[float]]
) -> None:
    """One unit of two states at every position: the softmax of the two channels there."""
    latents = of(Categorical(states=2), *shape)
    h = torch.tensor([features])
    over = {1: 1, 2: 2, 3: 1}[len(shape)]  # the dimension of the channels
    torch.testing.assert_close(Passed(latents)(h), h.softmax(over))  # float32: over another dimension


@every_layout
def test_a_gaussian_has_twice_the_channels_and_passes_its_means_on(
    shape: tuple[int, ...], features: list[object], rows: list[list[float]]
) -> None:
    """The means are the features; the offset makes the precisions softplus(log(e^2 - 1)) = 2, and the least, over the
    mean square of a position's features.
    """
    law = Gaussian()
    latents = of(law, *shape)
    assert latents.width == 4
    _, offset = latents.learnt
    with torch.no_grad():
        offset.fill_((torch.tensor(2.0).exp() - 1).log())
    h, mu = torch.tensor([features]), torch.tensor(rows)
    # Here and below, float32: logarithms are rounded, and the mean square is without `LEAST_SQUARE`.
    precision = (2 + law.least_precision) / mu.square().mean(1, keepdim=True).expand_as(mu)
    torch.testing.assert_close(latents(h)[0], torch.cat([precision * mu, precision], 1))
    assert torch.equal(Passed(latents)(h), h)


def test_a_gaussian_is_told_without_its_precision() -> None:
    """Inference is the network: slopes and offsets of NaN are not asked."""
    latents = of(Gaussian(), 3, 2, 2)
    for parameter in latents.parameters():
        nn.init.constant_(parameter, math.nan)
    h = torch.randn(2, 3, 2, 2)
    assert torch.equal(Passed(latents)(h), h)
    assert ReadOut(latents, torch.randn(5, 4, 3))(h).isfinite().all()


@every_layout
def test_a_gaussians_precision_follows_the_mean_of_its_own_channel(
    shape: tuple[int, ...], features: list[object], rows: list[list[float]]
) -> None:
    """By slopes 1 and -2 and offsets 0 and 3: softplus of mu, and of 3 - 2 mu."""
    law = Gaussian()
    latents = of(law, *shape)
    with torch.no_grad():
        for parameter, values in zip(latents.learnt, ([1.0, -2.0], [0.0, 3.0]), strict=True):
            parameter.copy_(torch.tensor(values))
    mu = torch.tensor(rows)
    follows = torch.stack([mu[:, 0], 3 - 2 * mu[:, 1]], 1)
    precision = ((1 + follows.exp()).log() + law.least_precision) / mu.square().mean(1, keepdim=True)
    torch.testing.assert_close(latents(torch.tensor([features]))[0], torch.cat([precision * mu, precision], 1))


@every_layout
def test_a_gaussian_starts_out_as_sure_everywhere(
    shape: tuple[int, ...], features: list[object], rows: list[list[float]]
) -> None:
    law = Gaussian()
    latents = of(law, *shape)
    natural, mu = latents(torch.tensor([features])), torch.tensor(rows)
    precision = (math.log(2) + law.least_precision) / mu.square().mean(1, keepdim=True).expand_as(mu)  # softplus(0)
    torch.testing.assert_close(natural[0], torch.cat([precision * mu, precision], 1))


def test_a_gaussians_noise_is_a_share_of_its_features_however_large_they_are() -> None:
    """A tenth of their root mean square and a little less; finite where all of them are 0."""
    latents, random = of(Gaussian(), 4000), torch.Generator().manual_seed(0)
    for size in (0.01, 1.0, 100.0):
        h = torch.full((1, 4000), size)
        noise = (latents.family.sample(latents(h), random) - h[:, None]).std()
        # Of 4,000 draws: four standard errors are 4.5 %; sqrt(100 / (100 + log 2)) is 0.9966.
        torch.testing.assert_close(noise, torch.tensor(0.1 * size), rtol=0.06, atol=0.0)
    assert latents(torch.zeros(1, 4000)).isfinite().all()


def test_a_laplace_passes_minus_its_scale() -> None:
    law = Laplace()
    latents = of(law, 2)
    h = torch.tensor([[0.0, 1.0]])
    # Float32: exponentials and logarithms are rounded, as softplus is.
    torch.testing.assert_close(Passed(latents)(h), -1 / (h.exp().log1p() + law.least_precision))


@pytest.mark.parametrize(
    ("shape", "mapped", "kind"),
    [
        ((4,), False, nn.Identity),
        ((4,), True, nn.Linear),
        ((5, 4), True, nn.Linear),
        ((4, 3, 3), True, nn.Conv2d),
        ((4, 3, 3), False, nn.Identity),
    ],
)
def test_a_map_of_the_blocks_own_is_pointwise_and_there_only_where_needed(
    shape: tuple[int, ...], mapped: bool, kind: type[nn.Module]
) -> None:
    latents = Latents(Bernoulli(), torch.Size(shape), mapped=mapped)
    assert type(latents.map) is kind
    assert sum(p.numel() for p in latents.parameters()) == (4 * 4 + 4 if mapped else 0)
    gaussian = Latents(Gaussian(), torch.Size(shape), mapped=mapped)
    assert type(gaussian.map) is nn.Identity and sum(p.numel() for p in gaussian.parameters()) == 2 * 4


def test_a_map_of_a_sum_reads_what_is_normalised() -> None:
    """It begins as the identity, so that natural parameters are (-1, 1) for a sum (2, 6); a Gaussian has no map."""
    h = torch.tensor([[2.0, 6.0]])
    natural = Latents(Bernoulli(), torch.Size([2]), mapped=True, norm=True)(h)
    torch.testing.assert_close(natural, torch.tensor([[[-1.0, 1.0]]]))  # the variance, 4, gets 1e-6 more
    gaussian = Latents(Gaussian(), torch.Size([2]), mapped=True, norm=True)
    assert torch.equal(Passed(gaussian)(h), h)


def test_states_that_do_not_divide_the_channels_are_refused() -> None:
    with pytest.raises(UsageError, match="got a block with 6 channels for latents of 4 states, expected a multiple"):
        of(Categorical(), 6)


# ---- read-outs


def test_a_linear_read_out_is_the_product_of_means_and_weights() -> None:
    """Two units: sigmoid(0) = 1/2 and sigmoid(log 3) = 3/4, so 4/2 + 8 x 3/4 and -2/2."""
    latents = of(Bernoulli(), 2)
    weights = torch.tensor([[[4.0, 8.0]], [[-2.0, 0.0]]])
    read_out = ReadOut(latents, weights)
    h = torch.tensor([[0.0, 3.0]])
    h[0, 1] = h[0, 1].log()
    torch.testing.assert_close(read_out(h), torch.tensor([[8.0, -1.0]]))  # float32: log 3 is rounded
    assert torch.equal(read_out(h), answer_at(latents, Bernoulli().mean(latents(h)), weights, None))


def test_a_read_outs_weights_are_a_copy_in_its_state() -> None:
    weights = torch.ones(2, 1, 2)
    read = ReadOut(of(Bernoulli(), 2), weights)
    weights.zero_()
    assert torch.equal(read.state_dict()["weights"], torch.ones(2, 1, 2))
    assert not list(read.parameters())


def test_a_lifted_read_out_compares_a_map_of_what_is_passed_on() -> None:
    latents = of(Bernoulli(), 2, 1, 2)
    lifting = nn.Sequential(nn.Flatten(), nn.Linear(4, 3))
    h, weights = torch.randn(6, 2, 1, 2), torch.randn(5, 3)
    assert torch.equal(ReadOut(latents, weights, lifting)(h), lifting(h.sigmoid()) @ weights.T)


def test_a_sampled_answer_is_the_mean_distribution_over_the_latents() -> None:
    """Two units with P(z = 1) = 1/2 and 3/4: the mean of four softmaxes; four standard errors of 5,000 draws."""
    latents, weights = of(Bernoulli(), 2), torch.tensor([[[4.0, 8.0]], [[-2.0, 0.0]], [[0.0, 1.0]]])
    h = torch.tensor([[0.0, math.log(3)]])
    expected = torch.zeros(3)
    for z, share in (((0, 0), 1 / 8), ((0, 1), 3 / 8), ((1, 0), 1 / 8), ((1, 1), 3 / 8)):
        expected += share * (weights[:, 0] @ torch.tensor(z).float()).softmax(0)
    found = ReadOut(latents, weights, draws=5_000)(h)
    torch.testing.assert_close(found.exp()[0], expected, rtol=0, atol=4 * 0.5 / 5_000**0.5)
    assert not torch.allclose(found.exp(), ReadOut(latents, weights)(h).softmax(-1), atol=0.02)
    assert torch.equal(found, ReadOut(latents, weights, draws=5_000)(h))


def test_a_sampled_answer_of_numbers_has_the_mixtures_mean_and_variance() -> None:
    """z fair in {0, 1}, told N(z, e^z): mean 1/2, variance (1 + e) / 2 + 1/4; four standard errors of 10,000 draws."""

    class Told(nn.Module):
        def forward(self, z: Tensor) -> Tensor:
            return torch.cat([z, -z], 1)

    found = ReadOut(of(Bernoulli(), 1), None, Told(), draws=10_000)(torch.zeros(1, 1))
    mean, variance = found[0, 0].item(), math.exp(-found[0, 1].item())
    assert mean == pytest.approx(0.5, abs=4 * 0.5 / 100)
    assert variance == pytest.approx((1 + math.e) / 2 + 0.25, abs=4 * (math.e - 1) / 2 / 100)


@pytest.mark.parametrize("family", FAMILIES)
def test_an_answer_from_samples_is_a_function_of_its_input(family: Any) -> None:
    """Whatever else is in the batch."""
    latents = of(family_class(family)(), 4, 2, 3)
    h = torch.randn(5, 4, 2, 3)
    answer = ReadOut(latents, torch.randn(3, 6, 4), draws=3)
    together = answer(h)
    turned = answer(h.flip(0)).flip(0)
    alone = torch.cat([answer(row[None]) for row in h])
    for other in (turned, alone):  # products of other shapes: float32
        torch.testing.assert_close(together, other, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("shape", "norm", "kind", "meant", "length"),
    [
        ((4,), False, "auto", "mlp", 7),
        ((5, 4), False, "auto", "mlp", 7),
        ((4, 1, 1), False, "auto", "mlp", 7),
        ((4, 3, 3), False, "auto", "conv", 7),
        ((4, 3, 3), False, "mlp", "mlp", 7),
        ((4,), True, "auto", "linear", 4),
        ((5, 4), True, "linear", "linear", 4),
        ((5, 4), True, "mlp", "mlp", 7),
    ],
)
def test_a_lift_is_a_local_head_without_its_last_layer(
    shape: tuple[int, ...], norm: bool, kind: Any, meant: Any, length: int
) -> None:
    torch.manual_seed(0)
    lift = lifting(torch.Size(shape), kind, 7, 2, norm=norm)
    torch.manual_seed(0)
    head = Head(torch.Size(shape), 1, meant, width=7, depth=2, norm=norm).eval()
    last = copy.deepcopy(head.out[-1])
    h = torch.randn(6, *shape)
    lifted = lift.eval()(h)
    assert lifted.shape == (6, length) and lifted_width(torch.Size(shape), kind, 7, norm=norm) == length
    assert torch.equal(last(lifted), head(h))


@pytest.mark.parametrize("shape", [(4,), (4, 3, 3)])
def test_a_lift_without_a_layer_is_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="got head='linear' for a lifted read-out, expected conv or mlp; use read_out"):
        lifting(torch.Size(shape), "linear", 7, 1)
