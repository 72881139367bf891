"""A method's program, and the locks, traffic and memory that follow from it, for one network and number of blocks."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from torch import Tensor

from sidestep.core.cell import Batch, Cell, finish_cell, frozen_statistics, leaves, run_cell, run_hub
from sidestep.core.emit import Message
from sidestep.core.program import CellId
from sidestep.engines.streaming import Streaming
from sidestep.measure.memory import MB, activation_bytes

if TYPE_CHECKING:
    from sidestep.assemble import Assembly
    from sidestep.config import TrainConfig


def message_bytes(message: Message) -> int:
    return sum(m.nbytes for m in message)


def walk(engine: Streaming, batch: tuple[Tensor, Tensor]) -> dict[str, Any]:
    """Run the program's cells on the batch's first micro-batch, and note what each graph and message weighs.

    Returns bytes of what cells leave behind (`cells`), and those of a block (`graph`), bytes over each cut `up` and
    `down`, of the hub's graph and output, and the peak that the program derives from them.
    """
    chain, context, method = engine.chain, engine.context, engine.method
    x, y = (part.chunk(engine.accumulate)[0] for part in batch)
    micro = Batch(x, y, progress=engine.progress)
    count = len(chain.blocks)
    parameters = [p for _, p in chain.named_parameters()]
    up, down = [0] * (count - 1), [0] * (count - 1)
    weight: dict[CellId, float] = {}
    chain.train()
    frozen = frozen_statistics(*(module for _, module in chain.parts()))
    # One account for the whole walk: a message that two blocks hold is counted at the first of them.
    with frozen, activation_bytes(exclude=parameters) as alive:
        encoded = run_hub(method.encode, chain.hub, micro, context)
        hub_bytes = float(alive.current)
        shared = leaves(encoded, engine.derived.hub_trained)
        cells = [Cell(b, micro, engine.task, shared, {}, key=0) for b in chain.blocks]
        carry: Message = ()
        for i, n in engine.cells:
            p = engine.program[i]
            cells[n].key = context.cell_key(micro, n, p.random_name)
            if p.order == "up" and n == 0:
                carry = method.source(micro, shared, engine.task)
            elif p.order == "down" and n == count - 1:
                carry = method.sink(micro, shared, engine.task)
            before = alive.current
            emit = run_cell(p, cells[n], () if p.order == "each" else carry, context)
            weight[i, n] = float(alive.current - before)
            sent = finish_cell(emit)
            if p.order == "up" and n < count - 1:
                up[n] += message_bytes(sent)
            if p.order == "down" and n > 0:
                down[n - 1] += message_bytes(sent)
            carry = carry if p.order == "each" else sent
            del emit
            if i == engine.derived.last_pass:
                cells[n].kept.clear()
    for parameter in parameters:
        parameter.grad = None
    return {
        "cells": weight,
        "graph": [sum(bytes for (_, m), bytes in weight.items() if m == n) for n in range(count)],
        "up": up,
        "down": down,
        "hub": hub_bytes,
        "peak": engine.derived.peak(weight) + hub_bytes,
        "hub_message": message_bytes(encoded),
    }


def describe(assembly: Assembly) -> dict[str, object]:
    """The program, its locks, and per step the bytes over the cuts and the activations alive at once."""
    engine, config = assembly.engine, assembly.config
    x, y = assembly.batches(0)
    found = walk(engine, (x, y))
    derived = engine.derived
    to_hub = engine.accumulate * found["hub_message"] * config.blocks
    return {
        "method": config.method,
        "reference": assembly.method.reference,
        "model": config.model,
        "data": config.data,
        "blocks": config.blocks,
        "at": list(config.at),
        "batch_size": len(x),
        "program": [str(p) for p in engine.program],
        "isolated": derived.isolated,
        "shared": assembly.chain.hub is not None and derived.hub_trained,
        "locks": derived.locks,
        "cells": len(engine.cells),
        "cells_in_a_row": derived.in_a_row,
        "depends_on_later": [derived.depends(n) for n in range(config.blocks)],
        "bytes_up": engine.accumulate * sum(found["up"]),
        "bytes_down": engine.accumulate * sum(found["down"]),
        "bytes_shared_out": to_hub,
        "bytes_shared_back": to_hub if derived.hub_trained else 0,
        "block_graph_bytes": found["graph"],
        "shared_graph_bytes": found["hub"],
        "peak_activation_bytes": found["peak"],
    }


def run(config: TrainConfig) -> dict[str, object]:
    """What `sidestep describe METHOD` prints."""
    from sidestep.assemble import assemble

    found = describe(assemble(replace(config, engine="streaming")))  # a stack has one cell for many blocks
    return found | {"text": describe_text(found)}


def describe_text(found: dict[str, object]) -> str:
    program, at, locks = found["program"], found["at"], found["locks"]
    assert isinstance(program, list) and isinstance(at, list) and isinstance(locks, dict)

    def megabytes(name: str) -> str:
        value = found[name]
        assert isinstance(value, int | float)
        return f"{value / MB:.3f} MB"

    lines = [
        f"{found['method']} ({found['reference']}): {found['model']} in {found['blocks']} blocks, {found['data']}, "
        f"batch {found['batch_size']}",
        f"cut before {', '.join(at)}" if at else "not cut",
        "",
        "program",
        *(f"  {p}" for p in program),
        "",
        "locks      " + ", ".join(f"{name}: {'yes' if held else 'no'}" for name, held in locks.items()),
        f"order      {found['cells_in_a_row']} of {found['cells']} cells one after another, however many processes",
        "isolated   " + ("yes" if found["isolated"] else "no"),
        f"traffic    {megabytes('bytes_up')} up, {megabytes('bytes_down')} down, per step over all cuts",
    ]
    if found["shared"]:
        lines += [
            f"shared     {megabytes('bytes_shared_out')} from the shared part to the blocks and back; its graph of",
            f"           {megabytes('shared_graph_bytes')} alive through the sweep: training it is an update lock",
        ]
    lines.append(f"memory     {megabytes('peak_activation_bytes')} of activations at the peak, one step of this batch")
    return "\n".join(lines)
