"""The families under test, their torch.distributions twins, and grids to sum or integrate over."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from hypothesis import strategies as st
from torch import Tensor
from torch import distributions as td

from sidestep.families.bernoulli import Bernoulli
from sidestep.families.categorical import Categorical
from sidestep.families.family import Family
from sidestep.families.gaussian import Gaussian
from sidestep.families.laplace import Laplace

D = 2  # units
STATES = 3
CLOSE: dict[str, Any] = {"rtol": 1e-9, "atol": 1e-9}  # float64: rounding, at sizes up to 1e3

FAMILIES: list[Family] = [Bernoulli(), Gaussian(), Categorical(states=STATES), Laplace()]
DISCRETE, CONTINUOUS = FAMILIES[::2], FAMILIES[1::2]
NAMES = [type(family).__name__ for family in FAMILIES]


@dataclass(frozen=True)
class Grid:
    """Values z of one unit and the logarithms of their weights in a sum over a discrete law or an integral."""

    z: Tensor  # (points, width of z)
    log_weight: Tensor  # (points,)

    def log_integral(self, log_values: Tensor) -> Tensor:
        return (log_values + self.log_weight).logsumexp(0)

    def expectation(self, log_p: Tensor, values: Tensor) -> Tensor:
        return ((log_p + self.log_weight).exp()[:, None] * values).sum(0)


def latent_fields(name: str) -> dict[str, Any]:
    """BLL's fields for latents of this family."""
    return {"family": name} | ({"states": STATES} if name == "categorical" else {})


def grid(family: Family) -> Grid:
    match family:
        case Bernoulli():
            z = torch.tensor([[0.0], [1.0]]).double()
        case Categorical():
            z = torch.eye(STATES).double()
        case _:
            # The trapezoidal rule in u, where z = sinh u: fine near 0, and reaching 70 times the largest scale, 21.
            # 0 is a point, so that Laplace's kink falls between two intervals.
            u = torch.linspace(-8, 8, 16_001, dtype=torch.double)
            return Grid(u.sinh()[:, None], (u.cosh() * 1e-3).log())
    return Grid(z, torch.zeros(len(z)).double())


def statistics(family: Family, z: Tensor) -> Tensor:
    """T(z), written a second time."""
    match family:
        case Gaussian():
            return torch.cat([z, -(z**2) / 2], -1)
        case Laplace():
            return -z.abs()
        case _:
            return z


def told(family: Family, z: Tensor) -> Tensor:
    """t(z), written a second time."""
    return -z.abs() if isinstance(family, Laplace) else z


def channels(family: Family, d: int = D) -> int:
    """How many numbers d units tell."""
    return STATES * d if isinstance(family, Categorical) else d


def said(family: Family, raw: Tensor) -> Tensor:
    """Numbers as messages with which products stay in the family, (C, channels); raw: (C, P D)."""
    units = raw.shape[1] // family.width(1)
    return family.to_natural(raw) if isinstance(family, Laplace) else raw[:, : channels(family, units)]


def torch_law(family: Family, natural: Tensor) -> td.Distribution:
    """The same law in torch.distributions, the units an event."""
    match family:
        case Bernoulli():
            law = td.Bernoulli(logits=natural)
        case Gaussian():
            potential, lam = natural[..., :D], natural[..., D:]
            law = td.Normal(potential / lam, lam**-0.5)
        case Laplace():
            law = td.Laplace(torch.zeros_like(natural), 1 / natural)
        case _:
            law = td.OneHotCategorical(logits=by_unit(natural))
    return td.Independent(law, 1)


def by_unit(flat: Tensor) -> Tensor:
    """A flat categorical (..., S D) as torch wants it, (..., D, S)."""
    return flat.reshape(*flat.shape[:-1], STATES, D).mT


def raws(family: Family, rows: int = 2, d: int = D, bound: float = 3.0) -> st.SearchStrategy[Tensor]:
    """A network's output, (rows, P d) in float64."""
    size = rows * family.width(d)
    numbers = st.lists(st.floats(-bound, bound), min_size=size, max_size=size)
    return numbers.map(lambda values: torch.tensor(values, dtype=torch.double).reshape(rows, -1))


def natural_at(family: Family, seed: int, rows: int = 2, d: int = D) -> Tensor:
    g = torch.Generator().manual_seed(seed)
    return family.to_natural(1.5 * torch.randn(rows, family.width(d), generator=g, dtype=torch.double))
