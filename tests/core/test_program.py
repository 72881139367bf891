from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sidestep.core.emit import Emit
from sidestep.core.program import CellId, Derived, Down, Each, Pass, Program, Up, needs, plan

THREE = 3


def forward(cell: Any) -> Emit:
    return Emit()


def backward(cell: Any) -> Emit:
    return Emit()


def local(cell: Any) -> Emit:
    return Emit()


UP: Program = (Up(forward),)
UP_DOWN: Program = (Up(forward), Down(backward))
UP_DOWN_EACH: Program = (Up(forward), Down(backward), Each(local))
EACH: Program = (Each(local),)
DOWN_UP: Program = (Down(backward), Up(forward))


@pytest.mark.parametrize(
    ("program", "expected"),
    [
        (UP, [(0, 0), (0, 1), (0, 2)]),
        (UP_DOWN, [(0, 0), (0, 1), (0, 2), (1, 2), (1, 1), (1, 0)]),
        (UP_DOWN_EACH, [(0, 0), (0, 1), (0, 2), (1, 2), (2, 2), (1, 1), (2, 1), (1, 0), (2, 0)]),
        (EACH, [(0, 0), (0, 1), (0, 2)]),
        (DOWN_UP, [(0, 2), (0, 1), (0, 0), (1, 0), (1, 1), (1, 2)]),
    ],
)
def test_one_process_runs_sweep_by_sweep_an_each_riding_on_the_sweep_before(
    program: Program, expected: list[CellId]
) -> None:
    assert plan(program, THREE) == expected


def test_a_cell_needs_its_neighbour_in_the_pass_and_all_earlier_passes_at_its_block() -> None:
    assert needs(UP_DOWN_EACH, THREE, (0, 0)) == []
    assert needs(UP_DOWN_EACH, THREE, (0, 2)) == [(0, 1)]
    assert needs(UP_DOWN_EACH, THREE, (1, 2)) == [(0, 2)]
    assert needs(UP_DOWN_EACH, THREE, (1, 1)) == [(0, 1), (1, 2)]
    assert needs(UP_DOWN_EACH, THREE, (2, 1)) == [(0, 1), (1, 1)]
    assert needs(DOWN_UP, THREE, (1, 1)) == [(0, 1), (1, 0)]


AT_ONCE: Program = (Down(backward), Up(forward, reads=False), Each(local))


def test_some_blocks_go_as_early_as_they_can_so_that_sweeps_from_both_ends_pass_each_other() -> None:
    """Four blocks: the third cell of a sweep comes third at the earliest, whichever process has it."""
    down, up, each = 0, 1, 2
    assert plan(AT_ONCE, 4, range(2)) == [(up, 0), (up, 1), (down, 1), (down, 0), (each, 1), (each, 0)]
    assert plan(AT_ONCE, 4, range(2, 4)) == [(down, 3), (down, 2), (up, 2), (each, 2), (up, 3), (each, 3)]
    assert plan(AT_ONCE, 2) == [(down, 1), (down, 0), (up, 0), (each, 0), (up, 1), (each, 1)]  # one graph at a time


def test_what_reads_nothing_needs_no_earlier_pass() -> None:
    assert needs(AT_ONCE, THREE, (1, 0)) == []
    assert needs(AT_ONCE, THREE, (1, 2)) == [(1, 1)]
    assert needs(AT_ONCE, THREE, (2, 1)) == [(0, 1), (1, 1)]


@pytest.mark.parametrize(
    ("program", "count", "expected"),
    [
        (UP, 4, 4),
        (EACH, 4, 1),
        (UP_DOWN, 4, 8),
        (DOWN_UP, 4, 8),  # the turn is at the first block, as that of up and down at the last one
        (AT_ONCE, 4, 5),  # both sweeps at once, and then the block that the later of them has reached
    ],
)
def test_what_has_to_come_one_after_another(program: Program, count: int, expected: int) -> None:
    assert Derived(count, program, hub_trained=False).in_a_row == expected


makers = st.sampled_from([Up, Down, Each])
passes = st.builds(lambda make, reads: Pass(forward, make(forward).order, reads=reads), makers, st.booleans())


@given(st.lists(passes, min_size=1, max_size=5).map(tuple), st.integers(1, 7), st.data())
def test_processes_never_wait_for_each_other_and_get_messages_as_they_are_sent(
    program: Program, count: int, data: st.DataObject
) -> None:
    """Each goes through its own cells in its order, and takes what comes from another in the order of its sending."""
    cuts = sorted(data.draw(st.sets(st.integers(1, count - 1)) if count > 1 else st.just(set[int]())))
    shares = [range(a, b) for a, b in pairwise([0, *cuts, count])]
    of = [k for k, own in enumerate(shares) for _ in own]
    left = [plan(program, count, own) for own in shares]
    assert [len(cells) for cells in left] == [len(program) * len(own) for own in shares]
    done: set[CellId] = set()
    mail: dict[tuple[int, int], list[CellId]] = {}
    while any(left):
        able = [k for k, cells in enumerate(left) if cells and set(needs(program, count, cells[0])) <= done]
        assert able
        for k in able:
            i, n = left[k].pop(0)
            step = {"up": 1, "down": -1, "each": 0}[program[i].order]
            if 0 <= n - step < count and of[n - step] != k:
                assert mail[of[n - step], k].pop(0) == (i, n)
            if 0 <= n + step < count and of[n + step] != k:
                mail.setdefault((k, of[n + step]), []).append((i, n + step))
            done.add((i, n))


@given(st.lists(passes, min_size=1, max_size=5).map(tuple), st.integers(1, 5))
def test_every_plan_runs_each_cell_once_after_all_that_it_needs(program: Program, count: int) -> None:
    cells = plan(program, count)
    assert sorted(cells) == [(i, n) for i in range(len(program)) for n in range(count)]
    for position, cell in enumerate(cells):
        assert set(needs(program, count, cell)) <= set(cells[:position])


@pytest.mark.parametrize(
    ("program", "depends", "forward_lock", "backward_lock"),
    [
        (UP, [[], [], []], True, False),
        (UP_DOWN, [[1, 2], [2], []], True, True),
        (UP_DOWN_EACH, [[1, 2], [2], []], True, True),
        (EACH, [[], [], []], False, False),
        (DOWN_UP, [[1, 2], [2], []], True, True),
        # The sweep down comes after what the update reads: only its own cell is last.
        ((Up(forward), Each(local)), [[], [], []], True, False),
    ],
)
def test_dependence_and_locks_follow_from_the_arrows(
    program: Program, depends: list[list[int]], forward_lock: bool, backward_lock: bool
) -> None:
    derived = Derived(THREE, program, hub_trained=False)
    assert [derived.depends(n) for n in range(THREE)] == depends
    assert derived.locks == {"forward": forward_lock, "backward": backward_lock, "update": backward_lock}
    assert derived.isolated  # messages are detached, whichever way they travel


def test_a_trained_hub_locks_the_update_and_ends_isolation() -> None:
    derived = Derived(THREE, UP, hub_trained=True)
    assert derived.locks == {"forward": True, "backward": False, "update": True}
    assert not derived.isolated
    assert not derived.gradients_cross
    assert [derived.reaches(n) for n in range(THREE)] == [[0], [1], [2]]


def test_gradients_cross_where_a_pass_asks_for_the_gradient_of_its_input() -> None:
    derived = Derived(THREE, (Up(forward, input_grad=True), Down(backward)), hub_trained=False)
    assert derived.gradients_cross
    assert not derived.isolated
    assert [derived.reaches(n) for n in range(THREE)] == [[0], [0, 1], [0, 1, 2]]


def test_in_one_block_there_is_no_cut_to_cross() -> None:
    derived = Derived(1, (Up(forward, input_grad=True), Down(backward)), hub_trained=False)
    assert derived.isolated
    assert derived.reaches(0) == [0]
    assert derived.depends(0) == []


def test_peak_of_one_sweep_is_its_heaviest_cell() -> None:
    weight = {(0, 0): 3.0, (0, 1): 5.0, (0, 2): 2.0}
    assert Derived(THREE, UP, hub_trained=False).peak(weight) == 5.0
    assert Derived(THREE, EACH, hub_trained=False).peak(weight) == 5.0


def test_peak_of_two_sweeps_counts_what_the_first_left_until_the_second_has_passed() -> None:
    up = {(0, 0): 3.0, (0, 1): 5.0, (0, 2): 2.0}
    derived = Derived(THREE, UP_DOWN, hub_trained=False)
    # At the turn: 3 + 5 + 2 + 7; later 3 + 5 + 4, then 3 + 1.
    assert derived.peak(up | {(1, 2): 7.0, (1, 1): 4.0, (1, 0): 1.0}) == 17.0
    # In the middle block: the last one is gone, 3 + 5 + 20.
    assert derived.peak(up | {(1, 2): 1.0, (1, 1): 20.0, (1, 0): 1.0}) == 28.0


def test_peak_with_a_riding_pass_frees_a_block_after_its_own_last_cell() -> None:
    weight = {(0, 0): 1.0, (0, 1): 1.0, (0, 2): 1.0, (1, 2): 2.0, (1, 1): 2.0, (1, 0): 2.0}
    derived = Derived(THREE, UP_DOWN_EACH, hub_trained=False)
    # At the last block 1 + 1 + (1 + 2 + 4); at the middle one (1 + 2 + 6) + 1, the last block being gone.
    assert derived.peak(weight | {(2, 2): 4.0, (2, 1): 6.0, (2, 0): 0.0}) == 10.0


@pytest.mark.parametrize(
    ("made", "text"),
    [
        (Up(forward), "Up(forward)"),
        (Each(local, grad=False), "Each(local)  [no graph]"),
        (Up(forward, input_grad=True), "Up(forward)  [gradients of the input leave the block]"),
        (Down(backward, replays="forward"), "Down(backward)  [replays forward]"),
        (
            Up(forward, input_grad=True, grad=False),
            "Up(forward)  [gradients of the input leave the block, no graph]",
        ),
    ],
)
def test_a_pass_says_what_it_does(made: Pass, text: str) -> None:
    assert str(made) == text


def test_a_replaying_pass_draws_what_the_replayed_one_drew() -> None:
    assert Down(backward).random_name == "backward"
    assert Down(backward, replays="forward").random_name == "forward"
