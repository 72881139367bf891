"""Every method by name.  A method is imported when it is asked for: `sidestep --help` must not import torch."""

from __future__ import annotations

from dataclasses import fields
from typing import TYPE_CHECKING

from sidestep.named import named

if TYPE_CHECKING:
    from sidestep.core.method import Method

METHODS: dict[str, str] = {
    "backprop": "backprop:Backprop",
    "backprop_checkpointed": "backprop:BackpropCheckpointed",
    "bll": "bll:BLL",
    "bll_released": "bll_released:BLLReleased",
    "deep_supervision": "deep_supervision:DeepSupervision",
    "local_ce": "local_ce:LocalCE",
    "sid": "sid:SID",
}


def method_class(name: str) -> type[Method]:
    """The class of a method.  Raises UsageError for a name that is not in METHODS."""
    return named("method", name, METHODS, __name__)


def method_fields(method: Method) -> dict[str, object]:
    """A method's hyperparameters by name."""
    return {own.name: getattr(method, own.name) for own in fields(method)}


def method_name(method: Method) -> str:
    """The name under which a method's class is listed; a class of the user's own goes by its name."""
    cls = type(method)
    listed = (
        name for name, where in METHODS.items() if f"{__name__}.{where}" == f"{cls.__module__}:{cls.__qualname__}"
    )
    return next(listed, cls.__name__)
