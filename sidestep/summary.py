"""What a run's summary says: what was trained and chosen, how good its answers are, what it cost; and its text."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from sidestep.assemble import Assembly, with_method
from sidestep.core.task import Classification
from sidestep.evaluate import by_loss, evaluate, last
from sidestep.layout import REPORT
from sidestep.measure.cost import cost
from sidestep.measure.memory import peak_rss_mb
from sidestep.measure.readouts import held_out, readouts
from sidestep.measure.regression import deviations_of_the_answer
from sidestep.measure.uncertainty import of_the_answer
from sidestep.provenance import provenance

SHOWN = {"accuracy": "acc %", "nll": "NLL", "brier": "Brier", "ece": "ECE", "rmse": "RMSE"}
WIDTH = {"accuracy": 6}
IDENTITY_TOLERANCE = 1e-9  # of the size of the terms


def of_training(assembly: Assembly, history: Sequence[Mapping[str, Any]], selected: str) -> dict[str, object]:
    """What was trained, and how good the parameters in place are on the validation split.

    selected: which parameters those are.
    """
    config, data = assembly.config, assembly.data
    on_val = None if data.val is None else evaluate(assembly, data.val)
    return {
        "method": config.method,
        "model": config.model,
        "data": config.data,
        "blocks": config.blocks,
        "at": list(config.at),
        "seed": config.seed,
        "epochs": config.epochs,
        "selected": selected,
        "train_samples": len(data.train),
        "val_accuracy": last(on_val, "accuracy") if on_val and "accuracy" in on_val else None,
        "block_val_accuracy": on_val and on_val.get("accuracy"),
        "curve": curve(history),
        **({} if on_val is None else losses(assembly, "val", on_val)),
    }


def of_answers(assembly: Assembly) -> dict[str, object]:
    """How good the answers to the test set are, which is read here, and how far they can be trusted."""
    test, found = assembly.test, dict[str, object]()
    if test is not None:
        measured = evaluate(assembly, test, noise=assembly.config.label_noise)
        found |= {"test_samples": len(test)} | named("test", measured) | losses(assembly, "test", measured)
        if "descent" in measured:
            found["descent"] = measured["descent"]
    if not isinstance(assembly.task, Classification):
        found["deviations"] = deviations_of_the_answer(assembly)
    elif held := held_out(assembly):
        found["uncertainty"] = of_the_answer(held)
        if (read := readouts(held)) is not None:
            found["readouts"] = read
    return found


def named(part: str, measured: Mapping[str, Any]) -> dict[str, object]:
    """What a summary has of `evaluate`'s measures: the network's answer, and every block's."""
    found = {m: values for m, values in measured.items() if m in SHOWN}
    summary: dict[str, object] = {f"{part}_{m}": last(found, m) for m in found}
    return summary | {f"block_{part}_{m}": values for m, values in found.items()}


def losses(assembly: Assembly, part: str, measured: Mapping[str, object]) -> dict[str, object]:
    """What such a run's summary has besides: the loss in nats, of all blocks too, and of a text in bits."""
    if not by_loss(assembly):
        return {}
    loss = last(measured, "nll")
    bits = {f"{part}_bits_per_character": loss / math.log(2)} if assembly.text else {}
    return {f"{part}_loss": loss, f"block_{part}_loss": measured["nll"]} | bits


def of_costs(assembly: Assembly, timed: tuple[float, int], ranks: int) -> dict[str, object]:
    """Speed, memory and size, and where they were measured.  timed: seconds, and the steps they took."""
    config, (seconds, steps) = assembly.config, timed
    return {
        "samples_per_second": config.batch_size * steps / seconds if seconds else None,
        "step_ms": 1000 * seconds / steps if steps else None,
        "peak_rss_mb": peak_rss_mb(),
        **cost(with_method(assembly, config.method)),
        **provenance(assembly.device),
        "precision": config.precision,
        "ranks": ranks,
    }


def curve(history: Sequence[Mapping[str, Any]]) -> dict[str, list[float]]:
    """By epoch: the objectives' sum over blocks, and the last block's accuracy on what was read after every epoch."""
    found = {"train_loss": [math.fsum(v for v in row["train_loss"] if v is not None) for row in history]}
    for part in ("val", "test"):
        if history and all(part in row for row in history):
            measure, name = ("accuracy", "accuracy") if "accuracy" in history[0][part] else ("nll", "loss")
            found[f"{part}_{name}"] = [last(row[part], measure) for row in history]
    return found


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
