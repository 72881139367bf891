"""Finished runs as a report reads them: folders become records, and records that differ only in their seed a group."""

from __future__ import annotations

import json
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from sidestep.config import PLACE, parse_toml
from sidestep.errors import DataError, UsageError
from sidestep.files import read_json, read_jsonl, read_text
from sidestep.folder import check_finished, read_summary
from sidestep.layout import AUDIT, COMPARISON, CONFIG, COSTS, DEVIATIONS, EXAMPLES, METRICS, SUMMARY, UNCERTAINTY

NOT_SHOWN = (*PLACE, "save_every")
"""Keys that say where and how a run was kept, not what it was."""


@dataclass(frozen=True)
class Record:
    """One run's folder.  What a folder may lack is None or empty."""

    name: str
    toml: str  # the configuration without the keys of NOT_SHOWN
    config: dict[str, Any]  # the same, by flat key
    metrics: list[dict[str, Any]]
    summary: dict[str, Any]
    audit: dict[str, Any] | None
    costs: list[dict[str, Any]]
    examples: dict[str, Any] | None
    deviations: dict[str, Any] | None
    uncertainty: dict[str, Any] | None


@dataclass(frozen=True)
class Spread:
    """The mean over n runs, and their sample standard deviation (n - 1) where there are two or more."""

    mean: float
    deviation: float | None

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        return cls(statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else None)

    @classmethod
    def over(cls, values: Sequence[float | None]) -> Spread | None:
        """None where a run has no number."""
        numbers = [value for value in values if value is not None]
        return cls.of(numbers) if len(numbers) == len(values) else None


@dataclass(frozen=True)
class Group:
    """Runs of one configuration, in the order of their seeds."""

    label: str  # the method, and what sets it apart from other groups of that method
    runs: Sequence[Record]

    @property
    def first(self) -> Record:
        return self.runs[0]

    def spread(self, key: str) -> Spread | None:
        """Of a number in the summaries; None unless every run has it."""
        values = self.final(key)
        return None if values is None or values.ndim > 1 else Spread.of(values.tolist())

    def final(self, *keys: str) -> np.ndarray | None:
        """What stands under nested keys in the summaries, (runs, ...); None unless all have it.

        Null within a list becomes NaN.
        """
        return _stack([_pick(run.summary, keys) for run in self.runs])

    def history(self, *keys: str) -> np.ndarray | None:
        """What stands under nested keys in every epoch's metrics, (runs, epochs, ...), else as `final`."""
        runs = [_stack([_pick(row, keys) for row in run.metrics]) for run in self.runs]
        return None if any(run is None for run in runs) else _stack(runs)


def _pick(value: Any, keys: Sequence[str]) -> Any:
    for key in keys:
        value = value.get(key) if isinstance(value, dict) else None
    return value


def _stack(values: Sequence[Any]) -> np.ndarray | None:
    absent = not values or any(v is None for v in values) or len({np.shape(v) for v in values}) > 1
    return None if absent else np.array(values, dtype=float)


def read(folder: Path) -> Record:
    """Raises DataError for a folder that holds no finished run, or a damaged one."""
    check_finished(folder)

    def load(name: str, default: Any) -> Any:
        path = folder / name
        return read_json(path) if path.is_file() else default

    text = read_text(folder / CONFIG)
    if not (folder / METRICS).is_file():
        raise DataError(f"{folder / METRICS} is missing, expected in a run's folder; run the training again.")
    return Record(
        name=folder.resolve().name,
        toml="\n".join(line for line in text.splitlines() if line.partition("=")[0].strip(' "') not in NOT_SHOWN),
        config={key: given.value for key, given in parse_toml(text, CONFIG).items() if key not in NOT_SHOWN},
        metrics=read_jsonl(folder / METRICS),
        summary=read_summary(folder),
        audit=load(AUDIT, None),
        costs=load(COSTS, []),
        examples=load(EXAMPLES, None),
        deviations=load(DEVIATIONS, None),
        uncertainty=load(UNCERTAINTY, None),
    )


def find(paths: Sequence[Path]) -> list[Path]:
    """The runs' folders: a comparison's stands for its runs, in their order, and another one for those in it."""
    found: list[Path] = []
    for path in paths:
        within = sorted(inner.parent for inner in path.glob(f"*/{SUMMARY}"))
        if names := compared(path).get("runs"):
            within = [path / name for name in names]
        found += [path] if (path / SUMMARY).is_file() or not within else within
    return found


def compared(folder: Path) -> dict[str, Any]:
    """What `sidestep compare` left in a folder; {} where it left nothing."""
    file = folder / COMPARISON
    return read_json(file, "runs", "rows") if file.is_file() else {}


def grouped(records: Sequence[Record]) -> list[Group]:
    """One group a configuration, in the order given.

    Raises UsageError for runs on different data, or two of one configuration and seed: they would count as two seeds.
    """
    data = sorted({str(record.summary["data"]) for record in records})
    if len(data) > 1:
        raise UsageError(f"got runs on {' and '.join(data)}, expected runs on the same data; make a report for each.")
    by_config: dict[str, dict[int, Record]] = {}
    for record in records:
        key = json.dumps(record.config | {"seed": None}, sort_keys=True, default=str)
        seeds = by_config.setdefault(key, {})
        seed = record.summary["seed"]
        if seed in seeds:
            raise UsageError(
                f"{seeds[seed].name} and {record.name} have the same configuration and seed, expected one run a seed; "
                "leave one out."
            )
        seeds[seed] = record
    sets = [[seeds[seed] for seed in sorted(seeds)] for seeds in by_config.values()]
    return [Group(_label(runs[0], [other[0] for other in sets]), runs) for runs in sets]


def _label(record: Record, others: Sequence[Record]) -> str:
    """The method; where several groups have it, with the values that are not the same in all of them."""
    method = str(record.summary["method"])
    configs = [other.config for other in others if other.summary["method"] == method]
    keys = [key for key in record.config if key != "seed" and any(c.get(key) != record.config[key] for c in configs)]
    # Cut points follow from the network and the number of blocks.
    keys = [key for key in keys if key != "at" or len(keys) == 1]
    values = ", ".join(f"{key.removeprefix(method + '.')} = {record.config[key]}" for key in keys)
    return f"{method} ({values})" if values else method
