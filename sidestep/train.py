"""The training loop: steps, evaluation, selection, checkpoints, log.  It names no method and no engine."""

from __future__ import annotations

import json
import math
import signal
import sys
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path, PurePath
from types import FrameType
from typing import Any

import torch
from torch import Tensor, nn

from sidestep import checkpoint
from sidestep.assemble import Assembly, Data, assemble
from sidestep.config import CONFIG, TrainConfig, resolve, to_toml
from sidestep.core.method import Method
from sidestep.data.samples import Samples, Source
from sidestep.data.sources import as_source, channel_stats
from sidestep.data.splits import stratified_split
from sidestep.errors import DataError, UsageError
from sidestep.evaluate import MEASURES, evaluate, last, summary_text
from sidestep.measure.cost import cost, like
from sidestep.measure.memory import peak_rss_mb
from sidestep.progress import Progress
from sidestep.run import (
    CUSTOM,
    METRICS,
    REPORT,
    SUMMARY,
    Run,
    commit,
    device_name,
    enter,
    environment,
    fingerprint,
    open_folder,
    read_history,
    restored,
    rewind,
    to_parts,
    use,
    warn,
)

WARMUP_STEPS = 10  # not timed: allocators and kernels' caches fill


class Stopped(Exception):
    """A signal asked the run to stop; what it had done is saved."""

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.number = number


class Trainer:
    """One run from its first step, or its checkpoint, to its last.  It writes nothing but in the folder it began in."""

    def __init__(self, assembly: Assembly, *, quiet: bool = False) -> None:
        self.assembly = assembly
        self.config = assembly.config
        self.engine = assembly.engine
        self.folder: Path | None = None
        self.history: list[dict[str, object]] = []
        self.best: tuple[float, int] | None = None  # validation accuracy, step
        self.best_state: dict[str, Tensor] = {}
        self.stop: int | None = None  # the signal that asked for it
        self.loss_sum = torch.zeros(len(assembly.chain.blocks), device=assembly.device)
        self.timed = (0.0, 0)  # seconds, steps after the warm-up
        self.progress = Progress(assembly.total_steps, quiet=quiet)

    # ------------------------------------------------------------------ the loop

    def train(self) -> None:
        """Run to the end.  Raises Stopped, after saving, if a signal came; DataError if the loss is lost."""
        per_epoch, warm = self.assembly.batches.steps_per_epoch, self.engine.steps + WARMUP_STEPS
        every = self.config.save_every or per_epoch
        clock = (time.perf_counter(), self.engine.steps)
        with self.progress, on_signals(self.ask, signal.SIGINT, signal.SIGTERM):
            while self.engine.steps < self.assembly.total_steps:
                metrics = self.engine.step(self.assembly.batches(self.engine.steps))
                self.loss_sum += metrics.loss
                step, stop = self.engine.steps, self.stop
                self.progress.step(
                    step, lambda loss=metrics.loss: describe_loss(loss), epoch=1 + (step - 1) // per_epoch
                )
                at_end = step % per_epoch == 0
                save = at_end or stop or step % every == 0
                if save or step == warm:
                    self.pause(clock, warm)
                    if save:
                        self.check_finite()
                    if at_end:
                        self.end_epoch(step // per_epoch)
                    if save:
                        self.save()
                    if stop:
                        break
                    clock = (time.perf_counter(), step)
        if self.stop:
            raise Stopped(self.stop)

    def ask(self, number: int, _: FrameType | None) -> None:
        """Stop after this step; a second Ctrl-C stops at once."""
        if self.stop is not None and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.stop = number

    def pause(self, clock: tuple[float, int], warm: int) -> None:
        """Count the time since the clock was started, unless it was warm-up; what comes now is no training."""
        if self.assembly.device.type == "cuda":
            torch.cuda.synchronize()
        began, first = clock
        if first >= warm:
            self.timed = (self.timed[0] + time.perf_counter() - began, self.timed[1] + self.engine.steps - first)

    def end_epoch(self, epoch: int) -> None:
        """Judge on the validation split, note it, and remember the parameters if none were better."""
        loss = [None if math.isnan(v) else v for v in (self.loss_sum / self.assembly.batches.steps_per_epoch).tolist()]
        self.loss_sum.zero_()
        row: dict[str, object] = {"epoch": epoch, "step": self.engine.steps, "train_loss": loss}
        if self.assembly.data.val is not None:
            row["val"] = measured = evaluate(self.assembly, self.assembly.data.val)
            accuracy = last(measured, "accuracy")
            if self.best is None or accuracy > self.best[0]:
                self.best = (accuracy, self.engine.steps)
                self.best_state = {k: v.clone() for k, v in to_parts(self.engine.inference_chain).items()}
                self.write("selected", self.best_state)
            self.progress.note(f"epoch {epoch}: validation accuracy {100 * accuracy:.2f} %")
        self.history.append(row)
        if self.folder:
            checkpoint.append_jsonl(self.folder / METRICS, row)

    def check_finite(self) -> None:
        """Refuse to go on, or to save, once a loss or a parameter is infinite or NaN.

        Asked where the device is waited for anyway.  A NaN among the losses is no sign: a block may have none.
        """
        parameters = (p for _, p in self.assembly.chain.named_parameters())
        if self.loss_sum.isinf().any() or not all(bool(p.isfinite().all()) for p in parameters):
            raise DataError(
                f"got a loss or parameters that are infinite or NaN by step {self.engine.steps}, expected finite ones; "
                "start again with a lower --lr, or with --clip 1."
            )

    # --------------------------------------------------------------- checkpoints

    def save(self) -> None:
        state = self.engine.state_dict() | {"progress/loss_sum": self.loss_sum}
        self.write("step", state, best=self.best, timed=self.timed)

    def write(self, prefix: str, state: dict[str, Tensor], **extra: object) -> None:
        if self.folder:
            checkpoint.save(
                self.folder / "checkpoints",
                state,
                step=self.engine.steps,
                fingerprint=fingerprint(self.assembly),
                environment=environment(self.assembly),
                extra=extra,
                prefix=prefix,
            )

    @contextmanager
    def begin(self, start: Path | None) -> Generator[None, None, None]:
        """Keep the run in its folder, from its first step or a checkpoint, with equal bits in an equal environment."""
        with open_folder(self.config) as folder:
            self.folder = folder
            if start is not None:
                self.load(start)
                self.progress.note(f"resuming at step {self.engine.steps} of {self.assembly.total_steps}, in {folder}")
            elif self.config.resume:
                self.progress.note(f"{folder} has no complete checkpoint; starting from the beginning")
            else:
                self.progress.note(f"the run is kept in {folder}")
            rewind(folder, self.engine.steps)
            self.history = read_history(folder)
            kept = replace(self.config, out=None, resume=None, overwrite=False)
            checkpoint.write_text_atomic(folder / CONFIG, to_toml(kept))
            yield

    def load(self, start: Path) -> None:
        state, manifest = checkpoint.load(start)
        if "progress/loss_sum" not in state:
            raise DataError(
                f"{start} holds parameters only, expected a checkpoint to go on from, such as step-10 there."
            )
        warn(checkpoint.check(manifest, fingerprint(self.assembly), environment(self.assembly)))
        extra: Any = manifest.extra
        self.timed = tuple(extra["timed"])
        if extra["best"]:
            self.best = tuple(extra["best"])
            self.best_state, _ = checkpoint.load(start.with_name(f"selected-{extra['best'][1]}"))
        self.loss_sum.copy_(state.pop("progress/loss_sum"))
        self.engine.load_state_dict(self.laid_out(state))

    def laid_out(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """Optimizer state in its parameter's memory format: fused kernels take equal strides for granted."""
        like = dict(self.assembly.chain.named_parameters())

        def one(key: str, value: Tensor) -> Tensor:
            part, _, rest = key.partition("/optim/")
            if not rest or not value.dim():
                return value
            return torch.empty_like(like[f"{part}.{rest.rpartition('/')[0]}"], dtype=value.dtype).copy_(value)

        return {key: one(key, value) for key, value in state.items()}

    # ------------------------------------------------------------------- the end

    def select(self) -> str:
        """Put the parameters to be judged in place; say which they are."""
        if self.config.select == "best" and self.best is not None:
            state, epoch = self.best_state, self.best[1] // self.assembly.batches.steps_per_epoch
            words = f"best validation accuracy, epoch {epoch} of {self.config.epochs}"
        else:
            state, words = to_parts(self.engine.inference_chain), f"last epoch, {self.config.epochs}"
            self.write("selected", state)
            if self.engine.steps < self.assembly.total_steps:
                words = f"where it was stopped, step {self.engine.steps} of {self.assembly.total_steps}"
        use(self.assembly, state)
        return words

    def summary(self) -> dict[str, object]:
        """What was trained and selected, and how good it is on the validation split."""
        config, data = self.config, self.assembly.data
        return {
            "method": config.method,
            "model": config.model,
            "data": config.data,
            "blocks": config.blocks,
            "at": list(config.at),
            "seed": config.seed,
            "epochs": config.epochs,
            "selected": self.select(),
            "train_samples": len(data.train),
            "val_accuracy": None if data.val is None else last(evaluate(self.assembly, data.val), "accuracy"),
        }

    def finish(self, *, costs: bool = True) -> dict[str, object]:
        """Read the test set, once, with the selected parameters; gather all in one summary, and fill the folder.

        costs: whether the folder gets the costs beside backprop's.
        """
        assembly, data = self.assembly, self.assembly.data
        summary = self.summary()
        if data.test is not None:
            measured = evaluate(assembly, data.test, noise=self.config.label_noise)
            summary |= {f"test_{m}": last(measured, m) for m in MEASURES}
            summary |= {f"block_test_{m}": measured[m] for m in MEASURES}
            if "descent" in measured:
                summary["descent"] = measured["descent"]
        seconds, steps = self.timed
        summary |= {
            "samples_per_second": self.config.batch_size * steps / seconds if seconds else None,
            "step_ms": 1000 * seconds / steps if steps else None,
            "peak_rss_mb": peak_rss_mb(),
            **cost(like(assembly, self.config.method)),
            "commit": commit(),
            "torch": torch.__version__,
            "device": device_name(assembly.device),
            "precision": self.config.precision,
            "threads": torch.get_num_threads(),
        }
        if self.folder:
            from sidestep.export import write_model
            from sidestep.report.evidence import write_evidence

            write_model(assembly, summary, self.folder / "model")
            write_evidence(assembly, self.folder, costs=costs)
            # After all else: a folder with a summary is a finished run.
            checkpoint.write_json(self.folder / SUMMARY, summary)
            write_page(self.folder)
        return summary


@contextmanager
def on_signals(handler: Callable[[int, FrameType | None], Any], *numbers: int) -> Generator[None, None, None]:
    """Have these signals call the handler."""
    try:
        before = {number: signal.signal(number, handler) for number in numbers}
    except ValueError:  # not the main thread, as in some notebooks: signals are not ours to take
        before = {}
    try:
        yield
    finally:
        for number, previous in before.items():
            signal.signal(number, previous)


def describe_loss(loss: Tensor) -> str:
    shown = ["-" if math.isnan(v) else f"{v:.3f}" for v in loss.tolist()]
    return "loss " + " ".join(shown if len(shown) <= 6 else [*shown[:2], "..", *shown[-2:]])


def write_page(folder: Path) -> None:
    from sidestep.report.build import write_report

    write_report([folder], folder / REPORT)


def check_selection(assembly: Assembly) -> None:
    if assembly.data.val is None and assembly.config.select == "best":
        raise UsageError("got select=best without validation samples; give --val-fraction above 0, or --select last.")


def run(config: TrainConfig, *, costs: bool = True) -> dict[str, object]:
    """One run in its folder: what `sidestep train` does.  Returns the summary, with a table for people as `text`.

    Raises SystemExit(143) after SIGTERM and KeyboardInterrupt after Ctrl-C, both with the run saved.
    """

    def leave(number: int, _: FrameType | None) -> None:
        raise SystemExit(128 + number)

    if config.out is None:
        name = f"{time.strftime('%Y%m%d-%H%M%S')}-{config.method}-{PurePath(config.data).name}"
        config = replace(config, out=Path("runs") / name)
    config, start = enter(config)
    folder = config.out
    assert folder is not None
    if config.resume == "last" and (folder / SUMMARY).exists():
        if not (folder / REPORT).exists():
            write_page(folder)
        summary = json.loads((folder / SUMMARY).read_text(encoding="utf-8"))
        return summary | {"text": summary_text(summary, folder)}
    with on_signals(leave, signal.SIGTERM):
        assembly = assemble(config)
        check_selection(assembly)
        trainer = Trainer(assembly)
        with trainer.begin(start):
            try:
                trainer.train()
            except Stopped as stopped:
                print(f"sidestep: {stopped}; saved, go on with --resume last --out {folder}", file=sys.stderr)
                if stopped.number == signal.SIGINT:
                    raise KeyboardInterrupt from None
                raise SystemExit(128 + stopped.number) from None
            summary = trainer.finish(costs=costs)
    return summary | {"text": summary_text(summary, folder)}


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
