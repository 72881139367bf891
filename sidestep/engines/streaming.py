"""One process, one block at a time: forward, backward, update, and the graph is gone before the next block starts."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, replace
from types import FunctionType

import torch
from torch import Tensor, nn

from sidestep.core.block import Block, Chain
from sidestep.core.cell import Batch, Cell, Context, finish_cell, frozen_statistics, leaves, run_cell, run_hub
from sidestep.core.emit import Emit, Message
from sidestep.core.method import Method
from sidestep.core.program import Derived, Pass, plan
from sidestep.core.task import Task

from .update import Updater, UpdateRule, clip_norm


@dataclass(frozen=True)
class StepMetrics:
    """What a step measured.  loss: (K,) each block's objective, NaN where a block has none; nothing is synchronised."""

    loss: Tensor
    metrics: dict[str, Tensor]  # "<block>/<name>" -> ()


class Streaming:
    """Runs a method's program in one process.

    A block is updated right after its own last cell, so that at most the graphs the program asks for are alive at once:
    one block's for a program of one sweep.  Where gradients cross the cuts a clipped step waits for the norm of all.

    total_steps: of the whole run, for a method whose objective changes over it.

    freeze: blocks, from 0, whose parameters stay as they are (requires_grad is off); what their objectives ask of other
    parts still counts, and running statistics still move.
    """

    def __init__(
        self,
        method: Method,
        chain: Chain,
        task: Task,
        rule: UpdateRule,
        *,
        seed: int = 0,
        accumulate: int = 1,
        freeze: Collection[int] = (),
        autocast: torch.dtype | None = None,
        compile: bool = False,
        total_steps: int | None = None,
    ) -> None:
        if accumulate < 1:
            raise ValueError(f"got accumulate={accumulate}, expected 1 or more micro-batches.")
        if total_steps is not None and total_steps < 1:
            raise ValueError(f"got total_steps={total_steps}, expected 1 or more.")
        if outside := sorted(set(freeze) - set(range(len(chain.blocks)))):
            raise ValueError(f"got freeze={outside[0]}, expected blocks, from 0 to {len(chain.blocks) - 1}.")
        for n in freeze:
            chain.blocks[n].requires_grad_(False)
        self.freeze = frozenset(freeze)
        self.method, self.chain, self.task, self.rule = method, chain, task, rule
        self.accumulate = accumulate
        self.total_steps = total_steps
        device = next(p for _, p in chain.named_parameters()).device
        self.context = Context(task, seed, device, autocast)
        self.program = method.program()
        self.cells = plan(self.program, len(chain.blocks))
        self.modules = [m for _, part in chain.parts() for m in part.modules()]
        self.updaters = {part: Updater(module, rule) for part, module in chain.parts()}
        hub = self.updaters.get("hub")
        self.derived = Derived(len(chain.blocks), self.program, hub_trained=hub is not None and bool(hub.parameters))
        self.steps = 0
        if compile:
            for module in compilable(chain):
                compile_calls(module)

    # ---------------------------------------------------------------- training

    def step(self, batch: tuple[Tensor, Tensor]) -> StepMetrics:
        """One update from one batch (x, y): x (B, ...), y (B,) class indices or (B, C) soft labels.

        Raises ValueError, before anything is touched, for a batch that cannot be learnt from.
        """
        x, y = batch
        self.task.check(x, y)
        if len(x) % self.accumulate:
            raise ValueError(f"got {len(x)} samples, expected a multiple of accumulate={self.accumulate}.")
        self._train_mode()
        losses: list[dict[int, Tensor]] = []
        metrics: dict[str, Tensor] = {}
        try:
            for a, micro in enumerate(zip(x.chunk(self.accumulate), y.chunk(self.accumulate), strict=True)):
                part = Batch(*micro, self.steps, a, self.progress)
                losses.append(self._sweep(part, metrics, update=a == self.accumulate - 1, scale=1 / self.accumulate))
            if self._update_together:
                self._update_all()
        except BaseException:
            self._forget_gradients()  # of a step that was interrupted: the next must not add to them
            raise
        self.steps += 1
        return StepMetrics(self._mean_loss(losses), metrics)

    def gradients(self, batch: tuple[Tensor, Tensor], losses: Collection[int] | None = None) -> dict[str, Tensor]:
        """The gradients a step on this batch would apply, by parameter name, with nothing changed by the asking.

        losses: only these blocks' objectives are differentiated, which shows what each of them reaches.  Parameters
        that nothing reaches are left out.
        """
        x, y = batch
        self.task.check(x, y)
        self._train_mode()
        with frozen_statistics(*(module for _, module in self.chain.parts())):
            self._sweep(Batch(x, y, self.steps, 0, self.progress), {}, update=False, scale=1.0, only=losses)
        found = {name: p.grad for name, p in self.chain.named_parameters() if p.grad is not None}
        self._forget_gradients()
        return found

    @property
    def progress(self) -> float | None:
        """Share of the run's steps that is done, None where it is not known how many there are."""
        return None if self.total_steps is None else min(self.steps / self.total_steps, 1.0)

    def _forget_gradients(self) -> None:
        for _, p in self.chain.named_parameters():
            p.grad = None

    def _train_mode(self) -> None:
        # Asked first, as setting it would cost a small block's time; of every module, since whoever holds the network
        # or its export may have put a part of a block in eval mode.
        if not all(module.training for module in self.modules):
            self.chain.train()

    @property
    def _update_together(self) -> bool:
        return self.rule.clip is not None and self.derived.gradients_cross

    def _sweep(
        self,
        batch: Batch,
        metrics: dict[str, Tensor],
        *,
        update: bool,
        scale: float,
        only: Collection[int] | None = None,
    ) -> dict[int, Tensor]:
        """Run all cells on one micro-batch and return its losses; with `update`, a block moves once it is done."""
        encoded = run_hub(self.method.encode, self.chain.hub, batch, self.context)
        shared = [leaves(encoded, self.derived.hub_trained) for _ in self.chain.blocks]
        cells = [Cell(b, batch, self.task, shared[b.index], {}, key=0) for b in self.chain.blocks]
        losses: dict[int, Tensor] = {}
        carry: Message = ()
        for i, n in self.cells:
            p, cell = self.program[i], cells[n]
            cell.key = self.context.cell_key(batch, n, p.random_name)
            emit = run_cell(p, cell, self._incoming(p, n, carry, batch, shared[n]), self.context)
            if emit.loss is not None:
                losses[n] = emit.loss.detach()
                if only is not None and n not in only:
                    emit.loss = emit.loss * 0.0
            sent = finish_cell(learnable(emit) if n in self.freeze else emit, scale)
            if p.order != "each":
                carry = sent
            metrics.update({f"{n}/{name}": value for name, value in emit.metrics.items()})
            del emit
            if i == self.derived.last_pass:
                cell.kept.clear()
                if update and not self._update_together:
                    self._update(f"blocks.{n}")
        if self.derived.hub_trained:
            self._backward_hub(encoded, shared)
            if update and not self._update_together:
                self._update("hub")
        return losses

    def _incoming(self, p: Pass, n: int, carry: Message, batch: Batch, shared: Message) -> Message:
        if p.order == "each":
            return ()
        if p.order == "up":
            return self.method.source(batch, shared, self.task) if n == 0 else carry
        return self.method.sink(batch, shared, self.task) if n == len(self.chain.blocks) - 1 else carry

    def _backward_hub(self, encoded: Message, shared: list[Message]) -> None:
        outputs: list[Tensor] = []
        gradients: list[Tensor] = []
        for k, output in enumerate(encoded):
            # Folded in block order: addition is not associative, and ranks must agree with one process.
            total: Tensor | None = None
            for its in shared:
                gradient = its[k].grad
                if gradient is not None:
                    total = gradient if total is None else total + gradient
            if total is not None:
                outputs.append(output)
                gradients.append(total)
        if outputs:
            torch.autograd.backward(outputs, gradients)

    def _update(self, part: str) -> None:
        self.updaters[part].clip()
        self.updaters[part].step(self.steps)

    def _update_all(self) -> None:
        assert self.rule.clip is not None
        clip_norm([p for u in self.updaters.values() for p in u.parameters], self.rule.clip)
        for updater in self.updaters.values():
            updater.step(self.steps)

    def _mean_loss(self, losses: list[dict[int, Tensor]]) -> Tensor:
        missing = torch.full((), torch.nan, device=self.context.device)
        return torch.stack(
            [
                torch.stack([micro[n] for micro in losses]).mean() if n in losses[0] else missing
                for n in range(len(self.chain.blocks))
            ]
        )

    # --------------------------------------------------------------- inference

    @torch.no_grad()
    def predict(self, x: Tensor) -> list[Tensor | None]:
        """Logits (B, C) of every block, None where a block has no read-out.  Eval mode; moving averages where kept."""
        logits: list[Tensor | None] = [None] * len(self.chain.blocks)
        for block, _, emit in self.infer(x):
            if emit.logits is not None:
                logits[block.index] = emit.logits
        return logits

    def infer(self, x: Tensor) -> Iterator[tuple[Block, Message, Emit]]:
        """What `predict` runs, cell by cell: the block, the message it gets, and what it leaves behind."""
        chain, program = self.inference_chain, self.method.inference()
        chain.train(False)
        batch = Batch(x, None)
        shared = run_hub(self.method.encode, chain.hub, batch, self.context)
        cells = [Cell(block, batch, self.task, shared, {}, key=0) for block in chain.blocks]
        carry: Message = ()
        for i, n in plan(program, len(chain.blocks)):
            p, cell = program[i], cells[n]
            cell.key = self.context.cell_key(batch, n, p.random_name)
            message = self._incoming(p, n, carry, batch, shared)
            emit = run_cell(p, cell, message, self.context)
            yield cell.block, message, emit
            if p.order != "each":
                carry = emit.send

    @property
    def inference_chain(self) -> Chain:
        """The chain that inference uses: moving averages where they are kept, else the trained parts themselves."""
        if self.rule.ema is None:
            return self.chain
        blocks: list[Block] = []
        for block in self.chain.blocks:
            average = self.updaters[f"blocks.{block.index}"].for_inference
            assert isinstance(average, Block)
            blocks.append(average)
        hub = self.updaters["hub"].for_inference if self.chain.hub is not None else None
        return Chain(blocks, hub, self.chain.at)

    # ------------------------------------------------------------------- state

    def state_dict(self) -> dict[str, Tensor]:
        """Everything a resumed run needs, keyed by part: the same layout for every engine and number of ranks."""
        state = {"steps": torch.tensor(self.steps)}
        for part, module in self.chain.parts():
            state.update({f"{part}/model/{k}": v for k, v in module.state_dict().items()})
            state.update({f"{part}/{k}": v for k, v in self.updaters[part].state_dict().items()})
        return state

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Continue from `state_dict`.  Raises ValueError for a state of another chain."""
        # An optimizer has no state before its first step, so there is nothing to hold that part of it against.
        ours, theirs = ({k: v.shape for k, v in s.items() if "/optim/" not in k} for s in (self.state_dict(), state))
        if differ := sorted(k for k in ours.keys() | theirs.keys() if ours.get(k) != theirs.get(k)):
            raise ValueError(
                f"the saved state and this network differ at {differ[0]!r}; resume with the same model, cut and ema."
            )
        for part, module in self.chain.parts():
            own = {k[len(part) + 1 :]: v for k, v in state.items() if k.startswith(part + "/")}
            module.load_state_dict({k[len("model/") :]: v for k, v in own.items() if k.startswith("model/")})
            self.updaters[part].load_state_dict(own)
        self.steps = int(state["steps"])


def learnable(emit: Emit) -> Emit:
    """Without what reaches no parameter: a frozen block's objective, or pull, on inputs that ask for no gradient."""
    loss = emit.loss if emit.loss is not None and emit.loss.requires_grad else None
    return replace(emit, loss=loss, pull=tuple(pair for pair in emit.pull if pair[0].requires_grad))


def compile_calls(module: nn.Module, backend: str = "inductor") -> None:
    """Compile what calling the module runs, in place; a copy of the module is not compiled.

    Not `module.compile()`: that compiles a frame of torch's own, which the compiler skips, so that of an nn.Sequential
    it captures nothing.  From a function of ours it looks inside.
    """
    # Torch has no public name for a call with its hooks, nor for where Module.compile() leaves its result: called in
    # place of _call_impl, and not copied.
    call = module._call_impl  # pyright: ignore[reportPrivateUsage]

    def compiled(*args: Tensor) -> object:
        return call(*args)

    # The compiler gives up on a code object after a few versions of it, eight by default.  Each module has its own.
    code = compiled.__code__.replace()
    own = FunctionType(code, compiled.__globals__, compiled.__name__, closure=compiled.__closure__)
    module._compiled_call_impl = torch.compile(own, backend=backend)  # pyright: ignore[reportPrivateUsage]  # as above


def compilable(chain: Chain) -> list[nn.Module]:
    """The modules whose forward is worth compiling: each net and each part hung on it, not the passes around them."""
    modules = [m for block in chain.blocks for m in (block.net, *block.extras.values())]
    return modules if chain.hub is None else [chain.hub, *modules]
