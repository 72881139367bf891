"""How a run begins in its folder or goes on there: from which checkpoint, and what must be equal."""

from __future__ import annotations

import shutil
import sys
import tomllib
from collections.abc import Generator, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import MISSING, fields, replace
from pathlib import Path
from typing import Any

import torch

from sidestep import checkpoint, files, models
from sidestep.assemble import Assembly
from sidestep.checkpoint import Manifest, Unsound
from sidestep.config import OPTIONS, TrainConfig, literal, to_toml
from sidestep.data.samples import Samples
from sidestep.errors import DataError, UsageError
from sidestep.folder import read_history, read_settings, settings, to_go_on
from sidestep.layout import CHECKPOINTS, COMPARISON, CONFIG, EVIDENCE, METRICS, MODEL, REPORT, SUMMARY
from sidestep.methods import METHODS, method_class


def enter(config: TrainConfig) -> tuple[TrainConfig, Path | None]:
    """The configuration to run in its folder, and the checkpoint to go on from; nothing is written yet.

    Raises UsageError if the folder holds a comparison, or what must not be lost (`check_not_lost`), DataError if it is
    no folder, if the run to resume was made with other settings, or if there is no checkpoint at the path to resume
    from.
    """
    folder = config.out
    assert folder is not None
    if folder.exists() and not folder.is_dir():
        raise DataError(f"--out {folder} is a file, expected a folder; choose another name.")
    if (folder / COMPARISON).exists():
        raise UsageError(f"{folder} holds a comparison, expected none or a run; choose another --out.")
    start = Path(config.resume) if config.resume not in (None, "last") else None
    if start is not None:
        with naming_another(start):
            checkpoint.read_manifest(start)
    check_not_lost(config, folder)
    if not (folder / CONFIG).exists():
        return config, start
    saved, now = read_settings(folder), settings(to_toml(config))
    if not config.resume:
        return config, None
    if not config.at:
        now["at"] = saved.get("at")  # the cut was resolved when the run began
    for key in dict.fromkeys([*saved, *now]):
        newer = key not in saved and now[key] == default_of(key, config.model)  # than the run is
        if saved.get(key) != now.get(key) and not newer:
            raise DataError(
                f"got {key} = {now.get(key)!r}, expected {saved.get(key)!r} as in the run that {folder} holds; "
                "leave it as it was, or start a new run with another --out."
            )
    config = replace(config, at=tuple(saved.get("at", ())))
    return config, start or next((path for path, _ in starts(folder)), None)


def check_not_lost(config: TrainConfig, folder: Path) -> None:
    """Raises UsageError where the folder holds a run and neither resume nor overwrite was asked for, or no run and yet
    what one would replace.
    """
    if (folder / CONFIG).exists():
        if not config.resume and not config.overwrite:
            raise UsageError(f"{folder} holds a run; give --resume last to continue it, --overwrite, or another --out.")
    elif found := [name for name in (CHECKPOINTS, MODEL, METRICS, SUMMARY, REPORT) if (folder / name).exists()]:
        raise UsageError(
            f"{folder} holds {', '.join(found)}, which a run would replace, but no {CONFIG}, as a run of ours has; "
            "choose another --out, or move them away."
        )


def starts(folder: Path) -> Iterator[tuple[Path, Manifest]]:
    """The checkpoints that the run in a folder can go on from, newest first: complete, as is what was selected then."""
    selected = {path.name for path, _ in checkpoint.complete(folder / CHECKPOINTS, "selected")}
    for path, manifest in checkpoint.complete(folder / CHECKPOINTS):
        if selected_at(manifest) in {None, *selected}:
            yield path, manifest


def selected_at(manifest: Manifest) -> str | None:
    """The name of the checkpoint that holds the parameters which validation had chosen when this one was made."""
    best: Any = manifest.extra["best"]
    return f"selected-{best[1]}" if best else None


@contextmanager
def naming_another(path: Path) -> Generator[None, None, None]:
    """Read a checkpoint of a run; where it is unsound, the error says from which other one the run can go on."""
    try:
        yield
    except Unsound as error:
        folder = path.parent.parent
        for start, manifest in starts(folder):
            if path.name not in (start.name, selected_at(manifest)):
                move = to_go_on(manifest.fingerprint, folder, start)
                raise DataError(f"{error}; to go on from another checkpoint, {move}.") from error
        raise DataError(
            f"{error}; no other checkpoint is there to go on from; check the path, or run the training again."
        ) from error


@contextmanager
def open_folder(config: TrainConfig) -> Generator[Path, None, None]:
    """The run's folder, made if need be, without the run to be overwritten, and closed to other processes meanwhile.

    Raises UsageError where another process has begun a run in it since `enter`.
    """
    folder = config.out
    assert folder is not None
    folder.mkdir(parents=True, exist_ok=True)
    with files.only_writer(folder):
        check_not_lost(config, folder)
        if config.overwrite and (folder / CONFIG).exists():
            for name in (CHECKPOINTS, MODEL):
                shutil.rmtree(folder / name, ignore_errors=True)
            for name in (METRICS, SUMMARY, REPORT, *EVIDENCE, CONFIG):  # the last says whose folder it is
                (folder / name).unlink(missing_ok=True)
        yield folder


def rewind(folder: Path, step: int, *, judged: bool = True) -> list[dict[str, Any]]:
    """Remove what a run wrote after a step, all of which is about to be written again; returns its history until then.

    judged: whether the epoch that ended with that step was, if one did.

    Raises DataError for a damaged history, with nothing removed.
    """

    def until_then(row: Mapping[str, Any]) -> bool:
        return row["step"] in range(step + judged)

    kept = [row for row in read_history(folder) if until_then(row)]
    (folder / SUMMARY).unlink(missing_ok=True)
    for path in (folder / CHECKPOINTS).glob("*-*"):
        kind, _, number = path.name.rpartition("-")
        if kind in ("step", "selected") and number.isdecimal() and int(number) > step:
            shutil.rmtree(path)
    files.truncate_jsonl(folder / METRICS, until_then)
    return kept


def fingerprint(assembly: Assembly) -> Mapping[str, object]:
    """What must be equal for a checkpoint to fit: everything that shapes the trajectory, nothing that does not."""
    train = assembly.data.train
    data = {"train_data": train.digest} if isinstance(train, Samples) else {}  # a Dataset may draw its samples anew
    return settings(to_toml(assembly.config)) | {"train_samples": len(train)} | data


def environment(assembly: Assembly) -> dict[str, object]:
    """What must be equal for equal bits."""
    return {
        "device": assembly.device.type,
        "torch": torch.__version__,
        "precision": assembly.config.precision,
        "memory_format": "channels_last" if assembly.channels_last else "contiguous",
        "threads": torch.get_num_threads(),
        "engine": assembly.config.engine,
    }


def warn(warnings: Iterable[str]) -> None:
    for warning in warnings:
        print(f"sidestep: warning: {warning}", file=sys.stderr)


def default_of(key: str, model: str) -> object:
    """What a key is where nobody sets it, as a written configuration has it; None for a key that must be set."""
    owner, _, name = key.rpartition(".")
    if owner == "model" and model in models.MODELS:
        default = models.options(model)[name]
    elif owner in METHODS:
        default = next(f.default for f in fields(method_class(owner)) if f.name == name)
    else:
        default = OPTIONS[key].default if key in OPTIONS else MISSING
    return None if default is MISSING else tomllib.loads(f"value = {literal(default)}")["value"]
