"""How one part of a chain (a block, or the hub) turns its gradients into new parameters.  Shared by every engine."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn


@dataclass(frozen=True)
class UpdateRule:
    """The optimizer of every part, and what happens once per step around it.

    optimizer: makes one of a part's parameters, such as `torch.optim.Adam`; called once a part.
    schedule: step -> factor of the learning rate.  clip: largest gradient norm, of the part, or of the whole network
    where gradients cross the cuts.  ema: decay of the moving average of the parameters, which inference then uses.
    """

    optimizer: Callable[[Iterable[nn.Parameter]], Optimizer]
    schedule: Callable[[int], float] | None = None
    clip: float | None = None
    ema: float | None = None

    def __post_init__(self) -> None:
        if self.clip is not None and not self.clip > 0:
            raise ValueError(f"got clip={self.clip}, expected a norm above 0; leave it out not to clip.")
        if self.ema is not None and not 0 < self.ema < 1:
            raise ValueError(
                f"got ema={self.ema}, expected a decay between 0 and 1, such as 0.999; leave it out for none."
            )


class Updater:
    """The optimizer state and the moving average of one part.

    like: of a stack, one block's parameters, by whose shapes the rule says which of them are decayed.
    """

    def __init__(self, module: nn.Module, rule: UpdateRule, like: Sequence[nn.Parameter] | None = None) -> None:
        self.module = module
        self.rule = rule
        self.parameters: list[nn.Parameter] = [p for p in module.parameters() if p.requires_grad]
        self.optimizer = rule.optimizer(like or self.parameters) if self.parameters else None
        if self.optimizer is not None and like is not None:
            own = dict(zip(like, self.parameters, strict=True))
            for group in self.optimizer.param_groups:
                group["params"] = [own[p] for p in group["params"]]
        self.begun_with = self._settings()
        self.base_lr = [float(group["lr"]) for group in self.optimizer.param_groups] if self.optimizer else []
        self.average = (
            AveragedModel(module, multi_avg_fn=get_ema_multi_avg_fn(rule.ema)) if rule.ema is not None else None
        )

    def set_rate(self, step: int, done: set[int]) -> None:
        """Let the learning rate be the schedule's at this step.  done: tensors, by id, that hold it already."""
        if self.optimizer is None or self.rule.schedule is None:
            return
        factor = self.rule.schedule(step)
        for group, base in zip(self.optimizer.param_groups, self.base_lr, strict=True):
            if isinstance(group["lr"], Tensor):
                if id(group["lr"]) not in done:
                    group["lr"].fill_(base * factor)  # in its place, where a CUDA graph reads it
                done.add(id(group["lr"]))
            else:
                group["lr"] = base * factor

    def clip(self) -> None:
        if self.rule.clip is not None:
            nn.utils.clip_grad_norm_(self.parameters, self.rule.clip)

    def step(self) -> None:
        """Apply the gradients and forget them."""
        if self.optimizer is not None:
            self.optimizer.step()
            for p in self.parameters:
                p.grad = None
        if self.average is not None:
            # Also a part without parameters: its BatchNorm statistics are copied along.
            self.average.update_parameters(self.module)

    @property
    def for_inference(self) -> nn.Module:
        return self.module if self.average is None else self.average.module

    def _settings(self) -> list[dict[str, float]]:
        """The numbers that the optimizer keeps by group of parameters, but for a rate that is the schedule's."""
        groups = self.optimizer.param_groups if self.optimizer is not None else []
        scheduled = {"lr"} if self.rule.schedule is not None else set[str]()
        return [{k: v for k, v in g.items() if isinstance(v, int | float) and k not in scheduled} for g in groups]

    def _set(self, settings: Sequence[Mapping[str, float]]) -> None:
        if self.optimizer is not None:
            for group, own in zip(self.optimizer.param_groups, settings, strict=True):
                group.update(own)

    def take_settings(self, other: Updater) -> None:
        """Those that another updater of the same rule has come to."""
        self._set(other._settings())

    def state_dict(self) -> dict[str, Tensor]:
        """Optimizer state as `optim/<parameter>/<slot>`, the moving average as `ema/<name>`.

        And what an optimizer has changed of its own settings, as `optim/group <n>/<setting>`.
        """
        state: dict[str, Tensor] = {}
        names = {p: name for name, p in self.module.named_parameters()}
        if self.optimizer is not None:
            for parameter in self.parameters:
                for entry, value in self.optimizer.state.get(parameter, {}).items():
                    if value is not None:
                        # SGD without momentum keeps a None; Adam's step count is a tensor already.
                        state[f"optim/{names[parameter]}/{entry}"] = torch.as_tensor(value)
        for n, (own, begun) in enumerate(zip(self._settings(), self.begun_with, strict=True)):
            moved = {k: v for k, v in own.items() if begun.get(k) != v}
            state.update({f"optim/group {n}/{k}": number(v) for k, v in moved.items()})
        if self.average is not None:
            state["ema/n_averaged"] = self.average.n_averaged
            state.update({f"ema/{k}": v for k, v in self.average.module.state_dict().items()})
        return state

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        if self.optimizer is not None:
            parameters = dict(self.module.named_parameters())
            # Adam's step count lies with its parameter where kernels read it, else with the CPU: torch's own rule.
            kernels = self.optimizer.defaults.get("fused") or self.optimizer.defaults.get("capturable")
            self.optimizer.state.clear()
            self._set(self.begun_with)
            for entry, value in state.items():
                if entry.startswith("optim/group "):
                    _, name, setting = entry.split("/")
                    self.optimizer.param_groups[int(name.removeprefix("group "))][setting] = value.item()
                elif entry.startswith("optim/"):
                    _, name, slot = entry.split("/")
                    parameter = parameters[name]
                    # In the parameter's memory format, which fused kernels take for granted.
                    like = parameter if value.shape == parameter.shape else value
                    device = parameter.device if value.dim() or kernels else value.device
                    own = torch.empty_like(like, dtype=value.dtype, device=device)
                    self.optimizer.state[parameter][slot] = own.copy_(value)
        if self.average is not None:
            self.average.n_averaged.copy_(state["ema/n_averaged"])
            averaged = {k[len("ema/") :]: v for k, v in state.items() if k.startswith("ema/")}
            del averaged["n_averaged"]
            self.average.module.load_state_dict(averaged)


def number(value: float) -> Tensor:
    """(), of the dtype that gives the same number back."""
    return torch.tensor(value, dtype=torch.float64 if isinstance(value, float) else None)


def norms(parameters: Sequence[nn.Parameter], device: torch.device) -> Tensor:
    """The norms of all gradients, (P,), of which `nn.utils.clip_grad_norm_` takes the norm; 0 where there is none."""
    none = torch.zeros((), device=device)
    found = [none if p.grad is None else torch.linalg.vector_norm(p.grad) for p in parameters]
    return torch.stack(found) if found else torch.empty(0, device=device)
