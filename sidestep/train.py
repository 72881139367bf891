"""The training loop: steps, evaluation, selection, checkpoints, log.  It names no method and no engine."""

from __future__ import annotations

import json
import math
import signal
import sys
import time
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from torch import Tensor, nn

from sidestep import checkpoint
from sidestep.assemble import Assembly, Data, assemble
from sidestep.config import TrainConfig, resolve, to_toml
from sidestep.core.method import Method
from sidestep.data.samples import Samples, Source
from sidestep.data.sources import as_source, channel_stats
from sidestep.data.splits import stratified_split
from sidestep.errors import DataError, UsageError
from sidestep.evaluate import MEASURES, block_table, evaluate, last
from sidestep.measure.cost import cost, like
from sidestep.measure.memory import peak_rss_mb
from sidestep.methods import method_fields, method_name
from sidestep.progress import Progress
from sidestep.run import (
    CONFIG,
    METRICS,
    SUMMARY,
    Run,
    commit,
    environment,
    fingerprint,
    from_parts,
    open_folder,
    to_parts,
)

WARMUP_STEPS = 10  # not timed: allocators and kernels' caches fill


class Stopped(Exception):
    """A signal asked the run to stop; what it had done is saved."""

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.number = number


class Trainer:
    """One run from its first step, or its checkpoint, to its last."""

    def __init__(self, assembly: Assembly, folder: Path | None = None, *, quiet: bool = False) -> None:
        self.assembly = assembly
        self.config = assembly.config
        self.engine = assembly.engine
        self.folder = folder
        self.history: list[dict[str, object]] = []
        self.best: tuple[float, int] | None = None  # validation accuracy, step
        self.best_state: dict[str, Tensor] = {}
        self.stop: int | None = None
        self.loss_sum = torch.zeros(len(assembly.chain.blocks), device=assembly.device)
        self.timed = (0.0, 0)  # seconds, steps after the warm-up
        self.progress = Progress(assembly.total_steps, quiet=quiet)

    # ------------------------------------------------------------------ the loop

    def train(self) -> None:
        """Run to the end.  Raises Stopped, after saving, if a signal came; DataError if the loss is lost."""
        per_epoch = self.assembly.batches.steps_per_epoch
        began, started_at = time.perf_counter(), self.engine.steps
        with self.progress, self.signals():
            while self.engine.steps < self.assembly.total_steps:
                metrics = self.engine.step(self.assembly.batches(self.engine.steps))
                self.loss_sum += metrics.loss
                step = self.engine.steps
                self.progress.step(
                    step, lambda loss=metrics.loss: describe_loss(loss), epoch=1 + (step - 1) // per_epoch
                )
                if step - started_at == WARMUP_STEPS:
                    self.synchronise()
                    began = time.perf_counter()
                at_end = step % per_epoch == 0
                if at_end:
                    self.synchronise()
                    self.add_time(time.perf_counter() - began, step - max(step - per_epoch, started_at + WARMUP_STEPS))
                    self.end_epoch(step // per_epoch)
                if self.folder and (at_end or self.stop or step % (self.config.save_every or per_epoch) == 0):
                    self.save()
                if self.stop:
                    raise Stopped(self.stop)
                if at_end:
                    began = time.perf_counter()

    def add_time(self, seconds: float, steps: int) -> None:
        if steps > 0:
            self.timed = (self.timed[0] + seconds, self.timed[1] + steps)

    def synchronise(self) -> None:
        if self.assembly.device.type == "cuda":
            torch.cuda.synchronize()

    def end_epoch(self, epoch: int) -> None:
        """Judge on the validation split, note it, and remember the parameters if none were better."""
        steps = self.assembly.batches.steps_per_epoch
        loss = [None if math.isnan(v) else v for v in (self.loss_sum / steps).tolist()]
        if not any(v is not None for v in loss) or any(v is not None and math.isinf(v) for v in loss):
            raise DataError(
                f"the loss is no longer finite in epoch {epoch} ({loss}); lower --lr or clip with --clip 1."
            )
        self.loss_sum.zero_()
        row: dict[str, object] = {"epoch": epoch, "step": self.engine.steps, "train_loss": loss}
        if self.assembly.data.val is not None:
            row["val"] = measured = evaluate(self.assembly, self.assembly.data.val)
            accuracy = last(measured, "accuracy")
            if self.best is None or accuracy > self.best[0]:
                self.best = (accuracy, self.engine.steps)
                self.remember()
            self.progress.note(f"epoch {epoch}: validation accuracy {100 * accuracy:.2f} %")
        self.history.append(row)
        if self.folder:
            checkpoint.append_jsonl(self.folder / METRICS, row)

    def remember(self) -> None:
        self.best_state = {k: v.clone() for k, v in to_parts(self.engine.inference_chain).items()}
        if self.folder:
            self.write("selected", self.best_state)

    # --------------------------------------------------------------- checkpoints

    def save(self) -> None:
        state = self.engine.state_dict() | {"progress/loss_sum": self.loss_sum}
        self.write("step", state, best=self.best)

    def write(self, prefix: str, state: dict[str, Tensor], **extra: object) -> None:
        assert self.folder is not None
        checkpoint.save(
            self.folder / "checkpoints",
            state,
            step=self.engine.steps,
            fingerprint=fingerprint(self.assembly),
            environment=environment(self.assembly),
            extra=extra,
            prefix=prefix,
        )

    def resume(self, path: Path) -> None:
        """Continue from a checkpoint, bit for bit where its environment is this one's."""
        assert self.folder is not None
        state, manifest = checkpoint.load(path)
        for warning in checkpoint.check(manifest, fingerprint(self.assembly), environment(self.assembly)):
            print(f"sidestep: warning: {warning}", file=sys.stderr)
        self.loss_sum.copy_(state.pop("progress/loss_sum"))
        self.engine.load_state_dict(state)
        done = range(self.engine.steps + 1)
        checkpoint.truncate_jsonl(self.folder / METRICS, lambda row: row["step"] in done)
        if (self.folder / METRICS).exists():
            self.history = [json.loads(line) for line in (self.folder / METRICS).read_text().splitlines()]
        best = manifest.extra.get("best")
        if isinstance(best, list | tuple):
            self.best = (float(best[0]), int(best[1]))
            self.best_state, _ = checkpoint.load(self.folder / "checkpoints" / f"selected-{self.best[1]}")

    # ------------------------------------------------------------------- the end

    def select(self) -> str:
        """Put the parameters to be judged in place; say which they are."""
        if self.config.select == "best" and self.best is not None:
            self.engine.inference_chain.load_state_dict(from_parts(self.best_state))
            epoch = self.best[1] // self.assembly.batches.steps_per_epoch
            return f"best validation accuracy, epoch {epoch} of {self.config.epochs}"
        if self.folder:
            self.write("selected", to_parts(self.engine.inference_chain))
        return f"last epoch, {self.config.epochs}"

    def finish(self) -> dict[str, object]:
        """Read the test set, once, with the selected parameters, and gather everything in one summary."""
        assembly, config, data = self.assembly, self.config, self.assembly.data
        summary: dict[str, object] = {
            "method": config.method,
            "model": config.model,
            "data": config.data,
            "blocks": config.blocks,
            "at": list(config.at),
            "seed": config.seed,
            "epochs": config.epochs,
            "selected": self.select(),
            "train_samples": len(data.train),
            "val_accuracy": None,
        }
        if data.val is not None:
            summary["val_accuracy"] = last(evaluate(assembly, data.val), "accuracy")
        if data.test is not None:
            measured = evaluate(assembly, data.test, noise=config.label_noise)
            summary |= {f"test_{m}": last(measured, m) for m in MEASURES}
            summary |= {f"block_test_{m}": measured[m] for m in MEASURES}
            if "descent" in measured:
                summary["descent"] = measured["descent"]
        seconds, steps = self.timed
        return summary | {
            "samples_per_second": config.batch_size * steps / seconds if seconds else None,
            "step_ms": 1000 * seconds / steps if steps else None,
            "peak_rss_mb": peak_rss_mb(),
            **cost(like(assembly, config.method)),
            "commit": commit(),
            "torch": torch.__version__,
            "device": device_name(assembly.device),
            "precision": config.precision,
            "threads": torch.get_num_threads(),
        }

    @contextmanager
    def signals(self) -> Generator[None, None, None]:
        """Let the first Ctrl-C or SIGTERM finish its step and save; a second Ctrl-C stops at once."""

        def ask(number: int, _: FrameType | None) -> None:
            if self.stop is not None and number == signal.SIGINT:
                raise KeyboardInterrupt
            self.stop = number

        try:
            before = {s: signal.signal(s, ask) for s in (signal.SIGINT, signal.SIGTERM)}
        except ValueError:  # not the main thread, as in some notebooks: signals are not ours to take
            before = {}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


def describe_loss(loss: Tensor) -> str:
    return "loss " + " ".join("-" if math.isnan(v) else f"{v:.3f}" for v in loss.tolist())


def device_name(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    try:
        models = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
        return f"{models[0].partition(': ')[2]} x{len(models)}"
    except (OSError, IndexError):
        return "cpu"


def run(config: TrainConfig) -> dict[str, object]:
    """One run in its folder: what `sidestep train` does.  Returns the summary, with a table for people as `text`.

    Raises SystemExit(143) after SIGTERM and KeyboardInterrupt after Ctrl-C, both with the run saved.
    """
    if config.out is None:
        config = replace(config, out=Path("runs") / f"{time.strftime('%Y%m%d-%H%M%S')}-{config.method}-{config.data}")
    folder, start = open_folder(config)
    if config.resume and (folder / SUMMARY).exists():
        summary = json.loads((folder / SUMMARY).read_text())
        return summary | {"text": summary_text(summary, folder)}
    if config.resume == "last" and start is None:
        print(f"sidestep: {folder} has no complete checkpoint; starting from the beginning", file=sys.stderr)
    assembly = assemble(config)
    trainer = Trainer(assembly, folder)
    if start is not None:
        trainer.resume(start)
        print(f"sidestep: resuming at step {trainer.engine.steps} of {assembly.total_steps}", file=sys.stderr)
    else:
        (folder / METRICS).unlink(missing_ok=True)
        checkpoint.write_text_atomic(folder / CONFIG, to_toml(assembly.config))
    try:
        trainer.train()
    except Stopped as stopped:
        print(f"sidestep: {stopped}; saved, go on with --resume last --out {folder}", file=sys.stderr)
        if stopped.number == signal.SIGINT:
            raise KeyboardInterrupt from None
        raise SystemExit(128 + stopped.number) from None
    summary = finish(trainer, folder)
    return summary | {"text": summary_text(summary, folder)}


def finish(trainer: Trainer, folder: Path) -> dict[str, object]:
    """The end of a run with a folder: summary, model, evidence, report."""
    from sidestep.export import write_model
    from sidestep.report.build import write_report
    from sidestep.report.evidence import write_evidence

    summary = trainer.finish()
    write_model(trainer.assembly, summary, folder / "model")
    write_evidence(trainer.assembly, folder)
    # Last: a folder with a summary is a finished run.
    checkpoint.write_json(folder / SUMMARY, summary)
    write_report([folder], folder / "report.html")
    return summary


def summary_text(summary: dict[str, Any], folder: Path) -> str:
    table = block_table({m: summary[f"block_test_{m}"] for m in MEASURES}, summary.get("descent"))
    return (
        f"{summary['method']} on {summary['data']}, {summary['model']} in {summary['blocks']} blocks, "
        f"{summary['epochs']} epochs, seed {summary['seed']}\n"
        f"test accuracy {100 * summary['test_accuracy']:.2f} %  ({summary['selected']})\n{table}\n"
        f"{summary['samples_per_second'] or math.nan:.0f} samples/s, {summary['step_ms'] or math.nan:.1f} ms a step, "
        f"peak activations {summary['peak_activation_mb']:.2f} MB, {summary['params']:,} parameters "
        f"({summary['aux_params']:,} auxiliary)\nreport: {folder / 'report.html'}"
    )


def fit(
    model: nn.Module,
    method: Method,
    train_set: object,
    val_set: object = None,
    test_set: object = None,
    *,
    blocks: int = 4,
    epochs: int = 10,
    out: str | Path | None = None,
    quiet: bool = False,
    **settings: object,
) -> Run:
    """Train any chain-shaped network with any method; returns a Run.

    train_set, val_set, test_set: a Dataset of (x, y), a pair of tensors, or a `datasets.Dataset`.  Without a val_set a
    tenth of the training samples is held out, stratified, where they are held as tensors.  settings: any key of the
    command line (`lr`, `batch_size`, `optimizer`, `augment`, `precision`, ...).  The network is trained in place, and
    ends with the parameters that validation chose.  Ctrl-C ends training and keeps the network; with `out` the run
    leaves the same folder as `sidestep train`.

    Raises ValueError for settings or data that do not fit, before the network is touched.
    """
    flags = settings | {"blocks": blocks, "epochs": epochs, "data": "custom", "model": type(model).__name__, "out": out}
    config = resolve(method_name(method), flags, custom=True)
    config = replace(config, method_options=method_fields(method))
    data = custom_data(train_set, val_set, test_set, config)
    folder = None
    if out is not None:
        folder, _ = open_folder(config)
    assembly = assemble(config, data=data, model=model, method=method)
    trainer = Trainer(assembly, folder, quiet=quiet)
    interrupted = False
    try:
        trainer.train()
    except Stopped:
        interrupted = True
    summary = trainer.finish()
    return Run(assembly, summary, trainer.history, folder, interrupted)


def custom_data(train_set: object, val_set: object, test_set: object, config: TrainConfig) -> Data:
    """The user's own data; images in bytes are normalised by their training statistics, floats are left alone."""
    train = as_source(train_set)
    others = [None if s is None else as_source(s, num_classes=train.num_classes) for s in (val_set, test_set)]
    val: Source | None = others[0]
    if val is None and isinstance(train, Samples) and config.val_fraction:
        kept, held = stratified_split(train.y, config.val_fraction, config.seed)
        train, val = train.take(kept), train.take(held)
    for name, other in zip(("val_set", "test_set"), others, strict=True):
        if other is not None and other.shape != train.shape:
            raise UsageError(f"{name} has samples of shape {other.shape}, expected {train.shape} as in train_set.")
    mean, std = (), ()
    if isinstance(train, Samples) and train.x.dtype == torch.uint8:
        mean, std = channel_stats(train.x)
    return Data(train, val, others[1], mean, std)
