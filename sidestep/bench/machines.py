"""Step times on many machines, which nobody here has: extrapolation from one block of this one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from itertools import product
from typing import Any

from sidestep.assemble import optimizer_factory
from sidestep.bench.ranks import first_batches, slices
from sidestep.bench.step import benched, circumstances
from sidestep.config import TrainConfig
from sidestep.engines.dist_wire import WINDOW
from sidestep.engines.lanes import CHUNK
from sidestep.errors import UsageError
from sidestep.placement import Placement
from sidestep.simulate.extrapolate import SYNCHRONISED_EVERY, MeasuredBlock, filling, goodput, goodputs, ways
from sidestep.simulate.links import Links
from sidestep.simulate.machine import Link, Send
from sidestep.simulate.stages import stages_alone
from sidestep.simulate.trace import Trace, busy, traced

RANKS = (8, 64, 256, 1024)


def network(bits: float, rtt: float) -> Links:
    """What messages meet on a line of so many bits a second and so many ms there and back."""
    line = Link(byte=8 / bits, latency=rtt / 2000)
    return Links(
        # engines.dist_wire: a head, then pieces, each received into a buffer that is made when the one before is there.
        wire=replace(line, window=WINDOW, piece=CHUNK),
        # gloo's sends, as torch's pipelines use them: it tells who sends that a receive has begun (transport/tcp/pair).
        gloo=replace(line, meet=True),
        ring=line,  # its receives begin two pieces ahead of what they receive (gloo/allreduce)
    )


def ahead(links: Links) -> Links:
    """The same line where nobody's message waits until it is asked for."""
    return Links(wire=replace(links.ring, window=WINDOW), gloo=links.ring, ring=links.ring)


NETWORKS = {
    f"{name}, {rtt} ms": network(bits, rtt)
    for name, bits in (("100 Mb/s", 1e8), ("1 Gb/s", 1e9), ("10 Gb/s", 1e10))
    for rtt in (1, 20, 100)
}
"""Bandwidth, and the time of a way there and back."""
THERE, AHEAD = "as they are", "that ask ahead"
"""Wires; on the second kind no message waits until it is asked for: what better code could gain, for everybody."""
MICROS = (4, 16, 64, 256)
LIVES = {"10 min": 600.0, "1 h": 3600.0, "6 h": 21600.0, "1 week": 604800.0}
SAVE, RESTART = 1.0, 8.0
"""Seconds: of saving a rank's blocks, which is assumed, and from its end to the next step (docs/reliability.md)."""


def run(config: TrainConfig, most: int) -> dict[str, Any]:
    """What `sidestep bench scale --machines` prints: extrapolation to many machines, from one block of this one.

    most: machines.  Raises UsageError for fewer than three blocks, of which none has two neighbours, for a batch that
    is not cut into micro-batches, and for fewer machines than the least that is shown.
    """
    if most < RANKS[0]:
        raise UsageError(f"got --machines {most}, expected {RANKS[0]} or more.")
    assembly = benched(config, "clip")
    blocks, batch = len(assembly.chain.blocks), assembly.config.batch_size
    if blocks < 3:
        raise UsageError(f"got {blocks} blocks, expected 3 or more: one in the middle stands for all; give --blocks 8.")
    autocast, make = assembly.engine.context.autocast, optimizer_factory(assembly.config)
    batches = first_batches(assembly)
    middle = blocks // 2
    trace = traced(assembly.engine, Placement(blocks).blocks(blocks), batches)[middle]
    parts = slices(assembly, blocks)
    micros = [m for m in MICROS if batch % m == 0]
    if not micros:
        raise UsageError(f"got a batch of {batch}, expected a multiple of {MICROS[0]} for micro-batches.")
    stages = {m: stages_alone(parts, make, batches[0], m, autocast)[middle] for m in micros}
    block = MeasuredBlock(trace, middle, stages, sum(p.nbytes for p in parts[middle].parameters()))
    rows: list[dict[str, Any]] = []
    for ranks, name in product((ranks for ranks in RANKS if ranks <= most), NETWORKS):
        for wire, links in ((THERE, NETWORKS[name]), (AHEAD, ahead(NETWORKS[name]))):
            seconds = ways(block, ranks, batch, links)
            filled = filling(block, ranks, links.wire, seconds["blocks"] or 0.0)
            shares = {life: goodputs(ranks, seconds, filled, LIVES[life], SAVE, RESTART) for life in LIVES}
            where = {"ranks": ranks, "network": name, "wire": wire}
            rows.append(where | {way: ms(its) for way, its in seconds.items()} | {"goodput": shares})
    kept = [
        {"ranks": ranks, "life": name, "goodput": goodput(ranks, life, SAVE, RESTART)}
        for ranks in RANKS
        if ranks <= most
        for name, life in LIVES.items()
    ]
    found: dict[str, Any] = {"rows": rows, "kept": kept, "message_kb": message(trace) / 1024}
    found["synchronised_every"] = SYNCHRONISED_EVERY
    found |= {"block_ms": 1000 * busy(trace), "parameters_kb": block.parameters / 1024} | circumstances(assembly)
    return found | {"text": machines_table(found)}


def ms(seconds: float | None) -> float | None:
    return None if seconds is None else 1000 * seconds


def message(trace: Trace) -> int:
    """Bytes that a rank sends in a step."""
    return sum(action.size for action in trace if isinstance(action, Send))


def machines_table(found: Mapping[str, Any]) -> str:
    names = [name for name in found["rows"][0] if name not in ("ranks", "network", "wire", "goodput")]
    lines = [
        f"extrapolated from one block of {found['model']} on {found['data']}, batch {found['batch_size']}, "
        f"{found['precision']}:",
        f"{found['block_ms']:.1f} ms of work, {found['message_kb']:.0f} KB of messages, "
        f"{found['parameters_kb']:.0f} KB of parameters.",
    ]
    for wire in (THERE, AHEAD):
        lines.append(f"ms a step, one block a machine, wires {wire}:")
        lines.append(f"{'machines':<9}{'network':<17}" + "".join(f"{name:>{max(7, len(name) + 1)}}" for name in names))
        for r in found["rows"]:
            if r["wire"] == wire:
                cells = ["" if r[name] is None else f"{r[name]:.0f}" for name in names]
                cells = [f"{cell:>{max(7, len(name) + 1)}}" for name, cell in zip(names, cells, strict=True)]
                lines.append(f"{r['ranks']:<9}{r['network']:<17}" + "".join(cells))
    lines.append("where machines end, rows above in which a rival keeps more steps a second:")
    for life in LIVES:
        behind = sum(loses(r, life) for r in found["rows"])
        lines.append(f"a machine lives {life}: {behind} of {len(found['rows'])}")
    return "\n".join(lines)


def loses(row: Mapping[str, Any], life: str) -> bool:
    """Whether any rival keeps more steps a second than blocks that only go forward."""
    kept = {way: share / row[way] for way, share in row["goodput"][life].items() if share is not None}
    return max(kept, key=lambda way: kept[way]) != "blocks"
