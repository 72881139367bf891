"""The wire between processes, both of its ends in this one: two process groups that share a store."""

from __future__ import annotations

import threading
from collections.abc import Callable, Generator
from contextlib import suppress

import pytest
import torch
from torch import Tensor
from torch.distributed import ProcessGroup

from sidestep.engines.dist_wire import WINDOW, DistWire
from sidestep.engines.lanes import CHUNK, Lane
from sidestep.engines.packets import pack
from sidestep.engines.wire import Edge, When
from sidestep.errors import WireError

CPU = torch.device("cpu")
RUN = bytes(16)
SHARES = [range(2), range(2, 3)]


def edge(step: int, what: str = "0 match") -> Edge:
    return Edge(what, When(True, step), 1, 2)


@pytest.fixture
def ends(groups: list[ProcessGroup]) -> Generator[tuple[DistWire, DistWire]]:
    yield DistWire(groups[0], SHARES, RUN), DistWire(groups[1], SHARES, RUN)


def test_messages_of_every_size_arrive_in_order_and_whole(ends: tuple[DistWire, DistWire]) -> None:
    sender, receiver = ends
    sizes = [0, 1, 1000, CHUNK // 4, CHUNK // 4 + 1, CHUNK]
    messages = [(torch.randn(n), torch.arange(n)) for n in sizes]

    def send() -> None:
        for k, message in enumerate(messages):
            sender.send(edge(0, str(k)), message)
        sender.close()

    thread = threading.Thread(target=send)
    thread.start()
    for k, message in enumerate(messages):
        found = receiver.receive(edge(0, str(k)))
        assert all(torch.equal(a, b) for a, b in zip(found, message, strict=True))
    thread.join()
    receiver.close()


def test_who_is_ahead_by_two_windows_waits(ends: tuple[DistWire, DistWire]) -> None:
    """One window at each end, and what is in either thread's hands."""
    sender, receiver = ends
    sent: list[int] = []
    steps = 4 * WINDOW

    def send() -> None:
        for k in range(steps):
            sender.send(edge(k), (torch.zeros(3),))
            sent.append(k)

    thread = threading.Thread(target=send, daemon=True)
    thread.start()
    receiver.receive(edge(0))
    thread.join(0.5)
    assert thread.is_alive() and WINDOW <= len(sent) <= 2 * WINDOW + 3
    for k in range(1, steps):
        receiver.receive(edge(k))
    thread.join()
    assert len(sent) == steps


def test_another_message_than_the_one_due_is_refused(ends: tuple[DistWire, DistWire]) -> None:
    sender, receiver = ends
    sender.send(edge(4), (torch.zeros(3),))
    with pytest.raises(WireError, match=r"got 0 match from block 1 to 2, step 4, .*, expected .* step 3, micro"):
        receiver.receive(edge(3))


@pytest.mark.parametrize(
    ("other", "words"),
    [(torch.zeros(3, 2), r"float32 \(3, 2\)"), (torch.zeros(3, dtype=torch.int32), r"int32 \(3,\)")],
)
def test_another_shape_or_dtype_than_before_is_refused(
    ends: tuple[DistWire, DistWire], other: Tensor, words: str
) -> None:
    sender, receiver = ends
    sender.send(edge(0), (torch.zeros(3),))
    sender.send(edge(1), (other,))
    receiver.receive(edge(0))
    with pytest.raises(WireError, match=rf"block 1 to 2, step 1, .*: got {words}, expected float32 \(3,\) as before"):
        receiver.receive(edge(1))


def test_another_memory_format_than_before_is_refused(ends: tuple[DistWire, DistWire]) -> None:
    """But not where a dimension of one leaves the format open."""
    sender, receiver = ends
    image, single = torch.zeros(2, 3, 4, 4), torch.zeros(2, 1, 4, 4)
    sender.send(edge(0), (image, single))
    sender.send(edge(1), (image.clone(), single.as_strided(single.shape, (16, 1, 4, 1))))
    sender.send(edge(2), (image.to(memory_format=torch.channels_last), single))
    for step in range(2):
        receiver.receive(edge(step))
    words = r"got float32 \(2, 3, 4, 4\) with strides \(48, 1, 12, 3\), float32 \(2, 1, 4, 4\), expected float32 "
    with pytest.raises(WireError, match=rf"block 1 to 2, step 2, .*: {words}\(2, 3, 4, 4\), float32 .* as before"):
        receiver.receive(edge(2))


def test_the_first_message_has_a_row_for_every_sample_that_its_edge_has(ends: tuple[DistWire, DistWire]) -> None:
    """Whatever else is in it, or nothing at all; and both ends have the same samples."""
    sender, receiver = ends
    edges = [edge(0, str(k))._replace(rows=4) for k in range(4)]
    messages = (torch.zeros(4, 2), torch.zeros(())), (), (torch.zeros(7, dtype=torch.int8),)
    for each, message in zip(edges, messages, strict=False):
        sender.send(each, message)
    sender.send(edges[3]._replace(rows=3), (torch.zeros(3, 2),))
    for each in edges[:2]:
        receiver.receive(each)
    with pytest.raises(
        WireError, match=r"micro-batch 0, 4 samples: got int8 \(7,\), expected a row for every sample\."
    ):
        receiver.receive(edges[2])
    with pytest.raises(WireError, match=r"got .* micro-batch 0, 3 samples, expected .* micro-batch 0, 4 samples\."):
        receiver.receive(edges[3])


def raw(group: ProcessGroup, *pieces: Tensor) -> None:
    with suppress(RuntimeError):  # once the other end has refused it
        for piece in pieces:
            group.send([piece], 1, 0).wait()


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda head, _: head[30:31].fill_(99), "damaged head"),
        (lambda _, body: body[-1:].fill_(99), "damaged body"),
        (lambda head, _: head.zero_(), "bytes that begin no message"),
    ],
)
def test_a_damaged_message_is_refused_by_the_name_of_its_edge(
    groups: list[ProcessGroup], spoil: Callable[[Tensor, Tensor], object], words: str
) -> None:
    receiver = DistWire(groups[1], SHARES, RUN)
    head, body = pack(RUN, edge(0), (torch.ones(8),))
    spoil(head, body)
    thread = threading.Thread(target=raw, args=(groups[0], head, body), daemon=True)
    thread.start()
    with pytest.raises(WireError, match=f"0 match from block 1 to 2, step 0, micro-batch 0: got .*{words}"):
        receiver.receive(edge(0))


def test_what_has_a_lane_goes_there_and_the_rest_through_the_wire(groups: list[ProcessGroup]) -> None:
    """The CPU stands for the accelerator: the lane sees every tensor of a message, more than a chunk of it."""
    gone: list[int] = []

    class Seen(Lane):
        def send(self, cargo: Tensor, ready: object) -> None:
            gone.append(len(cargo))
            super().send(cargo, None)

    sender = DistWire(groups[0], SHARES, RUN, lanes={(0, 1): Seen(groups[0], 1, CPU)})
    receiver = DistWire(groups[1], SHARES, RUN, lanes={(0, 1): Lane(groups[1], 0, CPU)})
    message = torch.randn(CHUNK // 4 + 3), torch.arange(5)
    sender.send(edge(0), message)
    sender.send(edge(1, "empty"), ())
    assert all(torch.equal(a, b) for a, b in zip(receiver.receive(edge(0)), message, strict=True))
    assert receiver.receive(edge(1, "empty")) == ()
    (size,) = gone
    assert size >= CHUNK + 12 + 5 * 8
    sender.close()


def test_a_damaged_cargo_and_one_without_a_lane_are_refused_by_the_name_of_the_edge(groups: list[ProcessGroup]) -> None:
    pieces = pack(RUN, edge(0), (torch.ones(8),), apart=CPU)
    pieces[2][3] ^= 1
    for lanes, words in (({(0, 1): Lane(groups[1], 0, CPU)}, "damaged cargo"), ({}, "travels apart")):
        receiver = DistWire(groups[1], SHARES, RUN, lanes=lanes)
        threading.Thread(target=raw, args=(groups[0], *pieces), daemon=True).start()
        with pytest.raises(WireError, match=f"0 match from block 1 to 2, step 0, micro-batch 0: got .*{words}"):
            receiver.receive(edge(0))


def test_who_has_ended_says_why(ends: tuple[DistWire, DistWire]) -> None:
    sender, receiver = ends
    sender.send(edge(0), ())
    sender.close("the loss is infinite", patience=0)
    assert receiver.receive(edge(0)) == ()
    for _ in range(2):  # asked again, it does not wait for ever
        with pytest.raises(WireError, match="step 1, micro-batch 0: rank 0 has ended: the loss is infinite"):
            receiver.receive(edge(1))


def test_who_ends_does_not_wait_longer_than_its_patience_for_a_peer_that_takes_nothing(
    ends: tuple[DistWire, DistWire],
) -> None:
    sender, _ = ends
    for k in range(WINDOW + 1):  # what waits, and what is in the thread's hands
        sender.send(edge(k), (torch.zeros(CHUNK),))
    ending = threading.Thread(target=sender.close, args=("it was stopped", 0.1), daemon=True)
    ending.start()
    ending.join(5)
    assert not ending.is_alive()


def test_errors_call_a_rank_by_its_number_among_all(groups: list[ProcessGroup]) -> None:
    """Of a chain of the second replicas, whose places in their group are 0 and 1."""
    first, second = (DistWire(group, SHARES, RUN, called=[1, 3]) for group in groups)
    first.send(edge(0), (torch.zeros(1),))
    first.close("it was stopped", patience=0)
    second.receive(edge(0))
    with pytest.raises(WireError, match="step 1, micro-batch 0: rank 1 has ended: it was stopped"):
        second.receive(edge(1))


def test_a_peer_that_is_gone_is_noticed_by_both_ends(groups: list[ProcessGroup]) -> None:
    """Here by the timeout of the group, which closes the connection."""
    sender, receiver = DistWire(groups[0], SHARES, RUN), DistWire(groups[1], SHARES, RUN)
    sender.send(edge(0), (torch.zeros(3),))
    sender.senders[1].join(6)  # nobody receives
    with pytest.raises(WireError, match="step 1, micro-batch 0: rank 1 is gone"):
        sender.send(edge(1), ())
    with pytest.raises(WireError, match=r"step 0, micro-batch 0: rank 0 is gone \(Connection closed by peer "):
        receiver.receive(edge(0))
