"""The answers of hand-made blocks, read in three ways; and what a real run has of them."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from sidestep.assemble import Assembly, Data, assemble
from sidestep.core.task import Classification
from sidestep.data.samples import Samples
from sidestep.measure.calibration import nll
from sidestep.measure.readouts import fit_gate, gated, held_out, readouts
from tests.test_train import configured

HALVES = [[[2.0, 0.0], [0.0, 0.0]], [[0.0, 1.0], [0.0, 3.0]]]
"""Two samples of two blocks' logits, whose means are (1, 0) and (0, 2)."""


def samples(logits: list[list[list[float]]], y: list[int]) -> Samples:
    return Samples(torch.tensor(logits), torch.tensor(y), ("a", "b"))


def answering(
    monkeypatch: pytest.MonkeyPatch, val: Samples | None, test: Samples | None, read: str = "end"
) -> Assembly:
    """A network of three blocks, the middle one without a read-out, whose logits are its input (N, R, C)."""
    made = assemble(configured(test=read))
    source = val or test
    assert source is not None
    monkeypatch.setattr(made.engine, "predict", lambda x: [x[:, 0], None, x[:, 1]])
    task = Classification(2, source.x[:2], per_token=source.y.dim() > 1)
    return replace(made, task=task, data=Data(made.data.train, val, test, (), ()))


def some_read_outs() -> tuple[Tensor, Tensor]:
    """Logits (3, 300, 4) of blocks that see the label through noise, the first the least, and labels."""
    g = torch.Generator().manual_seed(0)
    y = torch.randint(4, (300,), generator=g)
    seen = torch.eye(4, dtype=torch.double)[y] * torch.tensor([0.5, 2.0, 4.0], dtype=torch.double)[:, None, None]
    return seen + torch.randn(3, 300, 4, generator=g, dtype=torch.double), y


# ---------------------------------------------------------------------- by hand


def test_last_and_mean_are_those_worked_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    found = readouts(held_out(answering(monkeypatch, None, samples(HALVES, [0, 0]))))
    # Both labels are 0: the last block's logits are (0, 0) and (0, 3), the means (1, 0) and (0, 2).  All in float64.
    last = (math.log(2) + math.log(1 + math.exp(3))) / 2
    mean = (math.log(1 + math.exp(-1)) + math.log(1 + math.exp(2))) / 2
    assert found == {
        "test": {
            "last": {"accuracy": 0.5, "nll": pytest.approx(last, abs=1e-12)},
            "mean": {"accuracy": 0.5, "nll": pytest.approx(mean, abs=1e-12)},
        }
    }


def test_a_gate_of_zeros_is_the_mean_of_logits_and_of_one_weight_its_block() -> None:
    logits = torch.tensor(HALVES, dtype=torch.double).transpose(0, 1)
    log_p = logits.log_softmax(-1)
    zeros = torch.zeros(2, 2, dtype=torch.double), torch.zeros(2, dtype=torch.double)
    # Float64: normalised twice, which rounds numbers around 1 by some 1e-16.
    torch.testing.assert_close(gated(log_p, *zeros), logits.mean(0).log_softmax(-1), rtol=0, atol=1e-14)
    only_first = torch.tensor([1e3, 0.0], dtype=torch.double)
    torch.testing.assert_close(gated(log_p, zeros[0], only_first), log_p[0], rtol=0, atol=1e-14)


def test_a_gates_answer_is_its_equation_sample_by_sample() -> None:
    log_p = some_read_outs()[0].log_softmax(-1)
    g = torch.Generator().manual_seed(1)
    v, b = torch.randn(3, 3, generator=g, dtype=torch.double), torch.randn(3, generator=g, dtype=torch.double)
    answer = gated(log_p, v, b)
    for n in range(5):
        s = [max(log_p[k, n].tolist()) for k in range(3)]
        e = [math.exp(sum(float(v[k, j]) * s[j] for j in range(3)) + float(b[k])) for k in range(3)]
        mixed = [sum(e[k] / sum(e) * float(log_p[k, n, c]) for k in range(3)) for c in range(4)]
        total = math.log(sum(map(math.exp, mixed)))
        assert answer[n].tolist() == pytest.approx([m - total for m in mixed], abs=1e-12)  # float64, other order


# ---------------------------------------------------------------------- the fitted gate


def test_a_gate_learns_to_prefer_the_block_that_is_right(monkeypatch: pytest.MonkeyPatch) -> None:
    """On every sample the block that is less sure is right, the first or the second in turn: the mean is always wrong,
    each block half of the time, and only a weight that depends on the sample, V, tells them apart."""
    sets: list[Samples] = []
    for count in (40, 12):
        logits: list[list[list[float]]] = []
        for n in range(count):
            right, wrong = ([1.0, 0.0], [0.0, 3.0]) if n % 4 < 2 else ([0.0, 1.0], [3.0, 0.0])
            logits.append([right, wrong] if n % 2 else [wrong, right])
        sets.append(samples(logits, [int(n % 4 >= 2) for n in range(count)]))
    found = readouts(held_out(answering(monkeypatch, sets[0], sets[1])))
    assert found is not None and list(found) == ["val", "test"]
    for split in found.values():
        assert split["last"]["accuracy"] == 0.5
        assert split["mean"]["accuracy"] == 0.0
        assert split["gate"]["accuracy"] == 1.0
        # At best the right block's own NLL, log(1 + 1/e) = 0.3133; the ridge keeps it a little above.
        assert math.log(1 + math.exp(-1)) < split["gate"]["nll"] < 0.33


def test_a_gate_finds_the_block_that_is_always_right() -> None:
    logits, y = some_read_outs()
    bad = -logits[2]
    gate = fit_gate(torch.stack([bad, logits[2]]).log_softmax(-1), y)
    answer = gated(torch.stack([bad, logits[2]]).log_softmax(-1), *gate)
    assert nll(answer, y) < nll(logits[2] / 10, y)  # the mean of the two says nothing at all: log 4
    assert bool((answer.argmax(-1) == logits[2].argmax(-1)).all())


@pytest.mark.parametrize("blocks", [1, 2, 3])
def test_a_gate_is_never_worse_than_the_mean_where_it_was_fitted(blocks: int) -> None:
    """It starts there and each step of the line search lowers NLL plus a ridge that is 0 at the start; 1e-12 for the
    rounding of the two sums."""
    logits, y = some_read_outs()
    for some in (logits[:blocks], -logits[:blocks], 100 * logits[:blocks], logits[:1].expand(blocks, -1, -1)):
        log_p = some.log_softmax(-1)
        assert nll(gated(log_p, *fit_gate(log_p, y)), y) <= nll(some.mean(0), y) + 1e-12


def test_the_same_fit_twice_gives_equal_bits_and_draws_no_random_number() -> None:
    logits, y = some_read_outs()
    before = torch.get_rng_state()
    first, again = (fit_gate(logits.log_softmax(-1), y) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert torch.equal(torch.get_rng_state(), before)


# ---------------------------------------------------------------------- real networks


def test_a_network_with_one_read_out_has_no_other_reading() -> None:
    assert readouts(held_out(assemble(configured("backprop")))) is None
    assert readouts(held_out(assemble(configured("local_ce", blocks="1")))) is None


def test_every_method_with_heads_is_read_by_all_of_them_and_left_as_it_was() -> None:
    for method in ("local_ce", "deep_supervision", "sid"):
        made = assemble(configured(method))
        made.engine.step(made.batches(0))
        before = {k: v.clone() for k, v in made.engine.state_dict().items()}
        found = readouts(held_out(made))
        assert found is not None
        assert [list(ways) for ways in found.values()] == [["last", "mean", "gate"]] * 2
        assert found["val"]["gate"]["nll"] <= found["val"]["mean"]["nll"] + 1e-12  # as above
        test = made.data.test
        assert test is not None
        right = [(made.engine.predict(x), y) for x, y in made.eval_batches(test)]
        for name in ("last", "mean"):
            answers = [torch.stack([block for block in blocks if block is not None]).double() for blocks, _ in right]
            answer = torch.cat([a[-1] if name == "last" else a.mean(0) for a in answers])
            assert found["test"][name]["nll"] == nll(answer, torch.cat([y for _, y in right])).item()
        assert all(torch.equal(before[k], v) for k, v in made.engine.state_dict().items())


def test_the_test_set_is_not_read_where_the_run_may_not(monkeypatch: pytest.MonkeyPatch) -> None:
    both = samples(HALVES, [0, 1])
    assert list(readouts(held_out(answering(monkeypatch, both, both, "never"))) or {}) == ["val"]
    assert list(readouts(held_out(answering(monkeypatch, both, both))) or {}) == ["val", "test"]
    assert "gate" not in (readouts(held_out(answering(monkeypatch, None, both))) or {})["test"]
