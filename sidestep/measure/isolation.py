"""The isolation audit: what a block's loss reaches and what its update depends on, measured on the running network.

Two properties that are easily confused (BLL has the first, not the second):

reach     only block n's loss is differentiated; which parameters get a gradient?
depends   a later block's parameters are disturbed; does block n's update change within the same step?

Both are measured through the engine that trains, and held against what the program says of itself.
"""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from sidestep.core.keys import generator, key
from sidestep.engines.streaming import Streaming

if TYPE_CHECKING:
    from sidestep.assemble import Assembly
    from sidestep.config import TrainConfig

AUDIT_BATCH = 32


def part_of(parameter: str) -> int | None:
    """The block a parameter's name belongs to, None for the shared part."""
    return int(parameter.split(".")[1]) if parameter.startswith("blocks.") else None


def reached_parts(gradients: dict[str, Tensor]) -> set[int | None]:
    return {part_of(name) for name, gradient in gradients.items() if bool(gradient.any())}


def audit(engine: Streaming, batch: tuple[Tensor, Tensor]) -> dict[str, object]:
    """Audit an engine on one batch (x, y); nothing is changed by it.

    isolated            whether every block's loss reaches that block's own parameters only
    agrees              whether all that is measured is what follows from the program
    gradients_cross     whether the program sends gradients over the cuts; down: its passes that later blocks send by
    blocks              a dict for each `block`, counted from 0:
        has_loss            whether its loss reaches any parameter; a frozen block's may reach none
        reaches             the blocks whose parameters its loss reaches; reaches_shared: whether it reaches the hub's
        depends_on_later    the later blocks that its update depends on
        derived_...         what the program says of the two; agrees: whether that is so
    shared              names of the hub's parameters, if they are trained
    shared_depends_on   the blocks that their update depends on
    locks               of the program: forward, backward, update
    """
    count, derived, chain = len(engine.chain.blocks), engine.derived, engine.chain
    reach: list[set[int | None]] = [reached_parts(engine.gradients(batch, losses={n})) for n in range(count)]
    before = engine.gradients(batch)
    depends: list[list[int]] = [[] for _ in range(count)]
    shared_depends: list[int] = []
    for later in range(count):
        with disturbed(chain.blocks[later], key("audit", later)):
            after = engine.gradients(batch)
        moved = {part_of(k) for k, g in before.items() if k not in after or not torch.equal(g, after[k])}
        for n in range(later):
            if n in moved:
                depends[n].append(later)
        if None in moved:
            shared_depends.append(later)
    # What is frozen gets no gradient, whatever the program would send there.
    moving = {n for n, block in enumerate(chain.blocks) if any(p.requires_grad for p in block.parameters())}
    blocks: list[dict[str, object]] = []
    agrees = expected_isolated = True
    for n in range(count):
        reaches = sorted(m for m in reach[n] if m is not None)
        shared = None in reach[n]
        expected = [m for m in derived.reaches(n) if m in moving] if reaches or shared else []
        expected_depends = derived.depends(n) if n in moving else []
        contradicted = reaches != expected or (shared and not derived.hub_trained) or depends[n] != expected_depends
        agrees = agrees and not contradicted
        expected_isolated = expected_isolated and not derived.hub_trained and set(expected) <= {n}
        blocks.append(
            {
                "block": n,
                "has_loss": bool(reach[n]),
                "reaches": reaches,
                "reaches_shared": shared,
                "derived_reaches": expected,
                "depends_on_later": depends[n],
                "derived_depends_on_later": expected_depends,
                "agrees": not contradicted,
            }
        )
    trained_hub = chain.hub is not None and derived.hub_trained
    isolated = all(reach[n] <= {n} for n in range(count))
    return {
        "isolated": isolated,
        "agrees": agrees and isolated == expected_isolated,
        "gradients_cross": derived.gradients_cross,
        "down": [str(p) for p in engine.program if p.order == "down"],  # what later blocks send
        "blocks": blocks,
        "shared": [f"hub.{name}" for name, _ in chain.hub.named_parameters()] if trained_hub and chain.hub else [],
        "shared_depends_on": shared_depends,
        "locks": derived.locks,
    }


@contextmanager
@torch.no_grad()
def disturbed(block: nn.Module, seed: int) -> Generator[None]:
    """A block's parameters with noise of a tenth of their own size added, and put back afterwards."""
    kept = [(p, p.clone()) for p in block.parameters()]
    for i, (p, _) in enumerate(kept):
        noise = torch.randn(p.shape, generator=generator(seed + i)).to(p)
        p.add_(noise * 0.1 * p.abs().mean().clamp_min(0.01))
    try:
        yield  # with gradients as they were: torch decorates a generator call by call
    finally:
        for p, before in kept:
            p.copy_(before)


def audit_assembly(assembly: Assembly) -> dict[str, object]:
    """Audit a run's network on a batch of its training data."""
    x, y = assembly.batches(0)
    found = audit(assembly.engine, (x[:AUDIT_BATCH], y[:AUDIT_BATCH]))
    config = assembly.config
    return {"method": config.method, "model": config.model, "data": config.data, "count": config.blocks} | found


def run(config: TrainConfig) -> dict[str, object]:
    """What `sidestep audit METHOD` prints: the freshly built network, audited."""
    from sidestep.assemble import assemble

    found = audit_assembly(assemble(config))
    return found | {"text": audit_text(found)}


def audit_text(found: dict[str, object]) -> str:
    """The verdict in words, and one line per block."""
    blocks, shared, down = found["blocks"], found["shared"], found["down"]
    assert isinstance(blocks, list) and isinstance(shared, list) and isinstance(down, list)
    lines = [f"{found['method']}, {found['model']} in {found['count']} blocks, on {found['data']}"]
    if found["isolated"]:
        lines.append("isolated: every block's loss reaches its own parameters only")
    elif shared:
        lines.append(f"not isolated: every block's loss also trains the shared part, {len(shared)} tensors of the hub")
    else:
        lines.append("not isolated: losses reach the parameters of other blocks")
    lines.append(f"{'block':>5}  {'its loss reaches blocks':<28} {'its update depends on later':<28}")
    for b in blocks:
        reaches = numbers(b["reaches"]) + (" + shared" if b["reaches_shared"] else "")
        reaches = reaches if b["has_loss"] else "(none, or it has no loss)"
        note = "" if b["agrees"] else "  <-- the program says otherwise"
        lines.append(f"{b['block'] + 1:>5}  {reaches:<28} {numbers(b['depends_on_later']) or 'none':<28}{note}")
    if down and any(b["depends_on_later"] for b in blocks):
        lines.append(f"later blocks send: {', '.join(down)}")
    if shared:
        lines.append(f"shared: {', '.join(shared[:3])}{', ...' if len(shared) > 3 else ''}")
    lines.append("measured and derived agree" if found["agrees"] else "MEASURED CONTRADICTS DERIVED")
    return "\n".join(lines)


def numbers(blocks: list[int]) -> str:
    """`1-4` for consecutive blocks, counted from 1."""
    if not blocks:
        return ""
    if len(blocks) > 2 and blocks == list(range(blocks[0], blocks[-1] + 1)):
        return f"{blocks[0] + 1}-{blocks[-1] + 1}"
    return ", ".join(str(b + 1) for b in blocks)
