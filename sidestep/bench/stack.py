"""Step time of many equal blocks: a naive loop, block by block, and computed as one, beside the extractor alone."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from sidestep.assemble import Assembly, assemble, optimizer_factory
from sidestep.bench.plain import PlainTraining
from sidestep.bench.step import circumstances, reference_for, rows_of
from sidestep.config import TrainConfig
from sidestep.errors import UsageError
from sidestep.measure.timing import interleaved
from sidestep.methods.sid import SID

NAIVE = "naive loop, fp32"


class ExtractorStep(PlainTraining):
    """The extractor's part of a step: forward, backward from any gradient, and update."""

    def loss(self, x: Tensor, y: Tensor) -> Tensor:
        return self.network(x).float().square().mean()


def run(config: TrainConfig, *, rounds: int = 20) -> dict[str, Any]:
    """What `sidestep bench stack` prints: `cascade_ms` is a step less the extractor's own in the same precision."""
    assembly = assemble(config)
    if not isinstance(assembly.method, SID) or assembly.method.form != "shared":
        raise UsageError("the naive loop is SID's published form; use sid with --form shared.")
    reference, batch = reference_for(assembly), assembly.batches(0)
    steps: dict[str, Callable[[tuple[Tensor, Tensor]], object]] = {
        NAIVE: lambda batch: reference.step((batch[0].contiguous(), batch[1]))
    }
    precisions = list(dict.fromkeys(["fp32", assembly.config.precision]))
    for precision in precisions:
        for engine in ("streaming", "stacked"):
            made = replace(assembly.config, precision=precision, engine=engine)
            steps[f"{engine}, {precision}"] = assemble(
                made, data=assembly.data, model=copy.deepcopy(assembly.model)
            ).engine.step
        steps[alone(precision)] = extractor_step(assembly, precision).step
    samples = interleaved({name: partial(step, batch) for name, step in steps.items()}, rounds, device=assembly.device)
    rows = {row["name"]: row for row in rows_of(samples, NAIVE, len(batch[0]))}
    naive = cascade(samples, NAIVE)
    for name, row in rows.items():
        if not name.startswith("extractor"):
            own = cascade(samples, name)
            row["cascade_ms"] = float(np.median(own))
            low, middle, high = np.percentile(own / naive, [25, 50, 75])
            row |= {"cascade_ratio": float(middle), "cascade_ratio_low": float(low), "cascade_ratio_high": float(high)}
    found = {"base": NAIVE, "rows": list(rows.values())} | circumstances(assembly)
    return found | {"text": stack_table(found)}


def alone(precision: str) -> str:
    return f"extractor alone, {precision}"


def cascade(samples: Mapping[str, list[float]], name: str) -> np.ndarray[Any, np.dtype[np.float64]]:
    """What is left of every step without the extractor's, in the same round and precision."""
    return np.asarray(samples[name]) - np.asarray(samples[alone(name.split(", ")[1])])


def extractor_step(assembly: Assembly, precision: str) -> ExtractorStep:
    assert assembly.chain.hub is not None
    hub: nn.Module = copy.deepcopy(assembly.chain.hub)
    autocast = torch.bfloat16 if precision == "bf16" else None
    return ExtractorStep(hub, optimizer_factory(assembly.config)(hub.parameters()), autocast=autocast)


def stack_table(found: Mapping[str, Any]) -> str:
    lines = [
        f"{found['model']}, {found['blocks']} modules on {found['data']}, batch {found['batch_size']}, "
        f"{found['threads']} threads",
        f"{'':<22}{'ms a step (quartiles)':>24}{'cascade':>10}{'over naive’s':>24}",
    ]
    for r in found["rows"]:
        line = f"{r['name']:<22}" + f"{r['step_ms']:.1f} ({r['step_ms_low']:.1f}..{r['step_ms_high']:.1f})".rjust(24)
        if "cascade_ms" in r:
            ratio = f"{r['cascade_ratio']:.3f} ({r['cascade_ratio_low']:.3f}..{r['cascade_ratio_high']:.3f})"
            line += f"{r['cascade_ms']:>10.1f}{ratio:>24}"
        lines.append(line)
    return "\n".join(lines)
