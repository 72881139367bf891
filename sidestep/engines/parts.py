"""The parts of a chain that an engine has: what moves them, what is saved of them, and what answers with them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

from sidestep.core.block import Block, Chain
from sidestep.core.program import Program

from .replicas import GradientSum, Replicas
from .stacked import Stack, stretches
from .update import Updater, UpdateRule


class Parts:
    """The blocks `own`, counted from 0, and the hub if the first one is among them.

    updaters: of every part, by its id.  stacks: equal blocks that are computed as one, by their first block.  replicas:
    those that have the same parts in other processes.
    """

    def __init__(self, chain: Chain, own: range, rule: UpdateRule, replicas: Replicas | None = None) -> None:
        here = {f"blocks.{n}" for n in own} | ({"hub"} if 0 in own else set())
        self.chain, self.rule = chain, rule
        self.named = [(part, module) for part, module in chain.parts() if part in here]
        self.modules = [m for _, part in self.named for m in part.modules()]
        self.updaters = {part: Updater(module, rule) for part, module in self.named}
        self.stacks: dict[int, Stack] = {}
        self.sums = {part: GradientSum(part, module, replicas) for part, module in self.named} if replicas else {}
        self.due: list[str] = []  # parts that are to be moved once all replicas' gradients are here

    def stack(self, program: Program, device: torch.device) -> None:
        """Make stacks of the blocks that are equal.  Raises ValueError where there are none."""
        for blocks in stretches(self.chain, program, device):
            own = [self.updaters[f"blocks.{block.index}"] for block in blocks]
            self.stacks[blocks[0].index] = Stack(blocks, own, self.rule)

    @property
    def elsewhere(self) -> set[str]:
        """The parts of the chain that are not here, by id."""
        return {part for part, _ in self.chain.parts()} - self.updaters.keys()

    @property
    def stacked(self) -> set[int]:
        """The blocks that a stack computes with its first one."""
        return {n for stack in self.stacks.values() for n in stack.indices[1:]}

    def moving(self) -> Iterator[Updater]:
        """What moves the parameters: one for a stack, one for every other part."""
        within = {f"blocks.{n}" for stack in self.stacks.values() for n in stack.indices}
        yield from (updater for part, updater in self.updaters.items() if part not in within)
        yield from (stack.updater for stack in self.stacks.values())

    def tensors(self) -> Iterator[Tensor]:
        """Parameters and buffers, and their averages."""
        for updater in self.updaters.values():
            for module in (updater.module, updater.for_inference):
                yield from (*module.parameters(), *module.buffers())

    def train_mode(self) -> None:
        """Set it where it is not."""
        # Asked first, as setting it would cost a small block's time; of every module, since whoever holds the network
        # or its export may have put a part of a block in eval mode.
        if not all(module.training for module in self.modules):
            for _, module in self.named:
                module.train()

    # ------------------------------------------------------------------ moving

    def begin_last_call(self, part: str) -> None:
        """The next backward call is the last one of this step that adds to a part's gradients."""
        if self.sums:
            self.sums[part].begin()

    def end_last_call(self, part: str) -> None:
        if self.sums:
            self.sums[part].end()

    def set_rates(self, step: int) -> None:
        """Let the learning rates be the schedule's at this step."""
        done: set[int] = set()
        for updater in self.moving():
            updater.set_rate(step, done)

    def move(self, part: str) -> None:
        """Move a part that has all its gradients; with replicas the one before, while this one's are added up."""
        self.due.append(part)
        self._move_due(keep=1 if self.sums else 0)

    def move_rest(self) -> None:
        """Move what `move` has left."""
        self._move_due(keep=0)

    def _move_due(self, keep: int) -> None:
        while len(self.due) > keep:
            part = self.due.pop(0)
            if self.sums:
                self.sums[part].wait()
            self.updaters[part].clip()
            self.updaters[part].step()

    def wait_for_sums(self) -> None:
        """Have all gradients be those of all replicas."""
        for total in self.sums.values():
            total.wait()

    # --------------------------------------------------------------- gradients

    def forget_gradients(self) -> None:
        self.due.clear()
        for total in self.sums.values():
            total.forget()
        for stack in self.stacks.values():
            stack.forget_gradients()
        for module in self.modules:
            for p in module.parameters(recurse=False):
                p.grad = None

    def gradients(self) -> dict[str, Tensor]:
        """Those there are, by parameter name."""
        for stack in self.stacks.values():
            stack.hand_out_gradients()
        return {
            f"{part}.{name}": p.grad
            for part, module in self.named
            for name, p in module.named_parameters()
            if p.grad is not None
        }

    # --------------------------------------------------------------- inference

    @property
    def for_inference(self) -> Chain:
        """The chain that inference uses: moving averages where they are kept, else the trained parts themselves."""
        if self.rule.ema is None:
            return self.chain
        average = {part: updater.for_inference for part, updater in self.updaters.items()}
        blocks: list[Block] = []
        for block in self.chain.blocks:
            own = average.get(f"blocks.{block.index}", block)
            assert isinstance(own, Block)
            blocks.append(own)
        return Chain(blocks, average.get("hub", self.chain.hub), self.chain.at)

    # ------------------------------------------------------------------- state

    def state_dict(self) -> dict[str, Tensor]:
        """`<part>/model/<name>`, and what the part's updater keeps, under `<part>/`."""
        for stack in self.stacks.values():
            stack.hand_out_state()
        state: dict[str, Tensor] = {}
        for part, module in self.named:
            state.update({f"{part}/model/{k}": v for k, v in module.state_dict().items()})
            state.update({f"{part}/{k}": v for k, v in self.updaters[part].state_dict().items()})
        return state

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Continue from the state of all parts or of these.  Raises ValueError for a state of another chain."""
        state = {k: v for k, v in state.items() if "/" in k and k.partition("/")[0] not in self.elsewhere}
        # An optimizer has no state before its first step, so there is nothing to hold that part of it against.
        check_fits(networks(self.state_dict()), networks(state))
        for part, module in self.named:
            own = {k[len(part) + 1 :]: v for k, v in state.items() if k.startswith(part + "/")}
            module.load_state_dict({k[len("model/") :]: v for k, v in own.items() if k.startswith("model/")})
            self.updaters[part].load_state_dict(own)
        for stack in self.stacks.values():
            stack.take_state()


def networks(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Of a saved state what answers, parameters, buffers and averages, without what moves it."""
    return {k: v for k, v in state.items() if "/optim/" not in k}


def check_fits(own: Mapping[str, Tensor], saved: Mapping[str, Tensor]) -> None:
    """Raise ValueError where a saved state is of another network than one's own, by names and shapes."""
    ours, theirs = ({k: v.shape for k, v in state.items()} for state in (own, saved))
    if differ := sorted(k for k in ours.keys() | theirs.keys() if ours.get(k) != theirs.get(k)):
        raise ValueError(
            f"the saved state and this network differ at {differ[0]!r}; resume with the same model, cut and ema."
        )
