"""Processes on machines, cores that they share and links between them, as a simulation of discrete events.

A process is a list of actions, done one after the other.  How long an action takes alone is given; the rest, who waits
for whom and who shares a core with whom, is what the simulation finds.
"""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import count
from math import inf
from typing import NamedTuple

Then = Callable[[], None]


class Compute(NamedTuple):
    """Keep a core busy."""

    seconds: float


class Send(NamedTuple):
    """Hand over a message, and go on as soon as it is one of the link's window."""

    to: int
    size: int  # bytes
    kind: str = ""  # messages of one kind arrive in the order they were sent in


class Expect(NamedTuple):
    """Ask for the next message of a process, which a receive later waits for, and go on."""

    source: int
    kind: str = ""


class Receive(NamedTuple):
    """Wait for the next message of a process, and ask for it, if that has not been done."""

    source: int
    kind: str = ""


class Flush(NamedTuple):
    """Wait until all messages of a kind that were sent to a process have left."""

    to: int
    kind: str = ""


class Mark(NamedTuple):
    """Note the time."""


Action = Compute | Send | Expect | Receive | Flush | Mark


@dataclass(frozen=True)
class Link:
    """How messages of a kind travel from one process to another: in order, one at a time.

    window: messages that wait to be sent, and that lie received ahead.  meet: whether one leaves only once its receiver
    has asked for it.  piece: bytes of a message that are asked for at once, each piece when the one before has arrived,
    and the first with the end of the message before, as long as the window has room; inf: nobody asks.  pack: seconds a
    byte that the sending process takes before it goes on.  start, byte: seconds on the way of any message, and of each
    of its bytes, in which the next has to wait.  send, receive: seconds a byte of a core, at either end, at the same
    time.  latency: seconds until what has left arrives, in which the next may leave, and until who is asked hears of
    it.
    """

    pack: float = 0.0
    start: float = 0.0
    byte: float = 0.0
    send: float = 0.0
    receive: float = 0.0
    latency: float = 0.0
    meet: bool = False
    piece: float = inf
    window: float = inf

    def on_the_way(self, size: int) -> float:
        """Seconds until all of a message has left."""
        # Behind its head; one more than whole pieces, since a message is a little longer than what it carries.
        pieces = size // self.piece + 1 if self.piece < inf else 0
        return self.start + size * self.byte + pieces * 2 * self.latency


@dataclass(frozen=True)
class Machine:
    """cores: who is busy there shares them evenly.  busy: how much longer work takes where all cores are busy."""

    cores: int = 1
    busy: float = 1.0

    def rate(self, jobs: int) -> float:
        """The speed of each of so many jobs, 1 being that of one alone."""
        used = min(jobs, self.cores)
        slowed = 1 + (self.busy - 1) * (used - 1) / (self.cores - 1) if self.cores > 1 else 1.0
        return used / jobs / slowed


def simulate(
    processes: Sequence[Iterable[Action]],
    link: Callable[[int, int], Link],
    machines: Sequence[Machine] | None = None,
    at: Sequence[int] | None = None,
) -> list[list[float]]:
    """When every process came to its marks, in seconds.

    link: from one process to another.  at: the machine of each process; by default each has one of its own.
    Raises ValueError where processes wait for each other for ever.
    """
    clock = _Clock()
    at = range(len(processes)) if at is None else at
    hosts = [_Host(clock, m) for m in machines or [Machine()] * (max(at) + 1)]
    channels: dict[tuple[int, int, str], _Channel] = {}

    def channel(source: int, to: int, kind: str) -> _Channel:
        way = source, to, kind
        if way not in channels:
            channels[way] = _Channel(clock, link(source, to), hosts[at[source]], hosts[at[to]])
        return channels[way]

    running = [_Process(clock, n, iter(actions), hosts[at[n]], channel) for n, actions in enumerate(processes)]
    for process in running:
        process.go_on()
    clock.run()
    if waiting := [f"{p.number} at {p.last}" for p in running if not p.done]:
        raise ValueError(f"these processes wait for ever: {'; '.join(waiting[:4])}.")
    return [process.marks for process in running]


class _Clock:
    """What is to happen, by time."""

    def __init__(self) -> None:
        self.now = 0.0
        self.events: list[tuple[float, int, Then]] = []
        self.order = count()  # of two events at once the one that was planned first

    def after(self, seconds: float, then: Then) -> None:
        heapq.heappush(self.events, (self.now + seconds, next(self.order), then))

    def run(self) -> None:
        while self.events:
            self.now, _, then = heapq.heappop(self.events)
            then()


class _Job:
    def __init__(self, seconds: float, then: Then) -> None:
        self.left, self.then = seconds, then


class _Host:
    """A machine's cores, shared by all jobs that are not done yet."""

    def __init__(self, clock: _Clock, machine: Machine) -> None:
        self.clock, self.machine = clock, machine
        self.jobs: list[_Job] = []
        self.since = 0.0  # what is left of the jobs is as of then
        self.plans = 0  # only the newest of them counts

    def work(self, seconds: float, then: Then) -> None:
        if seconds <= 0:
            then()
            return
        self._pass_time()
        self.jobs.append(_Job(seconds, then))
        self._plan()

    def _pass_time(self) -> None:
        if self.jobs:
            done = (self.clock.now - self.since) * self.machine.rate(len(self.jobs))
            for job in self.jobs:
                job.left -= done
        self.since = self.clock.now

    def _plan(self) -> None:
        """Come back when the first of the jobs is done."""
        self.plans += 1
        if self.jobs:
            first, plan = min(self.jobs, key=lambda job: job.left), self.plans
            seconds = max(first.left, 0.0) / self.machine.rate(len(self.jobs))
            self.clock.after(seconds, lambda: self._finish(first) if plan == self.plans else None)

    def _finish(self, job: _Job) -> None:
        self._pass_time()
        self.jobs.remove(job)
        self._plan()
        job.then()


class _Channel:
    """One way from a process to another."""

    def __init__(self, clock: _Clock, link: Link, sender: _Host, receiver: _Host) -> None:
        self.clock, self.link, self.sender, self.receiver = clock, link, sender, receiver
        self.waiting: deque[tuple[int, Then]] = deque()  # beyond the window: their senders stand still
        self.outbox: deque[int] = deque()
        self.travelling = False
        self.ahead = 0  # arrived, or on the way: they have a place at the other end
        self.arrived = 0
        self.expected: Then | None = None
        self.flushing: Then | None = None
        self.to_leave = 0  # sent, and has not left
        self.asked = 0 if link.meet or link.piece < inf else inf  # for so many messages, as far as the sender knows
        self.begun = 0  # so many of them
        self.early = 0  # asked for, and not waited for
        self.coming = False  # the first piece of a message has been asked for
        self._ask_ahead()

    def send(self, size: int, then: Then) -> None:
        self.to_leave += 1
        if len(self.outbox) < self.link.window:
            self.outbox.append(size)
            self._start_next()
            then()
        else:
            self.waiting.append((size, then))

    def expect(self) -> None:
        self.early += 1
        self._ask()

    def receive(self, then: Then) -> None:
        if self.early:
            self.early -= 1
        elif self.link.meet:
            self._ask()
        if self.arrived:
            self._take(then)
        else:
            self.expected = then

    def flush(self, then: Then) -> None:
        if self.to_leave:
            self.flushing = then
        else:
            then()

    def _ask(self) -> None:
        self.clock.after(self.link.latency, self._hear)

    def _hear(self) -> None:
        self.asked += 1
        self._start_next()

    def _ask_ahead(self) -> None:
        """As a receiver does that only receives: one message at a time, as long as it has room."""
        if self.link.piece < inf and not self.coming and self.ahead < self.link.window:
            self.coming = True
            self._ask()

    def _take(self, then: Then) -> None:
        self.arrived -= 1
        self.ahead -= 1
        self._ask_ahead()
        self._start_next()
        then()

    def _start_next(self) -> None:
        if self.travelling or not self.outbox or self.ahead >= self.link.window or self.begun >= self.asked:
            return
        size = self.outbox.popleft()
        self.travelling = True
        self.begun += 1
        self.ahead += 1
        left = 3

        def part() -> None:
            nonlocal left
            left -= 1
            if not left:
                self._leave()

        self.clock.after(self.link.on_the_way(size), part)
        self.sender.work(size * self.link.send, part)
        self.receiver.work(size * self.link.receive, part)
        if self.waiting:
            size, then = self.waiting.popleft()
            self.outbox.append(size)
            self.clock.after(0.0, then)

    def _leave(self) -> None:
        self.travelling = False
        self.to_leave -= 1
        self.clock.after(self.link.latency, self._arrive)
        self._start_next()
        if self.flushing is not None and not self.to_leave:
            then, self.flushing = self.flushing, None
            then()

    def _arrive(self) -> None:
        self.arrived += 1
        self.coming = False
        self._ask_ahead()
        if self.expected is not None:
            then, self.expected = self.expected, None
            self._take(then)


class _Process:
    """Does its actions in order."""

    def __init__(
        self,
        clock: _Clock,
        number: int,
        actions: Iterator[Action],
        host: _Host,
        channel: Callable[[int, int, str], _Channel],
    ) -> None:
        self.clock, self.number, self.actions, self.host, self.channel = clock, number, actions, host, channel
        self.marks: list[float] = []
        self.last: Action | None = None
        self.done = False

    def go_on(self) -> None:
        """Plan the next action; by the clock, so that a long list does not become a deep call."""
        self.clock.after(0.0, self._next)

    def _next(self) -> None:
        for action in self.actions:
            self.last = action
            match action:
                case Mark():
                    self.marks.append(self.clock.now)
                    continue
                case Compute(seconds):
                    self.host.work(seconds, self.go_on)
                case Send(to, size, kind):
                    channel = self.channel(self.number, to, kind)
                    self.host.work(size * channel.link.pack, partial(channel.send, size, self.go_on))
                case Flush(to, kind):
                    self.channel(self.number, to, kind).flush(self.go_on)
                case Expect(source, kind):
                    self.channel(source, self.number, kind).expect()
                    continue
                case Receive(source, kind):
                    self.channel(source, self.number, kind).receive(self.go_on)
            return
        self.done = True
