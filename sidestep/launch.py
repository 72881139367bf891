"""Several processes for one run: torchrun's agent, in an environment in which restarts come up, and exit codes back."""

from __future__ import annotations

import logging
import os
import signal
import socket
import sys
import tempfile
import uuid
from collections.abc import Sequence

from torch.distributed.elastic.multiprocessing.api import DefaultLogsSpecs, SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from sidestep.errors import DataError

SHUTDOWN_SECONDS = 20
"""What workers have to save in after a signal, or after another has failed; then they are killed."""


def launch(line: Sequence[str], ranks: int, max_restarts: int) -> int:
    """Run this command line of `sidestep` in so many processes on this machine; returns the exit code of the run.

    Raises DataError where one of them was killed.
    """
    prepare_environment(ranks)
    for name in logging.root.manager.loggerDict:
        if name.startswith("torch.distributed.elastic"):
            logging.getLogger(name).setLevel(logging.CRITICAL)  # the workers say what is wrong
    try:
        # The agent's own store would be open to the whole network; a file is not.
        with tempfile.NamedTemporaryFile(prefix="sidestep-ranks-") as meeting_point:
            config = LaunchConfig(
                min_nodes=1,
                max_nodes=1,
                nproc_per_node=ranks,
                run_id=uuid.uuid4().hex,
                rdzv_backend="c10d",
                rdzv_endpoint=meeting_point.name,
                rdzv_configs={"store_type": "file"},
                local_addr="127.0.0.1",
                max_restarts=max_restarts,
                logs_specs=DefaultLogsSpecs(log_dir=os.devnull),
                shutdown_timeout=SHUTDOWN_SECONDS,
            )
            elastic_launch(config, sys.executable)("-m", "sidestep", *line)
    except SignalException as stopped:
        return 128 + stopped.sigval
    except ChildFailedError as failed:
        rank, failure = failed.get_first_failure()
        if failure.exitcode < 0:
            name = signal.Signals(-failure.exitcode).name
            raise DataError(f"rank {rank} was killed by {name}; go on with --resume last.") from None
        return failure.exitcode if failure.exitcode in (2, 130, 143) else 1
    return 0


def prepare_environment(ranks: int) -> None:
    """What the workers inherit; nothing that the user has set is changed."""
    # A restarted group would read the addresses of the one before from a store that is shared with the agent.
    os.environ["TORCH_DISABLE_SHARE_RDZV_TCP_STORE"] = "1"
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // ranks)))
    if any(name == "lo" for _, name in socket.if_nameindex()):
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
