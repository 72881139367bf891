"""How a signal stops a run: after the step it is in, so that what it has done is saved."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager, nullcontext, suppress
from types import FrameType
from typing import Any, TypeVar, final

T = TypeVar("T")

PATIENCE = 7  # seconds that other processes have, after a signal, to come to the same step
AGAIN = 1.0  # seconds within which a second signal is the first one, sent to the process by the launcher too


class Stopped(Exception):
    """A signal asked the run to stop; what it had done is saved."""

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.number = number


@final
class Stopping:
    """What Ctrl-C and SIGTERM ask of a run.

    ranks: the processes that stop together, and of which, after a signal, none waits for the others for ever.
    """

    def __init__(self, ranks: int = 1) -> None:
        self.ranks = ranks
        self.number: int | None = None  # the signal that asked for it
        self.asked = 0.0  # when it did
        self.at_once = False  # whether it need not wait for the end of the step
        self.alone = ranks == 1  # whether nobody is waited for
        self.here = threading.Event()  # set once `all_are_here` since the signal

    @contextmanager
    def listening(self) -> Generator[None]:
        with self.timing() if self.ranks > 1 else nullcontext(), on_signals(self.ask, signal.SIGINT, signal.SIGTERM):
            yield

    @contextmanager
    def timing(self) -> Generator[None]:
        """Have a thread hear of signals too: while the main one waits in C++ for others, no handler of Python's runs.

        The system calls one of C's at once, which writes the signal's number to a pipe.
        """
        reading, writing = os.pipe()
        os.set_blocking(writing, False)
        before = signal.set_wakeup_fd(writing)
        threading.Thread(target=self.hear, args=(reading,), daemon=True).start()
        try:
            yield
        finally:
            signal.set_wakeup_fd(before)
            os.close(writing)
            self.all_are_here()

    def hear(self, reading: int) -> None:
        with open(reading, "rb", buffering=0) as pipe:
            while said := pipe.read(1):
                if said[0] in (signal.SIGINT, signal.SIGTERM) and not self.alone:
                    self.here.clear()
                    if not self.here.wait(PATIENCE):
                        self.give_up(said[0])

    def ask(self, number: int, _: FrameType | None) -> None:
        """Stop after this step, or at once where that is told; a second signal ends the process."""
        now = time.monotonic()
        if self.number is not None:
            if now - self.asked > AGAIN:
                self.end(number)
            return
        self.number, self.asked = number, now
        if self.at_once:
            raise Stopped(number)

    def give_up(self, number: int) -> None:
        """Stop without saving: other processes, which were to stop at the same step, do not get there."""
        with suppress(OSError, ValueError):  # who read it may be gone
            print("sidestep: other ranks do not answer; stopping at the last checkpoint", file=sys.stderr, flush=True)
        self.end(number)

    def end(self, number: int) -> None:
        """Leave now; of several processes none says goodbye to others, which may not listen."""
        if self.ranks > 1:
            os._exit(128 + number)
        raise KeyboardInterrupt if number == signal.SIGINT else SystemExit(128 + number)

    def all_are_here(self) -> None:
        """The other processes have come to the step at which all stop."""
        self.here.set()

    def unless_asked(self, work: Callable[[], T]) -> T | None:
        """What the work finds; None if a signal has come, or comes in the middle, which ends it."""
        try:  # around the other one's finally, too, in which a signal may still find it at work
            try:
                self.at_once = True
                return work() if self.number is None else None
            finally:
                self.at_once = False
        except Stopped:
            return None


@contextmanager
def on_signals(handler: Callable[[int, FrameType | None], Any] | signal.Handlers, *numbers: int) -> Generator[None]:
    """Have these signals call the handler, or be dealt with by the system."""
    try:
        before = {number: signal.signal(number, handler) for number in numbers}
    except ValueError:  # not the main thread, as in some notebooks: signals are not ours to take
        before = {}
    try:
        yield
    finally:
        for number, previous in before.items():
            signal.signal(number, previous)
