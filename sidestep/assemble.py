"""From a configuration to a network, its data and an engine: the one place that training, auditing and timing share."""

from __future__ import annotations

import copy
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor, nn

from sidestep import models
from sidestep.config import TrainConfig, build_method
from sidestep.core.block import Chain
from sidestep.core.cut import CutPlan
from sidestep.core.keys import global_rng, key
from sidestep.core.method import Method
from sidestep.core.task import Classification, Regression, Task
from sidestep.core.units import evaluating
from sidestep.data.augment import parse
from sidestep.data.order import Batches, eval_batches
from sidestep.data.samples import Samples, Source
from sidestep.data.sources import load
from sidestep.engines.streaming import Streaming
from sidestep.engines.update import UpdateRule
from sidestep.errors import UsageError, unknown
from sidestep.methods import method_class
from sidestep.precision import autocast_dtype, choose_precision
from sidestep.schedules import schedule

EVAL_BATCH = 512


@dataclass(frozen=True)
class Data:
    """What is trained on, selected on and judged on.  mean, std: a channel's, in the training part, or ()."""

    train: Source
    val: Source | None
    test: Source | None
    mean: tuple[float, ...]
    std: tuple[float, ...]


@dataclass(frozen=True)
class Assembly:
    """Everything one run is made of."""

    config: TrainConfig  # resolved: cut points, device and precision stand in it
    method: Method
    model: nn.Module  # the network as it was handed in; its parameters live on in the chain
    task: Task
    engine: Streaming
    data: Data
    batches: Batches
    total_steps: int  # of the whole run

    @property
    def chain(self) -> Chain:
        return self.engine.chain

    @property
    def device(self) -> torch.device:
        return torch.device(self.config.device)

    @property
    def channels_last(self) -> bool:
        return self.batches.channels_last

    @property
    def test(self) -> Source | None:
        """The test set, where there is one and the run may read it."""
        return None if self.config.test == "never" else self.data.test

    @property
    def text(self) -> bool:
        """Whether it is a text that is learnt, which is judged by its likelihood."""
        return isinstance(self.data.train, Samples) and self.data.train.text

    def answers(self, source: Source) -> Iterator[tuple[list[Tensor | None], Tensor]]:
        """Every block's answer, None without a read-out, and the targets; tokens with labels count as samples."""
        for x, y in self.eval_batches(source):
            found = self.engine.predict(x)
            if self.task.per_token:
                found, y = [None if block is None else block.flatten(0, -2) for block in found], y.flatten()
            yield found, y

    def eval_batches(self, source: Source) -> Iterator[tuple[Tensor, Tensor]]:
        """All samples in order, as the network wants them."""
        data = self.data
        return eval_batches(
            source,
            EVAL_BATCH,
            mean=data.mean,
            std=data.std,
            device=self.device,
            channels_last=self.channels_last,
            reconstruct=self.config.target == "inputs",
        )

    def parameter_counts(self) -> tuple[int, int]:
        """(all of the chain, frozen ones too; those of them that the method added to the network)."""
        own = {id(p) for p in self.model.parameters()}
        every = [p for _, p in self.chain.named_parameters()]
        return sum(p.numel() for p in every), sum(p.numel() for p in every if id(p) not in own)


def choose_device(name: str) -> torch.device:
    """`auto` is CUDA where there is one.  Raises UsageError for a device that is unknown, or that is not there."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if not re.fullmatch(r"cpu|cuda(:0|:[1-9][0-9]*)?", name):  # torch knows more: sidestep runs on none of them
        raise unknown("device", name, ["auto", "cpu", "cuda", "cuda:N"])
    there = torch.cuda.device_count()
    if name != "cpu" and int(name.partition(":")[2] or 0) >= there:
        raise UsageError(f"got device {name!r}, but this machine has {there} CUDA devices; use --device auto.")
    return torch.device(name)


def optimizer_factory(config: TrainConfig) -> Callable[[Iterable[nn.Parameter]], torch.optim.Optimizer]:
    """One optimizer for a part's parameters; biases and gains of normalisation are not decayed.

    A CUDA graph can hold it if the configuration asks for one.
    """
    rates: dict[torch.device, Tensor] = {}

    def make(parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
        parameters = list(parameters)
        device, lr = parameters[0].device, config.lr
        if config.cuda_graph:
            # A graph reads the rate where it lies; a float it would remember.  All parts share one: each is a launch.
            lr = rates.setdefault(device, torch.tensor(config.lr, device=device))
        groups = [
            {"params": [p for p in parameters if p.dim() > 1], "weight_decay": config.weight_decay},
            {"params": [p for p in parameters if p.dim() <= 1], "weight_decay": 0.0},
        ]
        groups = [group for group in groups if group["params"]]
        if config.optimizer == "sgd":
            sgd = partial(torch.optim.SGD, momentum=config.momentum, nesterov=config.nesterov and config.momentum > 0)
            return sgd(groups, lr=lr, fused=True)
        adam = torch.optim.AdamW if config.optimizer == "adamw" else torch.optim.Adam
        return adam(groups, lr=lr, fused=True, capturable=config.cuda_graph)

    return make


def load_data(config: TrainConfig) -> Data:
    splits = load(
        config.data,
        val_fraction=config.val_fraction,
        seed=config.seed,
        label_noise=config.label_noise,
        noise_val=config.label_noise > 0,
        context=config.context,
    )
    return Data(splits.train, splits.val if len(splits.val) else None, splits.test, splits.mean, splits.std)


def assemble(
    config: TrainConfig, *, data: Data | None = None, model: nn.Module | None = None, method: Method | None = None
) -> Assembly:
    """Build everything.  What is handed in is used instead of what the configuration names.

    Raises UsageError or another ValueError for settings that do not fit together, DataError for bad data.
    """
    if config.threads is not None:
        torch.set_num_threads(config.threads)
    device = choose_device(config.device)
    precision = choose_precision(config.precision, device)
    method = method or build_method(config)
    data = data or load_data(config)
    images, reconstruct = len(data.train.shape) == 3, config.target == "inputs"
    batches = Batches(
        data.train,
        config.batch_size,
        seed=config.seed,
        augment=parse(config.augment),
        mean=data.mean,
        std=data.std,
        device=device,
        channels_last=images,
        reconstruct=reconstruct,
    )
    x, y = batches(0)
    if reconstruct or not data.train.num_classes:
        task = Regression(y.shape[1:], x[:2])
    else:
        task = Classification(data.train.num_classes, x[:2], per_token=not y.is_floating_point() and y.dim() > 1)
    with global_rng(key(config.seed, "init"), device):
        if model is None:
            model = models.build(config.model, data.train.shape, task.outputs, **config.model_options)
        memory_format = torch.channels_last if images else torch.preserve_format
        place(model, device, memory_format)
        if images and not computes(model, task.sample):
            # What is wrong may be the memory format alone: `view` refuses what a convolution leaves in this one.
            memory_format, batches.channels_last = torch.contiguous_format, False
            task = replace(task, sample=task.sample.contiguous())
            place(model, device, memory_format)
        chain = method.build(model, task, CutPlan(config.blocks, config.balance, config.at))
    with torch.no_grad(), evaluating(model):
        task.check_answer(model(task.sample).shape)  # also of one whose read-out the method leaves out
    for _, module in chain.parts():
        place(module, device, memory_format)
    resolved = replace(
        config,
        at=chain.at,
        blocks=len(chain.blocks),
        device=str(device),
        precision=precision,
        engine="streaming" if config.engine == "auto" else config.engine,
    )
    total_steps = config.epochs * batches.steps_per_epoch
    rate = schedule(config.schedule, total_steps, config.warmup)
    engine = Streaming(
        method,
        chain,
        task,
        UpdateRule(optimizer_factory(config), rate, config.clip, config.ema),
        stacked=config.engine == "stacked",
        seed=config.seed,
        accumulate=config.accumulate,
        freeze=config.freeze,
        autocast=autocast_dtype(precision),
        compile=config.compile,
        cuda_graph=config.cuda_graph,
        total_steps=total_steps,
    )
    return Assembly(resolved, method, model, task, engine, data, batches, total_steps)


def with_method(assembly: Assembly, name: str) -> Assembly:
    """Another method on the same data and a copy of the network, by the same settings, but as plain eager code.

    The run's own has its fields and engine; any other its default fields, and it streams.
    """
    config = replace(assembly.config, compile=False, cuda_graph=False)
    if name == config.method:
        return assemble(config, data=assembly.data, model=copy.deepcopy(assembly.model), method=assembly.method)
    tries = [config.blocks]
    config = replace(config, method=name, engine="streaming")  # not every method can be stacked
    if assembly.chain.hub is not None:
        # Modules around a shared extractor can outnumber the units at which the network itself can be cut.
        tries = sorted({1, 2, 4, config.blocks}, reverse=True)
        config = replace(config, freeze=())  # it named modules, which are none of this one's blocks
    for blocks in tries:
        other = replace(config, blocks=blocks, at=config.at if blocks == len(config.at) + 1 else ())
        try:
            return assemble(other, data=assembly.data, model=copy.deepcopy(assembly.model), method=method_class(name)())
        except UsageError:
            if blocks == tries[-1]:
                raise
    raise AssertionError("a network that was assembled can be cut into one block")


def place(module: nn.Module, device: torch.device, memory_format: torch.memory_format) -> None:
    module.to(device)
    # torch's stubs leave out the overload that takes a memory format alone.
    module.to(memory_format=memory_format)  # pyright: ignore[reportCallIssue]


def computes(model: nn.Module, sample: Tensor) -> bool:
    """Whether the network answers a sample at all."""
    try:
        with torch.no_grad(), evaluating(model):
            model(sample.clone())  # it may write into its input
    except Exception:  # whatever it is: where the network is cut it comes again, and is said
        return False
    return True
