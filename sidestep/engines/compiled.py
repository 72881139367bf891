"""Compiling what a chain's modules run, in place."""

from __future__ import annotations

from collections.abc import Callable
from types import FunctionType

import torch
from torch import Tensor, nn

from sidestep.core.block import Chain


def compile_calls(module: nn.Module, backend: str | Callable[..., object] = "inductor") -> None:
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
    # Which sizes vary it keeps by line, though: after blocks of unlike shapes it would compile for any shape.
    code = compiled.__code__.replace()
    own = FunctionType(code, compiled.__globals__, compiled.__name__, closure=compiled.__closure__)
    module._compiled_call_impl = torch.compile(own, backend=backend, dynamic=False)  # pyright: ignore[reportPrivateUsage]  # no public name leaves copies alone


def compilable(chain: Chain) -> list[nn.Module]:
    """The modules whose forward is worth compiling: each net and each part hung on it, not the passes around them."""
    modules = [m for block in chain.blocks for m in (block.net, *block.extras.values())]
    return modules if chain.hub is None else [chain.hub, *modules]
