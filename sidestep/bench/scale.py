"""Step times that a simulation predicts from parts timed alone, beside those of real processes."""

from __future__ import annotations

import copy
import os
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from itertools import chain, repeat
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from sidestep.assemble import Assembly, optimizer_factory
from sidestep.bench import ranks
from sidestep.bench.plain import PlainStep
from sidestep.bench.ranks import MICROBATCHES, STEPS_A_TURN, first_batches, name_of, slices
from sidestep.bench.rivals import DataParallelStep, MakeOptimizer, MicroBatchedStep, PipelineStep
from sidestep.bench.step import Step, benched, ranged
from sidestep.config import TrainConfig
from sidestep.launch import threads_each
from sidestep.measure.timing import interleaved, ratios, threads
from sidestep.placement import Placement
from sidestep.precision import computed_in
from sidestep.ranks import world
from sidestep.simulate import links
from sidestep.simulate.links import Links
from sidestep.simulate.machine import Action, Link, Machine, Mark, simulate
from sidestep.simulate.rivals import Stage, data_parallel, gpipe, one_f_one_b, zero_bubble
from sidestep.simulate.stages import ROUNDS, buckets, stages_alone
from sidestep.simulate.trace import traced

SCHEDULES = {"GPipe": gpipe, "1F1B": one_f_one_b}
Predict = Callable[[Machine], float]
"""Seconds of a step on a machine."""


def run(config: TrainConfig, count: int, *, rounds: int = 14) -> dict[str, Any]:
    """What `sidestep bench scale` prints: every way to train in so many processes, as predicted and as measured.

    All that goes into a prediction was timed alone, and before; beside it only what cores give when all are busy with
    the like (`bench.busy`), which is part of the run: so beside it stands the prediction with what they give when all
    are busy with whole batches, and without messages.
    """
    assembly = benched(config, "clip")
    with threads(config.threads or threads_each(count)):
        expected = predictions(assembly, count, links.measured())
    found = ranks.run(config, count, rounds=rounds)
    cores = max(1, (os.cpu_count() or 1) // found["threads"])
    rows = [beside(row, expected[row["name"]], found, cores) for row in found["rows"] if row["name"] in expected]
    found |= {"rows": rows, "cores": cores}
    return found | {"text": scale_table(found)}


def beside(row: Mapping[str, Any], predict: Predict, found: Mapping[str, Any], cores: int) -> dict[str, Any]:
    """A row of `bench ranks`, with the step time that is predicted for it, and the plain one."""
    plain = found["calibration"]
    factors = {"": found["calibrations"].get(row["name"].split(", ")[-1], plain), "_plain": plain}
    told = dict(row)
    for which, factor in factors.items():
        busier = factor * min(cores, found["ranks"]) / found["ranks"]
        predicted = 1000 * predict(Machine(cores, busy=max(1.0, busier)))
        told |= {f"predicted{which}_ms": predicted, f"error{which}": predicted / row["step_ms"] - 1}
    return told


def predictions(assembly: Assembly, count: int, found: Links) -> dict[str, Predict]:
    """By the names of `bench ranks`."""
    autocast, make = assembly.engine.context.autocast, optimizer_factory(assembly.config)
    batches = first_batches(assembly)
    traces = traced(assembly.engine, Placement(count).blocks(len(assembly.chain.blocks)), batches)
    made: dict[str, Predict] = {name_of(assembly.config.method, count): turn(traces, found.wire)}
    for kind, each in ranks.SCHEDULES.items():
        for micros in MICROBATCHES:
            if micros >= each * count:
                parts = slices(assembly, each * count)
                stages = stages_alone(parts, make, batches[0], micros, autocast)
                if kind in SCHEDULES:
                    own = pipelines_alone(kind, parts, make, batches[0], micros, autocast)
                    stages = [slowed(stage, factor) for stage, factor in zip(stages, own, strict=True)]
                    works = [list(SCHEDULES[kind](stage, rank, count, micros)) for rank, stage in enumerate(stages)]
                else:  # ZBV, whose two stages on a rank do not follow each other, so that none runs by itself
                    pairs = [(stages[rank], stages[-1 - rank]) for rank in range(count)]
                    works = [list(zero_bubble(pair, rank, count, micros)) for rank, pair in enumerate(pairs)]
                made[f"{kind}, {micros} micro-batches"] = turn(works, found.gloo)
    network = copy.deepcopy(assembly.model)
    x, y = (part.chunk(count)[0] for part in batches[0])
    [replica] = stages_alone([network], make, (x, y), 1, autocast)
    replica = slowed(replica, replica_alone(network, make, (x, y), autocast))
    pairs = [data_parallel(replica, buckets(network), rank, count) for rank in range(count)]
    works = [own for own, _ in pairs] + [sums for _, sums in pairs]
    made["backprop, data parallel"] = turn(works, found.ring, on=[*range(count), *range(count)])
    return made


def pipelines_alone(
    kind: str,
    parts: Sequence[nn.Module],
    make: MakeOptimizer,
    batch: tuple[Tensor, Tensor],
    micros: int,
    autocast: torch.dtype | None,
) -> list[float]:
    """How much longer than plain micro-batches torch's pipeline takes for each part, where it is the only one.

    It has work of its own by the micro-batch, and its order decides what is still in a core's cache.
    """
    x, y = batch
    found: list[float] = []
    with group_of_one():
        for k, part in enumerate(parts):
            nets = [nn.Sequential(copy.deepcopy(part), nn.Flatten()) for _ in range(2)]
            pipeline = PipelineStep(kind, nets[:1], micros, make, world(), x.device, autocast)
            plain = MicroBatchedStep(nets[1], make(nets[1].parameters()), micros, autocast=autocast)
            found.append(longer(pipeline.step, plain.step, (x.detach().requires_grad_(k > 0), y)))
            with torch.no_grad(), computed_in(x.device, autocast):
                x = part(x)
    return found


def replica_alone(
    network: nn.Module, make: MakeOptimizer, share: tuple[Tensor, Tensor], autocast: torch.dtype | None
) -> float:
    """How much longer than plain backpropagation a replica of torch's data parallelism takes, where it is the only one.

    It copies all gradients to where they are added up, and back.
    """
    copies = [copy.deepcopy(network) for _ in range(2)]
    plain = PlainStep(copies[1], make(copies[1].parameters()), autocast=autocast)
    with group_of_one():
        return longer(DataParallelStep(copies[0], make, world(), autocast=autocast).step, plain.step, share)


@contextmanager
def group_of_one() -> Generator[None]:
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        yield
    finally:
        dist.destroy_process_group()


def longer(step: Step, plain: Step, batch: tuple[Tensor, Tensor]) -> float:
    """The median of paired ratios."""
    steps = {"step": partial(step, batch), "plain": partial(plain, batch)}
    return ratios(interleaved(steps, ROUNDS, device=batch[0].device), "step", "plain")[0]


def slowed(stage: Stage, factor: float) -> Stage:
    return stage._replace(forward=stage.forward * factor, backward=stage.backward * factor)


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
        f"{'':<25}{'ms a step (quartiles)':>24}{'predicted':>11}{'error':>9}{'plain':>11}",
    ]
    for r in found["rows"]:
        predicted = f"{r['predicted_ms']:>11.1f}{100 * r['error']:>7.1f} %{r['predicted_plain_ms']:>11.1f}"
        lines.append(f"{r['name']:<25}{ranged(r, 'step_ms'):>24}{predicted}")
    lines.append("calibration, all ranks busy over one; plain predictions have the whole batch's:")
    lines += [f"{'  ' + kind:<25}{factor:.3f}" for kind, factor in found["calibrations"].items()]
    return "\n".join(lines)
