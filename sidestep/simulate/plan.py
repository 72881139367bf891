"""Which blocks go on which process: the fastest placement that fits, what it will take, and what it takes."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import psutil
import torch
import torch.distributed as dist
from torch import Tensor

from sidestep.assemble import Assembly, assemble
from sidestep.config import TrainConfig, from_toml, to_toml
from sidestep.core.cut import partition
from sidestep.engines.dist_wire import WINDOW
from sidestep.engines.parts import networks
from sidestep.engines.streaming import Streaming
from sidestep.errors import DataError
from sidestep.launch import spawn, threads_each
from sidestep.measure.describe import walk
from sidestep.measure.memory import MB, peak_rss_mb, step_peak_mb
from sidestep.measure.timing import threads
from sidestep.placement import Placement
from sidestep.ranks import joined
from sidestep.simulate import links
from sidestep.simulate.machine import Machine, simulate
from sidestep.simulate.trace import busy, repeated, step_seconds, traced

TRACED = 10
"""Steps in which blocks are timed alone, after two that are not."""
STEPS, FILLED = 30, 10
"""Of a simulation, and of a turn that is measured; and those of them until whoever may run ahead does."""
TURNS = 5


class Part(NamedTuple):
    """What there is of a block, or of the hub, in bytes."""

    network: int  # parameters and buffers
    averages: int  # of both
    state: int  # both of these, and the optimizer's
    gradients: int


class Weights:
    """What processes need of memory, in bytes, for any share of the blocks.

    besides: what each of them needs without any.
    """

    def __init__(self, engine: Streaming, batch: tuple[Tensor, Tensor], besides: int = 0) -> None:
        self.besides = besides
        walked = walk(engine, batch)
        self.derived, self.cells, self.hub = engine.derived, walked["cells"], walked["hub"]
        self.up, self.down = [0, *walked["up"], 0], [0, *walked["down"], 0]
        state = engine.state_dict()

        def within(prefix: str) -> int:
            return sum(value.nbytes for name, value in state.items() if name.startswith(prefix))

        self.parts = {
            part: Part(
                within(f"{part}/model/"),
                within(f"{part}/ema/"),
                within(f"{part}/"),
                sum(p.nbytes for p in module.parameters() if p.requires_grad),
            )
            for part, module in engine.chain.parts()
        }
        clipped = engine.rule.clip is not None and engine.derived.gradients_cross
        self.together = clipped or engine.accumulate > 1  # all gradients are there at once

    def here(self, own: range) -> list[Part]:
        """The hub is with the first block."""
        names = {f"blocks.{n}" for n in own} | ({"hub"} if 0 in own else set())
        return [part for name, part in self.parts.items() if name in names]

    def graphs(self, own: range) -> int:
        """Activations alive at once."""
        graphs = self.derived.peak(self.cells, own)
        # Where the block before is elsewhere, nobody else keeps the message that a gradient is wanted of.
        received = self.up[own.start] if self.derived.gradients_cross else 0
        return round(graphs + received + (self.hub if 0 in own else 0))

    def training(self, own: range) -> int:
        """Of a step: beside activations, what there is of the blocks, and messages on their way."""
        gradients = [part.gradients for part in self.here(own)]
        messages = sum(found[n] for found in (self.up, self.down) for n in (own.start, own.stop))
        kept = sum(part.state for part in self.here(own)) + (sum(gradients) if self.together else max(gradients))
        return kept + self.graphs(own) + WINDOW * messages

    def of(self, own: range) -> int:
        """The most at any time of a run.

        Everybody builds the whole network, and lets go of what is not its own.  To be saved everybody's state comes,
        part by part, to where the first block is, and with it the network that is judged and what was selected of it.
        """
        here, every = self.here(own), list(self.parts.values())
        again = sum(part.averages for part in here) if len(here) < len(every) else 0  # those of the network built
        built = sum(part.network + part.averages for part in every) + again
        if 0 not in own:
            on_their_way = 2 * max(part.state for part in every)
            saving = sum(part.state for part in here) + on_their_way
            return self.besides + max(built, self.training(own), saving)
        elsewhere = built - sum(part.network + part.averages for part in here)
        selected = sum(part.averages or part.network for part in every)
        return self.besides + max(self.training(own), sum(part.state for part in every)) + elsewhere + selected


def run(config: TrainConfig, placement: Placement, memory: int | None, *, measure: bool = False) -> dict[str, Any]:
    """What `sidestep plan MODEL` prints.

    memory: the most bytes that a process may need; None is any.  Raises DataError where no placement fits.
    """
    assembly = assemble(config)
    with threads(config.threads or threads_each(placement.ranks)):
        found = planned(assembly, placement, memory)
    if measure:
        numbers = ",".join(map(str, found["shares"]))
        found["measured"] = spawn(len(found["shares"]), config.threads, at_rank, to_toml(config), numbers)
    return found | {"text": plan_text(found)}


def planned(assembly: Assembly, placement: Placement, memory: int | None) -> dict[str, Any]:
    """What `run` returns, without what only running it tells."""
    config = assembly.config
    batches = [assembly.batches(n % assembly.batches.steps_per_epoch) for n in range(TRACED + 2)]
    count = len(assembly.chain.blocks)
    alone = traced(assembly.engine, [range(n, n + 1) for n in range(count)], batches)
    seconds = [busy(trace) for trace in alone]
    assembly.engine.step(batches[0])  # optimizer state is made by the first
    weights = Weights(assembly.engine, batches[0], idle_bytes(assembly.engine))
    if not placement.shares:
        placement = fastest(seconds, weights, placement.ranks, memory)
    shares = placement.blocks(count)
    traces = traced(assembly.engine, shares, batches)
    wire = links.measured().wire if len(shares) > 1 else links.Link()
    machine = Machine(max(1, (os.cpu_count() or 1) // torch.get_num_threads()))
    marks = simulate([repeated(trace, STEPS) for trace in traces], lambda a, b: wire, [machine], [0] * len(shares))
    needed = [weights.of(own) for own in shares]
    return {
        "method": config.method,
        "model": config.model,
        "data": config.data,
        "batch_size": config.batch_size,
        "precision": assembly.config.precision,
        "ranks": len(shares),
        "shares": [len(own) for own in shares],
        "block_ms": [1000 * s for s in seconds],
        "rank_ms": [1000 * busy(trace) for trace in traces],
        "memory_mb": [bytes / MB for bytes in needed],
        "activations_mb": [weights.graphs(own) / MB for own in shares],
        "fits": memory is None or max(needed) <= memory,
        "one_process_ms": 1000 * sum(seconds),
        "step_ms": 1000 * step_seconds(marks, FILLED),
        "waits": assembly.engine.derived.locks["update"],
    }


def idle_bytes(engine: Streaming) -> int:
    """What this process has resident without the network, such as libraries and data; of a CUDA device nothing."""
    if engine.context.device.type == "cuda":
        return 0
    return max(psutil.Process().memory_info().rss - sum(value.nbytes for value in engine.state_dict().values()), 0)


def fastest(seconds: Sequence[float], weights: Weights, ranks: int, memory: int | None) -> Placement:
    """The placement whose busiest rank is least busy, of those that fit."""
    count = len(seconds)

    def fits(i: int, j: int) -> bool:
        return memory is None or weights.of(range(i, j)) <= memory

    try:
        starts = partition([round(1e9 * s) for s in seconds], ranks, fits)
    except ValueError:
        most = max(range(count), key=lambda n: weights.of(range(n, n + 1)))
        least = weights.of(range(most, most + 1))
        asked = f"got --memory of {(memory or 0) / MB:.0f} MB for {count} blocks on {ranks} ranks"
        if memory is not None and least > memory:
            raise DataError(
                f"{asked}, but block {most} alone needs {least / MB:.0f} MB; cut into more blocks, or make it smaller."
            ) from None
        raise DataError(f"{asked}, which no placement fits; give more --ranks.") from None
    return Placement(ranks, shares=tuple(b - a for a, b in pairwise([0, *starts, count])))


def at_rank(config: str, shares: str) -> dict[str, Any]:
    """In every process: the time of a step and what this one needs of memory; all of it at the first."""
    assembly = assemble(from_toml(config))
    device = assembly.device
    numbers = tuple(map(int, shares.split(",")))
    with joined(Placement(len(numbers), shares=numbers)) as ranks:
        engine = ranks.engine(assembly)
        if not engine.is_first:
            assembly.engine.leave_to(engine)
        chosen = assembly.engine.inference_chain.state_dict() if engine.is_first else {}
        _selected = {name: value.clone() for name, value in chosen.items()}  # which a run has until it ends
        batches = [assembly.batches(n % assembly.batches.steps_per_epoch) for n in range(STEPS)]
        modules = [module for _, module in engine.parts.named]
        built = most_mb(device)
        peak = step_peak_mb(lambda: engine.step(batches[0]), modules, device)
        times: list[float] = []
        for _ in range(TURNS):
            dist.barrier()
            for batch in batches[:FILLED]:
                engine.step(batch)
            began = time.perf_counter()
            for batch in batches[FILLED:]:
                engine.step(batch)
            times.append((time.perf_counter() - began) / (STEPS - FILLED))
        state = engine.gather({})  # as for a save
        if engine.is_first and ranks.count > 1:
            assembly.engine.load_state_dict(networks(state))
        seen = torch.zeros(ranks.count, TURNS + 2, dtype=torch.float64)
        seen[ranks.rank] = torch.tensor([peak, max(built, most_mb(device)), *times])
        dist.all_reduce(seen)
        turns = sorted(1000 * seen[:, 2:].amax(0))
        return {
            "memory_mb": seen[:, 1].tolist(),
            "step_ms": turns[TURNS // 2].item(),
            "step_ms_low": turns[0].item(),
            "step_ms_high": turns[-1].item(),
            "activations_mb": seen[:, 0].tolist(),
        }


def most_mb(device: torch.device) -> float:
    """The most memory that this process has had: of a CUDA device, or resident."""
    return torch.cuda.max_memory_allocated(device) / MB if device.type == "cuda" else peak_rss_mb()


def plan_text(found: Mapping[str, Any]) -> str:
    measured = found.get("measured")
    beside = f"{'measured':>10}" if measured else ""
    lines = [
        f"{found['method']} on {found['model']}, {found['data']}, batch {found['batch_size']}, {found['precision']}",
        f"{'rank':<6}{'blocks':>8}{'ms of work':>12}{'memory, MB':>12}{beside}{'activations':>14}{beside}",
    ]
    start = 0
    for n, share in enumerate(found["shares"]):
        own = f"{start}" if share == 1 else f"{start}-{start + share - 1}"
        line = f"{n:<6}{own:>8}{found['rank_ms'][n]:>12.1f}"
        for name, width in (("memory_mb", 12), ("activations_mb", 14)):
            line += f"{found[name][n]:>{width}.1f}" + (f"{measured[name][n]:>10.1f}" if measured else "")
        lines.append(line)
        start += share
    lines += [
        "",
        f"a step in one process: {found['one_process_ms']:.1f} ms; predicted on these: {found['step_ms']:.1f} ms",
    ]
    if measured:
        low, high = measured["step_ms_low"], measured["step_ms_high"]
        lines.append(f"measured: {measured['step_ms']:.1f} ms ({low:.1f}..{high:.1f} in {TURNS} turns)")
    if found["waits"]:
        lines.append("Every step waits until all blocks are done, so ranks do not run ahead of each other.")
    if not found["fits"]:
        lines.append("A rank needs more memory than it may have.")
    shares = ",".join(map(str, found["shares"]))
    lines.append(f"train it with: --ranks {found['ranks']} --shares {shares}")
    return "\n".join(lines)
