"""What there is to choose from: methods, networks and data sets, as rows and as a table.

Nothing here imports torch.
"""

from __future__ import annotations

import ast
import os
import textwrap
from collections.abc import Iterable, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from sidestep.data import DATASETS
from sidestep.methods import METHODS, method_class
from sidestep.models import MODELS
from sidestep.parser import WIDTH, Args, Result


def methods(args: Args) -> Result:
    rows = [{"name": n, "reference": method_class(n).reference, "needs": method_class(n).needs} for n in METHODS]
    return {"methods": rows, "text": table(rows)}


def models(args: Args) -> Result:
    found: list[dict[str, Any]] = []
    for name, where in MODELS.items():
        # Read, not imported: a listing needs no torch.
        module, function = where.split(":")
        source = find_spec(f"sidestep.models.{module}")
        assert source and source.origin
        tree = ast.parse(Path(source.origin).read_text(encoding="utf-8"))
        node = next(n for n in tree.body if isinstance(n, ast.FunctionDef) and n.name == function)
        own = [a.arg for a in node.args.args[2:]]
        options = {a: ast.literal_eval(default) for a, default in zip(own, node.args.defaults, strict=True)}
        found.append({"name": name, "about": (ast.get_docstring(node) or "").split("\n")[0], "options": options})
    rows = [
        {"name": row["name"], "about": " ".join([row["about"], *(f"{k}={v}" for k, v in row["options"].items())])}
        for row in found
    ]
    return {"models": found, "text": table(rows)}


def datasets(args: Args) -> Result:
    shelf = os.environ.get("SIDESTEP_DATA")
    held = [path for file in ("train.parquet", "input.txt") for path in Path(shelf).glob(f"*/{file}")] if shelf else []
    local = sorted(path.parent.name for path in held)
    rows = [{"name": n, "local": "yes" if n in local else "", "about": about} for n, about in DATASETS.items()]
    rows += [{"name": n, "local": "yes", "about": "a folder in $SIDESTEP_DATA"} for n in local if n not in DATASETS]
    return {"datasets": rows, "text": table(rows)}


def table(rows: Iterable[Mapping[str, object]]) -> str:
    """Rows of equal keys as columns of at most 80 characters in all: the last column is wrapped."""
    rows = list(rows)
    cells = [[str(value) for value in row.values()] for row in rows]
    head = list(rows[0])
    widths = [max(map(len, column)) for column in zip(head, *cells, strict=True)][:-1]
    indent = sum(widths) + 2 * len(widths)
    lines: list[str] = []
    for row in [head, *cells]:
        start = "".join(f"{cell:<{width}}  " for cell, width in zip(row, widths, strict=False))
        text = textwrap.fill(row[-1], WIDTH, initial_indent=start, subsequent_indent=" " * indent)
        lines.append((text or start).rstrip())
    return "\n".join(lines)
