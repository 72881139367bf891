"""Between processes, over torch.distributed: messages travel while both ends compute."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from contextlib import suppress
from queue import Full, Queue
from typing import final

import torch
from torch import Tensor
from torch.distributed import ProcessGroup

from sidestep.core.emit import Message
from sidestep.errors import WireError, cause

from .lanes import CHUNK, Lane
from .packets import HEAD, pack, read_head, unpack
from .wire import Edge, When

WINDOW = 4
"""Messages that wait to be sent, or lie received ahead, for one peer."""
FAREWELL = "farewell"
CPU = torch.device("cpu")


@final
class DistWire:
    """Every process that is sent to, and every one that is received from, has a thread of its own here.

    Messages between two processes arrive in the order they were sent in, which is the order they are asked for in, as
    both run the same program; any other is an error.  Who is `WINDOW` messages ahead waits.

    group: of all processes, with a backend for tensors on the CPU.  shares: the blocks of each, by rank.  run: 16 bytes
    that all agree on.  device: of this process's blocks.  called: what errors call the ranks, where it is not by their
    places in the group.  lanes: ways for what lies on the device, by the ranks they leave and reach; what has none goes
    through the CPU's memory.

    Raises WireError for a message that is damaged, is not the one that is due, has not a row for every sample, has
    another shape, dtype or memory format than in the step before, or does not come as its sender has ended.
    """

    def __init__(
        self,
        group: ProcessGroup,
        shares: Sequence[range],
        run: bytes,
        device: torch.device = CPU,
        called: Sequence[int] | None = None,
        lanes: Mapping[tuple[int, int], Lane] | None = None,
    ) -> None:
        self.group, self.run, self.device, self.lanes = group, run, device, lanes or {}
        self.called = range(len(shares)) if called is None else called
        self.rank_of = {n: rank for rank, own in enumerate(shares) for n in own}
        self.senders: dict[int, _Sender] = {}
        self.receivers: dict[int, _Receiver] = {}
        self.layouts: dict[tuple[str, int, int], str] = {}

    def send(self, edge: Edge, message: Message) -> None:
        self._sender(edge).send(edge, message)

    def receive(self, edge: Edge) -> Message:
        peer = self.rank_of[edge.source]
        if peer not in self.receivers:
            lane = self.lanes.get((peer, self.rank_of[edge.target]))
            self.receivers[peer] = _Receiver(self.group, peer, self.called[peer], self.run, self.device, lane)
        message = self.receivers[peer].receive(edge)
        layout = ", ".join(map(_words, message)) or "nothing"
        if edge.rows and message and message[0].shape[:1] != (edge.rows,):
            raise WireError(f"{edge}: got {layout}, expected a row for every sample.")
        if edge.when.training:
            before = self.layouts.setdefault((edge.what, edge.source, edge.target), layout)
            if layout != before:
                raise WireError(f"{edge}: got {layout}, expected {before} as before.")
        return message

    def close(self, reason: str = "the run is over", patience: float | None = None) -> None:
        """Send what waits, and tell everybody that nothing follows, and why.

        patience: seconds that each of its waits may take, where others may be gone; None is as long as it takes.
        """
        for sender in self.senders.values():
            sender.end(reason, patience)
        for thread in (*self.senders.values(), *self.receivers.values()):
            thread.join(patience)

    def _sender(self, edge: Edge) -> _Sender:
        peer = self.rank_of[edge.target]
        if peer not in self.senders:
            lane = self.lanes.get((self.rank_of[edge.source], peer))
            self.senders[peer] = _Sender(self.group, peer, self.called[peer], self.run, lane)
        return self.senders[peer]


class _Sender(threading.Thread):
    def __init__(self, group: ProcessGroup, peer: int, called: int, run: bytes, lane: Lane | None) -> None:
        super().__init__(name=f"to rank {called}", daemon=True)
        self.group, self.peer, self.called, self.run_id, self.lane = group, peer, called, run, lane
        self.waiting: Queue[tuple[tuple[Tensor, ...], torch.cuda.Event | None] | None] = Queue(WINDOW)
        self.lost: Exception | None = None
        self.start()

    def send(self, edge: Edge, message: Message) -> None:
        if self.lost is not None:
            raise WireError(f"{edge}: rank {self.called} is gone ({cause(self.lost)}).")
        self._put(edge, message)

    def end(self, reason: str, patience: float | None) -> None:
        farewell = torch.frombuffer(bytearray(reason.encode()), dtype=torch.uint8)
        with suppress(Full):  # the peer has not taken what came before
            self._put(Edge(FAREWELL, When(False, 0), 0, 0), (farewell,), patience)
            self.waiting.put(None, timeout=patience)

    def _put(self, edge: Edge, message: Message, patience: float | None = None) -> None:
        packet = pack(self.run_id, edge, message, self.lane and self.lane.device)
        self.waiting.put((packet, self.lane and self.lane.ready()), timeout=patience)

    def run(self) -> None:
        while (waiting := self.waiting.get()) is not None:
            if self.lost is None:  # else who puts more in must not wait for room
                try:
                    (head, body, *cargo), ready = waiting
                    for piece in (head, *body.split(CHUNK)):
                        self.group.send([piece], self.peer, 0).wait()
                    if self.lane is not None and cargo:
                        self.lane.send(cargo[0], ready)
                except Exception as error:  # whatever it is, who sends must hear of it
                    self.lost = error


class _Receiver(threading.Thread):
    def __init__(
        self, group: ProcessGroup, peer: int, called: int, run: bytes, device: torch.device, lane: Lane | None
    ) -> None:
        super().__init__(name=f"from rank {called}", daemon=True)
        self.group, self.peer, self.called, self.run_id, self.device = group, peer, called, run, device
        self.lane = lane
        self.arrived: Queue[tuple[Edge, Message] | Exception] = Queue(WINDOW)
        self.ended: Exception | None = None
        self.start()

    def receive(self, edge: Edge) -> Message:
        found = self.ended or self.arrived.get()
        if isinstance(found, Exception):
            self.ended = found
            if isinstance(found, WireError):
                raise WireError(f"{edge}: {found}.")
            raise WireError(f"{edge}: rank {self.called} is gone ({cause(found)}).") from found
        arrived, message = found
        if arrived != edge:
            raise WireError(f"got {arrived}, expected {edge}.")
        for m in message:
            if m.is_cuda:  # made on the lane's stream: its memory must not be given away while this one reads it
                m.record_stream(torch.cuda.current_stream(m.device))
        return message

    def run(self) -> None:
        try:
            while True:
                edge, message = self._next()
                if edge.what == FAREWELL:
                    reason = message[0].numpy().tobytes().decode().removesuffix(".")
                    raise WireError(f"rank {self.called} has ended: {reason}")
                self.arrived.put((edge, message))
        except Exception as error:  # whatever it is, who waits must hear of it
            self.arrived.put(error)

    def _next(self) -> tuple[Edge, Message]:
        head = torch.empty(HEAD, dtype=torch.uint8)
        self.group.recv([head], self.peer, 0).wait()
        announced = read_head(self.run_id, head)
        body = torch.empty(announced.body, dtype=torch.uint8)
        for piece in body.split(CHUNK):
            self.group.recv([piece], self.peer, 0).wait()
        opened = unpack(announced, body)
        if not opened.cargo:
            return opened.edge, opened.message(self.device)
        if self.lane is None:
            raise WireError("got a message that travels apart, expected one that goes through the CPU's memory")
        return opened.edge, opened.message(self.device, self.lane.receive(opened.cargo))


def _words(m: Tensor) -> str:
    """Its dtype, shape and memory format; tensors of other layouts have other words."""
    words = f"{str(m.dtype).removeprefix('torch.')} {tuple(m.shape)}"
    if m.is_contiguous():
        return words
    # The stride of a single row says nothing of the format, and may be anything.
    return f"{words} with strides {tuple(step if n > 1 else 0 for n, step in zip(m.shape, m.stride(), strict=True))}"
