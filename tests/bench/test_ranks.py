"""`sidestep bench ranks`: everything is timed beside ours, and what a pipeline loses is split as it says."""

from __future__ import annotations

from itertools import cycle
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from sidestep.bench import ranks
from sidestep.bench.ranks import STEPS_A_TURN, pipeline_share, ranks_table, singles, take
from sidestep.bench.scale import group_of_one
from sidestep.bench.step import benched
from sidestep.config import resolve
from sidestep.errors import UsageError
from sidestep.measure.timing import threads
from sidestep.placement import Placement
from sidestep.ranks import Ranks

FLAGS = {"precision": "fp32", "model.width": 32, "epochs": 1}


def test_blocks_in_two_processes_are_timed_beside_every_rival() -> None:
    found = ranks.run(resolve("local_ce", FLAGS), 2, rounds=2, train=True)
    rows = {row["name"]: row for row in found["rows"]}
    ours = rows["local_ce, 2 processes"]
    assert ours["ratio"] == 1.0 and all(row["n"] == 2 for row in rows.values())
    assert {
        "local_ce, 1 process",
        "backprop, 1 process",
        f"local_ce, 1 process, {2 * found['threads']} threads",
        f"backprop, 1 process, {2 * found['threads']} threads",
        "GPipe, 2 micro-batches",
        "1F1B, 16 micro-batches",
    } < rows.keys()
    assert {"ZBV, 4 micro-batches", "backprop, data parallel"} < rows.keys()
    assert "ZBV, 2 micro-batches" not in rows  # fewer than its stages
    for key in ("one_process", "all_threads", "backprop_all_threads", "gpipe", "1f1b", "zbv", "ddp"):
        assert found[f"ratio_to_{key}"] > 0 and found[f"best_{key}"] in rows
    assert found["calibration"] > 0 and found["ranks"] == 2
    assert all(0 < value <= 1 for value in found["accuracy"].values()) and set(found["accuracy"]) == {
        "local_ce",
        "backprop",
    }


TIMES = {  # of three rounds, in ms a step
    "local_ce, 2 processes": [2, 8, 3],
    "local_ce, 1 process": [1, 2, 3],
    "local_ce, 1 process, 2 threads": [2, 2, 2],
    "backprop, 1 process": [6, 8, 7],
    "backprop, 1 process, 2 threads": [4, 4, 4],
    "backprop, 1 process, 2 micro-batches": [9, 9, 9],
    "backprop, 1 process, 4 micro-batches": [8.4, 8.4, 8.4],
    "GPipe, 2 micro-batches": [4, 4, 4],
    "GPipe, 4 micro-batches": [2, 3, 9],
    "1F1B, 2 micro-batches": [9, 8, 6],
    "ZBV, 4 micro-batches": [1, 1, 1],
    "backprop, data parallel": [2, 4, 1],
    "calibration, one busy, whole batch": [1, 2, 4],
    "calibration, all busy, whole batch": [1.5, 2, 8],
    "calibration, one busy, data parallel": [1, 1, 1],
    "calibration, all busy, data parallel": [3, 1, 2],
}


def test_ratios_are_ours_over_the_best_of_a_kind_in_the_same_round(monkeypatch: pytest.MonkeyPatch) -> None:
    """Medians, and the quartiles below and above, of three ratios: halfway from the middle one to the others."""

    def scripted(steps: dict[str, Any], *_: Any) -> dict[str, list[float]]:
        assert steps.keys() == TIMES.keys()
        return {name: [STEPS_A_TURN * ms for ms in TIMES[name]] for name in steps}

    ours, kinds = "local_ce, 2 processes", ("whole batch", "data parallel")
    alone = [name for name in TIMES if ", 1 process" in name]
    others = [name for name in TIMES if name not in (*alone, ours) and not name.startswith("calibration")]
    monkeypatch.setattr(ranks, "interleaved", scripted)
    monkeypatch.setattr(ranks, "singles", lambda *_: dict.fromkeys(alone, print))
    monkeypatch.setattr(ranks, "rivals", lambda *_: dict.fromkeys(others, print))
    monkeypatch.setattr(ranks, "calibrations", lambda *_: dict.fromkeys(kinds, (print, print)))
    assembly = benched(resolve("local_ce", FLAGS | {"batch_size": 64}))
    two: Any = SimpleNamespace(count=2, rank=0, engine=lambda assembly: assembly.engine)
    with threads(1), group_of_one():
        found = ranks.compared(assembly, two, 3)
    row = next(row for row in found["rows"] if row["name"] == "local_ce, 1 process")
    assert (row["step_ms"], row["ratio"], row["n"]) == (2, 0.5, 3)  # medians of 1, 2, 3 and of 1/2, 1/4, 1
    assert row["samples_per_second"] == 32_000
    for key, best, expected in (
        ("one_process", "local_ce, 1 process", (2, 1.5, 3)),  # of 2, 4, 1
        ("all_threads", "local_ce, 1 process, 2 threads", (1.5, 1.25, 2.75)),  # of 1, 4, 1.5
        ("backprop_all_threads", "backprop, 1 process, 2 threads", (0.75, 0.625, 1.375)),  # of 0.5, 2, 0.75
        ("gpipe", "GPipe, 4 micro-batches", (1, 2 / 3, 11 / 6)),  # of 1, 8/3, 1/3; its median is 3, not 4
        ("1f1b", "1F1B, 2 micro-batches", (0.5, 13 / 36, 0.75)),  # of 2/9, 1, 1/2
        ("zbv", "ZBV, 4 micro-batches", (3, 2.5, 5.5)),  # of 2, 8, 3
        ("ddp", "backprop, data parallel", (2, 1.5, 2.5)),  # of 1, 2, 3
    ):
        assert found[f"best_{key}"] == best
        measured = tuple(found[f"ratio_to_{key}{which}"] for which in ("", "_low", "_high"))
        assert measured == pytest.approx(expected, rel=1e-12)
    assert found["calibrations"] == pytest.approx({"whole batch": 1.5, "data parallel": 2})  # of 3/2, 1, 2; 3, 1, 2
    assert (found["calibration_low"], found["calibration_high"]) == pytest.approx((1.25, 1.75))
    # Of all pipelines but ZBV GPipe's is the fastest: 8.4 ms of work, half of it 1.5 times as long, 1.25 with bubbles.
    split = found["pipeline"]
    assert split["name"] == "GPipe, 4 micro-batches"
    factors = split["bubble"], split["small_batches"], split["engine"]
    assert factors == pytest.approx((1.25, 8.4 / 7, 3 / (8.4 / 2 * 1.5 * 1.25)))


def test_a_process_that_does_nothing_in_a_turn_is_at_the_others_batch_after_it() -> None:
    """Else one has inputs and another the labels of another batch."""
    batches = [(torch.tensor(n), torch.tensor(n)) for n in range(5)]
    busy, idle = cycle(batches), cycle(batches)
    seen: list[int] = []
    take(busy, lambda batch: seen.append(int(batch[0])))
    take(idle, None)
    assert len(seen) == STEPS_A_TURN
    assert next(busy) is next(idle)


def test_a_pipelines_loss_is_split_into_factors_that_multiply_to_it() -> None:
    """By hand: 100 ms of work, 120 ms in four micro-batches, two cores that give 1.6, measured 80 ms.

    An even share is 50 ms; small batches make it 60, two busy cores 75, the bubble 93.75.  What is measured is less, so
    the engine's factor is 80 / 93.75.
    """
    times = {"backprop, 1 process": 100.0, "backprop, 1 process, 4 micro-batches": 120.0, "1F1B, 4 micro-batches": 80.0}
    rows = [{"name": name, "step_ms": ms} for name, ms in times.items()]
    split = pipeline_share("1F1B, 4 micro-batches", {"rows": rows, "ranks": 2, "calibration": 1.25})
    assert split["bubble"] == 1.25 and split["small_batches"] == 1.2
    assert split["engine"] == pytest.approx(80 / 93.75, rel=1e-12)


def test_the_table_fits_a_terminal() -> None:
    rows = [
        {"name": name, "step_ms": 1234.5, "step_ms_low": 1000.0, "step_ms_high": 2000.0, "ratio": 1.0}
        for name in ("bll, 2 processes", "backprop_checkpointed, 1 process, 2 threads")
    ]
    about = {"model": "mlp", "blocks": 8, "data": "mnist", "batch_size": 512, "precision": "fp32", "threads": 1}
    found = about | {"ranks": 2, "rows": rows, "calibration": 1.25, "calibration_low": 1.0, "calibration_high": 1.5}
    found |= {"pipeline": {"name": "1F1B, 16 micro-batches", "bubble": 1.06, "small_batches": 1.3, "engine": 1.1}}
    found |= {
        "ratio_to_ddp": 1.0,
        "ratio_to_ddp_low": 0.9,
        "ratio_to_ddp_high": 1.1,
        "best_ddp": "backprop, data parallel",
    }
    text = ranks_table(found | {"accuracy": {"bll": 0.98, "backprop": None}})
    assert max(map(len, text.splitlines())) <= 80
    assert "validation accuracy of bll: 98.00 %" in text and "validation accuracy of backprop: none" in text


def test_one_process_with_all_threads_computes_with_so_many_and_leaves_their_number_as_it_was() -> None:
    """Two processes of one thread: what one of them does alone."""
    assembly = benched(resolve("local_ce", FLAGS))
    used: list[int] = []
    layer = next(m for m in assembly.model.modules() if isinstance(m, nn.Linear))
    layer.register_forward_pre_hook(lambda *_: used.append(torch.get_num_threads()))  # copied with the network
    with threads(1):
        steps = singles(assembly, assembly.engine, Ranks(placement=Placement(2)))
        used.clear()  # of where the network was cut
        for method in ("local_ce", "backprop"):
            for name in (f"{method}, 1 process", f"{method}, 1 process, 2 threads"):
                steps[name](assembly.batches(0))
    assert used == [1, 2, 1, 2]


def test_what_is_refused_in_the_processes_is_one_error_here() -> None:
    with pytest.raises(UsageError, match="got --ranks 5 for 4 blocks, expected at most one a block"):
        ranks.run(resolve("local_ce", FLAGS), 5)
    with pytest.raises(UsageError, match="blocks"):  # more than the network has units, which only shows there
        ranks.run(resolve("local_ce", FLAGS | {"blocks": 64}), 2)
