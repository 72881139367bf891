"""The audit in words and as matrices, and beliefs on example images as bars: what the page's template prints."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

MOST_CLASSES = 10  # bars of a belief; of more classes, those that were believed most
MOST_BLOCKS = 5  # beliefs of an image; of more blocks, some between the first and the last


@dataclass(frozen=True)
class Audit:
    """What one network's audit found.

    reach: for each block whose loss is differentiated, what becomes of each column's parameters: own, other (than its
    own) or none.  later: for each block but the last, whether its update changes when a column's block is perturbed:
    other, none, or nothing for a block that does not come later.
    """

    verdict: str
    words: list[str]
    columns: list[str]
    reach: list[tuple[str, list[str]]]
    later_columns: list[str]
    later: list[tuple[str, list[str]]]


def audit(found: dict[str, Any]) -> Audit:
    """From what `measure.isolation.audit` gives."""
    blocks, shared = found["blocks"], found["shared"]
    count = len(blocks)
    crossing = [b["block"] for b in blocks if set(b["reaches"]) - {b["block"]}]
    feeding = [b["block"] for b in blocks if b["reaches_shared"]]
    dependent = [b["block"] for b in blocks if b["depends_on_later"]]
    silent = [b["block"] for b in blocks if not b["has_loss"]]

    if crossing:
        verdict = "Not isolated"
        words = [f"The loss of {each(crossing, count)} reaches the parameters of other blocks."]
    else:
        verdict = "Isolated" if found["isolated"] else "Not isolated, as the blocks share a part"
        words = ["Of the blocks’ parameters, each block’s loss reaches its own and no others."]
    if feeding:
        words.append(
            f"The loss of {each(feeding, count)} also reaches what the blocks share: {listed(shared)}. All blocks "
            "train it together, so a step is not complete before every block’s gradient is there."
        )
    if silent:
        words.append(f"The loss of {each(silent, count)} reaches no parameter, or there is none.")
    if dependent:
        down = found.get("down")  # which audits of earlier runs do not have
        sent = f" Later blocks send: {', '.join(down)}." if down else ""
        words.append(f"The update of {each(dependent, count)} changes when a later block is perturbed.{sent}")
    else:
        words.append("No block’s update changes when a later block is perturbed.")
    verb = "agrees with" if found["agrees"] else "contradicts"
    words.append(f"The measurement {verb} what follows from the method’s program.")

    reach: list[tuple[str, list[str]]] = []
    later: list[tuple[str, list[str]]] = []
    for b in blocks:
        i = b["block"]
        cells = ["none" if j not in b["reaches"] else "own" if j == i else "other" for j in range(count)]
        reach.append((str(i + 1), cells + ["other" if b["reaches_shared"] else "none"] * bool(shared)))
        depends = ["" if j <= i else "other" if j in b["depends_on_later"] else "none" for j in range(1, count)]
        later.append((str(i + 1), depends))
    columns = [str(i + 1) for i in range(count)]
    return Audit(verdict, words, columns + ["shared"] * bool(shared), reach, columns[1:], later[:-1])


def named(blocks: Sequence[int]) -> str:
    """`block 4`, `blocks 1 and 3` or, where they follow each other, `blocks 1 to 4`; counted from 1."""
    numbers = [str(b + 1) for b in blocks]
    if len(blocks) > 2 and list(blocks) == list(range(blocks[0], blocks[-1] + 1)):
        return f"blocks {numbers[0]} to {numbers[-1]}"
    return f"blocks {', '.join(numbers[:-1])} and {numbers[-1]}" if len(blocks) > 1 else f"block {numbers[0]}"


def each(blocks: Sequence[int], count: int) -> str:
    """The same, one at a time: a singular verb can follow."""
    return "every block" if len(blocks) == count > 1 else ("each of " if len(blocks) > 1 else "") + named(blocks)


def listed(names: Sequence[str]) -> str:
    few = ", ".join(names[:3])
    return few if len(names) <= 3 else f"{few} and {len(names) - 3} more tensors"


@dataclass(frozen=True)
class Example:
    """One sample.  heads: a block's name and belief in the label.  bars: a class, whether it is the label, beliefs."""

    png: str | None
    label: str
    verdict: str
    heads: list[tuple[str, float]]
    bars: list[tuple[str, bool, list[float]]]

    @property
    def width(self) -> int:
        """Characters that the classes' names get; the page cuts longer ones."""
        return min(max(len(name) for name, _, _ in self.bars), 10)


def examples(found: dict[str, Any] | None) -> list[Example]:
    """From examples.json; none where fewer than two blocks have a belief, since nothing is refined there."""
    if found is None:
        return []
    made = [example(item, found["classes"]) for item in found["items"]]
    return [one for one in made if len(one.heads) > 1]


def example(item: dict[str, Any], classes: Sequence[str]) -> Example:
    beliefs: dict[int, list[float]] = {k: p for k, p in enumerate(item["beliefs"]) if p is not None}
    label: int = item["label"]
    top = sorted(range(len(classes)), key=lambda c: (c != label, -max(p[c] for p in beliefs.values())))[:MOST_CLASSES]
    blocks = spaced(list(beliefs), MOST_BLOCKS)
    bars = [(classes[c], c == label, [beliefs[k][c] for k in blocks]) for c in sorted(top)]
    if len(classes) > len(top):
        rest = [1 - sum(beliefs[k][c] for c in top) for k in blocks]
        bars.append((f"{len(classes) - len(top)} others", False, [max(0.0, r) for r in rest]))

    first, last = (max(range(len(classes)), key=beliefs[k].__getitem__) for k in (blocks[0], blocks[-1]))
    answer = classes[last] if first == last else f"{classes[first]}, then {classes[last]}"
    return Example(
        png=item.get("png"),
        label=classes[label],
        verdict=f"answer {answer}" + ("" if last == label else ": wrong"),
        heads=[(f"block {k + 1}", beliefs[k][label]) for k in blocks],
        bars=bars,
    )


def spaced(items: Sequence[int], most: int) -> list[int]:
    """The first, the last, and of those between as many as fit, evenly."""
    if len(items) <= most:
        return list(items)
    return [items[round(i * (len(items) - 1) / (most - 1))] for i in range(most)]
