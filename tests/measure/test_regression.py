"""Whether a predicted deviation is that of the errors: against numbers drawn with it."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch

import sidestep as ss
from sidestep.core.task import Regression
from sidestep.measure.regression import LEVELS, Errors, coverage, gaussian_nll, row
from sidestep.reevaluate import run as evaluate_run
from sidestep.train import run as train


def drawn(n: int = 20_000, d: int = 3, scale: float = 1.0) -> tuple[torch.Tensor, torch.Tensor]:
    """Errors with deviations from 0.01 to 1, and what is said of them: too narrow by `scale`."""
    g = torch.Generator().manual_seed(0)
    deviation = 10 ** (-2 * torch.rand(n, d, generator=g, dtype=torch.float64))
    return deviation * torch.randn(n, d, generator=g, dtype=torch.float64), (deviation / scale).log()


def test_the_truth_lies_as_often_within_as_the_deviation_says() -> None:
    """6,000 numbers a part: a share is known to sqrt(0.25 / 6,000) = 0.65 %, four of which are allowed."""
    found = coverage(*drawn())
    assert (
        found["deviation"] == sorted(found["deviation"]) and found["deviation"][0] < 0.02 < 0.7 < found["deviation"][-1]
    )
    for shares in found["coverage"]:
        assert shares == pytest.approx(LEVELS, abs=0.026)


def test_fewer_numbers_than_parts_are_a_part_each() -> None:
    """Errors of 1 and of 3 deviations: the first is within the central 80 % (1.28), the second within none."""
    found = coverage(torch.tensor([[1.0], [6.0]]), torch.tensor([[1.0], [2.0]]).log())
    assert found["deviation"] == pytest.approx([1, 2])
    assert found["coverage"] == [[0, 1, 1], [0, 0, 0]]


def test_a_few_numbers_held_out_have_a_report(tmp_path: Path) -> None:
    x = torch.randn(40, 4, generator=torch.Generator().manual_seed(0))
    layers = [part for _ in range(3) for part in (torch.nn.Linear(4, 4), torch.nn.ReLU())]
    model = torch.nn.Sequential(*layers, torch.nn.Linear(4, 2))
    run = ss.fit(
        model, ss.Backprop(), (x, x[:, 0]), (x[:6], x[:6, 0]), blocks=2, epochs=1, batch_size=20, out=tmp_path / "run"
    )
    found = run.summary["deviations"]
    assert isinstance(found, dict) and len(found["deviation"]) == len(found["coverage"]) == 6
    assert (tmp_path / "run" / "report.html").exists()


def test_one_factor_mends_deviations_that_are_all_too_narrow() -> None:
    judged, fit = drawn(scale=3.0), drawn(scale=3.0)
    found, right = row(judged, fit), row(drawn(), fit)
    assert found["scale"] == pytest.approx(3, rel=0.01)
    assert found["nll_scaled"] == pytest.approx(right["nll"], abs=1e-3) and found["nll"] > right["nll"] + 1
    error, log_deviation = fit
    least = gaussian_nll(error, log_deviation + math.log(found["scale"]))
    for factor in (0.99, 1.01):  # it is where the NLL has its minimum
        assert gaussian_nll(error, log_deviation + math.log(factor * found["scale"])) > least
    assert row(judged, None)["scale"] is None and row(judged, None)["nll_scaled"] is None


def test_constant_deviations_are_those_of_validations_errors() -> None:
    """Errors of 1 and of 2: the deviations are sqrt(2.5) for all, 1 and 2 each."""
    error = torch.tensor([[1.0, -2.0], [-1.0, 2.0]], dtype=torch.float64)
    found = row((error, torch.zeros(2, 2, dtype=torch.float64)), (error, torch.zeros(2, 2, dtype=torch.float64)))
    base = 0.5 * math.log(2 * math.pi) + 0.5
    assert found["nll_constant"] == pytest.approx(base + 0.5 * math.log(2.5))
    assert found["nll_per_number"] == pytest.approx(base + 0.5 * math.log(2))
    assert found["nll"] == pytest.approx(base - 0.5 + 0.5 * 2.5)


def test_errors_over_batches_are_those_of_all() -> None:
    task, g = Regression(torch.Size([2]), torch.zeros(1, 2)), torch.Generator().manual_seed(0)
    answer, y = torch.randn(10, 4, generator=g), torch.randn(10, 2, generator=g)
    errors = Errors(task)
    for part in (slice(0, 7), slice(7, 10)):
        errors.update(answer[part], y[part])
    found = errors.result()
    assert found["nll"] == pytest.approx(task.loss(answer, y).item(), rel=1e-6)
    assert found["rmse"] == pytest.approx((answer[:, :2] - y).square().mean().sqrt().item(), rel=1e-6)


@pytest.mark.parametrize("method", ["backprop", "local_ce", "bll", "deep_supervision"])
def test_an_autoencoder_learns_and_says_what_its_deviations_are_worth(method: str, tmp_path: Path) -> None:
    from sidestep.config import resolve

    flags = {"data": "digits", "model": "autoencoder", "epochs": 3, "out": str(tmp_path / "run"), "model.width": 8}
    summary = train(resolve(method, flags))
    assert "test_accuracy" not in summary and summary["val_accuracy"] is None
    assert summary["test_loss"] == summary["test_nll"] and len(summary["block_test_loss"]) == 4  # pyright: ignore[reportArgumentType]  # a summary holds objects
    history = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    assert len(history) == 3 and (tmp_path / "run" / "report.html").exists()
    curve = summary["curve"]["val_loss"]  # pyright: ignore[reportIndexIssue]  # as above
    assert curve[-1] < curve[0]
    found = evaluate_run(tmp_path / "run", uncertainty=True)
    measured = found["uncertainty"]
    assert isinstance(measured, dict)
    assert measured["nll"][-1] == pytest.approx(summary["test_nll"], abs=1e-6)  # float32 there, of terms around 1
    assert measured["nll_scaled"][-1] is not None and len(measured["coverage"][-1]) == 10
    told = {name: values[-1] for name, values in measured.items() if name not in ("samples", "levels")}
    assert summary["deviations"] == told
    assert "one sigma" in str(found["text"])
    with pytest.raises(ValueError, match="--ood is for classes, got targets that are numbers"):
        evaluate_run(tmp_path / "run", ood="mnist")
    kept = json.loads((tmp_path / "run" / "deviations.json").read_text())
    assert kept["coverage"] == measured["coverage"] and kept["split"] == "test"
    assert [sorted(item) for item in kept["items"]] == [["deviation", "mean", "target"]] * 6
    page = (tmp_path / "run" / "report.html").read_text()
    assert page.count("data:image/png") == 18
    assert f"<td>{kept['nll_constant'][-1]:.4f}</td>".replace("-", "−") in page


def test_fit_learns_numbers_and_refuses_a_network_with_too_few_outputs() -> None:
    g = torch.Generator().manual_seed(0)
    x = torch.randn(600, 4, generator=g)
    y = x[:, :1] * 2 + x[:, 1:2] + 0.1 * torch.randn(600, 1, generator=g)

    def net(outputs: int) -> torch.nn.Sequential:
        torch.manual_seed(0)
        hidden = [part for _ in range(3) for part in (torch.nn.Linear(32, 32), torch.nn.ReLU())]
        return torch.nn.Sequential(torch.nn.Linear(4, 32), torch.nn.ReLU(), *hidden, torch.nn.Linear(32, outputs))

    for method in (ss.Backprop(), ss.LocalCE(), ss.BLL(likelihood="sample", family="gaussian")):
        run = ss.fit(
            net(2), method, (x[:500], y[:500]), (x[500:], y[500:]), epochs=30, batch_size=50, lr=3e-3, quiet=True
        )
        # Unconditionally it is 2.2.
        assert run.summary["val_loss"] < 0.5  # pyright: ignore[reportOperatorIssue]  # a summary holds objects
        with pytest.raises(
            ValueError, match=r"targets are numbers, which have no accuracy; its summary has their loss"
        ):
            _ = run.accuracy
        with pytest.raises(ValueError, match=r"not classes; run\.model gives means and log-precisions"):
            run.predict(x)
    with pytest.raises(ValueError, match=r"answers with shape \(1,\), expected \(2,\) means and log-precisions"):
        ss.fit(net(1), ss.Backprop(), (x, y), epochs=1, quiet=True)
    with pytest.raises(ValueError, match="sid is for classes"):
        ss.fit(net(2), ss.SID(), (x, y), epochs=1, quiet=True)


def test_a_comparison_of_autoencoders_has_a_table_and_a_page(tmp_path: Path) -> None:
    from sidestep.comparison import run
    from sidestep.config import TrainConfig, resolve

    def make(method: str, seed: int) -> TrainConfig:
        flags = {"data": "digits", "model": "autoencoder", "epochs": 1, "model.width": 8, "seed": seed}
        return resolve(method, flags)

    found = run(["backprop", "local_ce"], make, 1, tmp_path)
    lines = str(found["text"]).splitlines()
    summary = json.loads((tmp_path / "local_ce-seed0" / "summary.json").read_text())
    (line,) = (line for line in lines if line.startswith("local_ce"))
    assert line.split()[1:4] == ["-", f"{summary['test_nll']:.4f}", "-"]
    assert "test loss on digits" in (tmp_path / "report.html").read_text()
