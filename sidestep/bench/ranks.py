"""Step time of blocks in several processes, beside one process, torch's pipelines and data parallelism."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from functools import partial
from itertools import cycle, islice
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from sidestep.assemble import Assembly, optimizer_factory, with_method
from sidestep.bench.busy import WHOLE, calibrations
from sidestep.bench.plain import PlainStep
from sidestep.bench.rivals import SCHEDULES, DataParallelStep, MicroBatchedStep, PipelineStep
from sidestep.bench.step import Step, benched, circumstances, ranged, rows_of
from sidestep.config import TrainConfig, from_toml, to_toml
from sidestep.core.cut import CutPlan
from sidestep.engines.streaming import Streaming
from sidestep.errors import UsageError
from sidestep.launch import spawn
from sidestep.measure.timing import by_key, interleaved, ratios, threads
from sidestep.placement import Placement
from sidestep.ranks import Ranks, joined
from sidestep.train import Trainer

MICROBATCHES = (2, 4, 8, 16)
STEPS_A_TURN = 12
"""Steps that are timed as one: ranks that run ahead fill up in the first, which a run does once an epoch."""
BATCHES = 16
"""Taken in turn: what has learnt one batch by heart has gradients so small that a CPU is slow with them."""
ONE_BUSY, ALL_BUSY = "calibration, one busy", "calibration, all busy"


def run(config: TrainConfig, count: int, *, rounds: int = 14, train: bool = False) -> dict[str, Any]:
    """What `sidestep bench ranks` prints: medians, quartiles and paired ratios of interleaved turns.

    train: train the method and backprop too, as the configuration says, since a speed says nothing without an accuracy.
    """
    if count == 1:
        raise UsageError("got one process, expected two or more to compare it with; give --ranks 2.")
    Placement(count).blocks(config.blocks)
    found = spawn(count, config.threads, at_rank, to_toml(config), str(rounds))
    if train:
        assembly = benched(config, "clip")
        found["accuracy"] = {name: accuracy(with_method(assembly, name)) for name in (config.method, "backprop")}
    return found | {"text": ranks_table(found)}


def at_rank(config: str, rounds: str) -> dict[str, Any]:
    """In every process.  What is wrong with the configuration all of them find, before they meet."""
    assembly = benched(from_toml(config), "clip")
    with joined() as ranks:
        return compared(assembly, ranks, int(rounds))


def compared(assembly: Assembly, ranks: Ranks, rounds: int) -> dict[str, Any]:
    """Time everything in turn, all processes together; every `ratio_to_X` is ours over X's, in the same round."""
    group = dist.new_group(backend="gloo")  # a wire's messages and a pipeline's must not be taken for each other's
    assert isinstance(group, dist.ProcessGroup)
    batches = cycle(first_batches(assembly))
    engine = ranks.engine(assembly)
    method, most = assembly.config.method, all_threads(ranks)
    ours = name_of(method, ranks.count)
    single = singles(assembly, engine, ranks)
    shared = {ours: engine.step} | rivals(assembly, ranks, group)

    def turn(step: Step | None) -> None:
        take(batches, step)
        dist.barrier(group)

    steps: dict[str, Step | None] = {name: step if ranks.rank == 0 else None for name, step in single.items()}
    steps |= shared
    make, parts = optimizer_factory(assembly.config), slices(assembly, ranks.count)
    works = calibrations(parts, make, assembly.batches(0), MICROBATCHES, group, assembly.engine.context.autocast)
    for kind, (one, every) in works.items():
        steps |= {f"{ONE_BUSY}, {kind}": one, f"{ALL_BUSY}, {kind}": every}
    turns = interleaved({name: partial(turn, step) for name, step in steps.items()}, rounds, 1, assembly.device)
    samples = {name: [ms / STEPS_A_TURN for ms in found] for name, found in turns.items()}
    rows = {row["name"]: row for row in rows_of(samples, ours, assembly.config.batch_size)}
    found: dict[str, Any] = {"ranks": ranks.count, "rows": list(rows.values())}
    calibrated = {kind: ratios(samples, f"{ALL_BUSY}, {kind}", f"{ONE_BUSY}, {kind}") for kind in works}
    found |= by_key("calibration", calibrated[WHOLE])
    found["calibrations"] = {kind: middle for kind, (middle, _, _) in calibrated.items()}
    rivals_of = {"one_process": [name_of(method, 1)], "ddp": ["backprop, data parallel"]}
    rivals_of |= {"all_threads": [name_of(method, 1, most)], "backprop_all_threads": [name_of("backprop", 1, most)]}
    rivals_of |= {kind.lower(): [name for name in rows if name.startswith(kind)] for kind in SCHEDULES}
    for key, names in rivals_of.items():
        if names:
            best = min(names, key=lambda name: rows[name]["step_ms"])
            found |= by_key(f"ratio_to_{key}", ratios(samples, ours, best)) | {f"best_{key}": best}
    pipelines = [name for kind in ("GPipe", "1F1B") for name in rivals_of[kind.lower()]]
    if pipelines:
        found["pipeline"] = pipeline_share(min(pipelines, key=lambda name: rows[name]["step_ms"]), found)
    return found | circumstances(assembly)


def take(batches: Iterator[tuple[Tensor, Tensor]], step: Step | None) -> None:
    """The steps of a turn, or nothing; either way as many batches are gone, so that all processes are at the same."""
    for batch in islice(batches, STEPS_A_TURN):
        if step is not None:
            step(batch)


def first_batches(assembly: Assembly) -> list[tuple[Tensor, Tensor]]:
    """BATCHES of them, or all there are."""
    return [assembly.batches(n) for n in range(min(BATCHES, assembly.batches.steps_per_epoch))]


def pipeline_share(name: str, found: Mapping[str, Any]) -> dict[str, Any]:
    """What a pipeline of P ranks and m micro-batches loses to an even share of a whole batch's work, as factors.

    bubble: (m + P - 1) / m.  small_batches: what micro-batches cost in one process.  engine: what is left once the
    calibration is taken into account.
    """
    times = {row["name"]: row["step_ms"] for row in found["rows"]}
    count, m = found["ranks"], int(name.split(", ")[1].split()[0])
    whole, cut = times[name_of("backprop", 1)], times[f"{name_of('backprop', 1)}, {m} micro-batches"]
    bubble = (m + count - 1) / m
    engine = times[name] / (cut / count * found["calibration"] * bubble)
    return {"name": name, "bubble": bubble, "small_batches": cut / whole, "engine": engine}


def name_of(method: str, processes: int, threads: int | None = None) -> str:
    """threads: where it is not those that every process has."""
    return f"{method}, {processes} process{'es' if processes > 1 else ''}" + (f", {threads} threads" if threads else "")


def all_threads(ranks: Ranks) -> int:
    """As many as all processes have together."""
    return ranks.count * torch.get_num_threads()


def singles(assembly: Assembly, engine: Streaming, ranks: Ranks) -> dict[str, Step]:
    """What one process does alone: the method and backprop, with all threads too, and backprop in micro-batches."""
    make = optimizer_factory(assembly.config)
    options: Any = {"autocast": engine.context.autocast}
    method, most = assembly.config.method, all_threads(ranks)

    def threaded(step: Step, batch: tuple[Tensor, Tensor]) -> None:
        with threads(most):
            step(batch)

    model = copy.deepcopy(assembly.model)
    backprop = PlainStep(model, make(model.parameters()), **options).step
    found: dict[str, Step] = {}
    for name, whole in ((method, with_method(assembly, method).engine.step), ("backprop", backprop)):
        found[name_of(name, 1)] = whole
        found[name_of(name, 1, most)] = partial(threaded, whole)
    for m in MICROBATCHES:
        model = copy.deepcopy(assembly.model)
        name = f"{name_of('backprop', 1)}, {m} micro-batches"
        found[name] = MicroBatchedStep(model, make(model.parameters()), m, **options).step
    return found


def rivals(assembly: Assembly, ranks: Ranks, group: dist.ProcessGroup) -> dict[str, Step]:
    """Backpropagation by all processes together, on the same network, batch and optimizer."""
    make, autocast = optimizer_factory(assembly.config), assembly.engine.context.autocast
    found: dict[str, Step] = {}
    for kind, each in SCHEDULES.items():
        for m in MICROBATCHES:
            if m >= each * ranks.count:
                pipeline = PipelineStep(
                    kind, slices(assembly, each * ranks.count), m, make, group, assembly.device, autocast
                )
                found[f"{kind}, {m} micro-batches"] = pipeline.step
    parallel = DataParallelStep(copy.deepcopy(assembly.model), make, group, autocast=autocast)
    return found | {"backprop, data parallel": parallel.step}


def slices(assembly: Assembly, count: int) -> list[nn.Module]:
    """The network of its own in so many parts, balanced as the method's blocks are."""
    plan = CutPlan(count, assembly.config.balance)
    return list(plan(copy.deepcopy(assembly.model), assembly.task.sample).nets)


def accuracy(assembly: Assembly) -> float | None:
    """Of the validation samples, after the run the configuration asks for."""
    trainer = Trainer(assembly, quiet=True)
    trainer.train()
    found: Any = trainer.summary()["val_accuracy"]
    return found


def ranks_table(found: Mapping[str, Any]) -> str:
    lines = [
        f"{found['model']} in {found['blocks']} blocks on {found['data']}, batch {found['batch_size']}, "
        f"{found['precision']}, {found['ranks']} ranks of {found['threads']} threads",
        f"{'':<40}{'ms a step (quartiles)':>24}{'over ours':>12}",
    ]
    for r in found["rows"]:
        lines.append(f"{r['name']:<40}{ranged(r, 'step_ms'):>24}{r['ratio']:>12.3f}")
    lines.append("")
    for key in ("one_process", "all_threads", "backprop_all_threads", "gpipe", "1f1b", "zbv", "ddp"):
        if f"ratio_to_{key}" in found:
            lines.append(f"ours over {found[f'best_{key}']}: {ranged(found, f'ratio_to_{key}', 3)}")
    lines.append(f"calibration, all ranks busy over one: {ranged(found, 'calibration', 3)}")
    if "pipeline" in found:
        p = found["pipeline"]
        lines.append(
            f"{p['name']}: bubble {p['bubble']:.3f}, small batches {p['small_batches']:.3f}, engine {p['engine']:.3f}"
        )
    for name, value in found.get("accuracy", {}).items():
        lines.append(f"validation accuracy of {name}: " + ("none" if value is None else f"{100 * value:.2f} %"))
    return "\n".join(lines)
