"""Cut a chain-shaped network into blocks: find its units, balance their cost, and prove that nothing was lost."""

from __future__ import annotations

from collections.abc import Callable, Collection, Generator, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from math import inf
from statistics import median
from time import perf_counter_ns
from typing import Literal, get_args

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from sidestep.errors import UsageError, unknown

from .task import Task
from .units import OFFER, call, evaluating, find_readout, find_units, has_parameters

Balance = Literal["flops", "memory", "params", "time"]


@dataclass(frozen=True)
class Slices:
    """A network cut into blocks; run in order, `bodies` and then `readout` are its forward, on its own parameters."""

    bodies: tuple[nn.Sequential, ...]  # one per block; the last without the read-out
    readout: nn.Module  # pool and classifier: features of the last body -> logits (B, C)
    shapes: tuple[torch.Size, ...]  # per body, of one sample's output: no batch dimension
    at: tuple[str, ...]  # the units that open blocks 1, 2, ...
    answer: torch.Size  # of the network, to the sample: (B, ...)

    @property
    def features(self) -> tuple[torch.Size, ...]:
        """`shapes`, as heads read them: (D,), tokens (T, D) or maps (D, H, W).  Raises UsageError for others.

        Among those are (D, T), which convolutions in one dimension leave: a shape does not tell them from tokens, but
        the block's last layer does.
        """
        for k, (body, shape) in enumerate(zip(self.bodies, self.shapes, strict=True)):
            width = _channels_first(body)
            if len(shape) > 3 or (len(shape) == 2 and width == shape[0] != shape[1]):
                raise UsageError(
                    f"block {k} ends in features of shape {tuple(shape)}, expected (D,), tokens (T, D) or maps "
                    "(D, H, W), as a head reads them; turn them round in the forward of its last unit."
                )
        return self.shapes

    @property
    def may_be_sums(self) -> tuple[bool, ...]:
        """Whether each of `features` may be a sum of residual branches, which grows with every branch, so that a
        read-out has to normalise it, as a transformer's classifier does.  Maps, which are read otherwise, are not.
        """
        return tuple(_may_be_sum(body, shape) for body, shape in zip(self.bodies, self.features, strict=True))

    @property
    def nets(self) -> tuple[nn.Module, ...]:
        """The bodies, the last of them with the read-out: its output is the network's logits."""
        return (*self.bodies[:-1], nn.Sequential(self.bodies[-1], self.readout))

    def nets_for(self, task: Task) -> tuple[nn.Module, ...]:
        """`nets`, of which the last one is to answer the task.  Raises UsageError where its answer has another form."""
        task.check_answer(self.answer)
        return self.nets


@dataclass(frozen=True)
class CutPlan:
    """How to cut: into `blocks` of about equal `balance`, or where `at` says.

    `balance` counts, for one forward of the sample in eval mode: "flops"; "memory", the bytes kept for the backward
    pass with the outputs; "params"; or "time", a median that may differ from run to run.  The read-out counts for
    the last block.  `at` names the units that open blocks 1, 2, ...; a module's name stands for its first unit.
    """

    blocks: int = 4
    balance: Balance = "flops"
    at: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.blocks < 1:
            raise UsageError(f"blocks={self.blocks}; expected at least 1.")
        if self.balance not in get_args(Balance):
            raise unknown("balance", self.balance, get_args(Balance))
        if self.at and len(self.at) != self.blocks - 1:
            raise UsageError(
                f"at={','.join(self.at)} makes {len(self.at) + 1} blocks, but blocks={self.blocks}; give as many names"
                " as blocks less one."
            )

    def __call__(self, model: nn.Module, sample: Tensor) -> Slices:
        """Cut `model`, whose input looks like `sample` (B, ...).  The model is left as it was.

        A model that cannot be cut so, or whose blocks would not compute exactly what it computes, is a `UsageError`.
        """
        if sample.dim() == 0 or len(sample) == 0:
            raise UsageError(f"a sample of shape {tuple(sample.shape)}; expected (B, ...) with at least one input.")
        with torch.no_grad(), evaluating(model):
            expected = call("the model", model, sample.clone())
            units, named = find_units(model, sample)
            if not any(has_parameters(unit) for unit in units.values()):
                raise UsageError(f"{type(model).__name__} has no unit with parameters; expected a network to train.")
            with evaluating(*units.values()):
                inputs = [sample.clone()]  # of each unit, and the last output
                for name, unit in units.items():
                    inputs.append(call(f"unit {name!r}", unit, inputs[-1]))
                end = len(units) - 1 if named else find_readout(list(units.values()), inputs)
                if not any(has_parameters(unit) for unit in list(units.values())[:end]):
                    raise UsageError(
                        f"{type(model).__name__} has no parameters before its read-out {list(units)[end]!r}, expected "
                        f"some to make blocks of; add a layer, or {OFFER}."
                    )
                lost = _without_batch(units, inputs)
                starts = self._named(units, end) if self.at else self._balanced(model, units, inputs, end, lost)
                for i in (*starts, end):
                    if i in lost:
                        raise UsageError(
                            f"what reaches {list(units)[i]!r} has shape {tuple(inputs[i].shape)} for a batch of "
                            f"{len(sample)}, expected the batch first, as local heads take it; use batch_first=True "
                            "in torch's own layers, or cut elsewhere (at)."
                        )
                slices = _assemble(units, [0, *starts, end], inputs)
                _verify(model, slices, sample, expected)
        return slices

    def _named(self, units: Mapping[str, nn.Module], end: int) -> list[int]:
        names = list(units)[:end]
        starts: list[int] = []
        for name in self.at:
            inside = [unit for unit in names if unit.startswith(f"{name}.")]
            if name not in names and not inside:
                raise unknown("cut point", name, names[1:])
            starts.append(names.index(name if name in names else inside[0]))
        if any(a >= b for a, b in pairwise([-1, *starts])):
            raise UsageError(f"at={','.join(self.at)} is not in the model's order, which is {', '.join(names)}.")
        return starts

    def _balanced(
        self,
        model: nn.Module,
        units: Mapping[str, nn.Module],
        inputs: Sequence[Tensor],
        end: int,
        lost: Collection[int],
    ) -> list[int]:
        names, modules = list(units), list(units.values())
        # A block opens with parameters: an activation stays with the layer before it.
        able = [i for i in range(end) if has_parameters(modules[i])][1:]
        opening = [i for i in able if i not in lost]
        if self.blocks > len(opening) + 1:
            why = (
                f" (what reaches {', '.join(names[i] for i in able if i in lost)} does not have the batch first; use "
                "batch_first=True in torch's own layers)"
                if len(opening) < len(able)
                else ""
            )
            raise UsageError(
                f"blocks={self.blocks}, but {type(model).__name__} can be cut into at most {len(opening) + 1}: before"
                f" its read-out {names[end]!r} it can be cut at {', '.join(names[i] for i in opening) or 'no unit'}"
                f"{why}; ask for fewer blocks or {OFFER}."
            )
        cost = {"flops": _flops, "memory": _memory, "params": _params, "time": _time}[self.balance]
        costs = [cost(unit, x) for unit, x in zip(modules, inputs[:-1], strict=True)]
        pieces = [sum(costs[a:b]) for a, b in pairwise([0, *opening, len(costs)])]
        return [opening[i - 1] for i in partition(pieces, self.blocks)]


def _without_batch(units: Mapping[str, nn.Module], inputs: Sequence[Tensor]) -> set[int]:
    """Which units get a tensor whose first dimension is not the batch's.

    Told by running one sample more: a batch may be as long as whatever else stands first.
    """
    count = len(inputs[0])
    x = torch.cat([inputs[0], inputs[0][:1]])
    lost: set[int] = set()
    for i, (name, unit) in enumerate(units.items()):
        if inputs[i].shape[:1] != (count,) or x.shape[:1] != (count + 1,):
            lost.add(i)
        x = call(f"unit {name!r}", unit, x)
    return lost


def cut(
    model: nn.Module, blocks: int = 4, *, sample: Tensor, balance: Balance = "flops", at: tuple[str, ...] = ()
) -> Slices:
    """Cut `model` into blocks; see `CutPlan`."""
    return CutPlan(blocks, balance, at)(model, sample)


def partition(
    costs: Sequence[int], blocks: int, fits: Callable[[int, int], bool] = lambda i, j: True
) -> tuple[int, ...]:
    """Where parts 1, 2, ... begin when `costs` is cut into `blocks` contiguous, non-empty parts.

    Of all cuts the one whose dearest part is cheapest; then of least sum of squares; then with the latest cuts, the
    first cut deciding first.  fits: whether costs[i:j] may be a part; raises ValueError where no cut is left.
    """
    n, total = len(costs), [0, *accumulate(costs)]
    if blocks == n and all(fits(i, i + 1) for i in range(n)):
        return tuple(range(1, n))  # what follows takes n^3 steps

    def part(i: int, j: int) -> float:
        return total[j] - total[i] if fits(i, j) else inf

    worst = [part(i, n) for i in range(n)]  # of the best cut of costs[i:]
    for _ in range(blocks - 1):
        worst = [min((max(part(i, j), worst[j]) for j in range(i + 1, n)), default=inf) for i in range(n)]
    limit = worst[0]
    if limit == inf:
        raise ValueError(f"got {n} costs, expected a cut into {blocks} parts that fit.")

    def square(i: int, j: int) -> float:
        return part(i, j) ** 2 if part(i, j) <= limit else inf

    best: list[tuple[float, tuple[int, ...]]] = [(square(i, n), ()) for i in range(n)]  # cuts negated: later is less
    for _ in range(blocks - 1):
        best = [
            min(((square(i, j) + best[j][0], (-j, *best[j][1])) for j in range(i + 1, n)), default=(inf, ()))
            for i in range(n)
        ]
    return tuple(-j for j in best[0][1])


# --- costs: of one unit on its input, any scale ----------------------------------------------------------------------


def _flops(unit: nn.Module, x: Tensor) -> int:
    # Fused kernels are not counted on every device: attention as plain products, and with gradients enabled, which
    # keeps torch's transformer layers off their inference path.
    with torch.enable_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        unit(x)
    return counter.get_total_flops()


def _params(unit: nn.Module, x: Tensor) -> int:
    return sum(p.numel() for p in unit.parameters())


def _memory(unit: nn.Module, x: Tensor) -> int:
    """Bytes of the output and of what autograd saves, each storage once; input and parameters are not counted."""
    if x.is_floating_point():
        x = x.detach().requires_grad_().clone()  # no leaf: the unit may write into its input
    held: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        held[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.enable_grad(), saved_tensors_hooks(pack, lambda tensor: tensor):
        pack(y := unit(x))
    for tensor in (x, *unit.parameters(), *unit.buffers()):
        held.pop(tensor.untyped_storage().data_ptr(), None)
    del y  # kept the graph, and so every address, alive until here
    return sum(held.values())


def _time(unit: nn.Module, x: Tensor) -> int:
    """Nanoseconds of a forward pass: the median of seven, so that the first calls do not count."""

    def now() -> int:
        if x.is_cuda:
            torch.cuda.synchronize(x.device)
        return perf_counter_ns()

    def once() -> int:
        start = now()
        unit(x)
        return now() - start

    return int(median(once() for _ in range(7)))


# --- blocks ----------------------------------------------------------------------------------------------------------


def _assemble(units: Mapping[str, nn.Module], bounds: Sequence[int], inputs: Sequence[Tensor]) -> Slices:
    names, end = list(units), bounds[-1]
    at = tuple(names[i] for i in bounds[1:-1])
    bodies = [_sequential({name: units[name] for name in names[a:b]}) for a, b in pairwise(bounds)]
    for k, body in enumerate(bodies):
        if not has_parameters(body):
            inside = ", ".join(names[bounds[k] : bounds[k + 1]]) or "no unit"
            raise UsageError(
                f"block {k} ({inside}) would have no parameters when cut at {', '.join(at) or 'no unit'} before the"
                f" read-out {names[end]!r}; choose other cut points or fewer blocks."
            )
    rest = names[end:]
    readout = units[rest[0]] if len(rest) == 1 else _sequential({name: units[name] for name in rest})
    shapes = tuple(inputs[b].shape[1:] for b in bounds[1:])
    return Slices(tuple(bodies), readout, shapes, at, inputs[-1].shape)


def _channels_first(body: nn.Module) -> int | None:
    """The channels of the last layer that has parameters, if it puts them before a length."""
    last = next((m for m in reversed([*body.modules()]) if any(True for _ in m.parameters(recurse=False))), None)
    if isinstance(last, nn.Conv1d | nn.ConvTranspose1d):
        return last.out_channels
    return last.num_features if isinstance(last, nn.BatchNorm1d) else None


def _may_be_sum(body: nn.Module, shape: torch.Size) -> bool:
    """Whether vectors or tokens are left by a module with layers and a forward of its own; a single layer adds none."""
    if len(shape) == 3:
        return False
    last = body
    while type(last) is nn.Sequential:
        kept = [module for module in last if not isinstance(module, nn.Dropout | nn.Identity)]
        if not kept:
            return False
        last = kept[-1]
    return any(True for _ in last.children())


def _sequential(units: Mapping[str, nn.Module]) -> nn.Sequential:
    body = nn.Sequential()
    taken = set(dir(body))
    for name, unit in units.items():
        child = name.replace(".", "_")
        while child in taken:
            child += "_"
        taken.add(child)
        body.add_module(child, unit)
    return body


def _verify(model: nn.Module, slices: Slices, sample: Tensor, expected: Tensor) -> None:
    """Refuse blocks that share a parameter, write into what the block before sent, or compute something else."""
    owners: dict[int, tuple[int, str]] = {}
    last = len(slices.bodies) - 1
    for k, part in [*enumerate(slices.bodies), (last, slices.readout)]:
        for name, owned in _state(part):
            j, other = owners.setdefault(id(owned), (k, name))
            if j != k:
                raise UsageError(
                    f"{other!r} of block {j} and {name!r} of block {k} are the same {type(owned).__name__}; cut so that"
                    " both lie in one block, or give each block its own."
                )
    if not expected.isfinite().all():
        raise UsageError(
            f"the answer of {type(model).__name__} is NaN or infinite for the sample, expected finite numbers; look at "
            "its parameters and the data."
        )
    x = sample.clone()
    for k, body in enumerate(slices.bodies):
        # torch counts writes into a tensor, but has no public name for the count.
        version = x._version  # pyright: ignore[reportPrivateUsage]
        y = call(f"block {k}", body, x)
        if x._version != version:  # pyright: ignore[reportPrivateUsage]
            raise UsageError(
                f"block {k} writes into its input, which block {k - 1} sent; set inplace=False where it begins."
                if k
                else "the model writes into its input; set inplace=False where it begins."
            )
        x = y
    found = slices.readout(x)
    # An accelerator may choose its kernels anew, and they add up in another order.
    same = torch.equal(found, expected) or (x.device.type != "cpu" and torch.allclose(found, expected, 1e-3, 1e-4))
    if not same:
        raise UsageError(
            f"the units of {type(model).__name__}, run in order, do not give the model's own output; {OFFER}."
        )


def _state(part: nn.Module) -> Generator[tuple[str, object]]:
    """Parameters, and modules with buffers, that a block updates and so must own alone."""
    yield from part.named_parameters(remove_duplicate=False)
    for name, module in part.named_modules(remove_duplicate=False):
        if any(True for _ in module.buffers(recurse=False)):
            yield name, module
