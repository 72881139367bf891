"""Parts of a network, timed alone."""

from __future__ import annotations

from collections.abc import Iterable

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from sidestep.simulate.stages import ROUNDS, WARMUP, buckets, stages_alone


def sgd(parameters: Iterable[nn.Parameter]) -> torch.optim.SGD:
    return torch.optim.SGD(parameters, lr=0.1)


def test_a_stage_gets_its_predecessors_outputs_and_is_run_as_often_as_it_is_timed() -> None:
    seen: list[list[tuple[int, ...]]] = [[], []]
    stages = [nn.Linear(6, 4), nn.Linear(4, 3)]
    for stage, shapes in zip(stages, seen, strict=True):
        stage.register_forward_hook(lambda _, given, answer, shapes=shapes: shapes.append(tuple(given[0].shape)))
    before = [stage.weight.clone() for stage in stages]
    found = stages_alone(stages, sgd, (torch.randn(8, 6), torch.zeros(8, dtype=torch.int64)), micros=2)
    # Twice a round, and at the end for the next one; the last stage's inputs' gradient is timed apart.
    assert seen[0] == [(4, 6)] * (2 * (WARMUP + ROUNDS) + 1) and seen[1] == [(4, 4)] * (3 * (WARMUP + ROUNDS) + 1)
    assert found[0].size == found[1].given == 4 * 4 * 4  # bytes of what goes to the next stage, and back from it
    assert all(min(stage.forward, stage.backward, stage.update) > 0 for stage in found)
    assert found[0].weights == found[0].backward  # nobody waits for what the first stage computes backwards
    assert 0 <= found[1].weights <= found[1].backward
    assert not any(torch.equal(stage.weight, w) for stage, w in zip(stages, before, strict=True))


def test_more_work_takes_longer() -> None:
    """A hundred times the arithmetic, so that noise does not decide."""
    x, y = torch.randn(64, 512), torch.zeros(64, dtype=torch.int64)
    (small,), (large,) = (
        stages_alone([nn.Sequential(*layers)], sgd, (x, y), 1) for layers in ([nn.Linear(512, 8)], wide())
    )
    assert large.forward > small.forward and large.backward > small.backward and large.update > small.update


def wide() -> list[nn.Module]:
    return [nn.Linear(512, 2048), nn.Linear(2048, 512), nn.Linear(512, 8)]


def test_gradients_are_added_up_in_the_pieces_that_torch_makes() -> None:
    """A megabyte first, then 25, as far as layers go."""
    network = nn.Sequential(*[nn.Linear(1024, 1024) for _ in range(9)])
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        parallel = DistributedDataParallel(network)
        for _ in range(3):  # it makes its pieces anew by the order of the first backward call
            parallel(torch.randn(2, 1024)).sum().backward()
        # torch tells it nowhere else
        said = parallel._get_ddp_logging_data()["rebuilt_bucket_sizes"]  # pyright: ignore[reportPrivateUsage]
    finally:
        dist.destroy_process_group()
    assert buckets(network) == [int(size) for size in str(said).split(", ")]
