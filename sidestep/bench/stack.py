"""Step time of many equal blocks: a naive loop, block by block, and computed as one, beside the extractor alone."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from itertools import product
from typing import Any, NamedTuple

import numpy as np
from torch import Tensor, nn

from sidestep.assemble import Assembly, assemble, optimizer_factory
from sidestep.bench.plain import PlainTraining
from sidestep.bench.reference import ReferenceSID
from sidestep.bench.step import (
    UNTIMED,
    Step,
    as_set,
    benched,
    circumstances,
    floor_lines,
    ranged,
    rates_of,
    reference_for,
    rows_of,
)
from sidestep.config import TrainConfig
from sidestep.errors import UsageError
from sidestep.measure.floor import Demand
from sidestep.measure.timing import by_key, interleaved, quartiles
from sidestep.methods.sid import SID
from sidestep.precision import autocast_dtype


class Candidate(NamedTuple):
    """What is timed, in which precision, and whether its steps are replayed as a CUDA graph."""

    engine: str
    precision: str
    graph: bool = False

    @property
    def name(self) -> str:
        return f"{self.engine}{' graph' if self.graph else ''}, {self.precision}"

    @property
    def extractor(self) -> Candidate:
        """The extractor's part of it, in its own memory format and moved by its own optimizer."""
        return NAIVE_EXTRACTOR if self in (NAIVE, NAIVE_EXTRACTOR) else self._replace(engine=EXTRACTOR)

    @property
    def eager(self) -> Candidate:
        """That which it is a recording of."""
        return self._replace(graph=False)


EXTRACTOR = "extractor"
NAIVE = Candidate("naive loop", "fp32")
NAIVE_EXTRACTOR = Candidate("naive extractor", "fp32")


class ExtractorStep(PlainTraining):
    """The extractor's part of a step: forward, backward from any gradient, and update."""

    def loss(self, x: Tensor, y: Tensor) -> Tensor:
        return self.network(x).float().square().mean()


def run(config: TrainConfig, *, rounds: int = 20) -> dict[str, Any]:
    """What `sidestep bench stack` prints: `cascade_ms` is a step less that of its own extractor, in the same precision.

    The naive loop's extractor is slower than the engines': what it takes is no part of the naive cascade.

    Where the settings ask for CUDA graphs the engines are timed both ways, and so is the extractor.
    """
    assembly = benched(config)
    if not isinstance(assembly.method, SID) or assembly.method.form != "shared":
        raise UsageError("the naive loop is SID's published form; use sid with --form shared.")
    reference, batch = reference_for(assembly), assembly.batches(0)
    alone = naive_extractor(reference).step
    steps: dict[Candidate, Step] = {
        NAIVE: lambda batch: reference.step((batch[0].contiguous(), batch[1])),
        NAIVE_EXTRACTOR: lambda batch: alone((batch[0].contiguous(), batch[1])),
    }
    precisions = list(dict.fromkeys(["fp32", assembly.config.precision]))
    for precision, graph in product(precisions, (False, True) if assembly.config.cuda_graph else (False,)):
        own = replace(assembly.config, precision=precision, cuda_graph=graph)
        for engine in ("streaming", "stacked"):
            made = replace(own, engine=engine)
            stepping = assemble(made, data=assembly.data, model=copy.deepcopy(assembly.model)).engine.step
            steps[Candidate(engine, precision, graph)] = stepping
        steps[Candidate(EXTRACTOR, precision, graph)] = extractor_step(assembly, own)
    named = {candidate.name: partial(step, batch) for candidate, step in steps.items()}
    samples = interleaved(named, rounds, UNTIMED, assembly.device)
    rows = rows_of(samples, NAIVE.name, len(batch[0]))
    naive = cascade(samples, NAIVE)
    rates = {precision: rates_of(assembly, precision) for precision in precisions}
    for candidate, row in zip(steps, rows, strict=True):
        row |= Demand.of(named[candidate.eager.name]).floor(rates[candidate.precision])
        if candidate != candidate.extractor:
            own = cascade(samples, candidate)
            row["cascade_ms"] = float(np.median(own))
            row |= by_key("cascade_ratio", quartiles((own / naive).tolist()))
    found = {"base": NAIVE.name, "rows": rows} | circumstances(assembly)
    return found | {"text": stack_table(found)}


def cascade(samples: Mapping[str, list[float]], candidate: Candidate) -> np.ndarray[Any, np.dtype[np.float64]]:
    """What is left of every step without its extractor's, in the same round and precision, launched the same way."""
    return np.asarray(samples[candidate.name]) - np.asarray(samples[candidate.extractor.name])


def extractor_step(assembly: Assembly, config: TrainConfig) -> Step:
    """A step of a copy of the extractor, as the settings say."""
    assert assembly.chain.hub is not None
    hub: nn.Module = copy.deepcopy(assembly.chain.hub)
    autocast = autocast_dtype(config.precision)
    return as_set(ExtractorStep(hub, optimizer_factory(config)(hub.parameters()), autocast=autocast).step, config)


def naive_extractor(reference: ReferenceSID) -> ExtractorStep:
    """The same of a copy of the naive loop's own: contiguous, in float32, with an optimizer of the same kind."""
    own = copy.deepcopy(reference.extractor)
    return ExtractorStep(own, reference.optimizer(own))


def stack_table(found: Mapping[str, Any]) -> str:
    lines = [
        f"{found['model']}, {found['blocks']} modules on {found['data']}, batch {found['batch_size']}, "
        f"{found['threads']} threads",
        f"{'':<22}{'ms a step (quartiles)':>24}{'cascade':>10}{'over naive’s':>24}",
    ]
    for r in found["rows"]:
        line = f"{r['name']:<22}{ranged(r, 'step_ms'):>24}"
        if "cascade_ms" in r:
            line += f"{r['cascade_ms']:>10.1f}{ranged(r, 'cascade_ratio', 3):>24}"
        lines.append(line)
    return "\n".join([*lines, *floor_lines(found["rows"])])
