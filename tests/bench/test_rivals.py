"""The rivals of ranks do the work of plain backprop: a step in two processes leaves its parameters."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor, nn

from sidestep.bench.plain import PlainStep
from sidestep.bench.rivals import SCHEDULES, DataParallelStep, MicroBatchedStep, PipelineStep
from sidestep.ranks import world

MICROBATCHES = 4
CPU = torch.device("cpu")


def stages() -> list[nn.Module]:
    torch.manual_seed(0)
    layers = [nn.Sequential(nn.Linear(12, 12), nn.Tanh()) for _ in range(3)]
    return [*layers, nn.Linear(12, 5)]


def batches() -> list[tuple[Tensor, Tensor]]:
    torch.manual_seed(1)
    return [(torch.randn(16, 12), torch.randint(5, (16,))) for _ in range(3)]


def make(parameters: Any) -> torch.optim.Optimizer:
    return torch.optim.SGD(parameters, lr=0.5, momentum=0.9)


def trained(step: Callable[[tuple[Tensor, Tensor]], object]) -> None:
    for batch in batches():
        step(batch)


def expected() -> list[Tensor]:
    network = nn.Sequential(*stages())
    trained(PlainStep(network, make(network.parameters())).step)
    return [p.detach() for p in network.parameters()]


def work(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    group = world()
    for name, each in SCHEDULES.items():
        whole = stages()
        parts = whole if each == 2 else [nn.Sequential(*whole[:2]), nn.Sequential(*whole[2:])]
        pipeline = PipelineStep(name, parts, MICROBATCHES, make, group, CPU)
        trained(pipeline.step)
        own = [0, 3] if each == 2 and rank == 0 else [1, 2] if each == 2 else [2 * rank, 2 * rank + 1]
        torch.save({n: [p.detach() for p in whole[n].parameters()] for n in own}, f"{folder}/{name}-{rank}")
    network = nn.Sequential(*stages())
    trained(DataParallelStep(network, make, group).step)
    torch.save({0: [p.detach() for p in network.parameters()]}, f"{folder}/data-{rank}")
    dist.destroy_process_group()


def close(found: list[Tensor], wanted: list[Tensor]) -> bool:
    """Sums over a batch are made in another order: a few units in the last place of float32, grown by three steps."""
    return all(torch.allclose(a, b, rtol=1e-4, atol=1e-6) for a, b in zip(found, wanted, strict=True))


def test_pipelines_and_data_parallelism_leave_the_parameters_of_plain_backprop(tmp_path: Path) -> None:
    mp.spawn(work, (str(tmp_path),), nprocs=2)
    for name in SCHEDULES:
        saved = torch.load(tmp_path / f"{name}-0") | torch.load(tmp_path / f"{name}-1")
        assert close([p for n in range(4) for p in saved[n]], expected()), name
    for rank in range(2):
        assert close(torch.load(tmp_path / f"data-{rank}")[0], expected())


@pytest.mark.parametrize("microbatches", [1, MICROBATCHES])
def test_micro_batches_leave_the_parameters_of_plain_backprop(microbatches: int) -> None:
    network = nn.Sequential(*stages())
    trained(MicroBatchedStep(network, make(network.parameters()), microbatches).step)
    assert close([p.detach() for p in network.parameters()], expected())
