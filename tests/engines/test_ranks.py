"""Engines in several processes end with the parameters, the optimizer's state and the averages of one, bit for bit."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh

from sidestep.core.cut import CutPlan
from sidestep.core.method import Method
from sidestep.core.task import Classification
from sidestep.engines.dist_wire import DistWire
from sidestep.engines.lanes import lanes_between
from sidestep.engines.replicas import Replicas
from sidestep.engines.streaming import Streaming
from sidestep.engines.update import UpdateRule
from sidestep.errors import UsageError
from sidestep.methods.local_ce import LocalCE
from sidestep.placement import Placement
from sidestep.ranks import world
from tests.conftest import CASES, Case, adam, engine_for, sgd, some_batch

STEPS = 50
STATISTICS = {"running_mean", "running_var", "num_batches_tracked"}
BLOCKS = 4
RULES: dict[str, UpdateRule] = {"sgd": sgd(), "adam": adam(clip=0.1, ema=0.9)}


def digest(state: Mapping[str, Tensor]) -> str:
    """SHA-256 of all parameters, buffers, optimizer state and averages, by name."""
    found = hashlib.sha256()
    for name in sorted(state):
        found.update(name.encode() + state[name].contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return found.hexdigest()


def for_four(method: Method) -> Method:
    """With a fourth weight, where a case lists those of three blocks."""
    alpha: Any = getattr(method, "alpha", None)
    if not isinstance(alpha, str) or "," not in alpha:
        return method
    return replace(method, alpha=f"{alpha},0.3")  # pyright: ignore[reportCallIssue]  # a field of those that have it


def trained(case: Case, rule: UpdateRule, **options: Any) -> Streaming:
    """Fifty steps on a network with BatchNorm and dropout."""
    engine = engine_for(for_four(case.method), rule=rule, blocks=BLOCKS, **options)
    engine.gather({})  # as at a save before the optimizer has any state
    for step in range(STEPS):
        engine.step(some_batch(step))
    return engine


def work(rank: int, stages: int, replicas: int, accumulate: int, folder: str) -> None:
    """Train every case; what each replica ends with goes to a file of its own, with and without running statistics."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=stages * replicas)
    mesh = init_device_mesh("cpu", (stages, replicas), mesh_dim_names=("blocks", "replicas"))
    # The CPU stands for an accelerator: with them every message travels apart.
    chains = [range(first, stages * replicas, replicas) for first in range(replicas)]
    lanes = lanes_between(chains, rank, torch.device("cpu"), "gloo")
    shares = Placement(stages).blocks(BLOCKS)
    stage, replica = divmod(rank, replicas)
    digests: dict[str, tuple[str, str]] = {}
    for case in CASES:
        for name, rule in RULES.items():
            run = hashlib.md5(f"{case.id}{name}".encode()).digest()
            apart = lanes if name == "sgd" else None
            wire = DistWire(mesh.get_group("blocks"), shares, run, lanes=apart) if stages > 1 else None
            same = Replicas(mesh.get_group("replicas")) if replicas > 1 else None
            engine = trained(case, rule, own=shares[stage], wire=wire, replicas=same, accumulate=accumulate)
            state = engine.gather({})
            learnt = {k: v for k, v in state.items() if k.rpartition(".")[2] not in STATISTICS}
            digests[f"{case.id}, {name}"] = digest(state), digest(learnt)
            if wire:
                wire.close()
    if stage == 0:
        (Path(folder) / f"digests-{replica}.json").write_text(json.dumps(digests))
    dist.destroy_process_group()


Digests = dict[str, list[str]]


def digests_of(folder: Path, stages: int, replicas: int = 1, accumulate: int = 1) -> list[Digests]:
    """By case, what every replica ends with."""
    folder.mkdir()
    mp.spawn(work, (stages, replicas, accumulate, str(folder)), nprocs=stages * replicas)
    found = [json.loads((folder / f"digests-{replica}.json").read_text()) for replica in range(replicas)]
    assert all(len(one) == len(CASES) * len(RULES) for one in found)
    return found


@pytest.mark.timeout(900)  # on a quiet machine it takes one minute and a half
def test_parameters_after_fifty_steps_have_the_hash_of_one_process(tmp_path: Path) -> None:
    """Every method, SGD with momentum, and AdamW with clipping and averages; BatchNorm and dropout in the network."""
    found = {stages: digests_of(tmp_path / str(stages), stages) for stages in (1, 2, 4)}
    assert found[2] == found[1] and found[4] == found[1]


@pytest.mark.timeout(900)  # on a quiet machine it takes one minute
def test_two_replicas_of_two_ranks_learn_what_one_process_learns_from_two_micro_batches(tmp_path: Path) -> None:
    """The sum of two gradients has no order; running statistics are the first one's, and equal at both."""
    [alone] = digests_of(tmp_path / "alone", stages=1, accumulate=2)
    first, second = digests_of(tmp_path / "replicas", stages=2, replicas=2, accumulate=2)
    assert first == second
    assert {case: learnt for case, (_, learnt) in first.items()} == {
        case: learnt for case, (_, learnt) in alone.items()
    }


def run_beside_a_slow_one(rank: int, folder: str) -> None:
    """Two thousand steps of two equal blocks, the second of which takes ten times as long; its memory on the way."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    x, y = torch.randn(128, 128), torch.randint(5, (128,))
    method, task = LocalCE(), Classification(5, x[:2])
    network = nn.Sequential(nn.Linear(128, 128), nn.ReLU(), nn.Linear(128, 128), nn.ReLU(), nn.Linear(128, 5))
    wire = DistWire(world(), [range(1), range(1, 2)], bytes(16))
    chain = method.build(network, task, CutPlan(2))
    engine = Streaming(method, chain, task, sgd(), own=range(rank, rank + 1), wire=wire)
    resident: list[int] = []
    for step in range(1, 2001):
        began = time.thread_time()
        engine.step((x, y))
        if rank == 1:
            time.sleep(9 * (time.thread_time() - began))
        if step in (200, 2000):
            resident.append(psutil.Process().memory_info().rss)
    wire.close()
    (Path(folder) / f"{rank}.json").write_text(json.dumps(resident))
    dist.destroy_process_group()


def test_a_rank_that_runs_ahead_of_a_slow_one_does_not_fill_its_memory(
    tmp_path: Path, figure: Callable[[str, float], None]
) -> None:
    """Else nearly all that two thousand steps send, 130 MB, would wait there."""
    mp.spawn(run_beside_a_slow_one, (str(tmp_path),), nprocs=2)
    for rank in range(2):
        early, late = json.loads((tmp_path / f"{rank}.json").read_text())
        figure("memory of a rank after 2,000 steps beside a slow one, over that after 200", late / early)
        assert late <= 1.02 * early


def test_blocks_are_shared_out_in_order_and_evenly() -> None:
    assert Placement(2).blocks(4) == [range(2), range(2, 4)]
    assert Placement(3).blocks(5) == [range(1), range(1, 3), range(3, 5)]
    assert Placement(1).blocks(3) == [range(3)]
    assert Placement(2, shares=(3, 1)).blocks(4) == [range(3), range(3, 4)]
    with pytest.raises(UsageError, match="got --ranks 3 for 2 blocks, expected at most one a block"):
        Placement(3).blocks(2)
    for shares in ((4,), (2, 1), (4, 0)):
        with pytest.raises(UsageError, match="expected 2 numbers of at least 1, one a rank, that add up to 4 blocks"):
            Placement(2, shares=shares).blocks(4)
