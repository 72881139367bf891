"""Memory a step needs: what its forward computation keeps alive, and the process's peak.

Every storage counts once however many tensors share it; parameters and buffers are left out by naming them, gradients
and optimizer state by where they are made.
"""

from __future__ import annotations

import gc
import resource
import sys
import weakref
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

MB = 2**20


class Activations:
    """Bytes alive, filled in while `activation_bytes` runs: `current`, the most there ever was, `peak`, and `total`."""

    def __init__(self, exclude: Iterable[Tensor] = ()) -> None:
        self.current = 0
        self.peak = 0
        self.total = 0  # of all that ever came alive
        self._excluded = {_address(tensor) for tensor in exclude}
        self._owners: dict[int, int] = {}  # of each counted storage, by address

    def count(self, tensor: Tensor, owner: object) -> None:
        """Count the tensor's storage for as long as `owner` lives."""
        address, size = _address(tensor), tensor.untyped_storage().nbytes()
        if address in self._excluded:
            return
        self._owners[address] = self._owners.get(address, 0) + 1
        if self._owners[address] == 1:
            self.current += size
            self.total += size
            self.peak = max(self.peak, self.current)
        weakref.finalize(owner, self._release, address, size).atexit = False

    def _release(self, address: int, size: int) -> None:
        self._owners[address] -= 1
        if not self._owners[address]:
            del self._owners[address]
            self.current -= size


@contextmanager
def activation_bytes(
    exclude: Iterable[Tensor] = (), device: torch.device | str = "cpu"
) -> Generator[Activations, None, None]:
    """Measure the peak of the bytes that the code inside keeps alive for its backward passes.

        with activation_bytes(exclude=[*model.parameters(), *model.buffers()]) as measured:
            engine.step(batch)
        measured.peak

    CPU: every storage that autograd saves, from the moment it is saved until its graph lets go of it, the input batch
    among them; beside them, what forward computation keeps without a graph: tensors made with gradients disabled
    (a sweep whose graph is built later) or recomputed inside a backward pass (`torch.utils.checkpoint`), while they
    live.  `exclude` names parameters and buffers.  The copies autocast makes of weights in a lower precision are saved
    storages and count.  Compiled code is not seen through; measure before compiling.

    CUDA: the allocator's peak less what was allocated before, hence with gradients, workspaces and temporaries, and
    without the batch; `exclude` is not needed.  Take one step before, so that optimizer state is allocated already.
    `peak` is filled in at the end.
    """
    device = torch.device(device)
    if device.type != "cuda":
        with _recording(Activations(exclude)) as measured:
            yield measured
        return
    measured = Activations()
    torch.cuda.synchronize(device)
    # What is in a cycle, as an engine with a graph is, must go before it is counted, and not while it is.
    gc.collect()
    collects = gc.isenabled()
    gc.disable()
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    try:
        yield measured
        torch.cuda.synchronize(device)
    finally:
        if collects:
            gc.enable()
    measured.current = torch.cuda.memory_allocated(device) - before
    measured.peak = torch.cuda.max_memory_allocated(device) - before


def step_peak_mb(
    step: Callable[[], object], modules: Iterable[nn.Module], device: torch.device, warmup: int = 1
) -> float:
    """The peak of `activation_bytes` in a step, in MB of 2**20 bytes, without the modules' parameters and buffers.

    It is not the first: that makes optimizer state and caches.
    """
    for _ in range(warmup):
        step()
    state = [t for m in modules for t in (*m.parameters(), *m.buffers())]
    with activation_bytes(exclude=state, device=device) as measured:
        step()
    return measured.peak / MB


def saved_bytes(fn: Callable[[], object], exclude: Iterable[Tensor] = ()) -> int:
    """Bytes of all that autograd saves while `fn` runs, on any device."""
    measured = Activations(exclude)
    with _saving(measured):
        fn()
    return measured.total


def peak_rss_mb() -> float:
    """The most memory this process has had resident since it began, in MB of 2**20 bytes."""
    status = Path("/proc/self/status")
    if status.exists():  # Linux, where getrusage tells of a spawned process what its parent has had
        return int(status.read_text().partition("VmHWM:")[2].split()[0]) / 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / MB if sys.platform == "darwin" else peak / 1024  # macOS counts bytes, others KiB


class _Saved:
    """What autograd holds in place of a saved tensor; detached, as the tensor itself would keep its graph alive."""

    def __init__(self, tensor: Tensor) -> None:
        self.tensor = tensor.detach()


class _GraphFree(TorchDispatchMode):
    """Counts storages that autograd's own saving would not show: made by forward computation outside a graph."""

    def __init__(self, measured: Activations) -> None:
        super().__init__()
        self.measured = measured
        self.paused = False

    def __torch_dispatch__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        # Inside a backward pass gradients are made with grad mode off, and forward computation done again with it on.
        backward = torch._C._current_graph_task_id() != -1  # pyright: ignore[reportPrivateUsage]
        if not self.paused and torch.is_grad_enabled() == backward:
            given = {_address(tensor) for tensor in _dense((args, kwargs))}
            for tensor in _dense(result):
                if _address(tensor) not in given:  # neither a view nor written in place
                    given.add(_address(tensor))
                    self.measured.count(tensor, owner=tensor.untyped_storage())
        return result


def _saving(measured: Activations) -> saved_tensors_hooks:
    """Counts what autograd saves."""

    def pack(tensor: Tensor) -> _Saved:
        saved = _Saved(tensor)
        measured.count(tensor, owner=saved)
        return saved

    return saved_tensors_hooks(pack, lambda saved: saved.tensor)


@contextmanager
def _recording(measured: Activations) -> Generator[Activations, None, None]:
    mode = _GraphFree(measured)

    def pause(*_: object) -> None:
        mode.paused = True

    def go_on(*_: object) -> None:
        mode.paused = False

    # An optimizer's state and scratch are made with gradients disabled too, and are not activations.
    hooks = [register_optimizer_step_pre_hook(pause), register_optimizer_step_post_hook(go_on)]
    try:
        with mode, _saving(measured):
            yield measured
    finally:
        for hook in hooks:
            hook.remove()


def _address(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()


def _dense(tree: object) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor) and leaf.layout == torch.strided]
