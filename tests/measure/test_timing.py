from __future__ import annotations

from collections.abc import Callable

import pytest

from sidestep.errors import UsageError
from sidestep.measure.timing import by_key, interleaved, quartiles, ratios


class FakeMachine:
    """A clock that only work moves, and a log of who ran.  Times are binary fractions of a second: sums are exact."""

    def __init__(self) -> None:
        self.now = 100.0
        self.log: list[str] = []

    def clock(self) -> float:
        return self.now

    def candidate(self, name: str, *seconds: float) -> Callable[[], None]:
        """Work that takes the next of `seconds` at each call."""
        times = iter(seconds)

        def work() -> None:
            self.log.append(name)
            self.now += next(times)

        return work


def test_every_round_runs_each_candidate_once_and_the_first_moves_on() -> None:
    machine = FakeMachine()
    work = {name: machine.candidate(name, *[0.5] * 4) for name in "abc"}
    interleaved(work, rounds=4, warmup=0, clock=machine.clock)
    assert "".join(machine.log) == "abc" + "bca" + "cab" + "abc"


def test_the_warm_up_is_run_and_not_timed() -> None:
    machine = FakeMachine()
    work = {"a": machine.candidate("a", 8.0, 4.0, 0.5, 0.25)}
    assert interleaved(work, rounds=2, warmup=2, clock=machine.clock) == {"a": [500.0, 250.0]}


def test_a_machine_that_slows_down_leaves_paired_ratios_alone() -> None:
    machine = FakeMachine()
    work = {"fast": machine.candidate("fast", 0.25, 0.5, 1.0), "slow": machine.candidate("slow", 0.75, 1.5, 3.0)}
    samples = interleaved(work, rounds=3, warmup=0, clock=machine.clock)
    assert samples == {"fast": [250.0, 500.0, 1000.0], "slow": [750.0, 1500.0, 3000.0]}
    assert ratios(samples, of="slow", over="fast") == (3.0, 3.0, 3.0)


def test_ratios_are_taken_within_rounds_not_of_medians() -> None:
    samples = {"ours": [1.0, 8.0, 3.0], "theirs": [2.0, 2.0, 3.0]}
    # Round by round 0.5, 4, 1; the medians alone would say 1.5.
    assert ratios(samples, of="ours", over="theirs") == (1.0, 0.75, 2.5)


def test_times_have_a_median_and_quartiles() -> None:
    assert quartiles([5.0, 1.0, 2.0, 4.0, 3.0]) == (3.0, 2.0, 4.0)
    assert quartiles([7.0]) == (7.0, 7.0, 7.0)
    assert by_key("ms", (3.0, 2.0, 4.0)) == {"ms": 3.0, "ms_low": 2.0, "ms_high": 4.0}


def test_a_name_that_was_not_timed_is_answered_with_the_nearest() -> None:
    with pytest.raises(UsageError, match="did you mean 'ours'"):
        ratios({"ours": [1.0], "theirs": [1.0]}, of="our", over="theirs")


@pytest.mark.parametrize(("rounds", "warmup"), [(0, 1), (1, -1)])
def test_nothing_is_timed_in_no_rounds(rounds: int, warmup: int) -> None:
    with pytest.raises(UsageError, match="expected at least 1 round"):
        interleaved({"a": lambda: None}, rounds, warmup)
