"""One block at a time: forward, backward, update, and the graph is gone before the next block starts.

An engine has all blocks, or some consecutive ones and a wire to those of others.  What it does is a generator: it
yields the way of a message that it needs from elsewhere, and is sent the message.  So one process, several, and several
engines that take turns in one are the same code.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import NamedTuple, final

import torch
from torch import Tensor, nn

from sidestep.core.block import Block, Chain
from sidestep.core.cell import (
    Batch,
    Cell,
    Context,
    check_gradients_enabled,
    finish_cell,
    frozen_statistics,
    leaves,
    on_device,
    run_cell,
)
from sidestep.core.emit import Emit, Message
from sidestep.core.method import Method
from sidestep.core.program import Derived, Pass, plan
from sidestep.core.task import Task
from sidestep.errors import UsageError

from .captured import CapturedStep
from .compiled import compilable, compile_calls
from .messages import Messages
from .parts import Parts
from .relay import Relay
from .replicas import Replicas
from .stacked import Stack
from .update import UpdateRule, norms
from .wire import T, When, Wire, Work

See = Callable[[Block, Message, Emit], object]
"""What is shown of every cell of an inference: the block, the message it got, and what it left behind."""


@dataclass(frozen=True)
class StepMetrics:
    """What a step measured; nothing is synchronised.

    loss: (K,) each block's objective, NaN where a block has none or is elsewhere.
    """

    loss: Tensor
    metrics: dict[str, Tensor]  # "<block>/<name>" -> ()


class Sweep(NamedTuple):
    """What a step wants of all cells on one micro-batch, and what they have measured."""

    batch: Batch
    update: bool  # whether a block moves once it is done
    scale: float  # of objectives
    only: Collection[int] | None  # the blocks whose objectives count; None is all
    losses: dict[int, Tensor]
    metrics: dict[str, Tensor]

    def counts(self, block: int) -> bool:
        return self.only is None or block in self.only


@final
class Streaming:
    """Runs a method's program on a chain that the method has built for the task.

    A block is updated right after its own last cell, so that at most the graphs the program asks for are alive at once:
    one block's for a program of one sweep.  Where gradients cross the cuts a clipped step waits for the norm of all.

    rule: how each block's gradients move it.  seed: of all that is drawn.  accumulate: micro-batches of a step.
    autocast: the dtype that passes compute in, None for the parameters' own.  compile: compile the blocks.

    own: the blocks, from 0, that are here, the hub being with the first; None is all.  wire: to those elsewhere.
    replicas: those that have the same blocks, with which the micro-batches of a step are shared out.

    stacked: compute equal blocks in a row as one, which `stacked` refuses where it cannot; all blocks are here.
    cuda_graph: record a step once and replay it, which `captured` refuses where it cannot; all blocks are here.

    total_steps: of the whole run, for a method whose objective changes over it.

    freeze: blocks, from 0, whose parameters stay as they are (requires_grad is off); what their objectives ask of other
    parts still counts, and running statistics still move.

    Raises ValueError for settings that do not go together or do not fit the chain; UsageError if nothing is trained.
    """

    def __init__(
        self,
        method: Method,
        chain: Chain,
        task: Task,
        rule: UpdateRule,
        *,
        own: range | None = None,
        wire: Wire | None = None,
        replicas: Replicas | None = None,
        stacked: bool = False,
        seed: int = 0,
        accumulate: int = 1,
        freeze: Collection[int] = (),
        autocast: torch.dtype | None = None,
        compile: bool = False,
        cuda_graph: bool = False,
        total_steps: int | None = None,
    ) -> None:
        count = len(chain.blocks)
        if accumulate < 1:
            raise ValueError(f"got accumulate={accumulate}, expected 1 or more micro-batches.")
        if total_steps is not None and total_steps < 1:
            raise ValueError(f"got total_steps={total_steps}, expected 1 or more.")
        if outside := sorted(set(freeze) - set(range(count))):
            raise ValueError(f"got freeze={outside[0]}, expected blocks, from 0 to {count - 1}.")
        self.own = range(count) if own is None else own
        self.relay = Relay(self.own, count, wire)
        for n in freeze:
            chain.blocks[n].requires_grad_(False)
        self.freeze = frozenset(freeze)
        if not any(p.requires_grad for _, p in chain.named_parameters()):
            raise UsageError(
                "got a network all of whose parameters are frozen, expected some to train; call requires_grad_() on "
                "them, or leave freeze out."
            )
        self.method, self.chain, self.task, self.rule = method, chain, task, rule
        self.accumulate, self.replicas = accumulate, replicas
        self.micros = range(accumulate) if replicas is None else replicas.share_of(accumulate)
        # A recording repeats itself: nothing in it may change over the run.
        self.total_steps = None if cuda_graph else total_steps
        device = next(p for _, p in chain.named_parameters()).device
        self.context = Context(task, seed, device, autocast)
        self.messages = Messages(method, self.context, self.relay)
        self.program = method.program()
        self.parts = Parts(chain, self.own, rule, replicas)
        if stacked:
            if compile:
                raise ValueError("stacked blocks are not compiled; give one of --engine stacked and --compile.")
            assert wire is None and replicas is None, "all blocks of a stack are here"
            self.parts.stack(self.program, device)
        self.cells = [cell for cell in plan(self.program, count, self.own) if cell[1] not in self.parts.stacked]
        hub_trained = chain.hub is not None and any(p.requires_grad for p in chain.hub.parameters())
        self.derived = Derived(count, self.program, hub_trained)
        self.steps = 0
        self.answers = 0  # inferences run, which tells their messages apart
        if compile:
            for module in compilable(chain):
                compile_calls(module)
        assert not cuda_graph or (wire is None and replicas is None), "all blocks of a recorded step are here"
        self.captured = CapturedStep(lambda batch: self.run(self._moving(batch)), device) if cuda_graph else None
        self.parts.forget_gradients()  # that a loop of the caller's own has left, for a step adds to what is there

    def share(self, own: range, wire: Wire | None, replicas: Replicas | None = None) -> Streaming:
        """An engine of the same run with some of these very blocks, a wire to the others, and replicas."""
        assert not self.parts.stacks and self.captured is None, "all blocks are in one process"
        return Streaming(
            self.method,
            self.chain,
            self.task,
            self.rule,
            own=own,
            wire=wire,
            replicas=replicas,
            seed=self.context.seed,
            accumulate=self.accumulate,
            freeze=self.freeze,
            autocast=self.context.autocast,
            total_steps=self.total_steps,
        )

    def leave_to(self, heir: Streaming) -> None:
        """Hold nothing any more that one of `share` does not: this engine is of no use then."""
        kept = {id(tensor) for tensor in heir.parts.tensors()}
        for tensor in self.parts.tensors():
            if id(tensor) not in kept:
                tensor.data = tensor.data.new_empty(0)  # whoever else has it holds nothing either

    @property
    def is_first(self) -> bool:
        """Whether the state of all blocks is gathered here, of the replicas' the first one's."""
        return 0 in self.own and (self.replicas is None or self.replicas.rank == 0)

    def run(self, work: Work[T]) -> T:
        """Do the work, waiting for the messages it asks for."""
        try:
            edge = next(work)
            while True:
                edge = work.send(self.relay.receive(edge))
        except StopIteration as done:
            return done.value
        finally:
            work.close()  # where a message did not come, so that what was begun is undone

    # ---------------------------------------------------------------- training

    def step(self, batch: tuple[Tensor, Tensor]) -> StepMetrics:
        """One update from one batch (x, y): x (B, ...), y as `Task.check_targets` has it, such as (B,) class indices.

        Raises ValueError, before anything is touched, for a batch that does not fit the task or the micro-batches.
        What the network itself refuses, as BatchNorm a single sample, shows once the blocks before have moved.
        """
        return self.run(self.stepping(batch))

    def stepping(self, batch: tuple[Tensor, Tensor]) -> Work[StepMetrics]:
        """`step`, as work."""
        self._check(batch)
        if (size := len(batch[0])) % self.accumulate:
            raise ValueError(f"got {size} samples, expected a multiple of accumulate={self.accumulate}.")
        self.parts.train_mode()
        self.parts.set_rates(self.steps)
        found = (yield from self._moving(batch)) if self.captured is None else self.captured(batch)
        self.steps += 1
        return StepMetrics(*found)

    def _moving(self, batch: tuple[Tensor, Tensor]) -> Work[tuple[Tensor, dict[str, Tensor]]]:
        """All of a step that a device does.  Returns what it measured."""
        x, y = batch
        losses: list[dict[int, Tensor]] = []
        metrics: dict[str, Tensor] = {}
        try:
            micros = list(zip(x.chunk(self.accumulate), y.chunk(self.accumulate), strict=True))
            for a in self.micros:
                part, last = Batch(*micros[a], self.steps, a, self.progress), a == self.micros[-1]
                losses.append({})
                yield from self._sweep(Sweep(part, last, 1 / self.accumulate, None, losses[-1], metrics))
            if self._update_together:
                yield from self._update_all()
            self.parts.move_rest()
        except BaseException:
            self.parts.forget_gradients()  # of a step that was interrupted: the next must not add to them
            raise
        return self._mean_loss(losses), metrics

    def gradients(self, batch: tuple[Tensor, Tensor], losses: Collection[int] | None = None) -> dict[str, Tensor]:
        """The gradients of a step on this batch as one micro-batch, by parameter name; nothing is changed by asking.

        They are not clipped, and of replicas this one's own.

        losses: only these blocks' objectives are differentiated, which shows what each of them reaches.  Parameters
        that nothing reaches are left out.
        """
        self._check(batch)
        self.parts.train_mode()
        self.parts.forget_gradients()
        try:
            with frozen_statistics(*(module for _, module in self.parts.named)):
                whole = Batch(*batch, self.steps, 0, self.progress)
                self.run(self._sweep(Sweep(whole, False, 1.0, losses, {}, {})))
            return self.parts.gradients()
        finally:
            self.parts.forget_gradients()

    def _check(self, batch: tuple[Tensor, Tensor]) -> None:
        """Refuse what cannot be learnt from, before anything is touched."""
        check_gradients_enabled()
        self.task.check(*batch)

    @property
    def progress(self) -> float | None:
        """Share of the run's steps that is done, None where it is not known how many there are."""
        return None if self.total_steps is None else min(self.steps / self.total_steps, 1.0)

    @property
    def _update_together(self) -> bool:
        return self.rule.clip is not None and self.derived.gradients_cross

    def _sweep(self, sweep: Sweep) -> Work[None]:
        """Run all cells."""
        batch = sweep.batch
        when = When(True, batch.step, batch.micro)
        encoded = yield from self.messages.from_hub(self.chain.hub, batch, when)
        shared = {n: leaves(encoded, self.derived.hub_trained) for n in self.own}
        cells = {n: Cell(self.chain.blocks[n], batch, self.task, shared[n], {}, key=0) for n in self.own}
        carry: dict[int, Message] = {}  # of every pass what its last cell has sent
        for i, n in self.cells:
            p, cell = self.program[i], cells[n]
            what = f"{i} {p.name}"
            cell.key = self.context.cell_key(batch, n, p.random_name)
            message = yield from self.messages.to_cell(p, what, n, carry.pop(i, ()), shared[n], batch, when)
            if n in self.parts.stacks:
                carry[i] = self._run_stack(self.parts.stacks[n], p, cell, message, sweep)
                continue
            emit = run_cell(p, cell, message, self.context)
            away = self.relay.after(p.order, what, when, len(batch.x), n)
            if away and not emit.send_grad:
                self.relay.send(away, emit.send)  # before the backward call, which others need not wait for
            if emit.loss is not None:
                sweep.losses[n] = emit.loss.detach()
                if not sweep.counts(n):
                    emit.loss = emit.loss * 0.0
            last = sweep.update and i == self.derived.last_pass
            if last:
                self.parts.begin_last_call(f"blocks.{n}")
            sent = finish_cell(emit, sweep.scale)
            if away and emit.send_grad:
                self.relay.send(away, sent)
            carry[i] = sent
            sweep.metrics.update({f"{n}/{name}": value for name, value in emit.metrics.items()})
            del emit, message
            if i == self.derived.last_pass:
                cell.kept.clear()
            if last:
                self._learnt(f"blocks.{n}")
        last = sweep.update and "hub" in self.parts.updaters
        if last:
            self.parts.begin_last_call("hub")
        if self.derived.hub_trained:
            yield from self.messages.to_hub(encoded, shared, when)
        if last:
            self._learnt("hub")  # also a frozen one, whose running statistics the average and the replicas get

    def _run_stack(self, stack: Stack, p: Pass, cell: Cell, message: Message, sweep: Sweep) -> Message:
        """Run, and move, a stack of blocks, of which `cell` is the first one's."""
        weight = on_device(tuple(sweep.scale * sweep.counts(n) for n in stack.indices), self.context.device)
        # What sends the same without labels is spared its objective in the sweep.
        unlabelled = p in self.method.inference()
        found = stack.run(p, sweep.batch, self.context, cell.shared, message, weight, unlabelled=unlabelled)
        sweep.losses.update(zip(stack.indices, found.loss, strict=True))
        for name, values in found.metrics.items():
            sweep.metrics.update({f"{n}/{name}": value for n, value in zip(stack.indices, values, strict=True)})
        if sweep.update:
            stack.update()
        return found.send

    def _learnt(self, part: str) -> None:
        """All gradients of a part are there."""
        self.parts.end_last_call(part)
        if not self._update_together:
            self.parts.move(part)

    def _update_all(self) -> Work[None]:
        """Clip by the norm of all gradients, for which all norms go up and their norm comes down, and update."""
        assert self.rule.clip is not None
        self.parts.wait_for_sums()
        parameters, when = [p for u in self.parts.updaters.values() for p in u.parameters], When(True, self.steps)
        own = norms(parameters, self.context.device)
        (every,) = yield from self.relay.fold_up(
            "norms", when, lambda before: (own if before is None else torch.cat([*before, own]),)
        )
        (total,) = yield from self.relay.broadcast_down("norm", when, (torch.linalg.vector_norm(every),))
        nn.utils.clip_grads_with_norm_(parameters, self.rule.clip, total)
        for updater in self.parts.updaters.values():
            updater.step()

    def _mean_loss(self, losses: list[dict[int, Tensor]]) -> Tensor:
        missing = torch.full((), torch.nan, device=self.context.device)
        blocks = range(self.derived.count)
        return torch.stack([torch.stack([micro.get(n, missing) for n in blocks]) for micro in losses]).mean(0)

    # --------------------------------------------------------------- inference

    def predict(self, x: Tensor) -> list[Tensor | None]:
        """Every block's answer, as `Task.answer_shape` has it, such as logits (B, C).

        None where a block has no read-out or is elsewhere.  Eval mode; moving averages where they are kept.
        """
        return self.run(self.predicting(x))

    def predicting(self, x: Tensor) -> Work[list[Tensor | None]]:
        """`predict`, as work."""
        logits: list[Tensor | None] = [None] * self.derived.count

        def see(block: Block, message: Message, emit: Emit) -> None:
            if emit.logits is not None:
                logits[block.index] = emit.logits

        yield from self.inferring(x, see)
        return logits

    def infer(self, x: Tensor, see: See) -> None:
        """Run what `predict` runs, and have every cell seen."""
        self.run(self.inferring(x, see))

    def inferring(self, x: Tensor, see: See) -> Work[None]:
        """`infer`, as work."""
        chain, program = self.inference_chain, self.method.inference()
        chain.train(False)
        batch = Batch(x, None)
        self.answers += 1
        when = When(False, self.answers)
        shared = yield from self.messages.from_hub(chain.hub, batch, when)
        cells = {n: Cell(chain.blocks[n], batch, self.task, shared, {}, key=0) for n in self.own}
        carry: dict[int, Message] = {}
        for i, n in plan(program, self.derived.count, self.own):
            p, cell = program[i], cells[n]
            what = f"{i} {p.name}"
            cell.key = self.context.cell_key(batch, n, p.random_name)
            message = yield from self.messages.to_cell(p, what, n, carry.pop(i, ()), shared, batch, when)
            with torch.no_grad():  # not around what waits: another engine may have its turn meanwhile
                emit = run_cell(p, cell, message, self.context)
            if away := self.relay.after(p.order, what, when, len(batch.x), n):
                self.relay.send(away, emit.send)
            see(cell.block, message, emit)
            carry[i] = emit.send

    @property
    def inference_chain(self) -> Chain:
        """The chain that inference uses: moving averages where they are kept, else the trained parts themselves."""
        return self.parts.for_inference

    # ------------------------------------------------------------------- state

    def state_dict(self) -> dict[str, Tensor]:
        """Everything a resumed run needs, keyed by part: the same layout however many processes there are."""
        return {"steps": torch.tensor(self.steps)} | self.parts.state_dict()

    def gather(self, more: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The `state_dict` of all engines, and what each adds, at the engine of the first block; a part elsewhere."""
        # As of no training step, whose messages keep their layout: an optimizer's grows with first gradients.
        return self.run(self.relay.gather("state", When(False, self.steps), self.state_dict() | dict(more)))

    def broadcast(self, value: int) -> int:
        """The first engine's value, at all; it waits for none but its replicas."""

        def said(before: Message | None) -> Message:
            if before is not None:
                return before
            return (torch.tensor(value if self.replicas is None else self.replicas.broadcast(value)),)

        (agreed,) = self.run(self.relay.fold_up("broadcast", When(True, self.steps), said))
        return int(agreed)

    def barrier(self) -> None:
        """Wait until the engines behind have come to this step too."""
        self.run(self.relay.broadcast_down("barrier", When(True, self.steps), (torch.tensor(self.steps),)))

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Continue from `state_dict`, of all parts or of these.  Raises ValueError for a state of another chain."""
        self.parts.load_state_dict(state)
        self.steps = int(state["steps"])
        if self.captured is not None:
            self.captured.forget()
