"""Train deep networks without a global backward pass."""

from __future__ import annotations

import sys
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING

__version__ = "0.1.0"

if TYPE_CHECKING:
    from sidestep.compare import compare
    from sidestep.core.cut import CutPlan, cut
    from sidestep.core.task import Task
    from sidestep.engines.streaming import Streaming
    from sidestep.engines.update import UpdateRule
    from sidestep.measure.isolation import measure as audit
    from sidestep.methods.backprop import Backprop, BackpropCheckpointed
    from sidestep.methods.deep_supervision import DeepSupervision
    from sidestep.methods.local_ce import LocalCE
    from sidestep.methods.sid import SID
    from sidestep.run import Run, load_run
    from sidestep.train import fit

# Imported when first used: `import sidestep` alone costs nothing, and the command line answers before torch is loaded.
_WHERE = {
    "SID": "methods.sid",
    "Backprop": "methods.backprop",
    "BackpropCheckpointed": "methods.backprop",
    "CutPlan": "core.cut",
    "DeepSupervision": "methods.deep_supervision",
    "LocalCE": "methods.local_ce",
    "Run": "run",
    "Streaming": "engines.streaming",
    "Task": "core.task",
    "UpdateRule": "engines.update",
    "audit": "measure.isolation:measure",
    "compare": "compare",
    "cut": "core.cut",
    "fit": "train",
    "load_run": "run",
}

__all__ = [
    "SID",
    "Backprop",
    "BackpropCheckpointed",
    "CutPlan",
    "DeepSupervision",
    "LocalCE",
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


class _Package(ModuleType):
    """Importing the module `sidestep.compare` must not hide the function that is promised under that name."""

    def __setattr__(self, name: str, value: object) -> None:
        if not (name in _WHERE and isinstance(value, ModuleType)):
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package


def __getattr__(name: str) -> object:
    if name not in _WHERE:
        raise AttributeError(f"module 'sidestep' has no attribute {name!r}")
    module, _, attribute = _WHERE[name].partition(":")
    return getattr(import_module(f"sidestep.{module}"), attribute or name)


def __dir__() -> list[str]:
    return __all__
