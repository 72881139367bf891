"""Which block loses information: a linear classifier fitted to what each block sends on.

Alain & Bengio, arXiv:1610.01644.   K blocks, N samples, D features, C classes.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from math import ceil
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sidestep.assemble import EVAL_BATCH, Assembly
from sidestep.core.block import Block
from sidestep.core.emit import Emit, Message
from sidestep.core.task import classes
from sidestep.data.samples import Source
from sidestep.engines.streaming import Streaming
from sidestep.measure.calibration import accuracy, nll
from sidestep.measure.readouts import minimise

POSITIONS = 4  # of a feature map, a side
PENALTIES = (1e-1, 1e-2, 1e-3, 1e-4)  # l2: the objective is mean NLL + l2 / 2 |W|^2


def probes(assembly: Assembly, samples: int = 10_000) -> list[dict[str, Any]]:
    """For every block the validation `accuracy` of its probe, how many features it read (`dimension`), and its `l2`.

    A probe is a multinomial logistic regression on `pooled` features, standardised, of the first `samples` training
    samples as they are, unaugmented.  Of PENALTIES it has the one with the least validation NLL.  Without a validation
    split the last fifth of those samples takes its place.  All three are None for a block that sends nothing; one that
    sends a belief and no features, as around a shared extractor, is probed on the belief.
    """
    task = classes(assembly.task, "--probes")
    train, y = collect(assembly, assembly.data.train, samples)
    if assembly.data.val is not None:
        val, y_val = collect(assembly, assembly.data.val, len(assembly.data.val))
    else:
        kept = len(y) - len(y) // 5
        val, y_val = [None if h is None else h[kept:] for h in train], y[kept:]
        train, y = [None if h is None else h[:kept] for h in train], y[:kept]
    y, y_val = y.to(assembly.device), y_val.to(assembly.device)
    found: list[dict[str, Any]] = []
    for h, h_val in zip(train, val, strict=True):
        if h is None or h_val is None:
            found.append({"accuracy": None, "dimension": None, "l2": None})
            continue
        h, h_val = h.to(assembly.device), h_val.to(assembly.device)
        spread, centre = torch.std_mean(h, 0, correction=0)
        spread[spread <= 1e-6 * centre.abs()] = 1  # a constant: what float32 left of it is not to be blown up
        h, h_val = ((part - centre) / spread for part in (h, h_val))
        answers = [(l2, h_val @ w + b) for l2, w, b in regressions(h, y, task.num_classes)]
        l2, answer = min(answers, key=lambda fitted: nll(fitted[1], y_val).item())
        found.append({"accuracy": accuracy(answer, y_val).item(), "dimension": h.shape[1], "l2": l2})
    return found


def regressions(h: Tensor, y: Tensor, classes: int) -> Iterator[tuple[float, Tensor, Tensor]]:
    """(l2, weights (D, C), bias (C,)) for each of PENALTIES, each fit begun where the stronger penalty's ended."""
    w, b = h.new_zeros(h.shape[1], classes), h.new_zeros(classes)
    for l2 in PENALTIES:
        minimise(lambda l2=l2: F.cross_entropy(h @ w + b, y) + l2 / 2 * w.square().sum(), w, b)
        yield l2, w.clone(), b.clone()


def collect(assembly: Assembly, source: Source, samples: int) -> tuple[list[Tensor | None], Tensor]:
    """What every block sends on for the first samples of a source, `pooled` (N, D), and the labels (N,); on the CPU."""
    parts: list[list[Tensor | None]] = []
    labels: list[Tensor] = []
    for x, y in islice(assembly.eval_batches(source), ceil(samples / EVAL_BATCH)):
        sends = sent(assembly.engine, x)
        if y.dim() > 1:  # every token with a label is a sample
            sends = [None if h is None else h.flatten(0, 1) for h in sends]
        parts.append([None if h is None else pooled(h).cpu() for h in sends])
        labels.append(y.flatten().cpu())
    features = [[h for h in block if h is not None] for block in zip(*parts, strict=True)]
    return [torch.cat(block)[:samples] if block else None for block in features], torch.cat(labels)[:samples]


def pooled(h: Tensor) -> Tensor:
    """Features as vectors (B, D), float32: a map (B, C, H, W) at 4 x 4 positions or fewer, tokens (B, T, C) as mean."""
    h = h.float()
    if h.dim() == 4:
        h = F.adaptive_avg_pool2d(h, (min(h.shape[2], POSITIONS), min(h.shape[3], POSITIONS)))
    return h.mean(1) if h.dim() == 3 else h.flatten(1)


@torch.no_grad()
def sent(engine: Streaming, x: Tensor) -> list[Tensor | None]:
    """The first tensor that each block sends on in `engine.predict(x)`, None where it sends none.

    For a last block that sends its logits, as those with the model's own classifier do, it is the classifier's input.
    """
    found: list[Tensor | None] = [None] * len(engine.chain.blocks)

    def see(block: Block, message: Message, emit: Emit) -> None:
        if emit.send:
            is_answer = emit.send[0] is emit.logits
            with engine.context.precision():
                found[block.index] = before_read_out(block.net, message) if is_answer else emit.send[0]

    engine.infer(x, see)
    return found


def before_read_out(net: nn.Module, message: Message) -> Tensor | None:
    """What the last module of a last block reads; None where the block is no `nn.Sequential`."""
    return net[:-1](message[0]) if isinstance(net, nn.Sequential) else None


def probe_table(found: Sequence[Mapping[str, Any]]) -> str:
    """One line per block, for people."""
    lines = ["linear probes on what each block sends on, validation"]
    lines.append(f"{'block':>5}  {'acc %':>6} {'features':>9} {'L2':>6}")
    for i, row in enumerate(found, 1):
        if row["accuracy"] is None:
            lines.append(f"{i:>5}  (sends no features)")
        else:
            lines.append(f"{i:>5}  {100 * row['accuracy']:6.2f} {row['dimension']:9d} {row['l2']:6.0e}")
    return "\n".join(lines)
