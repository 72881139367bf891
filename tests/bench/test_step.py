"""`sidestep bench step` and `bench memory`: what they compare is the same work, and the numbers add up."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch
from torch import nn

from sidestep.assemble import Assembly, assemble, with_method
from sidestep.bench import machines, memory, ranks, scale, step
from sidestep.config import TrainConfig, resolve, to_toml
from sidestep.errors import UsageError
from sidestep.measure.memory import MB


def small(method: str = "local_ce", **flags: object) -> Assembly:
    keys = {"model": "resmlp", "model.depth": 4, "model.width": 64, "batch_size": 32, "precision": "fp32"}
    return assemble(resolve(method, keys | flags))


def test_the_plain_baselines_do_the_engines_work() -> None:
    """Two steps of plain backprop and of every checkpointing leave the parameters that the engine's program leaves."""
    constant = {"schedule": "constant", "warmup": 0.0}
    batches = [small().batches(s) for s in range(2)]
    engine = small("backprop", **constant).engine
    plains = step.plain_baselines(small("backprop", **constant))
    assert {"plain backprop", "plain checkpointed/1", "plain checkpointed/2"} < plains.keys()
    assert "plain checkpointed/4" not in plains  # one segment, of which nothing is computed again
    for batch in batches:
        engine.step(batch)
        for plain in plains.values():
            plain.step(batch)
    expected = [p for _, p in engine.chain.named_parameters()]
    for name, plain in plains.items():
        if name != "plain deep supervision":
            found = list(plain.network.parameters())
            assert all(torch.equal(a, b) for a, b in zip(expected, found, strict=True)), name


def test_memory_counts_one_block_for_local_learning_and_all_for_backprop() -> None:
    """Equal blocks: backprop's graph is the sum over blocks, local learning's peak one of them and its messages."""
    found = memory.run(small("local_ce", blocks=4).config)
    peak = {row["name"]: row["peak_activation_mb"] for row in found["rows"]}
    assert peak["backprop (streaming)"] == pytest.approx(peak["plain backprop"], rel=1e-12)
    # A quarter, some four tensors of features, and two more: the message that comes in, and what its LayerNorm keeps.
    assert peak["local_ce (streaming)"] < 0.42 * peak["plain backprop"]
    parameters = sum(p.numel() for _, p in small("local_ce", blocks=4).chain.named_parameters())
    assert found["parameters_mb"] == pytest.approx(4 * parameters / MB, rel=1e-12)
    # Adam: two moments, and a step count of 4 bytes for each parameter tensor.
    assert found["optimizer_mb"] == pytest.approx(2 * found["parameters_mb"], rel=0.02)
    assert found["gradients_mb"] < 0.4 * found["parameters_mb"]


def test_ratios_are_over_the_base_of_the_same_round(monkeypatch: pytest.MonkeyPatch) -> None:
    def scripted(candidates: dict[str, Any], *_: Any) -> dict[str, list[float]]:
        return {name: [2.0, 8.0, 3.0] if name == "a" else [1.0, 2.0, 3.0] for name in candidates}

    monkeypatch.setattr(step, "interleaved", scripted)
    found = step.measured(small(), {"a": print, "base": print}, "base", 3)
    row = found["rows"][0]
    assert (row["step_ms"], row["ratio"]) == (3.0, 2.0)  # medians of 2, 8, 3 and of 2, 4, 1
    assert row["samples_per_second"] == pytest.approx(32 / 0.003)


@pytest.mark.parametrize(
    ("flags", "what"),
    [
        ({"data": "reversal", "model": "encoder"}, "labels of tokens"),
        ({"data": "digits", "model": "autoencoder"}, "numbers"),
    ],
)
def test_tasks_that_the_rivals_have_no_loss_for_are_refused(flags: dict[str, object], what: str) -> None:
    for bench in (step, memory):
        with pytest.raises(UsageError, match=f"got {what} to learn, expected one class an input"):
            bench.run(resolve("local_ce", flags))


@pytest.mark.parametrize(
    ("bench", "flags", "advice"),
    [
        (step.run, {"accumulate": 2}, "got accumulate=2, expected 1, as what is timed beside it; give --accumulate 1."),
        (memory.run, {"ema": 0.9}, "got ema=0.9, expected none, as what is timed beside it; give --ema none."),
        (partial(scale.run, count=2), {"clip": 1.0}, "got clip=1.0, expected none, as what .* give --clip none."),
        (partial(machines.run, most=8), {"clip": 1.0}, "got clip=1.0, expected none, as what .* give --clip none."),
        (
            lambda config: ranks.at_rank(to_toml(config), "1"),
            {"clip": 1.0},
            "got clip=1.0, expected none, as what .* --clip none.",
        ),
    ],
)
def test_what_a_rival_does_not_do_is_refused(
    bench: Callable[[TrainConfig], object], flags: dict[str, object], advice: str
) -> None:
    config = resolve("local_ce", {"data": "digits"} | flags)
    with pytest.raises(UsageError, match=advice):
        bench(config)


def test_baselines_of_a_stack_are_not_stacked_and_of_frozen_modules_not_frozen() -> None:
    """Backprop's two passes cannot be, and where modules outnumber what can be cut there is no such block."""
    assert with_method(small(engine="stacked"), "backprop").config.engine == "streaming"
    modules = assemble(resolve("sid", {"model": "simplecnn", "blocks": 12, "freeze": "9", "sid.form": "shared"}))
    assert with_method(modules, "backprop").config.freeze == ()
    assert with_method(small(freeze="1"), "backprop").config.freeze == (1,)


def test_a_row_names_the_engine_that_was_run() -> None:
    stacked = small(engine="stacked", blocks=4)
    assert list(step.steps_of(stacked))[:2] == ["local_ce (stacked)", "backprop (streaming)"]
    assert (step.circumstances(stacked)["engine"], step.circumstances(small())["engine"]) == ("stacked", "streaming")


def test_the_reference_is_sids_published_form_only() -> None:
    with pytest.raises(UsageError, match="use sid with --form shared"):
        step.run(small("sid").config, "reference")
    with pytest.raises(UsageError, match="one alpha for all modules"):
        step.run(small("sid", **{"sid.form": "shared", "sid.alpha": "linear:1:0.1"}).config, "reference")


def test_the_reference_and_the_engine_learn_equally_well() -> None:
    """Digits, four epochs, one seed: both far above chance, and within five points of each other."""
    config = small("sid", **{"sid.form": "shared", "epochs": 4, "lr": 0.005}).config
    trained = step.train_both(config, seeds=1)
    (ours,), (theirs,) = trained["sidestep, fp32"], trained["reference, fp32"]
    assert min(ours, theirs) > 0.6
    assert abs(ours - theirs) < 0.05


def test_all_that_a_compiled_bench_times_is_compiled_and_an_eager_one_says_that_it_is_not(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What compiling makes of a module is another test's; here it is only noted."""
    compiled: list[nn.Module] = []
    for where in ("engines.streaming", "bench.step"):
        monkeypatch.setattr(f"sidestep.{where}.compile_calls", compiled.append)
    config = small("sid", blocks=4).config
    assert step.run(config, steps=1)["compile"] is False
    assert not compiled
    assert step.run(replace(config, compile=True), steps=1)["compile"] is True
    sid, backprop = 4 + 4, 4  # nets and heads
    plain, segments, supervised = 1, 4 + 2, 4 + 3
    # SID's twice: timed, and where all others are copied from.
    assert len(set(compiled)) == len(compiled) == 2 * sid + backprop + plain + segments + supervised


def test_memory_of_compiled_code_is_not_asked_of_a_cpu() -> None:
    with pytest.raises(UsageError, match="compiled code hides its memory"):
        memory.run(replace(small().config, compile=True))
