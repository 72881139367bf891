"""The page of `scale`, on rows by hand."""

from __future__ import annotations

from typing import Any

import pytest

from sidestep.bench.machines import AHEAD, THERE
from sidestep.studies.scale import STUDY, more_epochs, reached
from sidestep.studies.scale_predicted import DEVELOPED
from sidestep.studies.study import Row
from tests.studies.made import PLACE
from tests.studies.pages import columns

MEASURED, MANY = "Predicted beside measured", "Many machines: extrapolation"


def validated(error: float, network: str = "width 512") -> Row:
    def entry(name: str, error: float) -> dict[str, Any]:
        return {"name": name, "step_ms": 100.0, "step_ms_low": 90.0, "step_ms_high": 110.0} | {
            "predicted_ms": 100 * (1 + error),
            "error": error,
            "predicted_plain_ms": 95.0,
            "error_plain": -0.05,
        }

    entries = [entry("local_ce, 2 processes", -0.05), entry("GPipe, 2 micro-batches", 0.02)]
    entries += [entry("GPipe, 4 micro-batches", error), entry("backprop, data parallel", 0.2)]
    labels = {"arm": "2 processes", "network": network}
    return {"labels": labels, "command": "sidestep bench scale", "ranks": 2, "cores": 2, "rows": entries, **PLACE}


def far(blocks: float) -> Row:
    entries = [
        {
            "ranks": n,
            "network": "1 Gb/s, 20 ms",
            "wire": wire,
            "blocks": blocks * (2 if wire == AHEAD else 1),  # so that it shows which is which
            "GPipe": 350.0,
            "1F1B": 300.0,
            "ZBV": 400.0,
            "data parallel": dp,
            "DiLoCo": 200.0,
        }
        for n, dp in ((8, 100.0), (1024, None))
        for wire in (THERE, AHEAD)
    ]
    kept = [{"ranks": n, "life": "1 h", "goodput": share} for n, share in ((8, 0.9), (1024, 0.125))]
    found = {"rows": entries, "kept": kept, "block_ms": 36.0, "message_kb": 4096.0, "parameters_kb": 4100.0}
    found["synchronised_every"] = 100
    return {"labels": {"arm": "many machines"}, "command": "sidestep bench scale --machines", **found, **PLACE}


def trained(arm: str, seed: int, curve: list[float]) -> Row:
    return {
        "labels": {"arm": arm},
        "command": f"sidestep train {arm}",
        "seed": seed,
        "curve": {"val_accuracy": curve},
        **PLACE,
    }


def test_the_largest_error_of_every_kind_stands_in_the_answer_and_who_is_within_a_tenth() -> None:
    found = STUDY.page([validated(-0.08)])
    table = columns(found, MEASURED, "width 512, 2 processes on 2 cores")
    assert table["error, %"] == ["−5.0", "2.0", "−8.0", "20.0"] and table["predicted, ms"][0] == "95.0"
    assert table["predicted with the plain factor, ms"][1] == "95.0" and table["its error, %"][3] == "−5.0"
    assert "local_ce 5.0 %; GPipe 8.0 %; data parallel 20.0 %. Within 10 %: local_ce, GPipe." in found.answer
    assert "With the plain factor: local_ce 5.0 %; GPipe 5.0 %; data parallel 5.0 %." in found.answer


def test_the_network_that_the_simulator_was_developed_on_is_shown_and_not_judged() -> None:
    seen = validated(-0.5, DEVELOPED)
    assert "What was held out has not run yet." in STUDY.page([seen]).answer
    both = STUDY.page([seen, validated(-0.08)])
    assert "GPipe 8.0 %" in both.answer
    caption = f"{DEVELOPED} (on which the simulator was developed), 2 processes on 2 cores"
    assert columns(both, MEASURED, caption)["error, %"][2] == "−50.0"


def test_a_rival_wins_where_its_step_takes_less_than_those_it_is_spared() -> None:
    """Blocks of 60 ms a step beside 100 ms: ahead by steps, behind once twice as many are needed."""
    fast = STUDY.page([far(60.0)])
    table = columns(fast, MANY, "8 machines, wires as they are, ms a step: extrapolation")
    assert table["fastest rival ÷ blocks"] == ["1.67"] and table["which is"] == ["data parallel"]
    other = columns(fast, MANY, "1,024 machines, wires as they are, ms a step: extrapolation")
    assert other["data parallel"] == ["a sample is too few"] and other["which is"] == ["DiLoCo"]
    told = "counting only the time of a step, going only forward loses"
    assert f"On wires as they are, {told} nowhere, by extrapolation." in fast.answer
    assert f"On wires that ask ahead, {told}, by extrapolation, on 1 of 2" in fast.answer
    curves = [trained("local CE", 0, [0.8, 0.85, 0.9, 0.95]), trained("backprop", 0, [0.9, 0.95, 0.97])]
    counted = STUDY.page([far(60.0), *curves])
    told = "going only forward loses, by extrapolation, on 1 of 2, and wins on the others: it loses on 8 machines"
    assert f"counting 2.00 times as many steps (by all of 1 seeds), {told}" in counted.answer
    assert "1,024" not in counted.answer.partition("On wires that ask ahead")[0]
    [many] = [section for section in fast.sections if section.heading == MANY]
    assert (
        "DiLoCo takes the mean of all parameters every 100 steps" in many.text
        and "as engines/dist_wire does" in many.text
    )


def test_where_seeds_do_not_agree_losses_and_wins_are_told_for_the_least_and_for_the_most() -> None:
    """Twice as many epochs by one seed and four times by the other; rivals take 1.67 and 3.33 times a step's time."""
    curves = [trained("backprop", seed, [0.9, 0.95]) for seed in (0, 1)]
    curves += [trained("local CE", 0, [0.8, 0.9]), trained("local CE", 1, [0.7, 0.8, 0.85, 0.9])]
    found = STUDY.page([far(60.0), *curves])
    for factor, which, count in (("2.00", "least", 1), ("4.00", "most", 2)):
        told = f"On wires as they are, counting {factor} times as many steps (the {which} of 2 seeds), going only "
        assert f"{told}forward loses, by extrapolation, on {count} of 2" in found.answer
    assert "takes 3.00 times as many epochs as backprop, in the mean of 2 seeds (2.00, 4.00)." in found.answer
    many = columns(found, MANY, "1,024 machines, wires as they are, ms a step: extrapolation")
    ends = [many[f"only forward, in {factor} times as many steps"] for factor in ("2.00", "4.00")]
    assert ends == [["wins"], ["loses"]]


def test_epochs_to_equal_accuracy_are_those_to_the_highest_that_both_reach() -> None:
    """Local CE ends at 0.95, which backprop passes in the middle of its second epoch; in the other seed both in one."""
    rows = [trained("local CE", 0, [0.8, 0.85, 0.9, 0.95]), trained("backprop", 0, [0.93, 0.97])]
    assert reached([0.93, 0.97], 0.95) == pytest.approx(1.5)
    assert more_epochs(rows) == pytest.approx([4 / 1.5])
    rows += [trained("local CE", 1, [0.9]), trained("backprop", 1, [0.9])]
    assert more_epochs(rows) == pytest.approx([4 / 1.5, 1])
    assert more_epochs(rows[:1]) == []


def test_what_is_kept_where_machines_end_stands_by_how_many_there_are() -> None:
    table = columns(STUDY.page([far(60.0)]), "Machines that end: extrapolation", "")
    assert table["machines"] == ["8", "1,024"] and table["a machine lives 1 h"] == ["90.00", "12.50"]


def test_where_machines_end_a_rival_wins_that_keeps_more_steps_whoever_is_faster() -> None:
    """Blocks of 60 ms beside DiLoCo's 200: of 60,000 steps an hour 54,000 are kept, or 6,000; of 18,000, 16,200."""
    row = far(60.0)
    for entry in row["rows"]:
        all_go_back = 0.1 if entry["ranks"] == 1024 else 0.9
        shares = {way: entry[way] and all_go_back for way in ("blocks", "GPipe", "1F1B", "ZBV", "data parallel")}
        entry["goodput"] = {"1 h": shares | {"DiLoCo": 0.9}}
    found = STUDY.page([row])
    table = columns(found, "Machines that end: extrapolation", "a machine lives 1 h, wires as they are: extrapolation")
    assert table["local CE in blocks, %"] == ["90.00", "10.00"] and table["DiLoCo, %"] == ["90.00", "90.00"]
    assert table["data parallel, %"] == ["90.00", "a sample is too few"]
    assert table["steps kept an hour, blocks"] == ["54,000", "6,000"]
    assert table["most of a rival"] == ["32,400", "16,200"]
    assert table["which is"] == ["data parallel", "DiLoCo"]
    assert table["only forward, in 1.00 times as many steps"] == ["wins", "loses"]
    assert "by life: 1 h, wires as they are, 1.00 times as many steps: on 1 of 2; 1 h, wires that ask" in found.answer


def test_before_anything_has_run_the_page_says_so() -> None:
    assert STUDY.page([]).answer == "Too little has run yet."
