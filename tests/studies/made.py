"""Rows as a study's pieces leave them, with numbers made by hand."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from sidestep.studies.study import Row

PLACE = {"device": "a quiet machine", "commit": "abc123", "torch": "2.13", "threads": 1, "precision": "bf16"}


def trained(labels: Mapping[str, str], accuracy: float = 0.9, seed: int = 0, **more: Any) -> Row:
    """A run's row.  more: among them the sizes, which are those of a network of 100 parameters."""
    row = {"labels": dict(labels), "command": "sidestep train", "seed": seed, "epochs": 1, "curve": {}, **PLACE}
    sizes = {"params": 100, "aux_params": 0, "flops_per_sample": 300.0, "inference_flops_per_sample": 100.0}
    sizes |= {"readouts_flops_per_sample": 100.0, "network_flops_per_sample": 100.0}
    judged = {"val_accuracy": None, "test_accuracy": accuracy, "test_nll": 0.3, "test_ece": 0.02}
    return row | sizes | judged | more


def over_epochs(arm: str, accuracies: Sequence[float], seed: int = 0) -> Row:
    """A run's row with its test accuracy after every epoch."""
    curve = {"test_accuracy": list(accuracies), "train_loss": [1.0 for _ in accuracies]}
    return trained({"arm": arm}, accuracies[-1], seed, epochs=len(accuracies), curve=curve)


def timed(labels: Mapping[str, str], milliseconds: Mapping[str, float]) -> Row:
    """What `bench step` leaves, plain backprop among the candidates; quartiles a tenth away."""
    base = milliseconds["plain backprop"]
    rows = [
        {"name": name, "step_ms": ms, "step_ms_low": 0.9 * ms, "step_ms_high": 1.1 * ms}
        | {"ratio": ms / base, "ratio_low": 0.9 * ms / base, "ratio_high": 1.1 * ms / base}
        for name, ms in milliseconds.items()
    ]
    return {"labels": dict(labels), "command": "sidestep bench step", "rows": rows, **PLACE}


def weighed(labels: Mapping[str, str], mebibytes: Mapping[str, float]) -> Row:
    """What `bench memory` leaves, plain backprop among the candidates."""
    base = mebibytes["plain backprop"]
    rows = [{"name": name, "peak_activation_mb": mb, "ratio": mb / base} for name, mb in mebibytes.items()]
    return {"labels": dict(labels), "command": "sidestep bench memory", "rows": rows, **PLACE}
