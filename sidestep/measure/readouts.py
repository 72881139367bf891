"""A network read by its last block, by the mean of all blocks, and by a gate over them: is a gain only an ensemble's?

R blocks with a read-out, N samples, C classes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

from sidestep.assemble import Assembly
from sidestep.data.samples import Source
from sidestep.measure.calibration import accuracy, nll

RIDGE = 1e-4  # on V: keeps it finite where a gate could be perfect


Collected = tuple[Tensor, Tensor]
"""All read-outs of a source, logits (R, N, C), and its labels (N,)."""


def held_out(assembly: Assembly) -> dict[str, Collected]:
    """`collect` of `val` and `test`, without a split that does not exist or that the run may not read."""
    parts = {"val": assembly.data.val, "test": assembly.test}
    return {name: collect(assembly, source) for name, source in parts.items() if source is not None}


def readouts(held: Mapping[str, Collected]) -> dict[str, dict[str, dict[str, float]]] | None:
    """Accuracy and NLL (nats) on each split by each way to read the network, None with fewer than two read-outs.

    last: the last block's answer.  mean: softmax of the blocks' mean logits.  gate: `gated`, fitted on the validation
    split, so its figures there are those of its own training samples; without a validation split there is none.
    """
    if any(len(logits) < 2 for logits, _ in held.values()):
        return None
    found: dict[str, dict[str, dict[str, float]]] = {}
    gate: tuple[Tensor, Tensor] | None = None
    for split, (logits, y) in held.items():
        logits = logits.double()
        log_p = logits.log_softmax(-1)
        answers = {"last": logits[-1], "mean": logits.mean(0)}
        if split == "val":
            gate = fit_gate(log_p, y)
        if gate is not None:
            answers["gate"] = gated(log_p, *gate)
        found[split] = {
            name: {"accuracy": accuracy(answer, y).item(), "nll": nll(answer, y).item()}
            for name, answer in answers.items()
        }
    return found


def reading(assembly: Assembly) -> list[bool]:
    """Which of all blocks have a read-out, (K,)."""
    return [block is not None for block in assembly.engine.predict(assembly.task.sample)]


def collect(assembly: Assembly, source: Source) -> Collected:
    """All read-outs of all samples, logits (R, N, C) float32 and labels (N,), on the CPU.

    Where every token has a label of its own, tokens count as samples from here on, those of a text in a row.
    """
    logits: list[Tensor] = []
    labels: list[Tensor] = []
    for blocks, y in assembly.answers(source):
        assert blocks[-1] is not None  # the network's answer is its last block's
        logits.append(torch.stack([block for block in blocks if block is not None]).float().cpu())
        labels.append(y.cpu())
    return torch.cat(logits, 1), torch.cat(labels)


def gated(log_p: Tensor, v: Tensor, b: Tensor) -> Tensor:
    """Log-probabilities (N, C) of log_softmax(sum_k w_k log p_k), where each sample's w = softmax(V s + b).

    s are the blocks' largest log-probabilities.  V = b = 0 gives the softmax of the mean logits.

    log_p: (R, N, C) float64, of every block; v: (R, R); b: (R,).
    """
    weights = (v @ log_p.amax(-1) + b[:, None]).softmax(0)
    return torch.einsum("rn,rnc->nc", weights, log_p).log_softmax(-1)


def fit_gate(log_p: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """V (R, R) and b (R,) with less NLL + RIDGE |V|^2 on these samples than V = b = 0, from where the fit starts."""
    v, b = log_p.new_zeros(len(log_p), len(log_p)), log_p.new_zeros(len(log_p))
    minimise(lambda: F.nll_loss(gated(log_p, v, b), y) + RIDGE * v.square().sum(), v, b)
    return v, b


def minimise(objective: Callable[[], Tensor], *parameters: Tensor) -> None:
    """Lower an objective () in place by L-BFGS over all samples at once: no random number, and never uphill."""
    for p in parameters:
        p.requires_grad_()
    optimizer = torch.optim.LBFGS(parameters, max_iter=100, history_size=10, line_search_fn="strong_wolfe")

    def evaluated() -> Tensor:
        optimizer.zero_grad()
        value = objective()
        value.backward()
        return value

    optimizer.step(evaluated)
    for p in parameters:
        p.requires_grad_(False).grad = None
