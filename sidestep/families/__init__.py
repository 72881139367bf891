"""Every exponential family by name, imported when it is asked for: `sidestep --help` must not import torch."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

from sidestep.errors import unknown

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
    if name not in FAMILIES:
        raise unknown("family", name, FAMILIES)
    module, _, attribute = FAMILIES[name].partition(":")
    return getattr(import_module(f"{__name__}.{module}"), attribute)
