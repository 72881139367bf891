"""Find the units of a network: the modules that, run in order, are its forward.

A model names them itself (`chain()`), is an `nn.Sequential`, or is traced and split wherever one tensor alone is alive.
"""

from __future__ import annotations

import operator
import os
import traceback
from collections.abc import Generator, Iterable, Mapping, Sequence
from contextlib import contextmanager
from itertools import takewhile
from pathlib import Path
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor, fx, nn
from torch.fx.passes.shape_prop import ShapeProp

from sidestep.errors import UsageError

OFFER = "give it a method chain() -> dict[str, nn.Module]: its units in order, the read-out last"


@runtime_checkable
class Chainable(Protocol):
    """A model that names its own units: run in order they are its forward, and the last is its read-out."""

    def chain(self) -> Mapping[str, nn.Module]: ...


def find_units(model: nn.Module, sample: Tensor) -> tuple[dict[str, nn.Module], bool]:
    """The units by name, in order, and whether the model named them itself, the last being its read-out."""
    own = _own_chain(model)
    return own or (_flatten(model) if _is_sequential(model) else _trace(model, sample)), bool(own)


@contextmanager
def evaluating(*modules: nn.Module) -> Generator[None]:
    """Eval mode inside, each module's own mode after."""
    modes = [(part, part.training) for module in modules for part in module.modules()]
    for module in modules:
        module.eval()
    try:
        yield
    finally:
        for part, mode in modes:
            part.training = mode


def call(what: str, module: nn.Module, x: Tensor) -> Tensor:
    try:
        y = module(x)
    except Exception as error:
        reason = str(error).partition("\n")[0]
        raise UsageError(f"{what} fails on an input of shape {tuple(x.shape)}: {reason}") from error
    if not isinstance(y, Tensor):
        raise UsageError(f"{what} returns a {type(y).__name__}; a chain passes one tensor from unit to unit.")
    return y


def has_parameters(module: nn.Module) -> bool:
    return any(True for _ in module.parameters())


def _own_chain(model: nn.Module) -> dict[str, nn.Module]:
    # A submodule that happens to be called `chain` is no method.
    if not isinstance(model, Chainable) or "chain" in dict(model.named_children()):
        return {}
    units = dict(model.chain())
    if len(units) < 2:
        raise UsageError(
            f"{type(model).__name__}.chain() names {len(units)} units; expected one or more and a read-out."
        )
    return units


def _is_sequential(module: nn.Module) -> bool:
    return isinstance(module, nn.Sequential) and type(module).forward is nn.Sequential.forward


def _flatten(sequential: nn.Module, prefix: str = "") -> dict[str, nn.Module]:
    units: dict[str, nn.Module] = {}
    for name, child in sequential.named_modules(remove_duplicate=False):
        if name and "." not in name:  # a direct child; named_children() would hide the second use of a module
            units |= _flatten(child, f"{prefix}{name}.") if _is_sequential(child) else {prefix + name: child}
    return units


def find_readout(units: Sequence[nn.Module], inputs: Sequence[Tensor]) -> int:
    """Where the read-out of an unmarked chain begins: the last unit with parameters, and the pool or flatten before it.

    Of the parameterless units directly before, it takes those from the first one that changes the shape.
    """
    last = max((i for i, unit in enumerate(units) if has_parameters(unit)), default=0)
    first = last
    while first > 0 and not has_parameters(units[first - 1]):
        first -= 1
    return next((i for i in range(first, last) if inputs[i].shape != inputs[i + 1].shape), last)


class _Tracer(fx.Tracer):
    proxy_buffer_attributes = True  # else what is computed from a buffer would be frozen into a constant

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        # A trace would freeze what a forward reads of `self.training`, as stochastic depth does.
        reads = getattr(type(m).forward, "__code__", None)
        within = module_qualified_name != "0"  # of the wrapper: the model itself
        frozen = within and reads is not None and "training" in reads.co_names
        return frozen or super().is_leaf_module(m, module_qualified_name)


def _trace(model: nn.Module, sample: Tensor) -> dict[str, nn.Module]:
    """The units of a model with a forward of its own: its graph, split wherever exactly one tensor is alive."""
    # A wrapper has one input whatever defaults the model's forward has, and takes the constants tracing finds.
    in_training = _graph(_Tracer(), nn.Sequential(model).train())
    tracer, root = _Tracer(), nn.Sequential(model).eval()
    graph = _graph(tracer, root)
    if str(graph) != str(in_training):
        raise UsageError(
            f"{type(model).__name__}.forward reads `self.training`, which a trace freezes; use a module that does"
            f" (nn.Dropout for F.dropout), or {OFFER}."
        )
    ShapeProp(fx.GraphModule(root, graph)).propagate(sample.clone())
    units: dict[str, nn.Module] = {}
    source, *nodes = (node for node in graph.nodes if node.op != "get_attr")
    order = {node: i for i, node in enumerate(nodes)}
    alive, segment = {source}, list[fx.Node]()
    for i, node in enumerate(nodes[:-1]):
        alive = {n for n in alive | {node} if any(order[user] > i for user in n.users)}
        segment.append(node)
        if alive == {node} and issubclass(node.meta["type"], Tensor):
            units[_name(segment, tracer, units)] = _module(root, source, segment)
            source, segment = node, []
    return units


def _graph(tracer: fx.Tracer, root: nn.Sequential) -> fx.Graph:
    try:
        return tracer.trace(root)
    except Exception as error:
        ours = (f"{Path(torch.__file__).parent}{os.sep}", __file__)
        frames = [f for f in traceback.extract_tb(error.__traceback__) if not f.filename.startswith(ours)]
        where = f" at {Path(frames[-1].filename).name}:{frames[-1].lineno}, `{frames[-1].line}`" if frames else ""
        reason = str(error).partition("\n")[0]
        raise UsageError(f"{type(root[0]).__name__} cannot be traced{where}: {reason}; {OFFER}.") from error


def _name(segment: Sequence[fx.Node], tracer: fx.Tracer, taken: Iterable[str]) -> str:
    """The module that a segment is, or is the beginning of; a lone operation is named after its module and itself."""
    paths = [tracer.node_name_to_scope[node.name][0].split(".")[1:] for node in segment]
    shared = [parts[0] for parts in takewhile(lambda parts: len(set(parts)) == 1, zip(*paths, strict=False))]
    for name in (".".join(shared), ".".join(paths[0])):
        if name and not any(f"{other}.".startswith(f"{name}.") for other in taken):
            return name
    return ".".join([*paths[0], segment[0].name])


def _module(root: nn.Module, source: fx.Node, segment: Sequence[fx.Node]) -> nn.Module:
    """The nodes of a segment as a module of `source`, over the model's own submodules and parameters."""
    first = segment[0]
    if len(segment) == 1 and first.op == "call_module" and first.args == (source,) and not first.kwargs:
        return root.get_submodule(str(first.target))
    graph = fx.Graph()
    copies = {source: graph.placeholder("x")}
    for node in segment:
        for used in node.all_input_nodes:
            if used.op == "get_attr" and used not in copies:
                copies[used] = graph.node_copy(used)
        copies[node] = graph.node_copy(node, copies.__getitem__)
    graph.output(copies[segment[-1]])
    parts: dict[str, object] = {}
    for node in graph.nodes:
        if node.op in ("get_attr", "call_module"):
            target = str(node.target)
            node.target = target.removeprefix("0.")
            parts[node.target] = operator.attrgetter(target)(root)
    return fx.GraphModule(parts, graph)
