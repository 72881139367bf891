"""Training from Python, on networks and data of one's own: `fit` for a run, `compare` for several methods."""

from __future__ import annotations

import copy
import html
import statistics
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from sidestep.assemble import Data, assemble
from sidestep.config import TrainConfig, resolve
from sidestep.core.keys import global_rng, key
from sidestep.core.method import Method
from sidestep.data.samples import Samples, Source
from sidestep.data.sources import as_source, channel_stats
from sidestep.data.splits import stratified_split
from sidestep.errors import UsageError
from sidestep.methods import method_name
from sidestep.methods.backprop import Backprop
from sidestep.run import CUSTOM, SUMMARY, Run, enter, restored
from sidestep.train import Stopped, Trainer, check_selection


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

    train_set, val_set, test_set: a Dataset of (x, y), a pair of tensors, or a `datasets.Dataset`.  Without a val_set a
    tenth of the training samples is held out, stratified, where they are held as tensors; else the last epoch counts.
    num_classes: by default what the training set names, or one more than its largest label.  settings: any key of the
    command line (`lr`, `batch_size`, `optimizer`, `augment`, `precision`, `resume`, ...).

    The network is trained in place, and ends with the parameters that validation chose; `run.model` is what inference
    needs, which a method may have given heads of its own.  Ctrl-C ends training after its step, keeps the network, and
    leaves the test set unread.  With `out` the run leaves the same folder as `sidestep train`, and can be resumed by
    the same call with resume="last".

    Raises ValueError for settings or data that do not fit, before the network is touched; a bad sample that only shows
    when a Dataset fetches it ends training before its step.
    """
    # The type says so already; a name in quotes is what a caller without a checker passes.
    if not isinstance(method, Method):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise UsageError(f"got method={method!r}, expected a method such as ss.SID(alpha=0.5).")
    own = {"blocks": blocks, "epochs": epochs, "data": CUSTOM, "model": type(model).__name__, "out": out}
    config = resolve(method, settings | own, custom=True)
    data = custom_data(train_set, val_set, test_set, num_classes, config)
    if data.val is None and "select" not in settings:
        config = replace(config, select="last")
    start = None
    if config.out is not None:
        config, start = enter(config)
    assembly = assemble(config, data=data, model=model, method=method)
    check_selection(assembly)
    if config.out is not None and config.resume == "last" and (config.out / SUMMARY).exists():
        return restored(assembly, config.out)
    trainer = Trainer(assembly, quiet=quiet)
    with trainer.begin(start) if config.out is not None else nullcontext():
        try:
            trainer.train()
        except Stopped:
            return Run(assembly, trainer.summary(), trainer.history, trainer.folder, interrupted=True)
        return Run(assembly, trainer.finish(), trainer.history, trainer.folder)


def custom_data(
    train_set: object, val_set: object, test_set: object, num_classes: int | None, config: TrainConfig
) -> Data:
    """The user's own data; images in bytes are normalised by their training statistics, floats are left alone."""
    if config.label_noise or config.context is not None:
        raise UsageError("label_noise and context change data sets that are read by name; change train_set itself.")
    train = as_source(train_set, num_classes)
    others = [None if s is None else as_source(s, num_classes=train.num_classes) for s in (val_set, test_set)]
    val: Source | None = others[0]
    if val is None and isinstance(train, Samples) and config.val_fraction:
        kept, held = stratified_split(train.y, config.val_fraction, config.seed)
        if len(held):
            train, val = train.take(kept), train.take(held)
    for name, other in zip(("val_set", "test_set"), others, strict=True):
        if other is not None and other.shape != train.shape:
            raise UsageError(f"{name} has samples of shape {other.shape}, expected {train.shape} as in train_set.")
    mean, std = (), ()
    if isinstance(train, Samples) and train.x.dtype == torch.uint8:
        mean, std = channel_stats(train.x)
    return Data(train, val, others[1], mean, std)


@dataclass
class Comparison:
    """What `compare` measured; shows itself as a table in a notebook."""

    rows: list[dict[str, Any]]  # method, accuracy (mean), std (None for one seed), n, accuracies

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
    methods: Sequence[Method],
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
    """
    if "out" in settings:
        raise UsageError("got out, which compare has not, expected the settings of fit; `sidestep compare` keeps runs.")
    chosen = list(methods)
    if not any(type(m) is Backprop for m in chosen):
        chosen.insert(0, Backprop())
    found: list[dict[str, Any]] = []
    for method in chosen:
        values: list[float] = []
        for s in range(seed, seed + seeds):
            with global_rng(key(s, "init")):
                network = copy.deepcopy(model) if isinstance(model, nn.Module) else model()
            values.append(fit(network, method, train_set, val_set, test_set, seed=s, **settings).accuracy)
        std = statistics.stdev(values) if seeds > 1 else None
        row = {"method": label(method), "accuracy": statistics.fmean(values), "std": std, "n": seeds}
        found.append(row | {"accuracies": values})
    return Comparison(found)


def label(method: Method) -> str:
    """A method's name, and in brackets what is not its default."""
    changed = {f.name: getattr(method, f.name) for f in fields(method) if getattr(method, f.name) != f.default}
    return method_name(method) + (f"({', '.join(f'{k}={v}' for k, v in changed.items())})" if changed else "")
