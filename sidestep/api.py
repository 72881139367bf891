"""Training from Python, on networks and data of one's own: `fit` for a run, `compare` for several methods."""

from __future__ import annotations

import copy
import html
import signal
import statistics
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sidestep.assemble import Assembly, Data, assemble
from sidestep.config import TrainConfig, resolve
from sidestep.core.cell import check_gradients_enabled
from sidestep.core.keys import global_rng, key
from sidestep.core.method import Method
from sidestep.data.samples import DatasetSamples, Samples, Source
from sidestep.data.sources import as_source, channel_stats
from sidestep.data.splits import stratified_split
from sidestep.errors import UsageError
from sidestep.folder import CUSTOM
from sidestep.layout import SUMMARY
from sidestep.methods import method_name
from sidestep.methods.backprop import Backprop
from sidestep.resuming import enter
from sidestep.run import Run, restored
from sidestep.stopping import Stopped
from sidestep.train import Trainer, check_selection


def fit(
    model: nn.Module,
    method: Method,
    train_set: object,
    val_set: object = None,
    test_set: object = None,
    *,
    blocks: int = 4,
    epochs: int = 10,
    num_classes: int | None = None,
    out: str | Path | None = None,
    quiet: bool = False,
    **settings: object,
) -> Run:
    """Train any chain-shaped network with any method; returns a Run.

    train_set, val_set, test_set: a Dataset of (x, y) or of dicts of both, a pair of tensors, or a `datasets.Dataset`.
    Of a Dataset the training labels are looked at once, to count them, and all of the other two.  Without a val_set a
    tenth of the training samples is held out, stratified, where they are held as tensors; else the last epoch counts.
    num_classes: by default what the training set names, or one more than its largest label.  settings: any key of the
    command line (`lr`, `batch_size`, `optimizer`, `augment`, `precision`, `resume`, ...).

    The network is trained in place, and ends with the parameters that validation chose; what of it asks for no
    gradient stays, and what `freeze` names asks for one again in the end.  All of it is in training mode meanwhile, so
    that running statistics move, also where nothing else does.  `run.model` is what inference needs, which a method may
    have given heads of its own: the network itself answers only where its own read-out is trained, as by backprop.

    Ctrl-C ends training after its step, keeps the network, and does not judge it on the test set; SIGTERM likewise, and
    then leaves Python, as it does without us.  With `out` the run leaves the same folder as `sidestep train`, and can
    be resumed by the same call with resume="last".

    Raises ValueError for settings or data that do not fit, before the network is touched; a bad training sample that
    only shows when a Dataset fetches it ends training before its step.
    """
    check_kind(model, "model", nn.Module, "a network; the order is model, method, train_set")
    check_kind(method, "method", Method, "a method such as ss.SID(alpha=0.5)")
    check_gradients_enabled()
    own = {"blocks": blocks, "epochs": epochs, "model": type(model).__name__, "out": out}
    config, data = prepare(method, train_set, val_set, test_set, num_classes, settings | own)
    start = None
    if config.out is not None:
        config, start = enter(config)
    with thawed_after(model), ExitStack() as folder:
        with unmoved_if_refused(model):
            assembly = assemble(config, data=data, model=model, method=method)
            check_selection(assembly)
            if config.out is not None and config.resume == "last" and (config.out / SUMMARY).exists():
                return restored(assembly, config.out)
            trainer = Trainer(assembly, quiet=quiet)
            if config.out is not None:
                folder.enter_context(trainer.begin(start))
        try:
            trainer.train()
        except Stopped as stopped:
            if stopped.number == signal.SIGTERM:
                raise SystemExit(128 + stopped.number) from None
            return Run(assembly, trainer.summary(), trainer.history, trainer.folder, interrupted=True)
        summary = trainer.finish()
        if rest := left_out(assembly):
            trainer.progress.note(
                f"{method_name(method)} does not train the network's own {', '.join(rest)}: run.model and run.predict "
                "answer, not the network that was handed in"
            )
        return Run(assembly, summary, trainer.history, trainer.folder)


def left_out(assembly: Assembly) -> list[str]:
    """The modules of the network that no block has, because the method answers otherwise."""
    kept = {id(p) for block in assembly.chain.blocks for p in block.parameters()}
    lost = (name.rpartition(".")[0] or name for name, p in assembly.model.named_parameters() if id(p) not in kept)
    return list(dict.fromkeys(lost))


@contextmanager
def unmoved_if_refused(model: nn.Module) -> Generator[None]:
    """Where an error ends this, the network's tensors are on the device and in the memory format they came in."""
    parameters = [(p, p.data) for p in model.parameters()]
    buffers = [(module, name, b) for module in model.modules() for name, b in module.named_buffers(recurse=False)]
    try:
        yield
    except BaseException:
        for parameter, data in parameters:
            parameter.data = data
        for module, name, buffer in buffers:
            setattr(module, name, buffer)
        raise


@contextmanager
def thawed_after(model: nn.Module) -> Generator[None]:
    """What of the network asked for gradients asks for them again in the end, whatever was frozen meanwhile."""
    asked = [p for p in model.parameters() if p.requires_grad]
    try:
        yield
    finally:
        for p in asked:
            p.requires_grad_()


def check_kind(value: object, name: str, kind: type, expected: str) -> None:
    """Refuse what a checker of types would have."""
    if not isinstance(value, kind):
        got = f"the class {value.__name__}" if isinstance(value, type) else f"an object of type {type(value).__name__}"
        raise UsageError(f"got {got} as {name}, expected {expected}.")


def prepare(
    method: Method,
    train_set: object,
    val_set: object,
    test_set: object,
    num_classes: int | None,
    settings: Mapping[str, object],
) -> tuple[TrainConfig, Data]:
    """The configuration of a run, and its data; nothing else is touched."""
    if "data" in settings:
        raise UsageError(f"got data={settings['data']!r}, expected samples as train_set; leave it out.")
    named = {key: str(value) if isinstance(value, torch.device) else value for key, value in settings.items()}
    config = resolve(method, named | {"data": CUSTOM}, custom=True)
    data = custom_data(train_set, val_set, test_set, num_classes, config)
    if data.val is None and "select" not in settings:
        config = replace(config, select="last")
    return config, data


def custom_data(
    train_set: object, val_set: object, test_set: object, num_classes: int | None, config: TrainConfig
) -> Data:
    """The user's own data; a tensor of images in bytes is normalised by its statistics, all else is left alone."""
    if config.label_noise or config.context is not None:
        raise UsageError("label_noise and context change data sets that are read by name; change train_set itself.")
    if num_classes is not None and num_classes < 1:
        raise UsageError(f"got num_classes={num_classes}, expected at least 1, or none to count them.")
    train = as_source(train_set, num_classes)
    if num_classes and not train.num_classes:
        raise UsageError(f"got num_classes={num_classes} and targets that are numbers; leave it out, or give integers.")
    if isinstance(train, Samples) and train.y.is_floating_point() and config.target != "inputs":
        check_scale(train.y)
    val, test = (None if s is None else as_source(s, train.num_classes or None) for s in (val_set, test_set))
    for name, other in (("val_set", val), ("test_set", test)):
        if other is not None:
            check_like(train, other, name)
    if val is None and isinstance(train, Samples) and config.val_fraction:
        kept, held = stratified_split(train.y, config.val_fraction, config.seed)
        if len(held):
            train, val = train.take(kept), train.take(held)
    mean, std = (), ()
    if isinstance(train, Samples) and train.x.dtype == torch.uint8:
        mean, std = channel_stats(train.x)
    return Data(train, val, test, mean, std)


def check_scale(y: Tensor) -> None:
    """Refuse targets of a natural scale: what a network puts out at first is near 0 and 1, and it learns little by
    little from there.
    """
    mean, deviation = y.double().mean().item(), y.double().std(correction=0).item()
    if abs(mean) > 100 or not 1e-3 <= deviation <= 100:
        raise UsageError(
            f"got targets with mean {mean:.4g} and deviation {deviation:.4g}, expected about 0 and 1, from which a "
            "network starts; give fit (y - mean) / deviation, and take its answers back."
        )


def check_like(train: Source, other: Source, name: str) -> None:
    """Refuse samples that do not go with the training samples, by the first of each; and any that is bad."""
    (x, y), (train_x, train_y) = (source.fetch(torch.tensor([0])) for source in (other, train))
    for what, got, wanted in (
        ("samples of shape", other.shape, train.shape),
        ("samples of", x.dtype, train_x.dtype),
        ("targets of", y.dtype, train_y.dtype),
        ("targets of shape", tuple(y.shape[1:]), tuple(train_y.shape[1:])),
    ):
        if got != wanted:
            raise UsageError(f"{name} has {what} {got}, expected {wanted} as in train_set.")
    if isinstance(other, DatasetSamples):
        other.check()  # a bad sample is not to show when training is over


@dataclass
class Comparison:
    """What `compare` measured; shows itself as a table in a notebook.

    rows: of every method its name, n runs, their accuracies as fractions, and the mean (`accuracy`) and sample standard
    deviation (`std`, None for one) of these.
    """

    rows: list[dict[str, Any]]

    def __str__(self) -> str:
        return "\n".join(
            f"{row['method']:<22} {100 * row['accuracy']:.2f} %"
            + (f" ± {100 * row['std']:.2f}" if row["std"] is not None else "")
            for row in self.rows
        )

    def _repr_html_(self) -> str:
        body = "".join(
            f"<tr><td>{html.escape(row['method'])}</td><td>{100 * row['accuracy']:.2f}</td>"
            f"<td>{'' if row['std'] is None else format(100 * row['std'], '.2f')}</td><td>{row['n']}</td></tr>"
            for row in self.rows
        )
        return f"<table><tr><th>method</th><th>accuracy %</th><th>sd</th><th>n</th></tr>{body}</table>"


def compare(
    model: nn.Module | Callable[[], nn.Module],
    methods: Method | Sequence[Method],
    train_set: object,
    val_set: object = None,
    test_set: object = None,
    *,
    seeds: int = 3,
    seed: int = 0,
    **settings: Any,
) -> Comparison:
    """Train copies of one network with each method under the same settings; backprop is always in.

    model: a network, copied with its parameters for every run, or a function that makes one, called under each seed.
    seeds: how many runs of each method, seeded from `seed` on.  settings: as for `fit`, without `out`.

    Raises ValueError for what cannot be compared, before the first run.
    """
    if "out" in settings:
        raise UsageError("got out, which compare has not, expected the settings of fit; `sidestep compare` keeps runs.")
    if seeds < 1:
        raise UsageError(f"got seeds={seeds}, expected at least 1.")
    chosen = list(methods) if isinstance(methods, Iterable) else [methods]
    for method in chosen:
        check_kind(method, "one of methods", Method, "a method such as ss.SID(alpha=0.5)")
    if not any(type(m) is Backprop for m in chosen):
        chosen.insert(0, Backprop())
    shared = {name: value for name, value in settings.items() if name not in ("num_classes", "quiet")}
    check_judged(*prepare(chosen[0], train_set, val_set, test_set, settings.get("num_classes"), shared))
    found: list[dict[str, Any]] = []
    for method in chosen:
        values: list[float] = []
        for s in range(seed, seed + seeds):
            # Not by "init", from which `fit` draws what a method adds: heads would have the network's first numbers.
            with global_rng(key(s, "network")):
                network = copy.deepcopy(model) if isinstance(model, nn.Module) else model()
            run = fit(network, method, train_set, val_set, test_set, seed=s, **settings)
            if run.interrupted:
                raise KeyboardInterrupt  # half a run is not to be compared
            values.append(run.accuracy)
        std = statistics.stdev(values) if seeds > 1 else None
        row = {"method": label(method), "accuracy": statistics.fmean(values), "std": std, "n": seeds}
        found.append(row | {"accuracies": values})
    return Comparison(found)


def check_judged(config: TrainConfig, data: Data) -> None:
    """Refuse to compare by accuracy what will have none."""
    if not data.train.num_classes or config.target == "inputs":
        raise UsageError("got targets that are numbers, which have no accuracy to compare, expected classes; use fit.")
    if data.val is None and (data.test is None or config.test == "never"):
        raise UsageError("got no data to judge the methods on, expected a val_set or a test_set; give compare one.")


def label(method: Method) -> str:
    """A method's name, and in brackets what is not its default."""
    changed = {f.name: getattr(method, f.name) for f in fields(method) if getattr(method, f.name) != f.default}
    return method_name(method) + (f"({', '.join(f'{k}={v}' for k, v in changed.items())})" if changed else "")
