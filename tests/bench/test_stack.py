"""`sidestep bench stack`: what a cascade takes is a step less that of its own extractor, in the same round."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch

from sidestep.assemble import assemble
from sidestep.bench import stack
from sidestep.bench.stack import NAIVE, ExtractorStep, extractor_step, naive_extractor
from sidestep.bench.step import reference_for
from sidestep.config import resolve
from sidestep.errors import UsageError

FLAGS = {"sid.form": "shared", "model.width": 32, "blocks": 3, "batch_size": 32, "precision": "bf16"}


def test_the_cascades_share_and_its_ratio_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    """Three rounds: the naive cascade takes 10, 20, 30 ms, the stacked one 1, 5, 3, each beside its own extractor.

    The naive loop's takes 8 ms where the engines' takes 5 in the same precision.
    """
    times = {NAIVE.name: [18.0, 28.0, 38.0], "naive extractor, fp32": [8.0] * 3, "extractor, fp32": [5.0] * 3}
    times |= {"stacked, fp32": [15.0, 25.0, 35.0], "stacked, bf16": [3.0, 7.0, 5.0], "extractor, bf16": [2.0] * 3}

    def scripted(candidates: dict[str, Any], *_: Any, **__: Any) -> dict[str, list[float]]:
        return {name: times.get(name, [9.0, 9.0, 9.0]) for name in candidates}

    monkeypatch.setattr(stack, "interleaved", scripted)
    found = stack.run(resolve("sid", FLAGS))
    rows = {row["name"]: row for row in found["rows"]}
    assert rows.keys() == {
        NAIVE.name,
        "naive extractor, fp32",
        *(f"{name}, {p}" for name in ("streaming", "stacked", "extractor") for p in ("fp32", "bf16")),
    }
    assert rows["stacked, bf16"]["cascade_ms"] == 3.0
    assert rows["stacked, bf16"]["cascade_ratio"] == pytest.approx(0.1, rel=1e-12)  # of 0.1, 0.25 and 0.1
    assert rows[NAIVE.name]["cascade_ms"] == 20.0 and rows[NAIVE.name]["cascade_ratio"] == 1.0
    assert rows["stacked, fp32"]["cascade_ms"] == 20.0 and rows["stacked, fp32"]["cascade_ratio"] == 1.0
    assert all("cascade_ms" not in row for name, row in rows.items() if "extractor" in name)
    assert max(map(len, found["text"].splitlines())) <= 80


def test_the_extractor_alone_is_moved_forward_backward_and_update() -> None:

    assembly = assemble(resolve("sid", FLAGS))
    hub = assembly.chain.hub
    assert hub is not None
    own = copy.deepcopy(hub)
    before = [p.clone() for p in hub.parameters()]
    ExtractorStep(own, torch.optim.SGD(own.parameters(), lr=0.1)).step(assembly.batches(0))
    assert all(not torch.equal(a, b) for a, b in zip(before, own.parameters(), strict=True))
    extractor_step(assembly, assembly.config)(assembly.batches(0))
    assert all(torch.equal(a, b) for a, b in zip(before, hub.parameters(), strict=True))


def test_the_naive_loops_extractor_is_moved_by_itself_as_the_loop_moves_it() -> None:
    """One step from the same weights, and the loop's own are left alone."""
    reference = reference_for(assemble(resolve("sid", FLAGS)))
    before = [p.clone() for p in reference.extractor.parameters()]
    alone = naive_extractor(reference)
    alone.step((torch.randn(4, 64), torch.zeros(4, dtype=torch.long)))
    assert all(not torch.equal(a, b) for a, b in zip(before, alone.network.parameters(), strict=True))
    assert all(torch.equal(a, b) for a, b in zip(before, reference.extractor.parameters(), strict=True))
    assert alone.optimizer.defaults == reference.optimizers[0].defaults and alone.autocast is None


def test_what_is_not_the_published_form_is_refused() -> None:
    with pytest.raises(UsageError, match="the naive loop is SID's published form; use sid with --form shared"):
        stack.run(resolve("local_ce", {}))
