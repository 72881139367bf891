"""Step times that a simulation predicts from parts timed alone, beside those of real processes."""

from __future__ import annotations

import copy
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import chain, repeat
from typing import Any

from sidestep.assemble import Assembly, assemble, optimizer_factory
from sidestep.bench import ranks
from sidestep.bench.ranks import BATCHES, MICROBATCHES, STEPS_A_TURN, name_of, slices
from sidestep.config import TrainConfig
from sidestep.placement import Placement
from sidestep.simulate import links
from sidestep.simulate.links import Links
from sidestep.simulate.machine import Action, Link, Machine, Mark, simulate
from sidestep.simulate.rivals import data_parallel, gpipe, one_f_one_b, zero_bubble
from sidestep.simulate.stages import buckets, copy_alone, stages_alone
from sidestep.simulate.trace import traced

SCHEDULES = {"GPipe": gpipe, "1F1B": one_f_one_b, "ZBV": zero_bubble}
Predict = Callable[[Machine], float]
"""Seconds of a step on a machine."""


def run(config: TrainConfig, count: int, *, rounds: int = 14) -> dict[str, Any]:
    """What `sidestep bench scale` prints: every way to train in so many processes, as predicted and as measured.

    All that goes into a prediction was timed alone, and before; beside it only what cores give when all are busy.
    """
    expected = predictions(assemble(config), count, links.measured())
    found = ranks.run(config, count, rounds=rounds)
    cores = max(1, (os.cpu_count() or 1) // found["threads"])
    used = min(cores, count)
    machine = Machine(cores, busy=max(1.0, found["calibration"] * used / count))
    rows: list[dict[str, Any]] = []
    for row in found["rows"]:
        if row["name"] in expected:
            predicted = 1000 * expected[row["name"]](machine)
            rows.append(row | {"predicted_ms": predicted, "error": predicted / row["step_ms"] - 1})
    found |= {"rows": rows, "cores": cores}
    return found | {"text": scale_table(found)}


def predictions(assembly: Assembly, count: int, found: Links) -> dict[str, Predict]:
    """By the names of `bench ranks`."""
    autocast, make = assembly.engine.context.autocast, optimizer_factory(assembly.config)
    batches = [assembly.batches(n) for n in range(min(BATCHES, assembly.batches.steps_per_epoch))]
    traces = traced(assembly.engine, Placement(count).blocks(len(assembly.chain.blocks)), batches)
    made: dict[str, Predict] = {name_of(assembly.config.method, count): turn(traces, found.wire)}
    for kind, schedule in SCHEDULES.items():
        for micros in MICROBATCHES:
            parts = count if kind != "ZBV" else 2 * count
            if micros >= parts:
                stages = stages_alone(slices(assembly, count), make, batches[0], micros, autocast)
                works = [list(schedule(stage, rank, count, micros)) for rank, stage in enumerate(stages)]
                made[f"{kind}, {micros} micro-batches"] = turn(works, found.gloo)
    network = copy.deepcopy(assembly.model)
    x, y = (part.chunk(count)[0] for part in batches[0])
    replica = copy_alone(network, make, (x, y), autocast)
    pairs = [data_parallel(replica, buckets(network), rank, count) for rank in range(count)]
    works = [own for own, _ in pairs] + [sums for _, sums in pairs]
    made["backprop, data parallel"] = turn(works, found.ring, on=[*range(count), *range(count)])
    return made


def turn(works: Sequence[Sequence[Action]], link: Link, on: Sequence[int] | None = None) -> Predict:
    """Of several steps that begin together, as `bench ranks` times them, the mean.

    on: the rank of every process; between those of one rank messages are free.
    """
    place = list(range(len(works))) if on is None else list(on)

    def predict(machine: Machine) -> float:
        def between(source: int, to: int) -> Link:
            return link if place[source] != place[to] else Link()

        steps: list[Iterable[Action]] = [[*chain.from_iterable(repeat(work, STEPS_A_TURN)), Mark()] for work in works]
        marks = simulate(steps, between, [machine], [0] * len(works))
        return max(own[0] for own in marks) / STEPS_A_TURN

    return predict


def scale_table(found: Mapping[str, Any]) -> str:
    lines = [
        f"{found['model']} in {found['blocks']} blocks on {found['data']}, batch {found['batch_size']}, "
        f"{found['precision']}, {found['ranks']} ranks on {found['cores']} cores",
        f"{'':<30}{'ms a step (quartiles)':>26}{'predicted':>12}{'error':>10}",
    ]
    for r in found["rows"]:
        time = f"{r['step_ms']:.1f} ({r['step_ms_low']:.1f}..{r['step_ms_high']:.1f})"
        lines.append(f"{r['name']:<30}{time:>26}{r['predicted_ms']:>12.1f}{100 * r['error']:>8.1f} %")
    lines.append(f"calibration, all ranks busy over one: {found['calibration']:.3f}")
    return "\n".join(lines)
