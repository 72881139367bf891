"""Claims that take minutes to check: `make test-slow`."""

from __future__ import annotations

import os
import statistics
from pathlib import Path

import pytest
import torch

from sidestep.assemble import assemble
from sidestep.config import resolve
from sidestep.train import run

pytestmark = pytest.mark.slow


@pytest.mark.skipif("SIDESTEP_DATA" not in os.environ, reason="no SIDESTEP_DATA")
def test_sid_reaches_99_2_percent_on_mnist_in_three_epochs(tmp_path: Path) -> None:
    """The published form on the authors' extractor; mean of three seeds, parameters selected by validation."""
    accuracies: list[float] = []
    for seed in range(3):
        keys = {
            "data": "mnist",
            "model": "simplecnn",
            "blocks": 5,
            "epochs": 3,
            "seed": seed,
            "out": tmp_path / str(seed),
        }
        accuracy = run(resolve("sid", keys), costs=False)["test_accuracy"]
        assert isinstance(accuracy, float)
        accuracies.append(accuracy)
    assert statistics.fmean(accuracies) >= 0.992


def test_compiled_blocks_learn_what_eager_ones_do() -> None:
    """Inductor fuses and reorders float32 sums, which costs some 1e-6 relative a step."""
    losses: list[torch.Tensor] = []
    for compiled in (False, True):
        keys = {"data": "digits", "model": "simplecnn_bn", "precision": "fp32", "compile": compiled, "lr": 0.01}
        assembly = assemble(resolve("local_ce", keys))
        losses.append(torch.stack([assembly.engine.step(assembly.batches(s)).loss for s in range(5)]))
    torch.testing.assert_close(losses[0], losses[1], rtol=1e-3, atol=1e-4)
