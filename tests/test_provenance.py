"""What a row says of the code that made it."""

from __future__ import annotations

import subprocess
from typing import Any

import pytest

from sidestep import __version__, provenance


def test_where_there_is_no_git_a_row_says_the_commit_that_it_was_told_or_the_version(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def absent(*_: Any, **__: Any) -> None:
        raise FileNotFoundError("git")

    monkeypatch.setattr(subprocess, "run", absent)
    monkeypatch.delenv("SIDESTEP_COMMIT", raising=False)
    assert provenance.commit.__wrapped__() == f"v{__version__}"
    monkeypatch.setenv("SIDESTEP_COMMIT", "0123456789ab")
    assert provenance.commit.__wrapped__() == "0123456789ab"
