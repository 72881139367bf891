"""Train deep networks without a global backward pass."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

__version__ = "0.1.0"

if TYPE_CHECKING:
    from sidestep.api import compare, fit
    from sidestep.core.cut import CutPlan, cut
    from sidestep.core.task import Classification, Regression, Task
    from sidestep.engines.streaming import Streaming
    from sidestep.engines.update import UpdateRule
    from sidestep.measure.isolation import audit
    from sidestep.methods.backprop import Backprop, BackpropCheckpointed
    from sidestep.methods.bll import BLL
    from sidestep.methods.deep_supervision import DeepSupervision
    from sidestep.methods.local_ce import LocalCE
    from sidestep.methods.sid import SID
    from sidestep.run import Run, load_run

# Imported when first used: `import sidestep` alone costs nothing, and the command line answers before torch is loaded.
_WHERE = {
    "BLL": "methods.bll",
    "SID": "methods.sid",
    "Backprop": "methods.backprop",
    "BackpropCheckpointed": "methods.backprop",
    "Classification": "core.task",
    "CutPlan": "core.cut",
    "DeepSupervision": "methods.deep_supervision",
    "LocalCE": "methods.local_ce",
    "Regression": "core.task",
    "Run": "run",
    "Streaming": "engines.streaming",
    "Task": "core.task",
    "UpdateRule": "engines.update",
    "audit": "measure.isolation",
    "compare": "api",
    "cut": "core.cut",
    "fit": "api",
    "load_run": "run",
}

__all__ = [
    "BLL",
    "SID",
    "Backprop",
    "BackpropCheckpointed",
    "Classification",
    "CutPlan",
    "DeepSupervision",
    "LocalCE",
    "Regression",
    "Run",
    "Streaming",
    "Task",
    "UpdateRule",
    "audit",
    "compare",
    "cut",
    "fit",
    "load_run",
]


def __getattr__(name: str) -> object:
    if name not in _WHERE:
        raise AttributeError(f"module 'sidestep' has no attribute {name!r}")
    return getattr(import_module(f"sidestep.{_WHERE[name]}"), name)


def __dir__() -> list[str]:
    return __all__
