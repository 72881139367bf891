"""The trained network as files that others can load: safetensors and a model card."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save

from sidestep.assemble import Assembly
from sidestep.core.task import Regression
from sidestep.evaluate import by_loss
from sidestep.files import write_bytes_atomic, write_text_atomic
from sidestep.layout import AUDIT
from sidestep.summary import in_words

WEIGHTS, CARD = "model.safetensors", "README.md"


def write_model(assembly: Assembly, summary: dict[str, Any], folder: Path) -> None:
    """`model.safetensors`, byte-equal whenever the parameters are, and its card."""
    folder.mkdir(parents=True, exist_ok=True)
    network = assembly.method.export(assembly.engine.inference_chain)
    # safetensors takes C order only, and no two names for one memory.
    state = {
        k: v.detach().to("cpu", copy=True, memory_format=torch.contiguous_format)
        for k, v in network.state_dict().items()
    }
    write_bytes_atomic(folder / WEIGHTS, save(state))
    write_text_atomic(folder / CARD, card(assembly, summary))


def card(assembly: Assembly, summary: dict[str, Any]) -> str:
    config, data = assembly.config, assembly.data

    def numbers(values: tuple[float, ...]) -> str:
        return ", ".join(f"{v:.4f}" for v in values)

    normalised = "taken as it is"
    if data.mean:
        normalised = f"normalised by mean ({numbers(data.mean)}) and standard deviation ({numbers(data.std)})"
    judged = f"test {in_words('test', summary)}" if "test_nll" in summary else "not judged on test data"
    of = " of pixels from 0 to 1" if data.mean and config.target == "inputs" else ""  # only bytes are normalised
    meaning = f"means{of}, then log-precisions" if isinstance(assembly.task, Regression) else "logits"
    metrics = "" if by_loss(assembly) else "\nmetrics: [accuracy]"
    return f"""---
library_name: sidestep
tags: [{config.method}]{metrics}
---
# {config.model} trained by {config.method} on {config.data}

{judged[0].upper()}{judged[1:]} ({summary["selected"]}), seed {config.seed}, {config.epochs} epochs.
Trained without a global backward pass where the method allows it; see `{AUDIT}` beside this folder.

- input: {tuple(data.train.shape)}, {normalised}
- output: {tuple(assembly.task.answer_shape(assembly.task.sample)[1:])}, {meaning}
- method: {assembly.method.reference}, {assembly.method!r}
- blocks: {config.blocks}, cut before {", ".join(config.at) or "nothing"}
- sidestep commit {summary["commit"]}, torch {summary["torch"]}
"""
