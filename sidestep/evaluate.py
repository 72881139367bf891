"""How good every block's answer is on a set of samples, and a finished run looked at again."""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch.nn.functional as F
from torch import Tensor

from sidestep.assemble import Assembly
from sidestep.core.task import Classification, Regression, classes
from sidestep.data.samples import Source
from sidestep.errors import DataError
from sidestep.layout import REPORT
from sidestep.measure.calibration import Scores
from sidestep.measure.descent import summarise
from sidestep.measure.probes import probe_table
from sidestep.measure.probes import probes as measure_probes
from sidestep.measure.regression import Errors, deviation_table, deviations
from sidestep.measure.uncertainty import other_data, uncertainty_table
from sidestep.measure.uncertainty import uncertainty as measure_uncertainty

SHOWN = {"accuracy": "acc %", "nll": "NLL", "brier": "Brier", "ece": "ECE", "rmse": "RMSE"}
WIDTH = {"accuracy": 6}
IDENTITY_TOLERANCE = 1e-9  # of the size of the terms


def evaluate(assembly: Assembly, source: Source, *, noise: float = 0.0) -> dict[str, object]:
    """Accuracy, NLL (nats), Brier score and ECE of every block, None for a block without a read-out.

    Of targets that are numbers: NLL (nats a number) and root mean squared error.

    noise: the share of training labels that were redrawn at random, if `source` is clean: it makes P(y|x) known to the
    belief curves, which stand under `descent` where the method has a theory of them.
    """
    task = assembly.task
    new = partial(Errors, task) if isinstance(task, Regression) else Scores
    scores: list[Scores | Errors | None] = []
    curves: list[Mapping[str, Tensor]] = []
    for logits, y in assembly.answers(source):
        scores = scores or [None if block is None else new() for block in logits]
        for score, block in zip(scores, logits, strict=True):
            if score is not None and block is not None:
                score.update(block, y)
        if not isinstance(task, Classification):
            continue
        beliefs = [block for block in logits if block is not None]
        p_y = (1 - noise) * F.one_hot(y, task.num_classes).double() + noise / task.num_classes
        if curve := assembly.method.descent(beliefs, y, task, p_y):
            curves.append(curve)
    results = [None if score is None else score.result() for score in scores]
    measures = next((r for r in results if r is not None), {})
    found: dict[str, object] = {m: [None if r is None else r[m] for r in results] for m in measures}
    if curves:
        found["descent"] = summarise(curves)
    return found


def named(part: str, measured: Mapping[str, Any]) -> dict[str, object]:
    """What a summary has of `evaluate`'s measures: the network's answer, and every block's."""
    found = {m: values for m, values in measured.items() if m in SHOWN}
    summary: dict[str, object] = {f"{part}_{m}": last(found, m) for m in found}
    return summary | {f"block_{part}_{m}": values for m, values in found.items()}


def last(measured: Mapping[str, object], name: str) -> float:
    """The network's answer is its last block's."""
    values = measured[name]
    assert isinstance(values, list) and values[-1] is not None
    return float(values[-1])


def judged(assembly: Assembly, measured: Mapping[str, object]) -> tuple[float, str]:
    """What epochs are chosen by, more being better, and in words: accuracy, or likelihood."""
    if by_loss(assembly):
        loss = last(measured, "nll")
        return -loss, f"loss {loss:.4f} nats"
    accuracy = last(measured, "accuracy")
    return accuracy, f"accuracy {100 * accuracy:.2f} %"


def by_loss(assembly: Assembly) -> bool:
    """Whether a run is judged by its likelihood: of a text, and of targets that are numbers."""
    return assembly.text or isinstance(assembly.task, Regression)


def losses(assembly: Assembly, part: str, measured: Mapping[str, object]) -> dict[str, object]:
    """What such a run's summary has besides: the loss in nats, of all blocks too, and of a text in bits."""
    if not by_loss(assembly):
        return {}
    loss = last(measured, "nll")
    bits = {f"{part}_bits_per_character": loss / math.log(2)} if assembly.text else {}
    return {f"{part}_loss": loss, f"block_{part}_loss": measured["nll"]} | bits


def run(
    path: Path, *, descent: bool = False, probes: bool = False, uncertainty: bool = False, ood: str | None = None
) -> dict[str, object]:
    """Evaluate a finished run on its test set again: what `sidestep evaluate RUN` prints, under its summary's names.

    A run that was not to read the test set is judged on its validation split.  ood: the name of another data set, whose
    test split joins the measures of uncertainty, which replace those in the run's folder, if that can be written.
    """
    from sidestep.measure.evidence import keep_uncertainty
    from sidestep.run import load_run

    finished = load_run(path)
    assembly = finished.assembly
    part, source = ("val", assembly.data.val) if assembly.test is None else ("test", assembly.test)
    if source is None:
        raise DataError(f"{path} was trained with test=never and no validation samples, expected one to be judged on.")
    if ood is not None:
        classes(assembly.task, "--ood")
    other = None if ood is None else other_data(assembly, ood)
    measured = evaluate(assembly, source, noise=assembly.config.label_noise if part == "test" else 0.0)
    result = {"run": str(path), **{k: finished.summary[k] for k in ("method", "model", "data", "selected")}}
    result |= named(part, measured)
    if descent:
        result["descent"] = measured.get("descent")
    tables = [block_table(result, part)]
    if uncertainty and isinstance(assembly.task, Regression):
        result["uncertainty"] = found = deviations(assembly, source)
        tables.append(deviation_table(found, part))
    elif uncertainty or other is not None:
        result["uncertainty"] = found = measure_uncertainty(assembly, source, other)
        # It shows what the plain table does, and more; only the belief curves it has not.
        tables = [*(tables if descent else []), uncertainty_table(found)]
        if keep_uncertainty(path, found):
            tables.append("`sidestep report` of this run draws them.")
    if probes:
        result["probes"] = found = measure_probes(assembly)
        tables.append(probe_table(found))
    return result | {"text": "\n\n".join(tables)}


def summary_text(summary: Mapping[str, Any], folder: Path) -> str:
    """A finished run for people."""
    rate, step = summary["samples_per_second"], summary["step_ms"]
    speed = f"{rate:.0f} samples/s, {step:.1f} ms a step, " if step else ""
    judged = (
        f"test {in_words('test', summary)}  ({summary['selected']})\n{block_table(summary)}"
        if "test_nll" in summary
        else f"validation {in_words('val', summary)}  ({summary['selected']}; test set not read)"
        if summary["val_accuracy"] is not None or "val_loss" in summary
        else f"judged on nothing  ({summary['selected']}; test set not read, and no validation samples)"
    )
    page = f"\nreport: {folder / REPORT}" if (folder / REPORT).exists() else ""
    return (
        f"{summary['method']} on {summary['data']}, {summary['model']} in {summary['blocks']} blocks, "
        f"{summary['epochs']} epochs, seed {summary['seed']}\n"
        f"{judged}\n{speed}peak activations {summary['peak_activation_mb']:.2f} MB\n"
        f"{summary['params']:,} parameters ({summary['aux_params']:,} auxiliary){page}"
    )


def in_words(part: str, summary: Mapping[str, Any]) -> str:
    """What the network is judged by: accuracy, or its loss."""
    if (loss := summary.get(f"{part}_loss")) is not None:
        bits = summary.get(f"{part}_bits_per_character")
        return f"loss {loss:.4f} nats" + ("" if bits is None else f", {bits:.4f} bits a character")
    return f"accuracy {100 * summary[f'{part}_accuracy']:.2f} %"


def block_table(summary: Mapping[str, Any], part: str = "test") -> str:
    """One line per block, 80 columns wide, with the belief curves beside it if there are any."""
    curves = summary.get("descent")
    measures = [m for m in SHOWN if f"block_{part}_{m}" in summary]
    head = f"{'block':>5} " + "".join(f" {SHOWN[m]:>{WIDTH.get(m, 7)}}" for m in measures)
    if curves:
        head += f" {'D':>7} {'D (T5)':>7} {'C':>7} {'e':>8} {'e > 0 %':>8}"
    lines = [head]
    if curves:
        lines.append(f"{0:>5}" + " " * 33 + f"{curves['D'][0]:7.4f} {curves['D_population'][0]:7.4f}")
    for i, values in enumerate(zip(*(summary[f"block_{part}_{m}"] for m in measures), strict=True)):
        if values[0] is None:
            lines.append(f"{i + 1:>5}  (no read-out)")
            continue
        cells = [f" {100 * v:6.2f}" if m == "accuracy" else f" {v:7.4f}" for m, v in zip(measures, values, strict=True)]
        line = f"{i + 1:>5} " + "".join(cells)
        if curves:
            line += f" {curves['D'][i + 1]:7.4f} {curves['D_population'][i + 1]:7.4f} {curves['C'][i]:7.4f}"
            line += f" {curves['e'][i]:8.4f} {100 * curves['e_positive'][i]:8.2f}"
        lines.append(line)
    return "\n".join(lines + ([identity_text(curves)] if curves else []))


def identity_text(curves: Mapping[str, Any]) -> str:
    """What the columns mean, and whether the identity that ties them holds.

    Both sides are sums of the terms of one sample in float64, so they differ by some 1e-16 of the largest term.
    """
    scale = max(1.0, *curves["D"], *curves["C"])
    verdict = "holds" if curves["identity"] <= IDENTITY_TOLERANCE * scale else "DOES NOT HOLD"
    return (
        "D: KL to the target, nats.  T5: what well-specified blocks would reach.\n"
        "C: KL moved.  e: slack of the local objective, > 0 where a block made a sample\n"
        f"worse by its own measure.  D's telescoped identity {verdict}: off by {curves['identity']:.1e}\n"
        f"at most over {curves['samples']} samples (tolerance {IDENTITY_TOLERANCE * scale:.0e})"
    )
