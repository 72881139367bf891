"""Every study by name; importing this loads no torch."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

from sidestep.errors import unknown

if TYPE_CHECKING:
    from sidestep.studies.study import Study

# A study is `STUDY` in the module of its name.
STUDIES: dict[str, str] = {
    "reproduction": "SID's published numbers again, and what strong controls leave of the gain",
    "gap-trials": "what was tried to bring isolated blocks to backprop, on validation only",
}


def study_named(name: str) -> Study:
    """Raises UsageError for a name that is not in STUDIES."""
    if name not in STUDIES:
        raise unknown("study", name, STUDIES)
    return import_module(f"{__name__}.{name.replace('-', '_')}").STUDY
