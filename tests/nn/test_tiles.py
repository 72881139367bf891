"""Arithmetic by tiles against the same arithmetic in one go.  B samples, D numbers of one."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from sidestep.core.keys import generator
from sidestep.nn import tiles
from sidestep.nn.tiles import tiled

B, D = 10, 6


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Four samples a tile, two in the last; and these are not few."""
    monkeypatch.setitem(tiles.NUMBERS, "cpu", 4 * D)
    monkeypatch.setattr(tiles, "FEW", 2)


def inputs() -> tuple[Tensor, Tensor, Tensor]:
    g = generator(0)
    x, w = (torch.randn(n, D, generator=g, dtype=torch.float64).requires_grad_() for n in (B, 3))
    return x, torch.arange(B), w


def noisy() -> Callable[..., tuple[Tensor, ...]]:
    random = generator(1)

    def fn(x: Tensor, y: Tensor, w: Tensor) -> tuple[Tensor, ...]:
        noise = torch.rand(x.shape, generator=random, dtype=x.dtype)
        return (x * noise).sin() @ w.mT, x.exp().sum(1), w[y % 3] * x, y.detach()

    return fn


def test_values_gradients_and_noise_are_those_of_the_tiles_one_by_one() -> None:
    """A shared input's gradient is a sum over tiles: float64 rounds it by some 1e-16."""
    x, y, w = inputs()
    fn = noisy()
    parts = [fn(x[rows], y[rows], w) for rows in (slice(0, 4), slice(4, 8), slice(8, 10))]
    expected = [torch.cat(part) for part in zip(*parts, strict=True)]
    found = tiled(noisy, [x, y], [w])
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
    outer = torch.randn(B, 3, dtype=torch.float64, generator=generator(2))
    for use in (lambda o: (o[0] * outer).sum(), lambda o: o[1].square().sum() + o[2].sum()):  # what is not used is None
        gradients, naive = (torch.autograd.grad(use(o), [x, w], materialize_grads=True) for o in (found, expected))
        for a, b in zip(gradients, naive, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-14, atol=1e-14)
        found = tiled(noisy, [x, y], [w])  # each graph serves once


def test_only_what_requires_a_gradient_gets_one() -> None:
    x, y, w = inputs()
    scores, *_ = tiled(noisy, [x.detach(), y], [w])
    scores.sum().backward()
    assert x.grad is None and w.grad is not None and bool(w.grad.any())
    with torch.no_grad():
        assert not tiled(noisy, [x, y], [w])[0].requires_grad


def test_nothing_is_kept_but_the_inputs() -> None:
    x, y, w = inputs()
    kept: list[int] = []

    def pack(t: Tensor) -> Tensor:
        kept.append(t.data_ptr())
        return t

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        tiled(noisy, [x, y], [w])
    assert set(kept) == {t.data_ptr() for t in (x, y, w)}


def test_the_second_time_runs_in_the_precision_of_the_first() -> None:
    seen: list[torch.dtype] = []

    def make() -> Callable[..., tuple[Tensor, ...]]:
        def fn(x: Tensor, w: Tensor) -> tuple[Tensor, ...]:
            seen.append((x @ w.mT).dtype)
            return (x @ w.mT,)

        return fn

    x, _, w = (t.detach().float().requires_grad_(t.requires_grad) for t in inputs())
    with torch.autocast("cpu", torch.bfloat16):
        (out,) = tiled(make, [x], [w])
    out.float().sum().backward()
    assert seen == [torch.bfloat16] * 6


def test_what_fits_in_few_tiles_is_simply_called() -> None:
    x, y, w = inputs()
    found = tiled(noisy, [x[:8], y[:8]], [w])
    assert found[0].grad_fn is not None and found[0].grad_fn.name() != "_TiledBackward"
    assert tiled(noisy, [x, y], [w])[0].grad_fn.name() == "_TiledBackward"  # pyright: ignore[reportOptionalMemberAccess]  # it has one
