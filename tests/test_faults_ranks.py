"""Ranks that are killed: in the middle of messages of every size the other one ends, and restarts lose nothing."""

from __future__ import annotations

import multiprocessing as mp
import time
from collections.abc import Callable
from multiprocessing.context import SpawnProcess
from pathlib import Path
from random import Random

import pytest
import torch

from sidestep.engines.dist_wire import DistWire
from sidestep.engines.wire import Edge, When
from sidestep.launch import free_port, take_place
from sidestep.ranks import joined, world
from tests.test_launch import Launched, ranks, same_run, start, started, straight
from tests.test_train import QUICK, trained, words

__all__ = ["started", "straight"]  # fixtures

KB, MB = 1 << 10, 1 << 20
SENDER, RECEIVER = 0, 1
LIMIT = 10.0
"""Seconds after which nobody may be left."""

Figure = Callable[[str, float], None]


def talk(rank: int, port: int, size: int, folder: str) -> None:
    """Send or receive messages of so many bytes for ever; of none: wait for one that does not come."""
    torch.set_num_threads(1)
    take_place(rank, 2, port)
    with joined() as all_ranks:
        all_ranks.wire = wire = DistWire(world(), [range(1), range(1, 2)], bytes(16))
        message = (torch.zeros(size, dtype=torch.uint8),)
        for step in range(1 << 30):
            edge = Edge("0 talk", When(True, step), 0, 1)
            if rank == SENDER and (step == 0 or size):
                wire.send(edge, message)
            elif rank == RECEIVER:
                wire.receive(edge)
            else:
                time.sleep(0.01)
            (Path(folder) / str(rank)).touch()


def killed(victim: int, size: int, folder: Path, delay: float) -> tuple[float, int | None]:
    """Kill one of two that talk; how long the other one lives on, in seconds, and its exit code."""
    folder.mkdir()
    port, context = free_port(), mp.get_context("spawn")
    pair: list[SpawnProcess] = [context.Process(target=talk, args=(n, port, size, str(folder))) for n in range(2)]
    try:
        for process in pair:
            process.start()
        while len(list(folder.iterdir())) < 2:
            assert all(process.is_alive() for process in pair)
            time.sleep(0.005)
        time.sleep(delay)
        other = pair[1 - victim]
        pair[victim].kill()
        began = time.monotonic()
        other.join(2 * LIMIT)
        return time.monotonic() - began, other.exitcode
    finally:
        for process in pair:
            process.kill()


@pytest.mark.parametrize("victim", [SENDER, RECEIVER], ids=["sender", "receiver"])
@pytest.mark.parametrize(
    ("size", "times"),
    [
        (64 * MB, 1),
        *(
            pytest.param(size, 20, marks=[pytest.mark.faults, pytest.mark.timeout(1200)])
            for size in (0, 64 * KB, MB, 8 * MB, 64 * MB)
        ),
    ],
)
def test_whoever_is_killed_in_the_middle_of_a_message_the_other_one_ends(
    size: int, times: int, victim: int, tmp_path: Path, figure: Figure
) -> None:
    random = Random(size + victim)
    for n in range(times):
        seconds, code = killed(victim, size, tmp_path / str(n), 0.2 * random.random())
        assert code, "it should have failed, and at all"
        assert seconds <= LIMIT
        role, what = ("sender", "receiver")[victim], f"{size // KB} KB" if size else "an idle edge"
        figure(f"kill -9 of the {role}, {what}: the other one's end, s", seconds)


@pytest.mark.faults
@pytest.mark.timeout(1800)
def test_fifty_restarts_come_up_and_end_with_the_parameters_of_an_uninterrupted_run(
    tmp_path: Path, started: list[Launched], figure: Figure
) -> None:
    times, random = 50, Random(50)
    flags = QUICK | {"epochs": "120", "save_every": "5", "report": "false"}
    trained("bll", tmp_path / "straight", **flags)
    out = tmp_path / "run"
    launched = start(started, ranks(2, out, "--max-restarts", str(times), *words(flags)))

    def newest() -> int:
        return max((int(path.name.split("-")[1]) for path in (out / "checkpoints").glob("step-*")), default=0)

    for _ in range(times):
        reached, began = newest(), time.monotonic()
        while newest() <= reached:
            assert launched.process.poll() is None, launched.end()
            time.sleep(0.005)
        figure("from a restart to the next checkpoint, s", time.monotonic() - began)
        time.sleep(0.05 * random.random())
        launched.ranks()[random.randrange(2)].kill()
    code, _, err = launched.end(timeout=300)
    assert code == 0, err
    same_run(out, tmp_path / "straight", epochs=120)
