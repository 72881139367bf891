"""The README's Python runs as written, block after block in one namespace, and does what it says."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch

README = Path(__file__).parent.parent / "README.md"


def test_the_readmes_python_runs_as_written(capsys: pytest.CaptureFixture[str]) -> None:
    space: dict[str, Any] = {}
    blocks = re.findall(r"^```python\n(.*?)^```", README.read_text(), re.MULTILINE | re.DOTALL)
    assert len(blocks) == 2
    torch.manual_seed(0)  # the README draws its network from the global generator, which other tests move
    for block in blocks:
        exec(block, space)
    accuracy, isolated = capsys.readouterr().out.split()
    assert float(accuracy) > 0.95 and isolated == "True"
    assert space["run"].summary["blocks"] == 4
    assert space["loss"].shape == (4,) and bool(torch.isfinite(space["loss"]).all())
    assert space["logits"].shape == (1797, 10)


def test_the_readmes_tree_is_the_tree() -> None:
    """Every file and folder it names exists, and no module of the package is left out."""
    root = README.parent
    tree = README.read_text().split("## The tree")[1].split("```")[1]
    package = root / "sidestep"
    named = set(re.findall(r"[\w/.]+\.py|(?<![\w.])\w+/", tree))
    folders = {f"{p.name}/" for p in package.iterdir() if (p / "__init__.py").exists()}
    top = {p.name for p in package.glob("*.py")} | folders
    core = {p.name for p in (package / "core").glob("*.py") if p.name != "__init__.py"}
    assert top - {"__main__.py"} <= named
    assert core <= named
    for name in named:
        assert any((base / name).exists() for base in (root, package, package / "core", root / "tests")), name
