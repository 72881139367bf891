"""The simulation beside what can be worked out by hand."""

from __future__ import annotations

from itertools import chain, repeat

import pytest

from sidestep.simulate.machine import Action, Compute, Expect, Flush, Link, Machine, Mark, Receive, Send, simulate


def free(source: int, to: int) -> Link:
    return Link()


def test_a_message_takes_its_start_its_bytes_and_the_latency_and_is_waited_for() -> None:
    sender = [Compute(1.0), Send(1, 100), Mark()]
    receiver = [Receive(0), Mark(), Compute(2.0), Mark()]
    link = Link(start=0.5, byte=0.01, latency=3.0)
    assert simulate([sender, receiver], lambda a, b: link) == [[1.0], [1 + 0.5 + 1 + 3, 7.5]]


def test_messages_leave_one_after_the_other_though_they_overlap_on_their_way() -> None:
    """Each occupies the link for a second, and arrives two later."""
    link = Link(start=1.0, latency=2.0)
    marks = simulate([[Send(1, 0)] * 3, list(chain.from_iterable([(Receive(0), Mark())] * 3))], lambda a, b: link)
    assert marks[1] == [3.0, 4.0, 5.0]


def test_packing_is_the_senders_own_time() -> None:
    marks = simulate([[Send(1, 10), Mark()], [Receive(0), Mark()]], lambda a, b: Link(pack=0.1, start=1.0))
    assert marks == [[1.0], [2.0]]


def test_a_sender_stands_still_once_the_window_is_full() -> None:
    """Of a receiver that takes nothing before second 10: two lie there, two wait, and the fifth is not handed over."""
    sender: list[Action] = list(chain.from_iterable([(Send(1, 0), Mark())] * 5))
    receiver: list[Action] = [Compute(10.0), *repeat(Receive(0), 5), Mark()]
    marks = simulate([sender, receiver], lambda a, b: Link(start=1.0, window=2))
    # Both places at the other end are taken when the second has arrived; the third and fourth wait in the window.
    assert marks[0] == [0.0, 0.0, 0.0, 1.0, 10.0]
    assert marks[1] == [13.0]  # three more seconds on the way


def test_what_meets_leaves_only_once_it_is_waited_for_and_a_flush_waits_for_that() -> None:
    link = Link(start=1.0, meet=True)
    marks = simulate([[Send(1, 0), Mark(), Flush(1), Mark()], [Compute(5.0), Receive(0), Mark()]], lambda a, b: link)
    assert marks == [[0.0, 6.0], [6.0]]


def test_what_meets_is_asked_for_which_takes_as_long_as_the_way_itself() -> None:
    """Asked for at 5, heard of at 7, on the way for one, there at 10; its sender is done with it when it has left."""
    link = Link(start=1.0, latency=2.0, meet=True)
    sender = [Send(1, 0), Flush(1), Mark()]
    assert simulate([sender, [Compute(5.0), Receive(0), Mark()]], lambda a, b: link) == [[8.0], [10.0]]
    early = [Expect(0), Compute(5.0), Receive(0), Mark()]
    assert simulate([sender, early], lambda a, b: link) == [[3.0], [5.0]]


def test_pieces_are_asked_for_one_after_the_other() -> None:
    """250 bytes are three of at most a hundred behind a head: four ways there and back, and the bytes, a message."""
    link = Link(byte=0.01, latency=1.0, piece=100, window=4)
    receiver = list(chain.from_iterable([(Receive(0), Mark())] * 3))
    marks = simulate([[Send(1, 250)] * 3, receiver], lambda a, b: link)
    # The first head is asked for from the beginning; the last piece has its way behind it.
    assert marks[1] == pytest.approx([1 + 3 * 2 + 2.5 + 1 + n * (4 * 2 + 2.5) for n in range(3)])


def test_pieces_are_not_asked_for_where_there_is_no_room() -> None:
    """One lies there until second 20; the next is asked for then."""
    link = Link(latency=1.0, piece=100, window=1)
    marks = simulate([[Send(1, 0)] * 2, [Compute(20.0), Receive(0), Receive(0), Mark()]], lambda a, b: link)
    assert marks[1] == [20 + 1 + 2 + 1]


def test_kinds_do_not_wait_for_each_other() -> None:
    marks = simulate([[Send(1, 0, "a"), Send(1, 0, "b")], [Receive(0, "b"), Mark(), Receive(0, "a"), Mark()]], free)
    assert marks[1] == [0.0, 0.0]


def test_who_is_busy_on_one_machine_shares_its_cores() -> None:
    """Three on two cores, which are a tenth slower when both are busy: until the first is done, two thirds each."""
    machine = Machine(cores=2, busy=1.1)
    works = [[Compute(seconds), Mark()] for seconds in (2.0, 4.0, 4.0)]
    marks = simulate(works, free, [machine], [0, 0, 0])
    first = 2.0 * 1.5 * 1.1
    assert marks[0] == [pytest.approx(first)]
    assert marks[1] == marks[2] == [pytest.approx(first + 2.0 * 1.1)]
    assert simulate([[Compute(2.0), Mark()]], free, [machine]) == [[2.0]]


def test_both_ends_of_a_message_need_a_core() -> None:
    """The receiving machine has one core, which a process keeps busy: what receives has half of it."""
    link = Link(send=1.0, receive=1.0)
    marks = simulate(
        [[Send(1, 2), Mark()], [Receive(0), Mark()], [Compute(4.0), Mark()]],
        lambda a, b: link,
        [Machine(), Machine()],
        [0, 1, 1],
    )
    assert marks[1] == [4.0] and marks[2] == [6.0]


def test_a_chain_that_goes_only_up_takes_its_slowest_rank_whatever_the_latency() -> None:
    def rank(n: int) -> list[Action]:
        step: list[Action] = [] if n == 0 else [Receive(n - 1)]
        step += [Compute(1.0), *([Send(n + 1, 8)] if n < 3 else []), Compute(2.0 + (n == 2)), Mark()]
        return step * 12

    marks = simulate([rank(n) for n in range(4)], lambda a, b: Link(latency=7.0, window=4))
    between = [b - a for a, b in zip(marks[3][4:], marks[3][5:], strict=False)]
    assert between == pytest.approx([4.0] * len(between))
    assert marks[3][0] == 3 * (1 + 7) + 3  # it is filled once


def test_processes_that_wait_for_each_other_are_named() -> None:
    with pytest.raises(ValueError, match=r"wait for ever: 0 at Receive\(source=1, kind=''\); 1 at Receive"):
        simulate([[Receive(1)], [Receive(0)]], free)
