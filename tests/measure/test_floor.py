from __future__ import annotations

import pytest
import torch
from torch import nn

from sidestep.bench.plain import PlainStep
from sidestep.measure import floor
from sidestep.measure.floor import Demand, Rates

BATCH, FLOAT = 6, 4


def test_what_a_step_demands_by_hand() -> None:
    """A linear layer of 12 to 5 under Adam.

    Products: forward, and the gradient of the weight; the data ask for none.  Saved: the input, and by the loss the
    log-probabilities, int64 labels and the sum of weights.  Of every parameter: read in both passes, read and written
    by Adam, its gradient written and read, its two moments and, once a tensor, the step count read and written.
    """
    layer = nn.Linear(12, 5)
    plain = PlainStep(layer, torch.optim.Adam(layer.parameters(), fused=True))
    x, y = torch.randn(BATCH, 12), torch.arange(BATCH) % 5
    found = Demand.of(lambda: plain.step((x, y)))
    weights = 12 * 5 + 5
    saved = FLOAT * BATCH * (12 + 5) + 8 * BATCH + FLOAT
    assert found.flops == 2 * (2 * BATCH * 12 * 5)
    assert found.bytes == FLOAT * (weights * (2 + 2 + 2 + 4) + 2 * 2) + 2 * saved


def test_the_floor_is_the_slower_of_computing_and_moving() -> None:
    rates = Rates(flops=1e9, bytes=1e6)
    assert Demand(3e6, 1000).floor(rates) == {"flops_ms": 3.0, "bytes_ms": 1.0, "floor_ms": 3.0}
    assert Demand(3e6, 5000).floor(rates)["floor_ms"] == 5.0


def test_rates_are_of_the_median_and_a_copy_reads_and_writes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(floor, "SIDE", {"cpu": 100})
    monkeypatch.setattr(floor, "COPIED", {"cpu": 500})
    monkeypatch.setattr(floor, "interleaved", lambda *_, **__: {"product": [2.0, 9.0, 1.0], "copy": [4.0]})
    assert Rates.of(torch.device("cpu"), torch.float32) == Rates(flops=1e9, bytes=250_000)
