"""How good every block's answer is on a set of samples."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

import torch.nn.functional as F
from torch import Tensor

from sidestep.assemble import Assembly
from sidestep.core.task import Classification, Regression
from sidestep.data.samples import Source
from sidestep.measure.calibration import Scores
from sidestep.measure.descent import summarise
from sidestep.measure.regression import Errors


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
