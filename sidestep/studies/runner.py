"""Running a study: piece by piece, a row for each in `results/NAME.jsonl`, and its page beside them.

It goes on where the rows end.  A piece that was cut short goes on from its last checkpoint, and one that had finished
without leaving its row leaves it now.  One that fails is named, and keeps no other back.  The same command started
again meanwhile is a second worker: it takes what nobody else is at.
"""

from __future__ import annotations

import hashlib
import math
import os
import re
import shutil
import signal
import sys
import time
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from pathlib import Path
from threading import Timer
from types import FrameType
from typing import Any

import torch

from sidestep.errors import Busy, Diverged, UsageError
from sidestep.files import append_jsonl, only_writer, read_jsonl
from sidestep.layout import CHECKPOINTS
from sidestep.provenance import provenance
from sidestep.report.study import write_page
from sidestep.studies import study_named
from sidestep.studies.study import Machine, Piece, Row, machine_of

RUN = "run"
"""Where in a piece's folder its run is kept; the folder itself is the worker's lock."""
WAIT = 5.0
"""Seconds between two looks at what other workers have left."""

Execute = Callable[[Sequence[str]], dict[str, Any]]
"""Runs one command line (the words after `sidestep`) and returns what it prints with --json."""


def run(
    name: str,
    execute: Execute,
    *,
    results: Path = Path("results"),
    runs: Path = Path("runs/studies"),
    machine: Machine = "cpu",
    seeds: int | None = None,
    minutes: float | None = None,
    smoke: bool = False,
    page_only: bool = False,
    rows_only: bool = False,
    only: str = "",
    wait: bool = True,
) -> dict[str, object]:
    """What `sidestep study NAME` does.

    seeds: at most so many.  only: the pieces whose command has these words in a row.  minutes: end then, with what runs
    saved, to go on another time.  smoke: every piece on digits, for one epoch.  page_only: run nothing.  rows_only:
    leave the page as it is.  wait: until other workers have ended what they are at, to take up what they drop.
    """
    study = study_named(name)
    file = results / f"{name}.jsonl"

    pieces = study.pieces(machine, seeds, smoke, read_jsonl(file, "command"))
    if pieces and not any(only in piece.command for piece in pieces):
        raise UsageError(f"got --only {only}, expected words of a command of {name}, such as `{pieces[0].command}`.")

    failed: dict[str, str] = {}  # of commands, here and now; they leave no rows, and are tried another time

    def missing() -> list[Piece]:
        rows = read_jsonl(file, "command")
        done = {row["command"] for row in rows}
        asked = [piece for piece in study.pieces(machine, seeds, smoke, rows) if only in piece.command]
        return [piece for piece in asked if piece.command not in done and piece.command not in failed]

    def take(piece: Piece) -> bool:
        """Leave this piece's row, unless another worker is at it."""
        folder = runs / name / slug(piece)
        folder.mkdir(parents=True, exist_ok=True)
        try:
            with only_writer(folder):
                # Asked inside the lock: another worker may have just left it.
                if piece in missing():
                    note(f"{name}: {piece.command}")
                    append_jsonl(file, evidence(piece, name, execute, folder))
                    prune(folder)
            return True
        except Busy:
            return False
        except Exception as error:  # whatever it is: hours of others wait behind it
            failed[piece.command] = f"{type(error).__name__}: {' '.join(str(error).split())}"
            note(f"failed, {failed[piece.command]}")
            return True

    results.mkdir(parents=True, exist_ok=True)
    if not page_only:
        with deadline(minutes):
            # What follows from a row just left, the choice of a candidate, is among what is missing next.
            while todo := missing():
                if not any(take(piece) for piece in todo):
                    if not wait:
                        break
                    time.sleep(WAIT)
    rows, left = read_jsonl(file), len(missing())
    page = results / f"{name}.html"
    shown = bool(rows) and not rows_only
    if shown:
        write_page(study.shown(rows), page)
    text = f"{name}: {len(rows)} rows in {file}, {left} to go" + (f", {len(failed)} failed" if failed else "")
    return {
        "study": name,
        "rows": len(rows),
        "left": left,
        "failed": [{"command": command, "error": error} for command, error in failed.items()],
        "page": str(page) if shown else None,
        "text": text + (f"\npage: {page}" if shown else ""),
    }


def evidence(piece: Piece, name: str, execute: Execute, folder: Path) -> Row:
    """Run one piece, or what is left of it."""
    place = ["--out", str(folder / RUN), "--resume", "last"] if piece.words[0] == "train" else []
    device = torch.device("cuda" if machine_of(piece.command) == "gpu" else "cpu")
    row: Row = {"study": name, "labels": dict(piece.labels), "command": piece.command, **provenance(device)}
    began = time.perf_counter()
    try:
        found = execute([*piece.words, *place])
    except Diverged as error:
        return row | {"failed": str(error)}
    found.pop("text", None)
    # Of a resumed piece only the end.
    return row | {"seconds": round(time.perf_counter() - began, 1)} | found


@contextmanager
def deadline(minutes: float | None) -> Generator[None]:
    """End the block when the time is up; the run at work saves itself first, as at any SIGTERM."""

    def leave(number: int, _: FrameType | None) -> None:
        raise SystemExit(128 + number)

    ends = time.monotonic() + 60 * (minutes or math.inf)
    timer = Timer(60 * (minutes or 0), os.kill, (os.getpid(), signal.SIGTERM))
    timer.daemon = True
    before = signal.signal(signal.SIGTERM, leave)
    try:
        if minutes:
            timer.start()
        yield
    except SystemExit:
        if time.monotonic() < ends:
            raise
        note("the time is up; the same command goes on")
    finally:
        timer.cancel()
        signal.signal(signal.SIGTERM, before)


def slug(piece: Piece) -> str:
    """A folder's name: the labels for people, and a hash that tells the seeds and all else apart."""
    words = re.sub(r"[^a-z0-9]+", "-", " ".join(piece.labels.values()).lower()).strip("-")
    return f"{words[:60]}-{hashlib.blake2b(piece.command.encode(), digest_size=4).hexdigest()}"


def prune(folder: Path) -> None:
    """Drop the checkpoints to go on from, once there is nothing to go on to."""
    for checkpoint in folder.glob(f"{RUN}/{CHECKPOINTS}/step-*"):
        shutil.rmtree(checkpoint)


def note(text: str) -> None:
    print(f"sidestep: {text}", file=sys.stderr)
