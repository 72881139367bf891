"""Which runs belong together, and the mean and spread over them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from sidestep.report.read import Spread, grouped, read
from tests.report.make import write_run


def test_runs_that_differ_in_their_seed_and_place_only_are_one_group_in_the_order_of_seeds(tmp_path: Path) -> None:
    order = (("b", 10), ("a", 2))
    groups = grouped([read(write_run(tmp_path / name, seed=seed)) for name, seed in order])
    assert [[run.summary["seed"] for run in group.runs] for group in groups] == [[2, 10]]
    assert groups[0].label == "sid"


def test_one_method_with_two_settings_is_two_groups_that_say_how_they_differ(tmp_path: Path) -> None:
    runs = [
        read(write_run(tmp_path / f"{alpha}-{seed}", seed=seed, config={"sid.alpha": alpha, "sid.form": "trunk"}))
        for alpha in (0.5, 0.7)
        for seed in range(2)
    ]
    other = read(write_run(tmp_path / "bp", "backprop", config={"lr": 0.1}))
    assert [group.label for group in grouped([*runs, other])] == ["sid (alpha = 0.5)", "sid (alpha = 0.7)", "backprop"]


def test_a_number_that_a_run_lacks_has_no_mean_over_runs(tmp_path: Path) -> None:
    runs = [
        read(write_run(tmp_path / f"{s}", seed=s, summary={"step_ms": ms})) for s, ms in enumerate((1.0, 2.0, None))
    ]
    (group,) = grouped(runs)
    assert group.spread("step_ms") is None and group.spread("not there") is None
    assert group.spread("test_nll") == Spread(0.25, 0.0)
    assert grouped(runs[:1])[0].spread("step_ms") == Spread(1.0, None)


def test_the_spread_is_the_sample_standard_deviation() -> None:
    spread = Spread.of([1.0, 2.0, 6.0])
    # Squared deviations 4, 1, 9 over n - 1 = 2; a square root of floats.
    assert spread.mean == 3 and spread.deviation == pytest.approx(7**0.5)


def test_history_has_a_number_for_every_run_epoch_and_block_and_nan_where_there_is_none(tmp_path: Path) -> None:
    runs = [read(write_run(tmp_path / f"{s}", "backprop", seed=s, blocks=2, epochs=3, reads={1})) for s in range(2)]
    (group,) = grouped(runs)
    loss = group.history("train_loss")
    assert loss is not None and loss.shape == (2, 3, 2)
    assert np.isnan(loss[:, :, 0]).all() and loss[0, :, 1].tolist() == [1 / 2, 1 / 3, 1 / 4]
    assert group.history("val", "descent", "D") is None
    shorter = read(write_run(tmp_path / "short", "backprop", seed=2, blocks=2, epochs=1, reads={1}))
    (uneven,) = grouped([*runs, shorter])
    assert uneven.history("train_loss") is None
