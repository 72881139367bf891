"""Equal blocks computed as one: beliefs or features by a cheap sweep without graphs, then all objectives at once.

The parameters of a stack live in one tensor each, (L, ...), of which every block's are views; one optimizer moves them.
Batched products round otherwise than a block's own, so this equals the other engines to float precision, not in bits.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import groupby, pairwise
from typing import NamedTuple, final

import torch
from torch import Tensor, nn, optim
from torch.func import functional_call, vmap

from sidestep.core.block import Block, Chain
from sidestep.core.cell import Batch, Cell, Context, run_cell
from sidestep.core.emit import Message
from sidestep.core.program import Pass, Program

from .update import Updater, UpdateRule

LARGEST_ON_CPU = 32
"""Blocks at once: more of them at a time fall out of a core's cache."""

ELEMENTWISE = {
    *(optim.SGD, optim.Adam, optim.AdamW, optim.Adamax, optim.NAdam, optim.RAdam),
    *(optim.RMSprop, optim.Rprop, optim.Adagrad, optim.Adadelta, optim.ASGD),
}
"""Optimizers that move every number by its own gradients, however many stand in one tensor."""


class Stacked(NamedTuple):
    """What a stack leaves: every block's objective (L,), its metrics (L,) by name, and what the last one sends."""

    loss: Tensor
    metrics: Mapping[str, Tensor]
    send: Message


@final
class Stack:
    """Consecutive blocks that differ in nothing but their parameters."""

    def __init__(self, blocks: Sequence[Block], updaters: Sequence[Updater], rule: UpdateRule) -> None:
        self.blocks, self.updaters, self.rule = list(blocks), list(updaters), rule
        self.indices = range(blocks[0].index, blocks[-1].index + 1)
        # A block whose parameters are those of all: it names them, holds them, and has one's put in their place.
        self.template = copy.deepcopy(blocks[0])
        names = [name for name, _ in self.template.named_parameters()]
        for name, *each in zip(names, *(block.parameters() for block in blocks), strict=True):
            owner, _, own = name.rpartition(".")
            setattr(self.template.get_submodule(owner), own, nn.Parameter(stacked(each)))
        self.updater = Updater(self.template, rule, like=list(blocks[0].parameters()))
        kind = type(self.updater.optimizer)
        if kind not in ELEMENTWISE:
            raise ValueError(
                f"got {kind.__name__}, which moves a tensor as a whole or is not known, expected one of torch.optim's "
                "that move each number by itself, such as Adam or SGD; use streaming."
            )
        self.parameters = dict(self.template.named_parameters())
        make_views(self.template, self.blocks)
        if self.updater.average is not None:
            make_views(self.updater.average.module, [updater.for_inference for updater in updaters])
        self.checked = False

    def run(
        self,
        p: Pass,
        batch: Batch,
        context: Context,
        shared: Message,
        message: Message,
        weight: Tensor,
        *,
        unlabelled: bool,
    ) -> Stacked:
        """Run a pass at all blocks and differentiate `weight` (L,) times their objectives.

        unlabelled: whether the pass sends the same where it has nothing to learn from.
        """
        received, message = self._sweep(p, Batch(batch.x, None) if unlabelled else batch, context, shared, message)
        try:
            if not self.checked:
                self._check(p, batch, context, shared, received)
            with context.precision():
                loss, metrics = self._at_once(p, batch, context, shared, received)[:2]
        except RuntimeError as error:
            if self.checked:
                raise
            reason = str(error).partition(". ")[0].partition("\n")[0]
            raise ValueError(f"a pass that cannot be stacked, {p}: {reason}; use streaming.") from error
        self.checked = True
        (loss * weight).sum().backward()
        return Stacked(loss.detach(), metrics, message)

    def _at_once(
        self, p: Pass, batch: Batch, context: Context, shared: Message, received: Message
    ) -> tuple[Tensor, Mapping[str, Tensor], Message]:
        """Every block's objective (L,), its metrics (L,), and what it sends (L, ...)."""

        def one(
            parameters: Mapping[str, Tensor], index: Tensor, *message: Tensor
        ) -> tuple[Tensor, Mapping[str, Tensor], Message]:
            cell = Cell(self.template, batch, context.task, shared, {}, key=0, index=index)
            emit = functional_call(_AtBlock(self.template), dict(parameters), (p, cell, message))
            assert emit.loss is not None and not emit.pull and not emit.send_grad, "one objective, nothing else"
            return emit.loss, emit.metrics, emit.send

        parameters = {f"block.{name}": turned(parameter) for name, parameter in self.parameters.items()}
        index = torch.arange(self.indices.start, self.indices.stop, device=context.device)
        return vmap(one, in_dims=(0, 0, *(0 for _ in received)))(parameters, index, *received)

    def _sweep(
        self, p: Pass, batch: Batch, context: Context, shared: Message, message: Message
    ) -> tuple[Message, Message]:
        """What every block receives, (L, ...), and what the last one sends; nothing for blocks that do not talk."""
        if p.order == "each":
            return (), ()
        received: list[Message] = []
        with torch.no_grad(), context.precision():
            for block in self.blocks:
                received.append(message)
                # Without a random key, whose making would cost as much as a small block: there is nothing random here.
                message = p.fn(Cell(block, batch, context.task, shared, {}, key=0), *message).send
        return tuple(torch.stack(each) for each in zip(*received, strict=True)), message

    def _check(self, p: Pass, batch: Batch, context: Context, shared: Message, received: Message) -> None:
        """Refuse, once, blocks that are not equal after all: in a number that their modules do not show, say.

        By what they send, too, since at the start all objectives are about the same; in float32, in which the two ways
        differ by rounding alone.
        """
        plain = replace(context, autocast=None)
        shared, received = in_float32(shared), in_float32(received)
        with torch.no_grad():
            loss, _, sent = self._at_once(p, batch, plain, shared, received)
            for n, block in enumerate(self.blocks):
                cell = Cell(block, batch, context.task, shared, {}, context.cell_key(batch, block.index, p.random_name))
                emit = run_cell(p, cell, tuple(each[n] for each in received), plain)
                same = emit.loss is not None and alike(emit.loss, loss[n])
                if not same or not all(alike(own, each[n]) for own, each in zip(emit.send, sent, strict=True)):
                    alone = "none" if emit.loss is None else f"{float(emit.loss):.4g}"
                    raise ValueError(
                        f"got another answer of block {block.index} in a stack than alone (objectives "
                        f"{float(loss[n]):.4g} and {alone}), expected equal blocks; use streaming."
                    )

    def update(self) -> None:
        """Move all parameters, each block's gradients clipped by their own norm."""
        gradients = [p.grad for p in self.updater.parameters if p.grad is not None]
        if self.rule.clip is not None:
            norm = torch.stack([torch.linalg.vector_norm(g.flatten(1), dim=1) for g in gradients]).norm(dim=0)
            factor = (self.rule.clip / (norm + 1e-6)).clamp(max=1.0)  # as nn.utils.clip_grad_norm_ has it
            for g in gradients:
                g.mul_(factor.view(-1, *(1 for _ in g.shape[1:])))
        self.updater.step()

    def forget_gradients(self) -> None:
        for p in self.updater.parameters:
            p.grad = None

    def hand_out_gradients(self) -> None:
        """Let every block's parameters have what they got, where the other engines leave it."""
        for n, block in enumerate(self.blocks):
            for whole, parameter in zip(self.updater.parameters, block.parameters(), strict=True):
                parameter.grad = None if whole.grad is None else turned(whole.grad)[n]

    def hand_out_state(self) -> None:
        """Let every block's updater have its part of the optimizer's state, as views, and of the average's count."""
        for n, (block, updater) in enumerate(zip(self.blocks, self.updaters, strict=True)):
            if self.updater.optimizer is not None and updater.optimizer is not None:
                for whole, parameter in zip(self.updater.parameters, block.parameters(), strict=True):
                    state = self.updater.optimizer.state.get(whole, {})
                    updater.optimizer.state[parameter] = {
                        slot: turned(value)[n] if isinstance(value, Tensor) and value.dim() else value
                        for slot, value in state.items()
                    }
            updater.take_settings(self.updater)
            if updater.average is not None and self.updater.average is not None:
                updater.average.n_averaged.copy_(self.updater.average.n_averaged)

    def take_state(self) -> None:
        """The other way round, after the blocks' updaters have loaded theirs."""
        updater, first = self.updater, self.updaters[0]
        updater.take_settings(first)
        if updater.optimizer is not None:
            updater.optimizer.state.clear()
            for whole, *parts in zip(updater.parameters, *(block.parameters() for block in self.blocks), strict=True):
                each = [u.optimizer.state[p] for u, p in zip(self.updaters, parts, strict=True) if u.optimizer]
                for slot, value in each[0].items():
                    alike = not isinstance(value, Tensor) or not value.dim()  # Adam's step count
                    updater.optimizer.state[whole][slot] = value if alike else stacked([s[slot] for s in each])
        if updater.average is not None and first.average is not None:
            updater.average.n_averaged.copy_(first.average.n_averaged)


def in_float32(message: Message) -> Message:
    return tuple(m.float() if m.is_floating_point() else m for m in message)


def alike(a: Tensor, b: Tensor) -> bool:
    # Sums in another order, and on a GPU perhaps in TF32; a factor that is not shown changes more than that.
    return torch.allclose(a, b, rtol=5e-3, atol=1e-3, equal_nan=True)


def stacked(parts: Sequence[Tensor]) -> Tensor:
    """Blocks' parameters as one, (L, ...), linear maps turned."""
    return turned(torch.stack([part.detach() for part in parts])).contiguous()


def turned(whole: Tensor) -> Tensor:
    """Stacked linear maps (L, out, in) as (L, in, out), and back; anything else as it is.

    The gradient of a batched linear map is made as (L, in, out), and a parameter of that shape takes it over without
    a copy.
    """
    return whole.mT if whole.dim() == 3 else whole


def make_views(whole: nn.Module, parts: Sequence[nn.Module]) -> None:
    """Let the parameters of the parts be views of stacked ones."""
    for n, part in enumerate(parts):
        for every, parameter in zip(whole.parameters(), part.parameters(), strict=True):
            parameter.data = turned(every.data)[n]


class _AtBlock(nn.Module):
    """A pass at a block, as a call that may have other parameters put in the block's place."""

    def __init__(self, block: Block) -> None:
        super().__init__()
        self.block = block

    def forward(self, p: Pass, cell: Cell, message: Message) -> object:
        return p.fn(cell, *message)


def stretches(chain: Chain, program: Program, device: torch.device) -> list[list[Block]]:
    """The blocks that can be stacked, two or more at a time.  Raises ValueError, with the reason, if there are none."""
    if len(program) != 1 or program[0].order == "down" or program[0].input_grad or not program[0].grad:
        shown = ", ".join(map(str, program))
        raise ValueError(f"stacked runs one Up or Each pass with objectives of its own, got {shown}; use streaming.")
    reasons = {block.index: reason for block in chain.blocks if (reason := _refused(block))}
    alike = groupby((block for block in chain.blocks if block.index not in reasons), key=_structure)
    found = [blocks for _, each in alike for blocks in _consecutive(list(each)) if len(blocks) > 1]
    if not found:
        why = next(iter(reasons.values()), "no two blocks in a row that are equal but for their parameters")
        raise ValueError(f"stacked asks for equal blocks in a row, got {why}; use streaming.")
    most = LARGEST_ON_CPU if device.type == "cpu" else len(chain.blocks)
    return [part for blocks in found for part in _even_parts(blocks, most)]


def _refused(block: Block) -> str:
    """Why a block cannot be in a stack, if so."""
    for name, module in block.named_modules():
        kind = type(module).__name__
        if isinstance(module, nn.modules.dropout._DropoutNd) and module.p > 0:  # pyright: ignore[reportPrivateUsage]  # the base of all of them
            return f"{kind} (block {block.index}, {name}), whose masks would be others"
        if next(module.buffers(recurse=False), None) is not None:
            return f"{kind} (block {block.index}, {name}), which has buffers"
    if len(list(block.parameters())) < len(list(block.named_parameters(remove_duplicate=False))):
        return f"a parameter in two places of block {block.index}"
    if not all(p.requires_grad for p in block.parameters()):
        return f"frozen parameters in block {block.index}"
    return ""


def _structure(block: Block) -> tuple[object, ...]:
    """What must be equal; names may differ, since a network's units keep theirs."""
    kinds = ((type(module), module.extra_repr()) for module in block.modules())
    return *kinds, *((p.shape, p.dtype) for p in block.parameters())


def _consecutive(blocks: list[Block]) -> list[list[Block]]:
    runs = groupby(enumerate(blocks), key=lambda pair: pair[1].index - pair[0])
    return [[block for _, block in run] for _, run in runs]


def _even_parts(blocks: list[Block], most: int) -> list[list[Block]]:
    count = -(-len(blocks) // most)
    ends = [len(blocks) * k // count for k in range(count + 1)]
    return [blocks[start:end] for start, end in pairwise(ends)]
