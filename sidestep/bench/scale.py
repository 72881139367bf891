"""Step times that a simulation predicts from parts timed alone: beside those of real processes, and beyond them."""

from __future__ import annotations

import copy
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import chain, repeat
from typing import Any

from sidestep.assemble import Assembly, assemble, optimizer_factory
from sidestep.bench import ranks
from sidestep.bench.ranks import BATCHES, MICROBATCHES, STEPS_A_TURN, name_of, slices
from sidestep.bench.step import circumstances
from sidestep.config import TrainConfig
from sidestep.engines.dist_wire import WINDOW
from sidestep.errors import UsageError
from sidestep.launch import threads_each
from sidestep.measure.timing import threads
from sidestep.placement import Placement
from sidestep.simulate import links
from sidestep.simulate.extrapolate import Block, goodput, ways
from sidestep.simulate.links import Links
from sidestep.simulate.machine import Action, Link, Machine, Mark, Send, simulate
from sidestep.simulate.rivals import data_parallel, gpipe, one_f_one_b, zero_bubble
from sidestep.simulate.stages import buckets, copy_alone, stages_alone
from sidestep.simulate.trace import Trace, busy, traced

SCHEDULES = {"GPipe": gpipe, "1F1B": one_f_one_b, "ZBV": zero_bubble}
Predict = Callable[[Machine], float]
"""Seconds of a step on a machine."""


def run(config: TrainConfig, count: int, *, rounds: int = 14) -> dict[str, Any]:
    """What `sidestep bench scale` prints: every way to train in so many processes, as predicted and as measured.

    All that goes into a prediction was timed alone, and before; beside it only what cores give when all are busy, with
    micro-batches of the same size.
    """
    assembly = assemble(config)
    with threads(config.threads or threads_each(count)):
        expected = predictions(assembly, count, links.measured())
    found = ranks.run(config, count, rounds=rounds)
    cores = max(1, (os.cpu_count() or 1) // found["threads"])
    rows: list[dict[str, Any]] = []
    for row in found["rows"]:
        if row["name"] in expected:
            micros = row["name"].split(", ")[-1].partition(" micro-batches")[0]
            slowed = found["calibrations"].get(micros, found["calibration"]) * min(cores, count) / count
            predicted = 1000 * expected[row["name"]](Machine(cores, busy=max(1.0, slowed)))
            rows.append(row | {"predicted_ms": predicted, "error": predicted / row["step_ms"] - 1})
    found |= {"rows": rows, "cores": cores}
    return found | {"text": scale_table(found)}


RANKS = (8, 64, 256, 1024)
NETWORKS = {
    f"{name}, {rtt} ms": Link(byte=8 / bits, latency=rtt / 2000, window=WINDOW)
    for name, bits in (("100 Mb/s", 1e8), ("1 Gb/s", 1e9), ("10 Gb/s", 1e10))
    for rtt in (1, 20, 100)
}
"""Bandwidth, and the time of a way there and back."""
MICROS = (4, 16, 64, 256)
LIVES = {"10 min": 600.0, "1 h": 3600.0, "6 h": 21600.0, "1 week": 604800.0}
SAVE, RESTART = 1.0, 8.0
"""Seconds: a checkpoint of a rank's blocks, and from the end of a rank to the next step (docs/reliability.md)."""


def far(config: TrainConfig, most: int = RANKS[-1]) -> dict[str, Any]:
    """What `sidestep bench scale --machines` prints: extrapolation to many machines, from one block of this one.

    most: machines.  Raises UsageError for fewer than three blocks, of which none has two neighbours.
    """
    assembly = assemble(config)
    blocks, batch = len(assembly.chain.blocks), assembly.config.batch_size
    if blocks < 3:
        raise UsageError(f"got {blocks} blocks, expected 3 or more: one in the middle stands for all; give --blocks 8.")
    autocast, make = assembly.engine.context.autocast, optimizer_factory(assembly.config)
    batches = [assembly.batches(n) for n in range(min(BATCHES, assembly.batches.steps_per_epoch))]
    middle = blocks // 2
    trace = traced(assembly.engine, Placement(blocks).blocks(blocks), batches)[middle]
    parts = slices(assembly, blocks)
    micros = [m for m in MICROS if batch % m == 0]
    stages = {m: stages_alone(parts, make, batches[0], m, autocast)[middle] for m in micros}
    block = Block(trace, middle, stages, sum(p.nbytes for p in parts[middle].parameters()))
    rows = [
        {"ranks": ranks, "network": name}
        | {way: ms(seconds) for way, seconds in ways(block, ranks, batch, link).items()}
        for ranks in RANKS
        if ranks <= most
        for name, link in NETWORKS.items()
    ]
    kept = [
        {"ranks": ranks, "life": name, "goodput": goodput(ranks, life, SAVE, RESTART)}
        for ranks in RANKS
        for name, life in LIVES.items()
    ]
    found: dict[str, Any] = {"rows": rows, "kept": kept, "message_kb": message(trace) / 1024}
    found |= {"block_ms": 1000 * busy(trace), "parameters_kb": block.parameters / 1024} | circumstances(assembly)
    return found | {"text": far_table(found)}


def ms(seconds: float | None) -> float | None:
    return None if seconds is None else 1000 * seconds


def message(trace: Trace) -> int:
    """Bytes that a rank sends in a step."""
    return sum(action.size for action in trace if isinstance(action, Send))


def far_table(found: Mapping[str, Any]) -> str:
    names = [name for name in found["rows"][0] if name not in ("ranks", "network")]
    lines = [
        f"extrapolated from one block of {found['model']} on {found['data']}, batch {found['batch_size']}, "
        f"{found['precision']}:",
        f"{found['block_ms']:.1f} ms of work, {found['message_kb']:.0f} KB of messages, "
        f"{found['parameters_kb']:.0f} KB of parameters.",
        "ms a step, one block a machine:",
        f"{'machines':<10}{'network':<18}" + "".join(f"{name:>{max(9, len(name) + 1)}}" for name in names),
    ]
    for r in found["rows"]:
        cells = ["" if r[name] is None else f"{r[name]:.0f}" for name in names]
        cells = [f"{cell:>{max(9, len(name) + 1)}}" for name, cell in zip(names, cells, strict=True)]
        lines.append(f"{r['ranks']:<10}{r['network']:<18}" + "".join(cells))
    return "\n".join(lines)


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
