"""The training loop: steps, evaluation, selection, checkpoints, log.  It names no method."""

from __future__ import annotations

import math
import signal
import sys
import time
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import FrameType
from typing import Any, NamedTuple

import torch
from torch import Tensor

from sidestep import checkpoint, files
from sidestep.assemble import Assembly, assemble
from sidestep.config import TrainConfig, named_by_time, to_toml
from sidestep.core.cell import Batch
from sidestep.core.units import evaluating
from sidestep.engines.parts import networks
from sidestep.engines.streaming import Streaming
from sidestep.errors import DataError, Diverged, UsageError, WireError
from sidestep.evaluate import by_loss, evaluate, judged
from sidestep.folder import read_summary
from sidestep.layout import CHECKPOINTS, CONFIG, METRICS, MODEL, REPORT, SUMMARY
from sidestep.placement import Placement
from sidestep.progress import Progress
from sidestep.provenance import commit
from sidestep.ranks import joined
from sidestep.resuming import enter, environment, fingerprint, naming_another, open_folder, rewind, selected_at, warn
from sidestep.run import to_parts, use
from sidestep.stopping import PATIENCE, Stopped, Stopping, on_signals
from sidestep.summary import of_answers, of_costs, of_training, summary_text

WARMUP_STEPS = 10  # not timed: allocators and kernels' caches fill
DIAGNOSED = 128  # labels, or samples with numbers, that a method's diagnostics are of
LOSS_SUM = "progress/loss_sum"  # of the blocks' objectives since the epoch began, in a checkpoint


class Trainer:
    """One run from its first step, or its checkpoint, to its last.  It writes nothing but in the folder it began in.

    engine: what trains, where it is one of `ranks` that share the assembly's blocks.  Then the first block's process
    judges, and keeps the run, with all parameters gathered there.
    """

    def __init__(
        self, assembly: Assembly, engine: Streaming | None = None, *, ranks: int = 1, quiet: bool = False
    ) -> None:
        self.assembly = assembly
        self.config = assembly.config
        self.engine, self.ranks = engine or assembly.engine, ranks
        self.first = self.engine.is_first
        if not self.first:  # and so judges nothing
            assembly.engine.leave_to(self.engine)
        self.folder: Path | None = None
        self.history: list[dict[str, object]] = []
        self.best: tuple[float, int] | None = None  # `judged` on validation, step
        self.best_state: dict[str, Tensor] = {}
        self.stopping = Stopping(ranks)
        self.judged = True  # whether the last epoch that has ended was
        self.loss_sum = torch.zeros(len(assembly.chain.blocks), device=assembly.device)
        self.timed = (0.0, 0)  # seconds, steps after the warm-up
        self.progress = Progress(assembly.total_steps, quiet=quiet or not self.first)

    # ------------------------------------------------------------------ the loop

    def train(self) -> None:
        """Run to the end.  Raises Stopped, after saving, if a signal came; DataError if the loss is lost."""
        commit()  # the first time, for what is said at the end is to be of the code that runs now
        with self.progress, self.stopping.listening():
            try:
                self.take_steps()
            except (WireError, RuntimeError) as error:  # which torch raises where a replica has left
                if self.first or self.stopping.number is None:
                    raise
                raise Stopped(self.stopping.number) from error  # the first one had all it needs, and has left

    def take_steps(self) -> None:
        per_epoch, warm = self.assembly.batches.steps_per_epoch, self.engine.steps + WARMUP_STEPS
        every = self.config.save_every or per_epoch
        if not self.judged:
            self.save(self.engine.steps // per_epoch)
        clock = (time.perf_counter(), self.engine.steps)
        while self.engine.steps < self.assembly.total_steps:
            metrics = self.engine.step(self.assembly.batches(self.engine.steps))
            self.loss_sum += metrics.loss
            step, stop = self.engine.steps, self.engine.broadcast(self.stopping.number or 0)
            self.progress.step(step, lambda loss=metrics.loss: describe_loss(loss), epoch=1 + (step - 1) // per_epoch)
            at_end = step % per_epoch == 0
            save = at_end or stop or step % every == 0
            if save or step == warm:
                self.pause(clock, warm)
                if save:
                    self.save(step // per_epoch if at_end else None)
                if stop:
                    raise Stopped(stop)
                clock = (time.perf_counter(), step)

    def pause(self, clock: tuple[float, int], warm: int) -> None:
        """Count the time since the clock was started, unless it was warm-up; what comes now is no training."""
        self.engine.barrier()  # a step has been taken when the last rank has taken it
        if self.assembly.device.type == "cuda":
            torch.cuda.synchronize()
        began, first = clock
        if first >= warm:
            self.timed = (self.timed[0] + time.perf_counter() - began, self.timed[1] + self.engine.steps - first)

    def save(self, epoch: int | None) -> None:
        """Gather the state of all blocks where the first one is, judge it there if an epoch has ended, and save it.

        Raises Stopped there, after saving, if a signal came meanwhile.  What it kept from being judged is judged first
        thing when the run goes on.
        """
        name_of = f"{LOSS_SUM}/{{}}".format
        if self.engine.replicas is not None:
            self.loss_sum = self.engine.replicas.mean(self.loss_sum)
        state = self.engine.gather({name_of(n): self.loss_sum[n] for n in self.engine.own})
        self.stopping.alone = self.first  # from here on it waits for nobody
        self.stopping.all_are_here()
        unjudged, self.judged = not self.judged, True
        if self.first:
            self.loss_sum = torch.stack([state.pop(name_of(n)) for n in range(len(self.loss_sum))])
            self.answer_with(state)
            self.check_finite()
            if epoch is not None:
                self.judged = self.judge(epoch)
        if epoch is not None and self.judged:
            self.loss_sum.zero_()
        if self.first:
            extra = {"best": self.best, "timed": self.timed, "judged": self.judged}
            self.write("step", state | {LOSS_SUM: self.loss_sum}, replace=unjudged, **extra)
            if self.stopping.number is not None:
                raise Stopped(self.stopping.number)
        self.stopping.alone = self.ranks == 1

    def answer_with(self, state: Mapping[str, Tensor]) -> None:
        """Have the engine that answers, where it is not the one that trains, know the parameters of all blocks."""
        if self.ranks > 1:
            self.assembly.engine.load_state_dict(networks(state))

    def judge(self, epoch: int) -> bool:
        """`end_epoch`, unless a signal comes before all is measured; whether none did."""
        row = self.stopping.unless_asked(lambda: self.measured(epoch))
        if row is not None:
            self.end_epoch(row)
        return row is not None

    def measured(self, epoch: int) -> dict[str, Any]:
        """What the log has of an epoch."""
        loss = [None if math.isnan(v) else v for v in (self.loss_sum / self.assembly.batches.steps_per_epoch).tolist()]
        row: dict[str, Any] = {"epoch": epoch, "step": self.engine.steps, "train_loss": loss}
        if self.assembly.data.val is not None:
            row["val"] = evaluate(self.assembly, self.assembly.data.val)
        if diagnostics := self.diagnostics():
            row["diagnostics"] = diagnostics
        if self.config.test == "epochs" and self.assembly.test is not None:
            row["test"] = evaluate(self.assembly, self.assembly.test, noise=self.config.label_noise)
        return row

    def end_epoch(self, row: dict[str, Any]) -> None:
        """Note what was measured, and remember the parameters if none were better before."""
        if "val" in row:
            score, shown = judged(self.assembly, row["val"])
            # A tie goes to the later epoch: where validation saturates, the rate was still high at the first.
            if math.isfinite(score) and (self.best is None or score >= self.best[0]):
                self.best = (score, self.engine.steps)
                self.best_state = {k: v.clone() for k, v in to_parts(self.assembly.engine.inference_chain).items()}
                self.write("selected", self.best_state)
            self.progress.note(f"epoch {row['epoch']}: validation {shown}")
        self.history.append(row)
        if self.folder:
            files.append_jsonl(self.folder / METRICS, row)

    @torch.no_grad()
    def diagnostics(self) -> dict[str, list[float | None]]:
        """What the method's theory speaks of, on a few validation samples; on training ones where there are none."""
        assembly, chain, steps = self.assembly, self.assembly.engine.inference_chain, self.engine.steps
        val = assembly.data.val
        x, y = assembly.batches(steps - 1) if val is None else next(assembly.eval_batches(val))
        first = max(DIAGNOSED // (y[0].numel() if assembly.task.per_token else 1), 1)
        batch = Batch(x[:first], y[:first], steps, progress=steps / assembly.total_steps)
        with evaluating(*(part for _, part in chain.parts())):
            found = assembly.method.diagnostics(chain, batch, assembly.task)
        return {name: list(values) for name, values in found.items()}

    def check_finite(self) -> None:
        """Refuse to go on, or to save, once a loss, a parameter or a running statistic is infinite or NaN.

        Asked where the device is waited for anyway.  A NaN among the losses is no sign: a block may have none.
        """
        state = self.assembly.chain.state_dict().values()
        if self.loss_sum.isinf().any() or not all(bool(tensor.isfinite().all()) for tensor in state):
            raise Diverged(
                f"got a loss or parameters that are infinite or NaN by step {self.engine.steps}, expected finite ones; "
                "start again with a lower --lr, or with --clip 1."
            )

    # --------------------------------------------------------------- checkpoints

    @property
    def environment(self) -> dict[str, object]:
        """That of the assembly, and what only training's bits depend on."""
        return environment(self.assembly) | {"replicas": self.engine.replicas.count if self.engine.replicas else 1}

    def write(self, prefix: str, state: dict[str, Tensor], *, replace: bool = False, **extra: object) -> None:
        if self.folder:
            checkpoint.save(
                self.folder / CHECKPOINTS,
                state,
                step=self.engine.steps,
                fingerprint=fingerprint(self.assembly),
                environment=self.environment,
                extra=extra,
                prefix=prefix,
                replace=replace,
            )

    @contextmanager
    def begin(self, start: Path | None) -> Generator[None, None, None]:
        """Keep the run in its folder, from its first step or a checkpoint, with equal bits in an equal environment."""
        if not self.first:
            if start is not None:
                self.load(start)
            yield
            return
        with open_folder(self.config) as folder:
            self.folder = folder
            if start is not None:
                self.load(start)
                self.progress.note(f"resuming at step {self.engine.steps} of {self.assembly.total_steps}, in {folder}")
            elif self.config.resume:
                self.progress.note(f"{folder} has no complete checkpoint; starting from the beginning")
            else:
                self.progress.note(f"the run is kept in {folder}")
            self.history = rewind(folder, self.engine.steps, judged=self.judged)
            kept = replace(self.config, out=None, resume=None, overwrite=False)
            files.write_text_atomic(folder / CONFIG, to_toml(kept))
            yield

    def load(self, start: Path) -> None:
        with naming_another(start):
            state, manifest = checkpoint.load(start, without=() if self.first else self.engine.parts.elsewhere)
        if LOSS_SUM not in state:
            raise DataError(
                f"{start} holds parameters only, expected a checkpoint to go on from, such as step-10 there."
            )
        warnings = checkpoint.check(manifest, fingerprint(self.assembly), self.environment)
        if self.first:
            warn(warnings)
        extra: Any = manifest.extra
        self.timed, self.judged = tuple(extra["timed"]), extra.get("judged", True)
        if self.first and (name := selected_at(manifest)):
            self.best = tuple(extra["best"])
            with naming_another(start.with_name(name)):
                self.best_state, _ = checkpoint.load(start.with_name(name))
        self.loss_sum.copy_(state.pop(LOSS_SUM))
        self.engine.load_state_dict(state)
        if self.first:
            self.answer_with(state)

    # ------------------------------------------------------------------- the end

    def select(self) -> str:
        """Put the parameters to be judged in place; say which they are."""
        if self.config.select == "best" and self.best is not None:
            state, epoch = self.best_state, self.best[1] // self.assembly.batches.steps_per_epoch
            measure = "loss" if by_loss(self.assembly) else "accuracy"
            words = f"best validation {measure}, epoch {epoch} of {self.config.epochs}"
        else:
            state, words = to_parts(self.assembly.engine.inference_chain), f"last epoch, {self.config.epochs}"
            self.write("selected", state)
            if self.engine.steps < self.assembly.total_steps:
                words = f"where it was stopped, step {self.engine.steps} of {self.assembly.total_steps}"
        use(self.assembly, state)
        return words

    def summary(self) -> dict[str, object]:
        """What was trained and selected, and how good it is on the validation split."""
        selected = self.select()  # puts the parameters in place that are judged now
        found = of_training(self.assembly, self.history, selected)
        return found | ({"diagnostics": diagnosed} if (diagnosed := self.diagnostics()) else {})

    def finish(self, *, costs: bool = True) -> dict[str, object]:
        """Read the test set with the selected parameters; gather all in one summary, and fill the folder.

        costs: whether the folder gets the costs beside backprop's.
        """
        summary = self.summary() | of_answers(self.assembly) | of_costs(self.assembly, self.timed, self.ranks)
        if self.folder:
            from sidestep.export import write_model

            write_model(self.assembly, summary, self.folder / MODEL)
            if self.config.report:
                from sidestep.measure.evidence import write_evidence

                write_evidence(self.assembly, self.folder, costs=costs)
            # After all else: a folder with a summary is a finished run.
            files.write_json(self.folder / SUMMARY, summary)
            if self.config.report:
                write_page(self.folder)
        return summary


def describe_loss(loss: Tensor) -> str:
    shown = ["-" if math.isnan(v) else f"{v:.3f}" for v in loss.tolist()]
    return "loss " + " ".join(shown if len(shown) <= 6 else [*shown[:2], "..", *shown[-2:]])


def write_page(folder: Path) -> None:
    from sidestep.report.build import write_report

    write_report([folder], folder / REPORT)


def check_selection(assembly: Assembly) -> None:
    if assembly.data.val is None and assembly.config.select == "best":
        raise UsageError("got select=best without validation samples; give --val-fraction above 0, or --select last.")


def run(
    config: TrainConfig, placement: Placement | None = None, *, costs: bool = True, trusted_network: bool = False
) -> dict[str, object]:
    """One run in its folder: what `sidestep train` does.  Returns the summary, with a table for people as `text`.

    placement: on the processes that torchrun has started, of which this is one; None is a rank each.  trusted_network:
    whether these may be on several hosts.

    Raises SystemExit(143) after SIGTERM and KeyboardInterrupt after Ctrl-C, both with the run saved.
    """

    def leave(number: int, _: FrameType | None) -> None:
        raise SystemExit(128 + number)

    with on_signals(leave, signal.SIGTERM), joined(placement, trusted_network=trusted_network) as ranks:
        if ranks.restarted:  # else what was there before is none of theirs, and what was asked for holds
            config = replace(config, resume="last", overwrite=False)
        start = Start(*ranks.broadcast(lambda: find_start(config)))
        folder = Path(start.out)
        if start.finished and ranks.rank == 0:
            if config.report and not (folder / REPORT).exists():
                write_page(folder)
            summary = read_summary(folder)
            return summary | {"text": summary_text(summary, folder)}
        if start.finished:
            raise SystemExit(0)
        config = replace(config, out=folder, at=tuple(start.at))
        assembly = ranks.all_or_none(lambda: assemble(config))
        check_selection(assembly)
        trainer = Trainer(assembly, ranks.engine(assembly), ranks=ranks.count)
        with trainer.begin(Path(start.checkpoint) if start.checkpoint else None):
            ranks.begun()
            with trainer.stopping.listening():  # as long as what is saved is on its way
                try:
                    trainer.train()
                except Stopped as stopped:
                    if trainer.first:
                        print(f"sidestep: {stopped}; saved, go on with --resume last --out {folder}", file=sys.stderr)
                    elif stopped.__cause__ is None:  # else the first one waits for nothing
                        ranks.close("it was stopped", patience=PATIENCE)
                    if stopped.number == signal.SIGINT:
                        raise KeyboardInterrupt from None
                    raise SystemExit(128 + stopped.number) from None
            ranks.close()
            if not trainer.first:
                raise SystemExit(0)
            summary = trainer.finish(costs=costs)
    return summary | {"text": summary_text(summary, folder)}


class Start(NamedTuple):
    """Where a run is kept and how it begins, in JSON's terms."""

    out: str
    at: Sequence[str]
    checkpoint: str | None  # to go on from
    finished: bool


def find_start(config: TrainConfig) -> Start:
    """Choose the folder, and look at what it holds."""
    config, saved = enter(config if config.out else replace(config, out=named_by_time(config)))
    assert config.out is not None
    finished = config.resume == "last" and (config.out / SUMMARY).exists()
    return Start(str(config.out), config.at, str(saved) if saved else None, finished)
