"""What a run's summary says: what was trained and chosen, how good its answers are, and what it cost."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from sidestep.assemble import Assembly, with_method
from sidestep.core.task import Classification
from sidestep.evaluate import evaluate, last, losses, named
from sidestep.measure.cost import cost
from sidestep.measure.memory import peak_rss_mb
from sidestep.measure.readouts import held_out, readouts
from sidestep.measure.regression import deviations_of_the_answer
from sidestep.measure.uncertainty import of_the_answer
from sidestep.provenance import provenance


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
