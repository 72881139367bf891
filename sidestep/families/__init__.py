"""Every exponential family by name, imported when it is asked for: `sidestep --help` must not import torch."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sidestep.named import named

if TYPE_CHECKING:
    from .family import Family

FAMILIES: dict[str, str] = {
    "bernoulli": "bernoulli:Bernoulli",
    "categorical": "categorical:Categorical",
    "gaussian": "gaussian:Gaussian",
    "laplace": "laplace:Laplace",
}


def family_class(name: str) -> type[Family]:
    """The class of a family.  Raises UsageError for a name that is not in FAMILIES."""
    return named("family", name, FAMILIES, __name__)
