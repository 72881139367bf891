"""A run's folder: its files read back; one that is damaged is named."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sidestep import files
from sidestep.config import PLACE, parse_toml
from sidestep.errors import DataError
from sidestep.layout import CONFIG, METRICS, SUMMARY

CUSTOM = "custom"
"""The name of data and networks that only the caller of `fit` has."""
FREE = (*PLACE, "device", "precision", "threads", "engine", "save_every", "report")
"""Keys that may change when a run is resumed; those that change its bits are part of the environment, and warned of."""
TOLD = (
    *("method", "model", "data", "blocks", "seed", "epochs", "selected", "val_accuracy"),
    *("samples_per_second", "step_ms", "peak_activation_mb", "params", "aux_params"),
)
"""What every summary has, whatever was trained and judged, and its readers count on."""


def check_finished(folder: Path) -> None:
    """Raises DataError for a folder that holds no finished run; it says how to finish one that has begun."""
    saved = read_settings(folder)
    if not (folder / SUMMARY).is_file():
        raise DataError(f"{folder} holds no finished run (no {SUMMARY}); to finish it, {to_go_on(saved, folder)}.")


def to_go_on(saved: Mapping[str, object], folder: Path, start: str | Path = "last") -> str:
    """The next move that brings a run with these settings on, from its last checkpoint or the one at a path."""
    if saved.get("data") == CUSTOM:
        return f"call fit again with the same arguments and resume={str(start)!r}"
    words = ["sidestep", "train", str(saved["method"]), "--resume", str(start), "--out", str(folder)]
    return f"run `{shlex.join(words)}`"


def settings(text: str, where: str = CONFIG) -> dict[str, Any]:
    """What of a written configuration shapes the trajectory, by key."""
    return {key: given.value for key, given in parse_toml(text, where).items() if key not in FREE}


def read_settings(folder: Path) -> dict[str, Any]:
    """`settings` of the run that a folder holds.  Raises DataError if it holds none."""
    if not folder.is_dir():
        raise DataError(f"no folder {folder}, expected that of a run; check the path.")
    file = folder / CONFIG
    if not file.is_file():
        raise DataError(f"{folder} holds no run (no {CONFIG}), expected a run's folder; check the path.")
    found = settings(files.read_text(file), str(file))
    if "method" not in found:
        raise DataError(f"{file} is no configuration of a run (no method in it), expected a run's; use another folder.")
    return found


def read_summary(folder: Path) -> dict[str, object]:
    """What a finished run says of itself.  Raises DataError if it is missing or damaged."""
    return files.read_json(folder / SUMMARY, *TOLD)


def read_history(folder: Path) -> list[dict[str, Any]]:
    """What was measured after every epoch.  Raises DataError if it is damaged."""
    return files.read_jsonl(folder / METRICS, "epoch", "step", "train_loss")
