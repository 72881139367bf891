"""Peak activations of one step of a method, beside plain autograd, checkpointing and deep supervision."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import partial
from typing import Any

from torch import Tensor, nn

from sidestep.bench.step import Step, as_set, benched, circumstances, fresh, labelled, plain_baselines
from sidestep.config import TrainConfig
from sidestep.engines.captured import WARM_UP
from sidestep.errors import UsageError
from sidestep.measure.memory import MB, peak_rss_mb, step_peak_mb


def run(config: TrainConfig) -> dict[str, Any]:
    """What `sidestep bench memory` prints: bytes kept for the backward pass, parameters and optimizer apart.

    A CUDA graph is measured while it is recorded: what it needs then it holds from there on.
    """
    assembly = benched(config)
    if config.compile and assembly.device.type == "cpu":
        raise UsageError(
            "got compile=true on a CPU, where compiled code hides its memory; bench it with --device cuda."
        )
    batch = assembly.batches(0)
    rows: list[dict[str, Any]] = []

    def add(name: str, step: Step, modules: Iterable[nn.Module]) -> None:
        peak = step_peak_mb(partial(step, batch), modules, assembly.device, WARM_UP if config.cuda_graph else 1)
        rows.append({"name": name, "peak_activation_mb": peak})

    for name in dict.fromkeys([assembly.config.method, "backprop", "backprop_checkpointed", "deep_supervision"]):
        own = fresh(assembly, name)
        add(labelled(own), own.engine.step, [module for _, module in own.chain.parts()])
    for name, plain in plain_baselines(assembly).items():
        add(name, as_set(plain.step, assembly.config), [plain.network])
    base = next(row["peak_activation_mb"] for row in rows if row["name"] == "plain backprop")
    for row in rows:
        row["ratio"] = row["peak_activation_mb"] / base
    own = fresh(assembly, assembly.config.method)
    own.engine.step(batch)
    trained = [p for _, p in own.chain.named_parameters()]
    optimizers = [u.optimizer for u in own.engine.parts.moving() if u.optimizer is not None]
    state = [t for o in optimizers for slots in o.state.values() for t in slots.values() if isinstance(t, Tensor)]
    found: dict[str, Any] = {
        "base": "plain backprop",
        "rows": rows,
        "parameters_mb": megabytes(trained),
        "gradients_mb": max(megabytes(module.parameters()) for _, module in own.chain.parts()),
        "optimizer_mb": megabytes(state),
        "peak_rss_mb": peak_rss_mb(),
    }
    found |= circumstances(assembly)
    return found | {"text": memory_table(found)}


def megabytes(tensors: Iterable[Tensor]) -> float:
    return sum(t.nbytes for t in tensors) / MB


def memory_table(found: Mapping[str, Any]) -> str:
    lines = [
        f"{found['model']} in {found['blocks']} blocks on {found['data']}, batch {found['batch_size']}, "
        f"{found['precision']}",
        f"{'':<34}{'peak activations, MB':>22}{'of plain backprop':>20}",
    ]
    lines += [f"{r['name']:<34}{r['peak_activation_mb']:>22.3f}{r['ratio']:>20.3f}" for r in found["rows"]]
    lines.append(
        f"beside them, MB of 2**20 bytes: parameters {found['parameters_mb']:.2f}, gradients of the largest part "
        f"{found['gradients_mb']:.2f},\noptimizer state {found['optimizer_mb']:.2f}"
    )
    return "\n".join(lines)
