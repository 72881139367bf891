"""Sequences of tokens with a label for every token: generated ones, and text, whose labels are its next characters.

N samples, T tokens.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from torch import Generator, Tensor

from sidestep.core.keys import generator, key
from sidestep.data.files import Part
from sidestep.errors import DataError

SIZES = {"train": 50_000, "val": 5_000, "test": 5_000}
TEXT = "input.txt"


def reversal(n: int, length: int, random: Generator) -> tuple[Tensor, Tensor]:
    """Random digits, and the same read backwards: one layer of attention by position solves it."""
    x = torch.randint(10, (n, length), generator=random)
    return x, x.flip(1)


def pointers(n: int, length: int, random: Generator, *, hops: int) -> tuple[Tensor, Tensor]:
    """Token i points at position x[i], a permutation; its label is where `hops` further pointers lead.

    A layer of attention follows one pointer, or doubles how many were followed, so that log2(k + 1) layers, rounded up,
    do for k hops.  Fewer may: one layer of four heads learns two hops among 16 tokens.
    """
    x = torch.rand(n, length, generator=random).argsort(1)
    y = x
    for _ in range(hops):
        y = x.gather(1, y)
    return x, y


GENERATED: dict[str, tuple[int, Callable[[int, int, Generator], tuple[Tensor, Tensor]]]] = {
    "reversal": (20, reversal),
    "pointers-1": (16, partial(pointers, hops=1)),
    "pointers-2": (16, partial(pointers, hops=2)),
    "pointers-4": (16, partial(pointers, hops=4)),
}
"""By name: tokens a sample, and what draws samples."""


def generated(name: str, context: int | None, seed: int) -> dict[str, Part]:
    """The three splits of a generated task; those that are judged do not depend on the seed."""
    length, draw = GENERATED[name]
    length = context or length
    symbols = tuple(map(str, range(10 if name == "reversal" else length)))
    drawn = {
        split: draw(n, length, generator(key(seed if split == "train" else 0, name, split)))
        for split, n in SIZES.items()
    }
    return {split: Part(x.numpy(), y.numpy(), symbols) for split, (x, y) in drawn.items()}


def read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path} cannot be read ({error}); expected a text in UTF-8; copy it again.") from error


def cut_text(text: str, context: int | None, where: str) -> dict[str, Part]:
    """A text's characters: the last tenth is `val`, the tenth before it `test`, what comes before is `train`.

    Each is cut into samples of `context` characters, by default 128, what is left over dropped; labels are the
    characters that follow.  The vocabulary is the whole text's.
    """
    context = context or 128
    vocabulary = sorted(set(text))
    code = {character: i for i, character in enumerate(vocabulary)}
    tokens = torch.tensor([code[character] for character in text])
    tenth = len(tokens) // 10
    if tenth < 2 * context + 1:
        raise DataError(
            f"{where} has {len(text)} characters, expected at least {20 * context + 10}: two samples of {context} in a "
            "tenth of it; lower --context, or take a longer text."
        )
    train, test, val = tokens.split([len(tokens) - 2 * tenth, tenth, tenth])
    parts = {"train": train, "val": val, "test": test}
    return {split: windows(part, context, tuple(vocabulary)) for split, part in parts.items()}


def windows(tokens: Tensor, context: int, vocabulary: tuple[str, ...]) -> Part:
    n = (len(tokens) - 1) // context
    x, y = (tokens[start : start + n * context].view(n, context) for start in (0, 1))
    return Part(x.numpy(), y.numpy(), vocabulary, text=True)
