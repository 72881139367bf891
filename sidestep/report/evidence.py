"""What a report shows beside the metrics: the audit, the costs, and the blocks' beliefs on a few images.

B batch, C classes, K blocks, R blocks with a read-out, N samples looked at.
"""

from __future__ import annotations

import base64
import io
from collections import Counter
from collections.abc import Iterable
from itertools import islice
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from sidestep.assemble import Assembly
from sidestep.data.order import eval_batches
from sidestep.data.sources import Samples
from sidestep.files import write_json
from sidestep.measure.cost import costs as measure_costs
from sidestep.measure.isolation import audit

AUDIT, COSTS, EXAMPLES = "audit.json", "costs.json", "examples.json"
RIGHT, WRONG = 5, 1  # samples shown that the last block answers rightly, and wrongly
BATCH, BATCHES = 500, 4  # the first 2,000 samples are looked at
SIDE = 64  # pixels; larger pictures are shrunk to it


def write_evidence(assembly: Assembly, folder: Path, costs: bool = True) -> None:
    """Write audit.json, examples.json and, with `costs`, costs.json beside a run's summary.  Trains nothing of the run.

    Without a test set the examples come from the validation split; without that there are none.
    """
    write_json(folder / AUDIT, audit(assembly))
    if costs:
        write_json(folder / COSTS, measure_costs(assembly))
    if (found := examples(assembly)) is not None:
        write_json(folder / EXAMPLES, found)


def examples(assembly: Assembly) -> dict[str, object] | None:
    """Samples on which the belief moved most from the first read-out to the last; None where there is no held-out data.

    Each has its label, its picture (PNG in base64, if the samples are images), and a belief over classes for every
    block, None where the block has no read-out.
    """
    source = assembly.test or assembly.data.val
    if source is None:
        return None
    batches = eval_batches(
        source,
        BATCH,
        mean=assembly.data.mean,
        std=assembly.data.std,
        device=assembly.device,
        channels_last=assembly.channels_last,
    )
    parts: list[Tensor] = []
    labels: list[Tensor] = []
    reads: list[bool] = []
    for x, y in islice(batches, BATCHES):
        logits = assembly.engine.predict(x)
        reads = [z is not None for z in logits]
        parts.append(torch.stack([z.float().softmax(-1).cpu() for z in logits if z is not None]))
        labels.append(y.cpu())
    beliefs, y = torch.cat(parts, 1), torch.cat(labels)  # (R, N, C), (N,)
    chosen = choose(beliefs, y)
    x, _ = source.fetch(torch.tensor(chosen))
    items: list[dict[str, object]] = []
    for picture, i in zip(x, chosen, strict=True):
        # Five digits: a bar's length shows fewer.
        rows = iter([[round(v, 5) for v in p.tolist()] for p in beliefs[:, i]])
        item: dict[str, object] = {"label": int(y[i]), "beliefs": [next(rows) if read else None for read in reads]}
        items.append(item | image(picture))
    names = source.classes if isinstance(source, Samples) else map(str, range(assembly.task.num_classes))
    return {"classes": list(names), "items": items}


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
