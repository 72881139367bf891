"""What a report shows beside the metrics: the audit, the costs, the uncertainty, and beliefs on a few images.

C classes, K blocks, R blocks with a read-out, N samples.
"""

from __future__ import annotations

import base64
import io
import sys
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from sidestep.assemble import Assembly
from sidestep.core.task import Regression, moments
from sidestep.data.samples import Samples, Source
from sidestep.errors import Busy
from sidestep.files import only_writer, strict_json, write_json, write_text_atomic
from sidestep.layout import AUDIT, COSTS, DEVIATIONS, EXAMPLES, UNCERTAINTY
from sidestep.measure.cost import costs as measure_costs
from sidestep.measure.isolation import audit_assembly
from sidestep.measure.readouts import collect, reading
from sidestep.measure.regression import deviations
from sidestep.measure.uncertainty import uncertainty

RIGHT, WRONG = 5, 1  # samples shown that the last block answers rightly, and wrongly
LOOKED_AT = 2000  # samples, the first, of which the examples are chosen
SHOWN = 6  # answers to targets that are pictures
SIDE = 64  # pixels; larger pictures are shrunk to it


def write_evidence(assembly: Assembly, folder: Path, costs: bool = True) -> None:
    """Write audit.json, examples.json, uncertainty.json and, with `costs`, costs.json beside a run's summary.

    Trains nothing of the run.  Without a test set the examples and the uncertainty are of the validation split; without
    that there are none.  Of tokens with labels of their own there are no examples.  Of targets that are numbers both
    are in deviations.json.
    """
    write_json(folder / AUDIT, audit_assembly(assembly))
    if costs:
        write_json(folder / COSTS, measure_costs(assembly))
    source = assembly.test or assembly.data.val
    if source is None:
        return
    if isinstance(assembly.task, Regression):
        found = {"split": "val" if source is assembly.data.val else "test", **deviations(assembly, source)}
        write_json(folder / DEVIATIONS, found | {"items": answered(assembly, source)})
        return
    collected = collect(assembly, source)
    if len(collected[1]) == len(source):
        write_json(folder / EXAMPLES, examples(assembly, source, *collected))
    write_uncertainty(folder, uncertainty(assembly, source, collected=collected))


def keep_uncertainty(folder: Path, found: Mapping[str, Any]) -> bool:
    """`write_uncertainty` in a finished run's folder if that can be written; else say why not, and leave it alone."""
    try:
        with only_writer(folder):
            write_uncertainty(folder, found)
    except (OSError, Busy) as error:
        print(f"sidestep: warning: {folder / UNCERTAINTY} was not written ({error})", file=sys.stderr)
        return False
    return True


def write_uncertainty(folder: Path, found: Mapping[str, Any]) -> None:
    """Replace a run's uncertainty.json, as a whole, by what `measure.uncertainty.uncertainty` gave."""
    write_text_atomic(folder / UNCERTAINTY, strict_json(found) + "\n")  # on one line: it is some thousand numbers


def examples(assembly: Assembly, source: Source, logits: Tensor, y: Tensor) -> dict[str, object]:
    """Samples on which the belief moved most from the first read-out to the last.

    Each has its label, its picture (PNG in base64, if the samples are images), and a belief over classes for every
    block, None where the block has no read-out.   logits: (R, N, C) and y: (N,), of the source in its order.
    """
    reads = reading(assembly)
    beliefs, y = logits[:, :LOOKED_AT].softmax(-1), y[:LOOKED_AT]
    chosen = choose(beliefs, y)
    x, _ = source.fetch(torch.tensor(chosen))
    items: list[dict[str, object]] = []
    for picture, i in zip(x, chosen, strict=True):
        # Five digits: a bar's length shows fewer.
        rows = iter([[round(v, 5) for v in p.tolist()] for p in beliefs[:, i]])
        item: dict[str, object] = {"label": int(y[i]), "beliefs": [next(rows) if read else None for read in reads]}
        items.append(item | image(picture))
    names = source.classes if isinstance(source, Samples) else map(str, range(logits.shape[-1]))
    return {"classes": list(names), "items": items}


def answered(assembly: Assembly, source: Source) -> list[dict[str, str]]:
    """Pictures of the first samples whose targets are pictures in 0..1: the target, its mean, its deviation.

    PNG in base64; a deviation is shown as a share of the largest of them all.
    """
    x, y = next(assembly.eval_batches(source))
    y = y[:SHOWN]
    if y.dim() != 4 or y.shape[1] not in (1, 3):
        return []
    answer = assembly.engine.predict(x[:SHOWN])[-1]
    assert answer is not None
    mean, log_precision = moments(answer)
    deviation = (-0.5 * log_precision).exp()
    parts = {"target": y, "mean": mean, "deviation": deviation / deviation.amax()}
    shown = {name: (255 * part.clamp(0, 1)).round().byte() for name, part in parts.items()}
    return [{name: image(part[i])["png"] for name, part in shown.items()} for i in range(len(y))]


def choose(beliefs: Tensor, y: Tensor) -> list[int]:
    """The indices of the samples to show: those the last read-out answers rightly, then a wrong one, classes in turn.

    beliefs: (R, N, C); y: (N,).  Ordered by the total variation between the first and the last belief, ties by index.
    """
    moved = (beliefs[-1] - beliefs[0]).abs().sum(-1) / 2
    order = moved.sort(descending=True, stable=True).indices
    right = (beliefs[-1].argmax(-1) == y)[order]
    return in_turn(order[right].tolist(), y, RIGHT) + in_turn(order[~right].tolist(), y, WRONG)


def in_turn(order: Iterable[int], y: Tensor, count: int) -> list[int]:
    """The first `count` of an order in which every class's best comes before any class's second best."""
    seen: Counter[int] = Counter()
    turns: list[tuple[int, int, int]] = []
    for rank, i in enumerate(order):
        label = int(y[i])
        turns.append((seen[label], rank, i))
        seen[label] += 1
    return [i for _, _, i in sorted(turns)[:count]]


def image(x: Tensor) -> dict[str, str]:
    """A grey or colour picture as {"png": base64}; {} for a sample that is none.  x: (1 or 3, H, W) uint8 to be one."""
    if x.dtype != torch.uint8 or x.dim() != 3 or len(x) not in (1, 3):
        return {}
    picture = Image.fromarray((x[0] if len(x) == 1 else x.permute(1, 2, 0)).cpu().contiguous().numpy())
    picture.thumbnail((SIDE, SIDE))
    file = io.BytesIO()
    picture.save(file, "PNG", optimize=True)
    return {"png": base64.b64encode(file.getvalue()).decode()}
