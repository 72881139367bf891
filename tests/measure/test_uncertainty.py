"""Risk, coverage, ranks and temperature: by hand, against loops over every pair and order, and what must hold."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable

import pytest
import torch
from sklearn.metrics import roc_auc_score
from torch import Tensor

from sidestep.assemble import assemble
from sidestep.data.samples import Samples
from sidestep.evaluate import evaluate
from sidestep.measure.calibration import Scores, accuracy, adaptive_ece, brier, confidence, ece, nll
from sidestep.measure.readouts import collect, held_out, readouts
from sidestep.measure.uncertainty import (
    aurc,
    auroc,
    curves,
    histogram,
    measures,
    of_the_answer,
    reliability,
    risk_coverage,
    sampled,
    temperature,
    uncertainty,
)
from tests.measure.test_calibration import logits_of, rounded, some_answers
from tests.measure.test_readouts import HALVES, answering, samples, some_read_outs
from tests.test_train import configured

MEASURES = ("accuracy", "nll", "brier", "ece")


def tied(samples: int = 60, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Answers of few confidences: the logits of three classes are whole numbers."""
    g = torch.Generator().manual_seed(seed)
    logits = torch.randint(-2, 3, (samples, 3), generator=g).double()
    return logits, torch.randint(3, (samples,), generator=g)


def rounded_all(values: list[float]) -> object:
    """As `rounded`."""
    return pytest.approx(values, rel=1e-12, abs=1e-12)


# ---------------------------------------------------------------------- risk and coverage


def test_risk_and_coverage_of_four_answers_worked_by_hand() -> None:
    # From sure to unsure: right, wrong, right, wrong.  Risks 0/1, 1/2, 1/3, 2/4; their mean is 1/3.
    logits, y = logits_of(0.6, 0.9, 0.7, 0.8), torch.tensor([1, 0, 0, 1])
    assert risk_coverage(logits, y).tolist() == rounded_all([0, 1 / 2, 1 / 3, 1 / 2])
    assert aurc(logits, y).item() == rounded(1 / 3)


def test_equal_confidences_have_the_mean_risk_of_their_orders_worked_by_hand() -> None:
    # wrong and right at 0.9, right at 0.6: the risks are 1, 1/2, 1/3 or 0, 1/2, 1/3, so 1/2, 1/2, 1/3; the mean is 4/9.
    logits, y = logits_of(0.9, 0.6, 0.9), torch.tensor([1, 0, 0])
    assert risk_coverage(logits, y).tolist() == rounded_all([1 / 2, 1 / 2, 1 / 3])
    assert aurc(logits, y).item() == rounded(4 / 9)


def test_risk_is_the_mean_over_every_order_within_ties() -> None:
    logits, y = logits_of(0.9, 0.7, 0.7, 0.7, 0.6, 0.6, 0.8), torch.tensor([0, 1, 0, 0, 1, 0, 1])
    sure, wrong = confidence(logits).tolist(), (y == 1).tolist()
    orders = [o for o in itertools.permutations(range(7)) if all(sure[a] >= sure[b] for a, b in itertools.pairwise(o))]
    assert len(orders) == 3 * 2 * 2  # the orders of the three and of the two
    risks = [[sum(wrong[i] for i in order[:k]) / k for k in range(1, 8)] for order in orders]
    mean = [sum(column) / len(orders) for column in zip(*risks, strict=True)]
    assert risk_coverage(logits, y).tolist() == rounded_all(mean)


def test_risk_is_that_of_a_loop_over_every_pair() -> None:
    logits, y = tied()
    sure, wrong = confidence(logits).tolist(), (logits.argmax(-1) != y).tolist()
    for k, found in enumerate(risk_coverage(logits, y).tolist(), 1):
        expected = 0.0
        for mine, bad in zip(sure, wrong, strict=True):
            above, equal = sum(s > mine for s in sure), sum(s == mine for s in sure)
            expected += bad * min(1.0, max(0.0, (k - above) / equal)) / k  # how likely it is among the first k
        assert found == rounded(expected)


def test_nothing_depends_on_the_order_of_samples() -> None:
    """Bit for bit where counts are added, in float64 rounding where confidences are."""
    logits, y = tied(200)
    logits = logits + torch.tensor([0.0, 0.1, 0.3], dtype=torch.double)  # no two largest: the answer is one
    for seed in range(3):
        order = torch.randperm(len(y), generator=torch.Generator().manual_seed(seed))
        assert torch.equal(risk_coverage(logits[order], y[order]), risk_coverage(logits, y))
        assert adaptive_ece(logits[order], y[order]).item() == rounded(adaptive_ece(logits, y).item())


@pytest.mark.parametrize("errors", [0, 1, 30, 100])
def test_a_perfect_ranking_has_the_known_area(errors: int) -> None:
    """M right answers first: the risk is 0, then (k - M)/k.  Its mean is (E - M (H_N - H_M)) / N with harmonic numbers,
    and r + (1 - r) log(1 - r) of Geifman et al. as N grows: H_N - H_M is within 1/2M of log N/M, so it within 1/2N."""
    n, m = 100, 100 - errors
    logits = logits_of(*torch.linspace(0.99, 0.6, n, dtype=torch.double).tolist())
    y = (torch.arange(n) >= m).long()
    harmonic = sum(1 / k for k in range(m + 1, n + 1))
    assert aurc(logits, y).item() == rounded((errors - m * harmonic) / n)
    if m:
        r = errors / n
        assert aurc(logits, y).item() == pytest.approx(r + (1 - r) * math.log(1 - r), abs=1 / (2 * n))
    worst = aurc(logits, y.flip(0))  # the wrong ones first: min(k, E) / k
    assert worst.item() == rounded(sum(min(k, errors) / k for k in range(1, n + 1)) / n)


def test_equal_confidence_everywhere_has_the_error_rate_at_every_coverage() -> None:
    logits, y = logits_of(*[0.8] * 10), torch.tensor([1] * 3 + [0] * 7)
    assert risk_coverage(logits, y).tolist() == rounded_all([0.3] * 10)


# ---------------------------------------------------------------------- what pictures are drawn from


def test_reliability_of_four_answers_worked_by_hand() -> None:
    # Ascending: right at 0.6, wrong at 0.7; wrong at 0.8, right at 0.9.  ECE: (|1/2 - 0.65| + |1/2 - 0.85|) / 2.
    logits, y = logits_of(0.6, 0.9, 0.7, 0.8), torch.tensor([0, 0, 1, 1])
    found = reliability(logits, y, bins=2)
    assert {name: values.tolist() for name, values in found.items()} == {
        "confidence": rounded_all([0.65, 0.85]),
        "accuracy": rounded_all([1 / 2, 1 / 2]),
        "share": [1 / 2, 1 / 2],
    }
    assert adaptive_ece(logits, y, bins=2).item() == rounded(0.25)


def test_equal_confidences_are_shared_between_bins_and_no_bin_is_empty() -> None:
    # Right and wrong at 0.9 stand in a bin each, with half an answer right; 15 bins of three samples are three.
    logits, y = logits_of(0.9, 0.6, 0.9), torch.tensor([0, 0, 1])
    found = reliability(logits, y)
    assert found["confidence"].tolist() == rounded_all([0.6, 0.9, 0.9])
    assert found["accuracy"].tolist() == rounded_all([1, 1 / 2, 1 / 2])
    assert found["share"].tolist() == [1 / 3] * 3


@pytest.mark.parametrize("answers", [tied(), tied(7), some_answers(), some_answers(1000, 3), some_answers(359, 10)])
def test_the_bins_that_are_kept_give_the_adaptive_ece_the_mean_confidence_and_the_accuracy(
    answers: tuple[Tensor, Tensor],
) -> None:
    """Six digits are kept, so that each of 15 bins is off by (0.5e-6 + 0.5e-6) share + 0.5e-6: 9e-6 together."""
    logits, y = answers
    kept = curves(logits, y)["reliability"]
    rows = list(zip(kept["share"], kept["confidence"], kept["accuracy"], strict=True))
    assert len(rows) == min(15, len(y))
    assert sum(share for share, *_ in rows) == pytest.approx(1, abs=9e-6)
    assert sum(s * abs(a - c) for s, c, a in rows) == pytest.approx(adaptive_ece(logits, y).item(), abs=9e-6)
    assert sum(s * c for s, c, _ in rows) == pytest.approx(confidence(logits).mean().item(), abs=9e-6)
    assert sum(s * a for s, _, a in rows) == pytest.approx(accuracy(logits, y).item(), abs=9e-6)


def test_a_risk_curve_keeps_every_coverage_or_a_hundred() -> None:
    assert sampled(7).tolist() == [1, 2, 3, 4, 5, 6, 7]
    assert sampled(100).tolist() == list(range(1, 101))
    assert sampled(250).tolist()[:4] == [3, 5, 8, 10] and sampled(250).tolist()[-1] == 250
    assert [len(sampled(n)) for n in (101, 359, 10_000)] == [100] * 3


def test_up_to_a_hundred_samples_the_mean_of_the_curve_is_aurc() -> None:
    for logits, y in (tied(), some_answers(100)):
        risk = curves(logits, y)["risk"]
        assert sum(risk) / len(risk) == pytest.approx(aurc(logits, y).item(), abs=5e-7)  # six digits are kept


@pytest.mark.parametrize("answers", [tied(1000), some_answers(), some_answers(1000, 3), some_answers(10_000, 10)])
def test_the_curve_encloses_the_risk_at_every_coverage_and_aurc(answers: tuple[Tensor, Tensor]) -> None:
    """Between the coverages j/N < k/N that are kept wrong answers w only rise: w_j / i <= risk_i <= w_k / i.

    They rise by at most k - j <= N/100 + 1, so that the means of the two are at most (1/100 + 1/N) H_N apart."""
    logits, y = answers
    exact = risk_coverage(logits, y).tolist()
    ends = [0, *sampled(len(y)).tolist()]
    wrong = [0, *(k * risk for k, risk in zip(ends[1:], curves(logits, y)["risk"], strict=True))]
    least, most = 0.0, 0.0
    for (j, k), (few, many) in zip(itertools.pairwise(ends), itertools.pairwise(wrong), strict=True):
        for i in range(j + 1, k + 1):
            # Six digits are kept of the risk, and k / i is at most k.
            assert few / i - k * 5e-7 <= exact[i - 1] <= many / i + k * 5e-7
            least, most = least + few / i / len(y), most + many / i / len(y)
    assert least - 1e-4 < aurc(logits, y).item() < most + 1e-4
    assert most - least <= (1 / 100 + 1 / len(y)) * sum(1 / i for i in range(1, len(y) + 1)) + 1e-4


def test_a_histogram_worked_by_hand_holds_the_sure_and_not_the_nan() -> None:
    found = histogram(torch.tensor([0.01, 0.51, 0.53, 1.0], dtype=torch.double)).tolist()
    assert [(i, share) for i, share in enumerate(found) if share] == [(0, 0.25), (10, 0.5), (19, 0.25)]
    assert sum(histogram(torch.tensor([math.nan, 0.3])).tolist()) == 0.5


# ---------------------------------------------------------------------- out of distribution


def test_auroc_worked_by_hand() -> None:
    # Six pairs: 0.9 beats both, 0.7 ties with 0.7 and beats 0.5, 0.6 loses and wins: 2 + 1.5 + 1.
    assert auroc(torch.tensor([0.9, 0.7, 0.6]), torch.tensor([0.7, 0.5])).item() == rounded(4.5 / 6)


def some_scores() -> tuple[Tensor, Tensor]:
    """Confidences of 80 and of 50 samples, some of them equal."""
    inside, outside = (confidence(tied(n, seed)[0]) for n, seed in ((80, 1), (50, 2)))
    # What differs, differs by more than rounding: a function of it must not make it equal.
    return inside.round(decimals=6), outside.round(decimals=6)


def test_auroc_is_that_of_every_pair_and_of_scikit_learn() -> None:
    inside, outside = some_scores()
    pairs = [(a > b) + 0.5 * (a == b) for a in inside.tolist() for b in outside.tolist()]
    found = auroc(inside, outside).item()
    assert 0.0 < sum(a == 0.5 for a in pairs) / len(pairs) < 0.5  # some ties, not only ties
    assert found == rounded(sum(pairs) / len(pairs))
    labels = [1] * len(inside) + [0] * len(outside)
    assert found == rounded(float(roc_auc_score(labels, torch.cat([inside, outside]).numpy())))
    assert auroc(outside, inside).item() == rounded(1 - found)


def monotone() -> list[Callable[[Tensor], Tensor]]:
    return [lambda s: 4 * s, torch.exp, torch.logit, lambda s: s**3 - 1]


@pytest.mark.parametrize("change", monotone())
def test_auroc_sees_nothing_but_order(change: Callable[[Tensor], Tensor]) -> None:
    inside, outside = some_scores()
    assert torch.equal(auroc(change(inside), change(outside)), auroc(inside, outside))


def test_auroc_of_many_samples_needs_no_table_of_pairs() -> None:
    """A million each: their pairs would be some terabytes.  Of 0..n-1 against itself half of the pairs are won."""
    scores = torch.arange(1_000_000).double()
    assert auroc(scores, scores.flip(0)).item() == 0.5
    assert auroc(scores + 1, scores).item() == 0.5 + (2e6 - 1) / 2e12  # n - 1 ties become wins, n ties are new


# ---------------------------------------------------------------------- temperature


def knowing() -> tuple[Tensor, Tensor]:
    """300 answers of four classes that are better than chance and sometimes wrong."""
    logits, y = some_read_outs()
    return logits[1], y


@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e6])
def test_the_temperature_worked_by_hand_at_every_scale(scale: float) -> None:
    # Every answer has the margin m, three are right and one wrong: the NLL is least where sigmoid(m / T) = 3/4.
    logits = scale * torch.tensor([[2.0, 0.0]]).double().expand(4, 2)
    assert temperature(logits, torch.tensor([0, 0, 1, 0])) == rounded_to(scale * 2 / math.log(3))


def rounded_to(value: float) -> object:
    """A root of a slope of some 1e-16 rounding, so in relative terms a few of these."""
    return pytest.approx(value, rel=1e-12)


def test_it_scales_with_the_logits_and_ignores_what_softmax_does_and_the_order_of_samples() -> None:
    logits, y = knowing()
    t = temperature(logits, y)
    assert t is not None
    assert temperature(logits.flip(0), y.flip(0)) == rounded_to(t)
    assert temperature(5 * logits, y) == rounded_to(5 * t)
    assert temperature(logits + 7, y) == rounded_to(t)


def nll_at(b: float, logits: Tensor, y: Tensor) -> float:
    return nll(b * logits, y).item()


def test_no_other_temperature_has_less_nll() -> None:
    blocks, y = some_read_outs()
    for logits in blocks:
        t = temperature(logits, y)
        assert t is not None
        least = nll_at(1 / t, logits, y)
        grid = [10 ** (e / 100) for e in range(-300, 301)] + [t * 1.001, t / 1.001]
        assert all(least <= nll_at(1 / other, logits, y) + 1e-15 for other in grid)  # 1e-15: rounding of a mean near 1


def test_the_nll_is_convex_in_the_inverse_temperature_and_not_in_its_logarithm() -> None:
    """By second differences over steps of 0.05: those of a convex function are not negative, but for some 1e-15."""

    def bends(f: Callable[[float], float], points: list[float]) -> list[float]:
        return [f(x - 0.05) - 2 * f(x) + f(x + 0.05) for x in points]

    places = [0.1 * i for i in range(-60, 61)]
    for logits, y in (some_answers(dtype=torch.float64), tied(), (logits_of(0.9, 0.8), torch.tensor([0, 0]))):
        assert min(bends(lambda b, z=logits, y=y: nll_at(b, z, y), places)) > -1e-13
    all_right = torch.tensor([[2.0, 0.0]]).double()
    assert min(bends(lambda s: nll_at(math.exp(-s), all_right, torch.tensor([0])), places)) < -1e-4


@pytest.mark.parametrize(
    ("logits", "y"),
    [
        ([[2.0, 0.0], [0.0, 1.0]], [0, 1]),  # all right: ever less NLL towards T = 0
        ([[2.0, 0.0, 2.0], [0.0, 1.0, 0.0]], [0, 1]),  # and with another class just as likely
        ([[2.0, 0.0], [2.0, 0.0]], [1, 0]),  # no better than chance: ever less towards T = infinity
        ([[2.0, 0.0], [0.0, 1.0]], [1, 0]),
        ([[3.0, 3.0], [1.0, 1.0]], [1, 0]),  # all temperatures are one
        ([[math.nan, 0.0], [0.0, 1.0]], [0, 1]),
    ],
)
def test_where_no_temperature_has_the_least_nll_there_is_none(logits: list[list[float]], y: list[int]) -> None:
    assert temperature(torch.tensor(logits), torch.tensor(y)) is None


def test_of_calibrated_answers_the_temperature_is_1() -> None:
    """1/T is estimated by maximum likelihood, so that its standard error is 1 / sqrt(N I) with I the mean variance of
    the logits under the answer; within four of them, which a right fit misses in 6 of 100,000 seeds."""
    g = torch.Generator().manual_seed(0)
    logits = 2 * torch.randn(20_000, 5, generator=g, dtype=torch.double)
    p = logits.softmax(-1)
    y = torch.multinomial(p, 1, generator=g)[:, 0]
    information = ((p * logits.square()).sum(-1) - (p * logits).sum(-1).square()).mean().item()
    error = 1 / math.sqrt(len(y) * information)
    assert 4 * error < 0.04  # a claim worth making
    for scale in (1.0, 3.0):
        t = temperature(scale * logits, y)
        assert t is not None
        assert abs(scale / t - 1) < 4 * error
    assert adaptive_ece(logits, y) < 0.02 < 0.1 < adaptive_ece(3 * logits, y)


def test_a_temperature_keeps_every_answer_but_may_swap_who_is_surer() -> None:
    # At T = 1 the first is surer: 1 / (1 + 2 e^-3) = 0.909 against 1 / (1 + e^-2.1 + e^-12) = 0.891.
    # At T = 4 the second: 1 / (1 + 2 e^-0.75) = 0.514 against 1 / (1 + e^-0.525 + e^-3) = 0.609.
    # The first is wrong, so that the risks are 1, 1/2 and then 0, 1/2.
    logits, y = torch.tensor([[3.0, 0.0, 0.0], [3.0, 0.9, -9.0]]).double(), torch.tensor([1, 0])
    assert confidence(logits).tolist() == pytest.approx([0.909, 0.891], abs=5e-4)
    assert confidence(logits / 4).tolist() == pytest.approx([0.514, 0.609], abs=5e-4)
    assert [aurc(logits, y).item(), aurc(logits / 4, y).item()] == [0.75, 0.25]
    logits, y = some_answers(dtype=torch.float64)
    assert all(torch.equal((logits / t).argmax(-1), logits.argmax(-1)) for t in (0.01, 0.7, 3.0, 1000.0))


def test_a_diverged_network_measures_nan_instead_of_failing() -> None:
    logits, y = some_answers(samples=20)
    broken = logits.clone()
    broken[3] = torch.nan
    found = measures(broken, y, logits)
    assert all(math.isnan(value) for name, value in found.items() if name != "accuracy")
    assert math.isnan(measures(logits, y, broken)["ood_auroc"])


# ---------------------------------------------------------------------- networks


def test_a_networks_blocks_and_their_mean_worked_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first block and the mean are right on sample 0 and wrong on 1, where they are less and more sure; the last
    says nothing about sample 0, for which it names class 0."""
    made = answering(monkeypatch, None, samples(HALVES, [0, 0]))
    assert made.test is not None
    found = uncertainty(made, made.test, samples([[[1.0, 0.0], [0.0, 0.0]]], [0]))
    assert found["temperature"] is None
    assert (found["samples"], found["unit"]) == (2, "samples") and found["ood"]["samples"] == 1
    assert found["accuracy"] == [0.5, None, 0.5] and found["mean"]["accuracy"] == 0.5
    first = (math.log(1 + math.exp(-2)) + math.log(1 + math.exp(1))) / 2
    last = (math.log(2) + math.log(1 + math.exp(3))) / 2
    mean = (math.log(1 + math.exp(-1)) + math.log(1 + math.exp(2))) / 2
    assert found["nll"] == [rounded(first), None, rounded(last)] and found["mean"]["nll"] == rounded(mean)
    # First: surer when right, so that the risks are 0, 1/2.  The others: surer when wrong, 1, 1/2.
    assert found["aurc"] == [rounded(0.25), None, rounded(0.75)] and found["mean"]["aurc"] == rounded(0.75)
    # The same in pictures, which keep six digits: who is surer, and how sure, as the share that 2 samples are.
    drawn = found["curves"]
    assert drawn["coverage"] == [0.5, 1.0]
    assert drawn["risk"] == [[0.0, 0.5], None, [1.0, 0.5]] and drawn["mean"]["risk"] == [1.0, 0.5]
    sure = [1 / (1 + math.exp(-margin)) for margin in (0, 3)]
    assert drawn["reliability"][1] is None and drawn["reliability_at_T"] is None
    assert drawn["reliability"][2] == {
        "confidence": pytest.approx(sure, abs=5e-7),
        "accuracy": [1.0, 0.0],
        "share": [0.5, 0.5],
    }
    assert [drawn["inside"][2][i] for i in (10, 19)] == [0.5, 0.5] and drawn["outside"][2][10] == 1.0
    # First: margins 2 and 1 against 1.  Last: 0 and 3 against 0.  Mean: 1 and 2 against 1/2.
    assert found["ood_auroc"] == [rounded(0.75), None, rounded(0.75)] and found["mean"]["ood_auroc"] == rounded(1)


def test_each_answer_has_its_own_temperature_from_validation(monkeypatch: pytest.MonkeyPatch) -> None:
    """On validation the first block has the margin 2 and the last 1, three right and one wrong, so that T is 2 / log 3
    and 1 / log 3; the mean's margin is 1.5.  What was (2, 0) and (1, 0) becomes (log 3, 0) for all of them."""
    val = samples([[[2.0, 0.0], [1.0, 0.0]]] * 4, [0, 0, 1, 0])
    test = samples([[[2.0, 0.0], [1.0, 0.0]]] * 2, [0, 1])
    made = answering(monkeypatch, val, test)
    # Less sure than log 3 by the same temperature, but as it is, 1.9 is more.
    found = uncertainty(made, test, samples([[[1.9, 0.0], [0.9, 0.0]]], [0]))
    after = found["temperature"]
    assert after["ood_auroc"] == [1.0, None, 1.0] and after["mean"]["ood_auroc"] == 1.0
    assert after["samples"] == 4 and found["samples"] == 2
    assert after["T"] == [rounded(2 / math.log(3)), None, rounded(1 / math.log(3))]
    assert after["mean"]["T"] == rounded(1.5 / math.log(3))
    expected = {
        "accuracy": 0.5,
        "nll": (math.log(4 / 3) + math.log(4)) / 2,  # right with 3/4, wrong with 1/4 for the label
        "brier": (2 / 16 + 2 * 9 / 16) / 2,
        "ece": 1 / 4,
        "adaptive_ece": 1 / 4,
        "aurc": 1 / 2,
    }
    for name, value in expected.items():
        assert after[name] == [rounded(value), None, rounded(value)]
        assert after["mean"][name] == rounded(value)
    assert found["nll"][0] > after["nll"][0]
    # After temperature both are answered with 3/4, and one of them is right.
    assert found["curves"]["reliability_at_T"] == {"confidence": [0.75] * 2, "accuracy": [0.5] * 2, "share": [0.5] * 2}


def test_tokens_with_labels_of_their_own_count_as_samples(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two texts of two tokens: logits (N, R, T, C), of which the network makes (N, T, C) a block; labels (N, T)."""
    texts = torch.randn(2, 2, 2, 2, generator=torch.Generator().manual_seed(0))
    y = torch.tensor([[0, 1], [1, 1]])
    tokens = texts.transpose(1, 2).flatten(0, 1)  # (N T, R, C)
    flat, whole = Samples(tokens, y.flatten(), ("a", "b")), Samples(texts, y, ("a", "b"))
    apart = uncertainty(answering(monkeypatch, None, flat), flat, flat)
    assert uncertainty(answering(monkeypatch, None, whole), whole, whole) == apart | {"unit": "tokens"}
    assert apart["samples"] == apart["ood"]["samples"] == 4


def test_samples_that_were_collected_are_not_predicted_again(monkeypatch: pytest.MonkeyPatch) -> None:
    made = answering(monkeypatch, None, held := samples(HALVES, [0, 0]))
    collected, alone = collect(made, held), uncertainty(made, held)
    monkeypatch.setattr("sidestep.measure.uncertainty.collect", None)
    assert uncertainty(made, held, collected=collected) == alone


def test_a_block_whose_nll_has_no_minimum_has_none_after_temperature(monkeypatch: pytest.MonkeyPatch) -> None:
    val = samples([[[2.0, 0.0], [1.0, 0.0]], [[2.0, 0.0], [0.0, 3.0]]], [0, 0])  # the first block is always right
    found = uncertainty(answering(monkeypatch, val, val), val)
    assert found["temperature"] is None  # the samples that are judged: no fit to them
    after = uncertainty(answering(monkeypatch, val, val), samples(HALVES, [0, 0]))["temperature"]
    assert [after[name][0] for name in ("T", "nll", "aurc")] == [None] * 3
    assert after["T"][2] is None  # no better than chance: its margins are 1 and -3
    assert after["mean"]["T"] is not None  # margins 1.5 and -0.5


def test_of_a_real_network_every_number_is_that_of_its_own_measure() -> None:
    made = assemble(configured("local_ce"))
    for step in range(10):
        made.engine.step(made.batches(step))
    before = {k: v.clone() for k, v in made.engine.state_dict().items()}
    test, val = made.data.test, made.data.val
    assert test is not None and val is not None
    found = uncertainty(made, test)
    plain = evaluate(made, test)
    for name in MEASURES:  # summed over batches there, at once here
        assert found[name] == rounded_blocks(plain[name])
    read = readouts(held_out(made))
    assert read is not None
    assert {k: found["mean"][k] for k in ("accuracy", "nll")} == read["test"]["mean"]
    (logits, y), (logits_val, y_val) = collect(made, test), collect(made, val)
    after = found["temperature"]
    for i in range(4):
        t = temperature(logits_val[i], y_val)
        assert t is not None and after["T"][i] == t
        own = measures(logits[i].double() / t, y)
        assert own == {name: after[name][i] for name in own}
        assert after["accuracy"][i] == found["accuracy"][i]
        assert nll(logits_val[i] / t, y_val) <= nll(logits_val[i], y_val)
    assert all(torch.equal(before[k], v) for k, v in made.engine.state_dict().items())


def rounded_blocks(values: object) -> list[object]:
    assert isinstance(values, list)
    return [rounded(value) for value in values]


def test_measures_are_those_of_calibration() -> None:
    logits, y = some_answers()
    found = measures(logits, y)
    scores = Scores()
    scores.update(logits, y)
    assert {k: found[k] for k in MEASURES} == scores.result()
    for name, measure in {"accuracy": accuracy, "nll": nll, "brier": brier, "ece": ece}.items():
        assert found[name] == rounded(measure(logits, y).item())
    assert found["aurc"] == aurc(logits, y).item() and found["adaptive_ece"] == adaptive_ece(logits, y).item()


def test_a_summary_has_the_answers_measures_raw_and_after_temperature(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same as `uncertainty` has of the last block; without validation samples there is no temperature."""
    (logits, y), (judged, labels) = ((z[1:].float(), y) for z, y in (some_read_outs(), some_read_outs()))
    judged = judged.flip(1)
    labels = labels.flip(0)
    both = {"val": (logits, y), "test": (judged, labels)}
    found = of_the_answer(both)
    assert list(found) == ["val", "test", "test_scaled"]
    assert found["test"] == measures(judged[-1].double(), labels)
    t = temperature(logits[-1].double(), y)
    assert t is not None and found["test_scaled"] == {"T": t, **measures(judged[-1].double() / t, labels)}
    assert list(of_the_answer({"test": (judged, labels)})) == ["test"]
    right = torch.eye(4)[y][None] * 5
    never = of_the_answer({"val": (right, y), "test": (judged, labels)})["test_scaled"]
    assert set(never.values()) == {None}
