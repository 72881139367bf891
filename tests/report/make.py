"""Folders of finished runs, with known numbers in them."""

from __future__ import annotations

import base64
import io
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from PIL import Image


def write_run(
    folder: Path,
    method: str = "sid",
    *,
    seed: int = 0,
    accuracy: float = 0.9,
    blocks: int = 3,
    epochs: int = 2,
    reads: set[int] | None = None,
    descent: bool = False,
    config: Mapping[str, object] | None = None,
    summary: Mapping[str, object] | None = None,
    classes: list[str] | None = None,
    uncertainty: Mapping[str, object] | None = None,
) -> Path:
    """A run's folder.  accuracy: on test, of the last block; each before it has a point less.  reads: blocks or all.

    uncertainty: what its uncertainty.json holds, if there is one."""
    reads = set(range(blocks)) if reads is None else reads
    folder.mkdir(parents=True)

    def each(*values: float) -> list[float | None]:
        return [value if k in reads else None for k, value in enumerate(values)]

    curves = {
        "D": [math.log(10) * 0.5**k for k in range(blocks + 1)],
        "D_population": [math.log(10) * 0.4**k for k in range(blocks + 1)],
        "C": [0.5**k for k in range(blocks)],
        "e": [-(0.5**k) for k in range(blocks)],
        "e_quantiles": [[-2.0, -1.5, -1.0, -0.5, 0.1 * k] for k in range(blocks)],
        "e_positive": [0.01 * k for k in range(blocks)],
        "identity": 1e-15,
        "samples": 100,
    }
    rising = [accuracy - 0.01 * (blocks - 1 - k) for k in range(blocks)]
    rows: list[dict[str, Any]] = [
        {
            "epoch": epoch + 1,
            "step": 10 * (epoch + 1),
            "train_loss": each(*(1 / (1 + epoch + k) for k in range(blocks))),
            "val": {
                "accuracy": each(*(a - 0.1 * (epochs - 1 - epoch) for a in rising)),
                **{name: each(*([0.25] * blocks)) for name in ("nll", "brier", "ece")},
                **({"descent": curves} if descent else {}),
            },
        }
        for epoch in range(epochs)
    ]
    flat = {"method": method, "data": "toys", "model": "net", "seed": seed, "out": str(folder)} | dict(config or {})
    facts: dict[str, Any] = {
        "method": method,
        "model": "net",
        "data": "toys",
        "blocks": blocks,
        "at": [],
        "seed": seed,
        "epochs": epochs,
        "selected": f"best validation accuracy, epoch {epochs} of {epochs}",
        "train_samples": 1000,
        "val_accuracy": accuracy + 0.01,
        "test_accuracy": accuracy,
        "test_nll": 0.25,
        "test_brier": 0.125,
        "test_ece": 0.0625,
        **{f"block_test_{name}": each(*([0.25] * blocks)) for name in ("nll", "brier", "ece")},
        "block_test_accuracy": each(*rising),
        "samples_per_second": 1234.5,
        "step_ms": 6.25,
        "peak_activation_mb": 1.5,
        "peak_rss_mb": 300.0,
        "params": 12345,
        "aux_params": 345,
        "flops_per_sample": 2.5e6,
        "inference_flops_per_sample": 999.0,
        "commit": "abc123",
        "torch": "2.13.0",
        "device": "a device",
        "precision": "fp32",
        "threads": 1,
        **({"descent": curves} if descent else {}),
    }
    (folder / "config.toml").write_text("".join(f"{json.dumps(k)} = {json.dumps(v)}\n" for k, v in flat.items()))
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "summary.json").write_text(json.dumps(facts | dict(summary or {})))
    (folder / "audit.json").write_text(json.dumps(audit(blocks)))
    (folder / "costs.json").write_text(json.dumps(costs(method)))
    (folder / "examples.json").write_text(json.dumps(examples(classes or ["cat", "dog", "emu"], blocks, reads)))
    if uncertainty is not None:
        (folder / "uncertainty.json").write_text(json.dumps(uncertainty))
    return folder


def uncertainty(
    aurc: float = 0.02, t: float | None = 1.25, ood: str | None = None, reads: tuple[bool, ...] = (True, False, True)
) -> dict[str, Any]:
    """Of 1,000 test samples.  Read-outs but the last differ from it in accuracy, and the mean of them in AURC, halved.

    Without t no answer has a temperature."""
    measures: dict[str, float] = {"accuracy": 0.9, "nll": 0.25, "brier": 0.125, "ece": 0.0625, "adaptive_ece": 0.03125}
    measures |= {"aurc": aurc} | ({"ood_auroc": 0.75} if ood else {})
    bars = {"inside": [0.0, 0.25, 0.75], "outside": [0.5, 0.5, 0.0]} if ood else {}
    bins = {"confidence": [0.5, 0.9], "accuracy": [0.625, 1.0], "share": [0.5, 0.5]}
    drawn: dict[str, Any] = {"reliability": bins, "risk": [0.0, 0.05, 0.1], **bars}

    def each(last: Mapping[str, Any], mean: Mapping[str, Any]) -> dict[str, Any]:
        first = {name: 0.8 if name == "accuracy" else value for name, value in last.items()}
        rows = [(last if k == len(reads) - 1 else first) if read else None for k, read in enumerate(reads)]
        return {name: [None if row is None else row[name] for row in rows] for name in last} | {"mean": mean}

    after: dict[str, Any] = {"T": t} | {name: None if t is None else value / 2 for name, value in measures.items()}
    return {
        "split": "test",
        "samples": 1000,
        **each(measures, measures | {"aurc": aurc / 2}),
        **({"ood": {"data": ood, "samples": 500}} if ood else {}),
        "temperature": {"samples": 100, "label_noise": 0.0} | each(after, after),
        "curves": {
            "coverage": [0.25, 0.5, 1.0],
            **each(drawn, drawn | {"risk": [0.0, 0.025, 0.075]}),
            "reliability_at_T": None if t is None else bins | {"confidence": [0.625, 0.9]},
        },
    }


def audit(blocks: int = 3, **changes: object) -> dict[str, Any]:
    """Of an isolated method."""
    rows: list[dict[str, object]] = [
        {"block": n, "has_loss": True, "reaches": [n], "reaches_shared": False, "depends_on_later": []}
        for n in range(blocks)
    ]
    return {"isolated": True, "agrees": True, "shared": [], "blocks": rows} | changes


def costs(method: str) -> list[dict[str, object]]:
    """The method's step takes half again as long as backprop's, the checkpointed one's a third."""
    found: list[dict[str, object]] = []
    for name, ratio in ((method, 1.5), ("backprop", 1.0), ("backprop_checkpointed", 4 / 3)):
        spread = 0.0 if name == "backprop" else 0.1
        row: dict[str, object] = {"method": name, "step_ms": 4 * ratio, "step_ms_low": 3.9 * ratio}
        row |= {"step_ms_high": 4.2 * ratio, "ratio_to_backprop": ratio, "ratio_to_backprop_low": ratio - spread}
        row |= {"ratio_to_backprop_high": ratio + spread, "peak_activation_mb": 2.0, "params": 12345, "aux_params": 0}
        found.append(row | {"flops_per_sample": 2.5e6, "inference_flops_per_sample": 999.0})
    return list({row["method"]: row for row in reversed(found)}.values())[::-1]


def examples(classes: list[str], blocks: int, reads: set[int]) -> dict[str, object]:
    """One grey square of the last class, believed in more by every block."""
    file = io.BytesIO()
    Image.new("L", (4, 4), 128).save(file, "PNG")
    others = len(classes) - 1
    belief = [[0.5 / (k + 1) / others] * others + [1 - 0.5 / (k + 1)] for k in range(blocks)]
    item = {
        "png": base64.b64encode(file.getvalue()).decode(),
        "label": others,
        "beliefs": [p if k in reads else None for k, p in enumerate(belief)],
    }
    return {"classes": classes, "items": [item]}
