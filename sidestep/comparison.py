"""The same recipe and budget for every method, over several seeds, with strong backprop always among them."""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path, PurePath
from typing import Any

from sidestep.assemble import assemble, with_method
from sidestep.config import TrainConfig
from sidestep.errors import UsageError
from sidestep.files import write_json
from sidestep.layout import COMPARISON, CONFIG, REPORT
from sidestep.measure.cost import cost_rows
from sidestep.resuming import enter

SPREAD = ("test_accuracy", "test_nll", "test_brier", "test_ece", "val_accuracy")


def run(
    methods: Sequence[str],
    make: Callable[[str, int], TrainConfig],
    seeds: int,
    out: Path | None,
    resume: str | None = None,
    overwrite: bool = False,
) -> dict[str, object]:
    """What `sidestep compare` does: a folder a run, `compare.json` and `report.html` beside them.

    make: (method, number of the run from 0) -> configuration.  With resume, finished runs are taken as they are and the
    others continued.  A run that was made with other settings, and a network that one of the methods refuses, are found
    before any work.
    """
    from sidestep import train
    from sidestep.report.build import write_report

    methods = list(dict.fromkeys(methods))
    first = make(methods[0], 0)
    out = out or Path("runs") / f"{time.strftime('%Y%m%d-%H%M%S')}-compare-{PurePath(first.data).name}"
    if (out / CONFIG).exists():
        raise UsageError(f"{out} holds a run, expected none or those of a comparison; choose another --out.")
    if any(out.glob(f"*/{CONFIG}")) and not (resume or overwrite):
        raise UsageError(f"{out} holds runs; give --resume last to continue them, --overwrite, or another --out.")
    if resume and not out.is_dir():
        print(f"sidestep: {out} holds no runs; starting from the beginning", file=sys.stderr)
    configs: list[TrainConfig] = []
    for config in (make(method, number) for number in range(seeds) for method in methods):
        folder = out / f"{config.method}-seed{config.seed}"
        begun = resume and (folder / CONFIG).exists()
        configs.append(replace(config, out=folder, resume=resume if begun else None, overwrite=overwrite))
        enter(configs[-1])
    for method in methods:
        assemble(make(method, 0))  # and not kept: its memory would count among that of the runs
    summaries: dict[str, list[dict[str, Any]]] = {method: [] for method in methods}
    for i, config in enumerate(configs, 1):
        print(f"sidestep: run {i} of {len(configs)}: {config.method}, seed {config.seed}", file=sys.stderr)
        # What a run costs is measured once a method, below, in turn with the others.
        summaries[config.method].append(train.run(config, costs=False))
    fresh = {method: assemble(replace(make(method, 0), compile=False, cuda_graph=False)) for method in methods}
    fresh.setdefault("backprop_checkpointed", with_method(fresh["backprop"], "backprop_checkpointed"))
    folders = [out / f"{config.method}-seed{config.seed}" for config in configs]
    found: dict[str, object] = {
        "data": first.data,
        "model": first.model,
        "blocks": first.blocks,
        "epochs": first.epochs,
        "seeds": seeds,
        "rows": rows(summaries, cost_rows(fresh)),
        "runs": [folder.name for folder in folders],
    }
    write_json(out / COMPARISON, found)
    write_report(folders, out / REPORT)
    return found | {"text": comparison_text(found) + f"\nreport: {out / REPORT}", "out": str(out)}


def rows(summaries: Mapping[str, list[dict[str, Any]]], costs: list[dict[str, object]]) -> list[dict[str, object]]:
    """One row a method: mean and standard deviation over its runs, and its costs beside them."""
    found: list[dict[str, object]] = []
    for row in costs:
        runs = summaries.get(str(row["method"]), [])
        spread: dict[str, object] = {"n": len(runs)}
        for name in SPREAD:
            values = [r[name] for r in runs if r.get(name) is not None]
            if values:
                spread[f"{name}_mean"] = statistics.fmean(values)
                spread[f"{name}_std"] = statistics.stdev(values) if len(values) > 1 else None
        found.append(row | spread)
    return found


def comparison_text(found: Mapping[str, Any]) -> str:
    """The table of a comparison, 80 columns wide."""

    def cell(row: Mapping[str, Any], name: str, scale: float, digits: int) -> str:
        mean, std = row.get(f"{name}_mean"), row.get(f"{name}_std")
        if mean is None:
            return "as backprop" if name == "test_accuracy" and row["method"] == "backprop_checkpointed" else "-"
        return f"{scale * mean:.{digits}f}" + (f" ±{scale * std:.{digits}f}" if std is not None else "")

    def mean(row: Mapping[str, Any], name: str) -> str:
        value = row.get(f"{name}_mean")
        return "-" if value is None else f"{value:.4f}"

    seeds = "one seed" if found["seeds"] == 1 else f"mean ± standard deviation of {found['seeds']} seeds"
    lines = [
        f"{found['data']}, {found['model']}, {found['blocks']} blocks, {seeds}",
        f"{'method':<22}{'test acc %':>14}{'NLL':>9}{'ECE':>8}{'step/bp':>9}{'act. MB':>9}{'params':>9}",
    ]
    for row in found["rows"]:
        lines.append(
            f"{row['method']:<22}{cell(row, 'test_accuracy', 100, 2):>14}"
            + f"{mean(row, 'test_nll'):>9}{mean(row, 'test_ece'):>8}"
            + f"{row['ratio_to_backprop']:>9.2f}{row['peak_activation_mb']:>9.2f}{row['params'] / 1e6:>8.3f}M"
        )
    return "\n".join(lines)
