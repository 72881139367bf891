"""No rank outlives the others: what a process among several does so that none is left waiting, or left over."""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path

from torch.distributed import Store

BEAT = 0.5
"""Seconds between two signs of life."""
SILENCE = 6.0
"""Seconds without one after which a rank counts as dead or frozen."""
START = 120.0
"""Seconds that a rank has for its first one: it may still be reading what it is to import."""
EXIT_CODE = 75  # a failure of others, after which the same command may succeed
_PR_SET_PDEATHSIG = 1


LAUNCHER = "RANKS_LAUNCHER_PID"
"""The variable that tells workers which process launched them."""
NOTES = "RANKS_NOTES"
"""The variable that tells workers in which folder, of this launch alone, they leave word for those after them."""


class Notes:
    """What the processes of one launch leave behind for its launcher, and for those that are started after them.

    begun: there once the run's folder is this launch's own, so that whoever comes next goes on with what is there.
    recurs: there once one of them has failed of something that a restart does not mend.
    """

    def __init__(self, folder: Path) -> None:
        self.begun, self.recurs = folder / "begun", folder / "recurs"


def die_with_parent() -> None:
    """Have the system kill this process when the one that launched it ends, however that ends.  Linux only."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        launcher = os.environ.pop(LAUNCHER, None)  # of this process, and of none that it launches
        if launcher is not None and int(launcher) != os.getppid():  # which has ended already
            os.kill(os.getpid(), signal.SIGKILL)


class Watch:
    """Gives signs of life, and ends this process at once where another rank gives none any more.

    A wait inside of torch.distributed for a peer that was killed or frozen in the middle of a message may never end,
    and nothing but the process's own end interrupts it.  So one thread talks, and another looks at the clock.

    store: a connection of its own, since one that waits in another thread would hold it up.  closing: set once the run
    is over, when the process that keeps the store may be the first to leave.
    """

    def __init__(self, store: Store, rank: int, count: int) -> None:
        self.store, self.rank = store, rank
        self.talked = time.monotonic()
        self.heard: dict[int, tuple[int, float]] = {n: (0, self.talked) for n in range(count) if n != rank}
        self.closing, self.over = threading.Event(), threading.Event()
        self.threads = [threading.Thread(target=work, daemon=True) for work in (self.talk, self.judge)]
        for thread in self.threads:
            thread.start()

    def stop(self) -> None:
        """Watch no longer; the others are told, and do not wait for further signs."""
        self.over.set()
        for thread in self.threads:
            thread.join(2 * BEAT)

    def outlast(self) -> None:
        """Wait for the others to leave, who need this process's store, while they give signs of life; START at most."""
        began = now = time.monotonic()
        while any(now - max(since, began) < SILENCE for _, since in self.heard.values()) and now - began < START:
            time.sleep(BEAT / 10)
            for other in list(self.heard):
                self.listen(other)
            now = time.monotonic()

    def talk(self) -> None:
        beat = 0
        try:
            while not self.over.wait(BEAT):
                beat += 1
                self.store.set(self.key(self.rank), str(beat))
                for other in list(self.heard):
                    self.listen(other)
                self.talked = time.monotonic()
            self.store.set(self.key(self.rank), "left")
        except RuntimeError as error:
            if not self.closing.wait(SILENCE / 2):  # the main thread, where it can, hears of it by the wire
                self.end(f"rank 0, which keeps the signs of life, is gone ({str(error).partition('. ')[0]})")

    def listen(self, other: int) -> None:
        key, last = self.key(other), self.heard[other][0]
        said = self.store.get(key).decode() if self.store.check([key]) else "0"
        if said == "left":
            del self.heard[other]
        elif int(said) != last:
            self.heard[other] = (int(said), time.monotonic())

    def judge(self) -> None:
        looked = awake = time.monotonic()
        while not self.over.wait(BEAT):
            now = time.monotonic()
            if now - looked > SILENCE / 2:
                awake = now  # this process was stopped itself, perhaps with all others: nobody could be heard
            looked = now
            if now - max(self.talked, awake) > SILENCE:
                self.end(f"rank 0, which keeps the signs of life, has not answered for {SILENCE:g} s")
            for other, (beat, since) in list(self.heard.items()):
                patience = SILENCE if beat else START
                if now - max(since, awake) > patience:
                    self.end(f"rank {other} has given no sign of life for {patience:g} s")

    @staticmethod
    def key(rank: int) -> str:
        return f"alive/{rank}"

    def end(self, why: str) -> None:
        with suppress(OSError, ValueError):  # who read it may be gone, which must not keep this process alive
            print(
                f"sidestep: error: {why}; rank {self.rank} ends, go on with --resume last.", file=sys.stderr, flush=True
            )
        os._exit(EXIT_CODE)
