"""How a signal stops a run: after the step it is in, so that what it has done is saved."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager, nullcontext
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

    @contextmanager
    def listening(self) -> Generator[None]:
        alarm = on_signals(self.give_up, signal.SIGALRM) if self.ranks > 1 else nullcontext()
        with on_signals(self.ask, signal.SIGINT, signal.SIGTERM), alarm:
            try:
                yield
            finally:
                self.all_are_here()

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
        if not self.alone:
            signal.alarm(PATIENCE)

    def give_up(self, number: int, _: FrameType | None) -> None:
        """Stop without saving: other processes, which were to stop at the same step, do not get there."""
        assert self.number is not None
        print("sidestep: other ranks do not answer; stopping at the last checkpoint", file=sys.stderr, flush=True)
        self.end(self.number)

    def end(self, number: int) -> None:
        """Leave now; of several processes none says goodbye to others, which may not listen."""
        if self.ranks > 1:
            os._exit(128 + number)
        raise KeyboardInterrupt if number == signal.SIGINT else SystemExit(128 + number)

    def all_are_here(self) -> None:
        """The other processes have come to the step at which all stop."""
        if self.ranks > 1:
            signal.alarm(0)

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
def on_signals(handler: Callable[[int, FrameType | None], Any], *numbers: int) -> Generator[None]:
    """Have these signals call the handler."""
    try:
        before = {number: signal.signal(number, handler) for number in numbers}
    except ValueError:  # not the main thread, as in some notebooks: signals are not ours to take
        before = {}
    try:
        yield
    finally:
        for number, previous in before.items():
            signal.signal(number, previous)
