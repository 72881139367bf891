"""Several processes for one thing: a run by torchrun's agent, restarted if it fails; a function, for a measurement."""

from __future__ import annotations

import json
import logging
import os
import signal
import socket
import sys
import tempfile
import uuid
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import multiprocessing
from torch.distributed.elastic.multiprocessing.api import DefaultLogsSpecs, SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from sidestep.errors import DataError, UsageError
from sidestep.files import write_json
from sidestep.watch import LAUNCHER, NOTES, Notes

Result = dict[str, Any]
SHUTDOWN_SECONDS = 10
"""What workers have to save in after a signal; then they are killed.  After another has failed torch gives them 30."""


def launch(line: Sequence[str], ranks: int, max_restarts: int) -> int:
    """Run this command line of `sidestep` in so many processes on this machine; returns the exit code of the run.

    Those that fail are started again, at most so often, unless what failed would fail again: a word, a setting, a data
    set, numbers that were lost.  Raises DataError where one of them was killed.
    """
    for name in logging.root.manager.loggerDict:
        if name.startswith("torch.distributed.elastic"):
            logging.getLogger(name).setLevel(logging.CRITICAL)  # the workers say what is wrong
    with inherited(ranks), tempfile.TemporaryDirectory(prefix="sidestep-ranks-") as folder:
        notes = Notes(Path(folder))
        os.environ[NOTES] = folder
        for restarts_left in range(max_restarts, -1, -1):
            try:
                # The agent's own store would be open to the whole network; a file is not.
                attempt(line, ranks, Path(folder) / f"store-{restarts_left}")
            except SignalException as stopped:
                return 128 + stopped.sigval
            except ChildFailedError as failed:
                rank, failure = failed.get_first_failure()
                if restarts_left and failure.exitcode != UsageError.exit_code and not notes.recurs.exists():
                    continue
                if failure.exitcode < 0:
                    name = signal.Signals(-failure.exitcode).name
                    raise DataError(f"rank {rank} was killed by {name}; go on with --resume last.") from None
                return failure.exitcode if failure.exitcode in (2, 130, 143) else 1
            break
    return 0


def attempt(line: Sequence[str], ranks: int, meeting_point: Path) -> None:
    """Run them once.  It is not torchrun that restarts them: it would do so whatever their exit codes say."""
    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=ranks,
        run_id=uuid.uuid4().hex,
        rdzv_backend="c10d",
        rdzv_endpoint=str(meeting_point),
        rdzv_configs={"store_type": "file"},
        local_addr="127.0.0.1",
        max_restarts=0,
        logs_specs=DefaultLogsSpecs(log_dir=os.devnull),
        shutdown_timeout=SHUTDOWN_SECONDS,
    )
    elastic_launch(config, sys.executable)("-m", "sidestep", *line)


def spawn(ranks: int, threads: int | None, work: Callable[..., Result], *args: str) -> Result:
    """What `work(*args)` returns in the first of so many processes, each of which finds its place by `ranks.joined`.

    threads: of each; None shares out the cores.  What is returned goes through JSON.  Raises the first one's UsageError
    or DataError.
    """
    with inherited(ranks), tempfile.TemporaryDirectory(prefix="sidestep-ranks-") as folder:
        file = Path(folder) / "result.json"
        multiprocessing.spawn(_at_rank, (ranks, free_port(), threads, str(file), work, args), nprocs=ranks)
        found: Result = json.loads(file.read_text(encoding="utf-8"))
    if "error" in found:
        raise (UsageError if found["exit_code"] == UsageError.exit_code else DataError)(found["error"])
    return found


def _at_rank(
    rank: int, count: int, port: int, threads: int | None, file: str, work: Callable[..., Result], args: Sequence[str]
) -> None:
    take_place(rank, count, port)
    torch.set_num_threads(threads or threads_each(count))
    found: Result
    try:
        found = work(*args)
    except (UsageError, DataError) as error:
        found = {"error": str(error), "exit_code": error.exit_code}
    if rank == 0:
        write_json(Path(file), found)


def take_place(rank: int, count: int, port: int) -> None:
    """Say in torchrun's words where this process stands among those of this machine."""
    place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": count, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    os.environ.update({key: str(value) for key, value in place.items()})


def threads_each(ranks: int) -> int:
    """How many threads each of so many processes of this machine has, where nobody says."""
    outer = os.environ.get("OMP_NUM_THREADS", "").partition(",")[0].strip()  # OpenMP takes a number for every level
    return (int(outer) if outer.isdecimal() else 0) or max(1, (os.cpu_count() or 1) // ranks)


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return server.getsockname()[1]


@contextmanager
def inherited(ranks: int) -> Generator[None]:
    """Inside, the environment is what workers inherit; nothing in it that the user has set is another."""
    before = dict(os.environ)
    os.environ[LAUNCHER] = str(os.getpid())
    # A restarted group would read the addresses of the one before from a store that is shared with the agent.
    os.environ["TORCH_DISABLE_SHARE_RDZV_TCP_STORE"] = "1"
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")  # a peer that has left is said in a line of ours
    os.environ.setdefault("OMP_NUM_THREADS", str(threads_each(ranks)))
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)
