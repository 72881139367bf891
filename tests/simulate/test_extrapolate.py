"""A chain of equal blocks on many machines, beside what can be worked out."""

from __future__ import annotations

import math
import random
from dataclasses import replace

import pytest

from sidestep.simulate.extrapolate import (
    MeasuredBlock,
    added_up,
    chain,
    data_parallel,
    filling,
    goodput,
    goodputs,
    local_steps,
    pipeline,
    rounds_kept,
    shifted,
)
from sidestep.simulate.machine import Action, Compute, Link, Mark, Receive, Send, simulate
from sidestep.simulate.rivals import Stage, gpipe, one_f_one_b
from sidestep.simulate.rivals import local_steps as steps_of

FORWARD: list[Action] = [Receive(0), Compute(1.0), Send(2, 100), Compute(2.0)]
STAGES = {4: Stage(1.0, 2.0, 0.5, 25), 16: Stage(0.25, 0.5, 0.5, 7)}
BLOCK = MeasuredBlock(FORWARD, 1, STAGES, parameters=1000)


def test_a_block_at_an_end_has_one_neighbour() -> None:
    assert list(shifted(BLOCK, 0, 5)) == [Compute(1.0), Send(1, 100), Compute(2.0)]
    assert list(shifted(BLOCK, 3, 5)) == [Receive(2), Compute(1.0), Send(4, 100), Compute(2.0)]
    assert list(shifted(BLOCK, 4, 5)) == [Receive(3), Compute(1.0), Compute(2.0)]


@pytest.mark.parametrize("ranks", [3, 50])
def test_a_chain_takes_its_work_or_its_messages_whatever_its_length(ranks: int) -> None:
    """Latency is hidden as long as four messages on their way are enough."""
    assert chain(BLOCK, ranks, Link(latency=10.0, window=4)) == pytest.approx(3.0)
    assert chain(BLOCK, ranks, Link(latency=50.0, window=4)) == pytest.approx(50 / 4)
    assert chain(BLOCK, ranks, Link(byte=0.07, window=4)) == pytest.approx(7.0)


def test_a_pipeline_has_the_best_number_of_micro_batches() -> None:
    """Sixteen of a quarter have the smaller bubble; where latency is long, four of one do not have it as often."""
    assert pipeline(one_f_one_b, BLOCK, 3, Link()) == pytest.approx((16 + 2) * 0.75 + 0.5)
    assert pipeline(one_f_one_b, BLOCK, 5, Link()) == pytest.approx((16 + 4) * 0.75 + 0.5)  # four are too few


def test_gpipe_has_all_forwards_on_their_way_and_any_number_of_micro_batches() -> None:
    """Three ranks: sixteen of a quarter, and four ways beyond the work; four ranks more, and four are still allowed."""
    assert pipeline(gpipe, BLOCK, 3, Link(latency=1.0), least=0) == pytest.approx((16 + 2) * 0.75 + 4 + 0.5)
    few = replace(BLOCK, stages={4: Stage(1.0, 2.0, 0.5, 25), 16: Stage(1.0, 2.0, 0.5, 7)})
    assert pipeline(gpipe, few, 7, Link(), least=0) == pytest.approx((4 + 6) * 3 + 0.5)


@pytest.mark.parametrize("ranks", [2, 3])
def test_a_sum_over_few_takes_what_a_simulated_ring_takes(ranks: int) -> None:
    link = Link(start=0.5, byte=0.01, latency=3.0)
    works = [steps_of(Stage(0.0, 0.0, 0.0), 100 * ranks, 1, rank, ranks) for rank in range(ranks)]
    found = simulate([[*work, Mark()] for work in works], lambda a, b: link)
    assert max(marks[0] for marks in found) == pytest.approx(added_up(100 * ranks, ranks, link))


def test_a_sum_over_many_takes_what_halves_take() -> None:
    """Sixteen exchange a half, a quarter, and so on, with who is next, and all of it again in the other order."""
    link = Link(start=0.5, byte=0.01, latency=3.0)
    distances = [1, 2, 4, 8]
    works: list[list[Action]] = [
        [act for d in [*distances, *reversed(distances)] for act in (Send(rank ^ d, 800 // d), Receive(rank ^ d))]
        for rank in range(16)
    ]
    found = simulate([[*work, Mark()] for work in works], lambda a, b: link)
    assert max(marks[0] for marks in found) == pytest.approx(added_up(1600, 16, link))


def test_a_replica_computes_the_whole_network_on_its_share() -> None:
    """Of 32 samples two on each of 16: sixteen blocks, timed on two samples, and a sum of all parameters."""
    forward, backward, update = 16 * 0.25, 16 * 0.5, 16 * 0.5
    assert data_parallel(BLOCK, 16, 32, Link()) == pytest.approx(forward + backward + update)
    slow = Link(byte=0.01)
    adding = 2 * 15 * 1000 * 0.01
    assert data_parallel(BLOCK, 16, 32, slow) == pytest.approx(forward + max(backward, adding) + update)
    assert local_steps(BLOCK, 16, 32, slow) == pytest.approx(forward + backward + update + adding / 100)
    assert data_parallel(BLOCK, 64, 32, Link()) is None


@pytest.mark.parametrize(("ranks", "life"), [(8, 3600.0), (64, 3600.0), (64, 600.0)])
def test_the_share_of_time_that_is_kept_is_that_of_chance(ranks: int, life: float) -> None:
    """Played with ends at random, saved as often as is best of a few; three standard errors are about a hundredth."""
    dice, mean, save, restart = random.Random(0), life / ranks, 1.0, 8.0

    def played(interval: float) -> float:
        kept = spent = 0.0
        while spent < 4000 * mean:
            end = dice.expovariate(1 / mean)
            while end >= interval + save:
                kept, spent, end = kept + interval, spent + interval + save, end - interval - save
            spent += end + restart
        return kept / spent

    best = max(played((2 * save * mean) ** 0.5 * factor) for factor in (0.7, 1.0, 1.4))
    assert goodput(ranks, life, save, restart) == pytest.approx(best, abs=0.01)


def test_a_chain_is_full_once_a_step_has_come_to_its_end() -> None:
    """Two seconds of a hop, four hops."""
    assert filling(BLOCK, 5, Link(latency=1.0, window=4), 3.0) == pytest.approx(4 * 2.0)


def test_a_step_that_no_two_ends_leave_time_for_is_never_kept_and_filling_is_at_risk_too() -> None:
    """Two machines that live 200 s are 100 s without an end: e^-0.5 of all fillings of 50 s come to theirs."""
    assert goodput(2, 200.0, 1.0, 8.0, least=2500.0) == 0.0
    assert goodput(2, 200.0, 0.0, 8.0, least=50.0) == pytest.approx(50 / (108 * math.expm1(0.5)))
    free = goodput(2, 200.0, 1.0, 8.0)
    assert goodput(2, 200.0, 1.0, 8.0, filling=50.0) == pytest.approx(free * math.exp(-0.5))


def test_the_end_of_a_machine_costs_a_replica_its_round_and_those_that_its_restart_takes() -> None:
    """Of rounds of 10 s every other one is ended.

    With no restart half are kept.  With one of a round each end costs two rounds: a third.  With 5 s it costs two where
    it comes in the second half: where a half has been lived through with sqrt(1/2), (sqrt(1/2) - 1/2) of all begun do.
    """
    life = 10 / math.log(2)
    assert rounds_kept(life, 10.0, 0.0) == pytest.approx(1 / 2)
    assert rounds_kept(life, 10.0, 10.0) == pytest.approx((1 / 2) / (1 / 2 + 2 / 2))
    assert rounds_kept(life, 10.0, 5.0) == pytest.approx((1 / 2) / (1 + math.sqrt(1 / 2) - 1 / 2))


def test_what_all_wait_for_makes_all_go_back_and_a_round_of_diloco_is_one_replicas() -> None:
    seconds = {"blocks": 3.0, "1F1B": 50.0, "data parallel": None, "DiLoCo": 2.0}
    found = goodputs(16, seconds, 15.0, 3600.0, 1.0, 8.0)
    assert found == {
        "blocks": goodput(16, 3600.0, 1.0, 8.0, 3.0, filling=15.0),
        "1F1B": goodput(16, 3600.0, 1.0, 8.0, 50.0),
        "data parallel": None,
        "DiLoCo": rounds_kept(3600.0, 200.0, 8.0),
    }
    assert 0 < goodput(16, 3600.0, 1.0, 8.0, 3.0, 15.0) < rounds_kept(3600.0, 200.0, 8.0)


def test_what_takes_no_time_to_save_is_saved_all_the_time() -> None:
    """Lost is then only the restart: M of M + restart seconds are kept, but for steps of a millionth of M."""
    assert goodput(4, 3600.0, 0.0, 100.0) == pytest.approx(900 / 1000, rel=1e-6)
