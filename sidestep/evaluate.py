"""How good every block's answer is on a set of samples, and a finished run looked at again."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from sidestep.assemble import Assembly
from sidestep.data.samples import Source
from sidestep.measure.calibration import Scores
from sidestep.measure.descent import summarise

MEASURES = ("accuracy", "nll", "brier", "ece")


def evaluate(assembly: Assembly, source: Source, *, noise: float = 0.0) -> dict[str, object]:
    """Accuracy, NLL (nats), Brier score and ECE of every block, None for a block without a read-out.

    noise: the share of training labels that were redrawn at random, if `source` is clean: it makes P(y|x) known to the
    belief curves, which stand under `descent` where the method has a theory of them.
    """
    engine, task = assembly.engine, assembly.task
    scores: list[Scores | None] = []
    curves: list[Mapping[str, Tensor]] = []
    for x, y in assembly.eval_batches(source):
        logits = engine.predict(x)
        scores = scores or [None if block is None else Scores() for block in logits]
        for score, block in zip(scores, logits, strict=True):
            if score is not None and block is not None:
                score.update(block, y)
        beliefs = [block for block in logits if block is not None]
        p_y = torch.lerp(F.one_hot(y, task.num_classes).double(), torch.tensor(1 / task.num_classes).double(), noise)
        if curve := assembly.method.descent(beliefs, y, task, p_y):
            curves.append(curve)
    results = [None if score is None else score.result() for score in scores]
    found: dict[str, object] = {m: [None if r is None else r[m] for r in results] for m in MEASURES}
    if curves:
        found["descent"] = summarise(curves)
    return found


def last(measured: Mapping[str, object], name: str) -> float:
    """The network's answer is its last block's."""
    values = measured[name]
    assert isinstance(values, list) and values[-1] is not None
    return float(values[-1])


def run(path: Path, *, descent: bool = False) -> dict[str, object]:
    """Evaluate a finished run on its test set again: what `sidestep evaluate RUN` prints."""
    from sidestep.run import load_run

    finished = load_run(path)
    assembly = finished.assembly
    assert assembly.data.test is not None
    measured = evaluate(assembly, assembly.data.test, noise=assembly.config.label_noise)
    result: dict[str, object] = {
        "run": str(path),
        "method": assembly.config.method,
        "data": assembly.config.data,
        "selected": finished.summary["selected"],
        **{name: measured[name] for name in MEASURES},
    }
    if descent:
        result["descent"] = measured.get("descent")
    result["text"] = block_table(result, measured.get("descent") if descent else None)
    return result


def block_table(measured: Mapping[str, object], descent: object = None) -> str:
    """One line per block, with the belief curves beside it if there are any."""
    columns = [measured[name] for name in MEASURES]
    head = f"{'block':>5}  {'acc %':>6} {'NLL':>7} {'Brier':>7} {'ECE':>7}"
    curves = descent if isinstance(descent, dict) else None
    if curves:
        head += f" {'D':>7} {'D (T5)':>7} {'C':>7} {'e':>8} {'e > 0 %':>8}"
    lines = [head]
    if curves:
        lines.append(f"{0:>5}" + " " * 33 + f"{curves['D'][0]:8.4f} {curves['D_population'][0]:7.4f}")
    for i, (accuracy, *rest) in enumerate(zip(*columns, strict=True)):  # pyright: ignore[reportArgumentType]
        if accuracy is None:
            lines.append(f"{i + 1:>5}  (no read-out)")
            continue
        line = f"{i + 1:>5}  {100 * accuracy:6.2f} " + " ".join(f"{value:7.4f}" for value in rest)
        if curves:
            line += f" {curves['D'][i + 1]:7.4f} {curves['D_population'][i + 1]:7.4f} {curves['C'][i]:7.4f}"
            line += f" {curves['e'][i]:8.4f} {100 * curves['e_positive'][i]:8.2f}"
        lines.append(line)
    if curves:
        lines.append(
            "D: KL to the target, nats.  T5: what well-specified blocks would reach.  C: KL moved.  e: slack of the\n"
            "local objective, positive where a block made a sample worse by its own measure.\n"
            f"the telescoped identity: off by {curves['identity']:.1e} at most ({curves['samples']} samples)"
        )
    return "\n".join(lines)
