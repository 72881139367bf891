"""Engines in several processes end with the parameters, the optimizer's state and the averages of one, bit for bit."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor

from sidestep.core.method import Method
from sidestep.engines.dist_wire import DistWire
from sidestep.engines.streaming import Streaming
from sidestep.engines.update import UpdateRule
from sidestep.ranks import shared_out, world
from tests.conftest import CASES, Case, adam, engine_for, sgd, some_batch

STEPS = 50
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
    for step in range(STEPS):
        engine.step(some_batch(step))
    return engine


def work(rank: int, count: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=count)
    group, shares = world(), shared_out(BLOCKS, count)
    digests: dict[str, str] = {}
    for case in CASES:
        for name, rule in RULES.items():
            wire = DistWire(group, shares, hashlib.md5(f"{case.id}{name}".encode()).digest())
            engine = trained(case, rule, own=shares[rank], wire=wire) if count > 1 else trained(case, rule)
            digests[f"{case.id}, {name}"] = digest(engine.gather({}))
            wire.close()
    if rank == 0:
        (Path(folder) / "digests.json").write_text(json.dumps(digests))
    dist.destroy_process_group()


@pytest.mark.timeout(900)  # on a quiet machine it takes one minute and a half
def test_parameters_after_fifty_steps_have_the_hash_of_one_process(tmp_path: Path) -> None:
    """Every method, SGD with momentum, and AdamW with clipping and averages; BatchNorm and dropout in the network."""
    found: dict[int, dict[str, str]] = {}
    for count in (1, 2, 4):
        folder = tmp_path / str(count)
        folder.mkdir()
        mp.spawn(work, (count, str(folder)), nprocs=count)
        found[count] = json.loads((folder / "digests.json").read_text())
    assert len(found[1]) == len(CASES) * len(RULES)
    assert found[2] == found[1] and found[4] == found[1]


def test_blocks_are_shared_out_in_order_and_evenly() -> None:
    assert shared_out(4, 2) == [range(2), range(2, 4)]
    assert shared_out(5, 3) == [range(1), range(1, 3), range(3, 5)]
    assert shared_out(3, 1) == [range(3)]
    with pytest.raises(ValueError, match="got 3 ranks for 2 blocks, expected at most one a block; give --ranks 2"):
        shared_out(2, 3)
