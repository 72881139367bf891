"""`sidestep bench ranks`: everything is timed beside ours, and what a pipeline loses is split as it says."""

from __future__ import annotations

from itertools import cycle

import pytest
import torch
from torch import nn

from sidestep.bench import ranks
from sidestep.bench.ranks import STEPS_A_TURN, pipeline_share, ranks_table, singles, take
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
        assert found[f"ratio_to_{key}_low"] <= found[f"ratio_to_{key}"] <= found[f"ratio_to_{key}_high"]
        fastest = [row for name, row in rows.items() if name.lower().startswith(key)]
        assert not fastest or found[f"best_{key}"] == min(fastest, key=lambda row: row["step_ms"])["name"]
    assert found["best_backprop_all_threads"] == f"backprop, 1 process, {2 * found['threads']} threads"
    assert found["calibration"] > 0 and found["ranks"] == 2
    assert all(0 < value <= 1 for value in found["accuracy"].values()) and set(found["accuracy"]) == {
        "local_ce",
        "backprop",
    }


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
