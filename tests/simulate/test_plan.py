"""`sidestep plan`: the placement it finds, and what it predicts beside what several processes measure."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
import torch

from sidestep.errors import DataError
from sidestep.methods.backprop import Backprop
from sidestep.methods.local_ce import LocalCE
from sidestep.simulate.plan import Weights, fastest
from tests.conftest import adam, engine_for, some_batch


def weights() -> Weights:
    engine = engine_for(LocalCE(), rule=adam())
    engine.step(some_batch())
    return Weights(engine, some_batch())


def test_the_busiest_rank_is_least_busy_and_moves_on_where_memory_ends() -> None:
    found = weights()
    times = [4.0, 1.0, 1.0]
    assert fastest(times, found, 2, None).shares == (1, 2)
    enough = found.of(range(1))
    assert fastest(times, found, 2, enough).shares == (1, 2)
    # One byte less: what the first rank has of the network that it judges it need not have twice.
    assert found.of(range(1, 3)) < found.of(range(2)) < enough
    assert fastest(times, found, 2, enough - 1).shares == (2, 1)
    with pytest.raises(DataError, match=r"got --memory of 0 MB for 3 blocks on 2 ranks, but block \d alone needs"):
        fastest(times, found, 2, 1)


def test_what_a_share_needs_grows_with_it_and_a_local_methods_activations_do_not() -> None:
    """A local block's graph is gone before the next one's; backprop keeps them all."""
    engine = engine_for(LocalCE(), rule=adam())
    engine.step(some_batch())
    local = Weights(engine, some_batch())
    state = sum(value.nbytes for value in engine.state_dict().values())
    gradients = max(sum(p.nbytes for p in block.parameters()) for block in engine.chain.blocks)
    steps = torch.tensor(0).nbytes  # the engine's own count, which is no block's
    assert local.training(range(3)) == state - steps + gradients + local.graphs(range(3))
    assert local.graphs(range(3)) == max(local.graphs(range(n, n + 1)) for n in range(3))
    engine = engine_for(LocalCE(), rule=adam(), accumulate=4)
    engine.step(some_batch())
    parts, every = Weights(engine, some_batch()), sum(p.nbytes for _, p in engine.chain.named_parameters())
    assert parts.training(range(3)) == state - steps + every + parts.graphs(range(3))  # until the last micro-batch
    engine = engine_for(Backprop(), rule=adam())
    engine.step(some_batch())
    back = Weights(engine, some_batch())
    assert back.graphs(range(3)) > max(back.graphs(range(n, n + 1)) for n in range(3))


def test_a_network_is_built_by_all_judged_by_the_first_and_saved_by_way_of_those_between() -> None:
    engine = engine_for(LocalCE(), rule=adam(ema=0.9))
    engine.step(some_batch())
    found = Weights(engine, some_batch(), besides=1000)
    state = {k: v.nbytes for k, v in engine.state_dict().items() if "/" in k}

    def of(kind: str, *parts: str) -> int:
        return sum(v for k, v in state.items() if kind in k and (not parts or k.partition("/")[0] in parts))

    for part in found.parts:
        assert found.parts[part].state == of("/", part) > of("/model/", part) + of("/ema/", part)
    built = of("/model/") + of("/ema/") + of("/ema/", "blocks.1")  # the averages that it trains are further ones
    passing = of("/", "blocks.1") + 2 * max(of("/", part) for part in found.parts)  # one comes while one goes
    assert found.of(range(1, 2)) == 1000 + max(built, passing, found.training(range(1, 2)))
    judged = of("/model/", "blocks.1", "blocks.2") + of("/ema/")
    gathered = max(of("/"), found.training(range(1)))
    assert found.of(range(1)) == 1000 + judged + gathered + of("/ema/")  # and what was selected
    assert found.of(range(3)) == 1000 + max(of("/"), found.training(range(3))) + of("/ema/")


@pytest.mark.parametrize("method", ["sid", "backprop"])
def test_memory_is_as_predicted_and_times_beside_those_measured(method: str) -> None:
    """In a process of its own, since what a process has resident besides is part of it."""
    line = f"-m sidestep plan mlp --method {method} --ranks 2 --measure --threads 1 --precision fp32 --json"
    done = subprocess.run([sys.executable, *line.split()], check=True, capture_output=True, text=True)
    found = json.loads(done.stdout.splitlines()[-1])
    assert sum(found["shares"]) == len(found["block_ms"]) == 4
    # Labels and targets, which all blocks hold, are counted at the first of them only.
    assert found["activations_mb"] == pytest.approx(found["measured"]["activations_mb"], rel=0.02)
    # The network is small beside Python and torch, which both count.
    assert found["memory_mb"] == pytest.approx(found["measured"]["memory_mb"], rel=0.2)
    assert found["waits"] == (method == "backprop")
    assert max(found["rank_ms"]) <= found["step_ms"] * 1.001
    assert 0 < found["measured"]["step_ms_low"] <= found["measured"]["step_ms"] <= found["measured"]["step_ms_high"]
