"""Errors with an exit code, 2 for what was asked for and 1 for all else; the command line tells each in one line."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable


class UsageError(ValueError):
    """An unknown word, flag, name or key, or a value out of range: found before any work (exit code 2)."""

    exit_code = 2


class DataError(ValueError):
    """A file, folder, run or data set that is missing or bad inside, or a run that failed (exit code 1)."""

    exit_code = 1


class Busy(DataError):
    """A folder that another process is writing."""


class Diverged(DataError):
    """Training that lost its numbers: the loss or the parameters are infinite or NaN."""


class WireError(DataError):
    """A message that was damaged, was not the one that was due, or whose sender is gone."""


def unknown(kind: str, got: str, known: Iterable[str]) -> UsageError:
    """The error for a word that is not in a list, with the nearest word that is."""
    known = sorted(known)
    near = difflib.get_close_matches(got, known, n=1, cutoff=0.5)
    hint = f"did you mean {near[0]!r}?" if near else f"expected one of {', '.join(known)}."
    return UsageError(f"unknown {kind} {got!r}; {hint}")


def cause(error: Exception) -> str:
    """The first sentence of an error of torch.distributed's, without the place in its source."""
    return re.sub(r"^\[.*?\] ", "", str(error)).partition(". ")[0]
