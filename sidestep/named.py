"""What has a name on the command line, found in a table of places and imported when it is asked for."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from typing import Any

from sidestep.errors import unknown


def named(kind: str, name: str, table: Mapping[str, str], package: str) -> Any:
    """What `table` has under `name`, as "module:attribute" of the package.  Raises UsageError for another name."""
    if name not in table:
        raise unknown(kind, name, table)
    module, _, attribute = table[name].partition(":")
    return getattr(import_module(f"{package}.{module}"), attribute)
