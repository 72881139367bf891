"""Where this process stands among those that train one network together, and how they find each other."""

from __future__ import annotations

import json
import os
import signal
import socket
import sys
from collections.abc import Callable, Generator
from contextlib import contextmanager
from datetime import timedelta
from ipaddress import ip_address
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh

from sidestep import checkpoint
from sidestep.assemble import Assembly
from sidestep.engines.dist_wire import DistWire
from sidestep.engines.lanes import lanes_between
from sidestep.engines.replicas import Replicas
from sidestep.engines.streaming import Streaming
from sidestep.errors import DataError, UsageError, WireError, cause
from sidestep.placement import Placement
from sidestep.resuming import environment, fingerprint
from sidestep.stopping import on_signals
from sidestep.watch import LAUNCHER, NOTES, START, Notes, Watch, die_with_parent

T = TypeVar("T")
JOIN_TIMEOUT = timedelta(seconds=START)
IDLE_TIMEOUT = timedelta(days=1)
"""How long a message may be waited for: who evaluates makes the others wait, and that is no failure."""


class Ranks:
    """This process among `count` of them; one alone has rank 0 and nobody to talk to.

    placement: of all of them; replicas of a rank follow each other.  notes: where they were launched by `launch`.
    direct: whether each has an accelerator of its own, and messages go from one to another.
    """

    def __init__(
        self,
        rank: int = 0,
        placement: Placement | None = None,
        *,
        watch: Watch | None = None,
        notes: Notes | None = None,
        direct: bool = False,
    ) -> None:
        self.placement = placement or Placement()
        self.rank, self.count, self.watch = rank, self.placement.processes, watch
        self.notes, self.direct = notes, direct
        self.wire: DistWire | None = None

    @property
    def restarted(self) -> bool:
        """Whether others of this launch, before these, had begun the run."""
        return self.notes is not None and self.notes.begun.exists()

    def begun(self) -> None:
        """Note that the run's folder is this launch's own from now on."""
        if self.notes is not None and self.rank == 0:
            self.notes.begun.touch()

    def broadcast(self, find: Callable[[], T]) -> T:
        """What the first one finds, in JSON's terms, for all.  Where it raises, the others leave with its exit code."""
        if self.count == 1:
            return find()
        found: T | None = None
        error: ValueError | OSError | None = None
        if self.rank == 0:
            try:
                found = find()
            except (ValueError, OSError) as caught:
                error = caught
        heard: Any = json.loads(_broadcast(json.dumps({"found": found, "exit_code": exit_code(error)})))
        if error:
            raise error
        if heard["exit_code"]:
            raise SystemExit(heard["exit_code"])  # the first one says why
        return heard["found"]

    def all_or_none(self, make: Callable[[], T]) -> T:
        """What each makes for itself.  Where that raises, the first rank at which it does says so, and all leave."""
        made: list[T] = []
        error: ValueError | OSError | None = None
        try:
            made.append(make())
        except (ValueError, OSError) as caught:
            error = caught
        if self.count > 1:
            codes = [torch.zeros((), dtype=torch.int64) for _ in range(self.count)]
            dist.all_gather(codes, torch.tensor(exit_code(error)))
            failed = next((rank for rank, code in enumerate(codes) if code), self.rank)
            if failed != self.rank:
                raise SystemExit(int(codes[failed]))
        if error:
            raise error
        return made[0]

    def engine(self, assembly: Assembly) -> Streaming:
        """What trains this process's share of the blocks, on its share of the samples.

        Raises UsageError for a placement of other blocks, ValueError for micro-batches that replicas cannot share out,
        DataError where this process would compute other bits.
        """
        if self.count == 1:
            return assembly.engine
        shares = self.placement.blocks(len(assembly.chain.blocks))
        mine = checkpoint.as_read({**fingerprint(assembly), **environment(assembly)})
        first = self.broadcast(lambda: mine)
        for key, expected, got in checkpoint.differences(first, mine):
            raise DataError(
                f"rank {self.rank} has {key} = {got}, expected {expected} as rank 0 has; start all of them alike."
            )
        run = bytes.fromhex(self.broadcast(lambda: os.urandom(16).hex()))
        ranks, replicas = self.placement.ranks, self.placement.replicas
        mesh = init_device_mesh("cpu", (ranks, replicas), mesh_dim_names=("blocks", "replicas"))
        if ranks > 1:
            called = [stage * replicas + self.rank % replicas for stage in range(ranks)]
            device, lanes = assembly.device, None
            if device.type == "cuda":
                device = torch.device("cuda", torch.cuda.current_device())  # another thread's is the first one
                chains = [range(first, self.count, replicas) for first in range(replicas)]
                lanes = lanes_between(chains, self.rank, device, "nccl") if self.direct else None
            self.wire = DistWire(mesh.get_group("blocks"), shares, run, device, called, lanes)
        same = Replicas(mesh.get_group("replicas")) if replicas > 1 else None
        return assembly.engine.share(shares[self.rank // replicas], self.wire, same)

    def close(self, reason: str = "the run is over", patience: float | None = None) -> None:
        """Say goodbye to the others, as `DistWire.close` does."""
        if self.watch is not None:
            self.watch.closing.set()
        if self.wire is not None:
            wire, self.wire = self.wire, None
            wire.close(reason, patience)
        if self.watch is not None:
            self.watch.stop()


@contextmanager
def joined(placement: Placement | None = None, *, trusted_network: bool = False) -> Generator[Ranks]:
    """This process's place, as torchrun's environment gives it; alone without one.

    placement: of the processes that there are; None is a rank each.  trusted_network: whether they may be on several
    hosts, or meet where others than this machine's processes can reach them.

    Raises UsageError for an environment that is not torchrun's, and for several hosts that nobody has called trusted.
    """
    count = number("WORLD_SIZE", "1")
    placement = placement or Placement(count)
    if count != placement.processes:
        raise UsageError(f"got {count} processes, expected {placement.processes}: ranks times replicas.")
    if count == 1:
        yield Ranks()
        return
    rank, here = number("RANK"), number("LOCAL_WORLD_SIZE", str(count))
    host, agents = said("MASTER_ADDR"), "TORCHELASTIC_RUN_ID" in os.environ and LAUNCHER not in os.environ
    one_machine = here == count and is_loopback(host)
    if not one_machine and not trusted_network:
        raise UsageError(
            f"got {count} processes, {here} of them on this machine, that meet at {host}, expected all on one and a "
            "loopback address: who reaches their ports could join them; give --trusted-network if nobody else does."
        )
    if agents and rank == 0:
        print(
            "sidestep: torchrun's agent keeps a store that the whole network can write to; use it on a private one, or "
            "sidestep train --ranks, which opens no such store",
            file=sys.stderr,
        )
    if one_machine:
        listen_locally()
    # A wait in C++ lets no handler of Python's run; while there is something to save a run listens on its own.
    with on_signals(signal.SIG_DFL, signal.SIGINT, signal.SIGTERM), _met(rank, here, placement) as ranks:
        yield ranks


@contextmanager
def _met(rank: int, here: int, placement: Placement) -> Generator[Ranks]:
    """This process's place, once all have come.  here: how many of them are on this machine."""
    count = placement.processes
    die_with_parent()
    devices = torch.cuda.device_count()
    if devices:
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")) % devices)
    ours = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True"
    keeper = ours and rank == 0
    store = meeting_point(count, opens=keeper)
    direct = devices >= here  # NCCL refuses two processes on one device
    backend = "cpu:gloo,cuda:nccl" if direct else "gloo"
    watch = Watch(meeting_point(count, opens=False), rank, count)  # before all else that waits for others
    notes = Notes(Path(folder)) if (folder := os.environ.pop(NOTES, None)) else None
    ranks = Ranks(rank, placement, watch=watch, notes=notes, direct=direct)
    try:
        dist.init_process_group(backend, store=store, rank=rank, world_size=count, timeout=IDLE_TIMEOUT)
        yield ranks
    except BaseException as error:  # raised again: the others are to hear of it, be it a signal
        # Words and values that were refused, bad data, lost numbers; what a failed peer causes is another matter.
        if notes is not None and isinstance(error, ValueError) and not isinstance(error, WireError):
            notes.recurs.touch()
        if isinstance(error, Exception):
            ranks.close(" ".join(str(error).split()), patience=2.0)
        else:
            ranks.close("it was stopped", patience=0.5)  # as all are, in most cases; who waits for it counts seconds
        raise
    else:
        ranks.close()
        if keeper:
            watch.outlast()
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()


def exit_code(error: ValueError | OSError | None) -> int:
    """What the command line answers with."""
    return 0 if error is None else getattr(error, "exit_code", 1 if isinstance(error, OSError) else 2)


def said(variable: str) -> str:
    """What torchrun's environment says.  Raises UsageError where it says nothing."""
    text = os.environ.get(variable)
    if not text:
        raise UsageError(f"got WORLD_SIZE without {variable}; unset it, or start with torchrun or --ranks N.")
    return text


def number(variable: str, default: str | None = None) -> int:
    """`said`, as a number.  Raises UsageError where it is none."""
    text = said(variable) if default is None else os.environ.get(variable, default)
    if not text.isdecimal():
        raise UsageError(f"got {variable}={text}, expected a number; unset it, or start with torchrun or --ranks N.")
    return int(text)


def is_loopback(host: str) -> bool:
    """Whether all addresses of a name are this machine's own, which no other can reach."""
    try:
        return all(ip_address(found[4][0]).is_loopback for found in socket.getaddrinfo(host, None))
    except OSError:
        return False


def listen_locally() -> None:
    """Have what carries messages listen on the loopback interface, whatever the environment says."""
    for name in {"lo", "lo0"}.intersection(name for _, name in socket.if_nameindex()):
        os.environ["GLOO_SOCKET_IFNAME"] = os.environ["NCCL_SOCKET_IFNAME"] = name


def meeting_point(count: int, *, opens: bool) -> dist.Store:
    """A connection to the store of torchrun's environment; opens: whether this process is the one that keeps it.

    It listens at the address that it is asked for at: left to itself, a TCPStore listens to the whole network.  What
    an attempt before has left in a store that is torchrun's is out of sight.  Raises WireError where nobody keeps it,
    DataError where this process is to and cannot.
    """
    host, port = said("MASTER_ADDR"), number("MASTER_PORT")
    try:
        listening = socket.create_server((host, port)).detach() if opens else None
    except OSError as error:
        raise DataError(
            f"rank 0 cannot listen at {host}:{port} ({error.strerror}); set another MASTER_PORT."
        ) from error
    try:
        # Half of the time, for it tries twice.
        store = dist.TCPStore(
            host, port, count, opens, JOIN_TIMEOUT / 2, wait_for_workers=False, master_listen_fd=listening
        )
        store.set_timeout(JOIN_TIMEOUT)
    except RuntimeError as error:
        raise WireError(
            f"rank 0 keeps no store at {host}:{port} after {START:g} s ({cause(error)}); start all ranks again."
        ) from error
    return dist.PrefixStore(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0"), store)


def world() -> dist.ProcessGroup:
    """The group of all processes, once they have met."""
    group = dist.group.WORLD
    assert group is not None, "nobody has joined"
    return group


def _broadcast(text: str) -> str:
    data = bytearray(text.encode())
    size = torch.tensor(len(data))
    dist.broadcast(size, 0)
    body = (
        torch.frombuffer(data, dtype=torch.uint8) if dist.get_rank() == 0 else torch.empty(int(size), dtype=torch.uint8)
    )
    dist.broadcast(body, 0)
    return body.numpy().tobytes().decode()
