"""The page of `depth`, on rows by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from sidestep.studies.depth import BACKPROP, CASCADE, LOCAL, ONE, SID, STUDY
from sidestep.studies.study import Row
from tests.studies.made import timed, trained, weighed
from tests.studies.pages import columns, written_of_every_part

SHARED, TRUNK = "Shared form: modules around one extractor", "Trunk form: one network in ever more blocks"


def shared() -> list[Row]:
    """The extractor with its classifier takes 300 FLOPs to train, 100 deployed and 100 parameters; a module 30, 10, 50.

    A step of it takes 10 ms and 40 MiB; a module adds 2.5 ms and 1 MiB to SID's, 5 ms to the cascade's.
    """
    rows = [trained({"arm": ONE}, 0.99, flops_per_sample=300.0)]
    for n in (16, 2, 4):  # rows need not be in order
        labels = {"arm": SID, "modules": str(n)}
        sizes: dict[str, Any] = {"flops_per_sample": 300.0 + 30 * n, "inference_flops_per_sample": 100.0 + 10 * n}
        rows.append(trained(labels, 0.97 + 0.001 * n, **sizes, params=100 + 50 * n, aux_params=50 * n))
        rows.append(trained({"arm": CASCADE, "modules": str(n)}, 0.98))
        rows.append(timed(labels, {"sid (streaming)": 10 + 2.5 * n, "plain backprop": 10}))
        rows.append(weighed(labels, {"sid (streaming)": 40 + n, "plain backprop": 40}))
        rows.append(timed({"arm": CASCADE, "modules": str(n)}, {"plain backprop": 10 + 5 * n}))
    return rows


def trunk() -> list[Row]:
    rows = [trained({"arm": BACKPROP}, 0.98, seed) for seed in range(3)]
    for k in (2, 16):
        labels = {"arm": SID, "blocks": str(k)}
        rows += [trained(labels, 0.98 - 0.001 * k, seed) for seed in range(3)]
        rows += [trained({"arm": LOCAL, "blocks": str(k)}, 0.97 + 0.02 * (seed == 1), seed) for seed in range(3)]
        checkpointed = {"plain checkpointed/1": 15.0, "plain checkpointed/4": 14.0}
        rows.append(timed(labels, {"sid (streaming)": 11, "plain backprop": 10, **checkpointed}))
        checkpointed = {"plain checkpointed/1": 5.0, "plain checkpointed/4": 4.0}
        rows.append(weighed(labels, {"sid (streaming)": 16 / k, "plain backprop": 16, **checkpointed}))
    return rows


def test_the_extractors_share_is_that_of_the_network_without_modules() -> None:
    """L = 2: 300 of 360 FLOPs in training, 100 of 120 deployed, 100 of 200 parameters, 10 of 15 ms: by the ratio's
    quartiles 10 of 16.5 to 10 of 13.5.  L = 16: 300 of 780, 100 of 260, 100 of 900, 10 of 50."""
    found = columns(STUDY.page(shared()), SHARED, "How much of SID is the extractor")
    assert found["modules"] == ["2", "4", "16"]
    assert [found["training FLOPs a sample"][0], found["FLOPs deployed"][0], found["parameters"][0]] == [
        "360",
        "120",
        "200",
    ]
    assert [found["its share of them, %"][i] for i in (0, 2)] == ["83.3", "38.5"]
    assert [found["its share deployed, %"][i] for i in (0, 2)] == ["83.3", "38.5"]
    assert [found["its share of parameters, %"][i] for i in (0, 2)] == ["50.0", "11.1"]
    assert [found["its share of step time, %"][i] for i in (0, 2)] == ["66.7 (60.6–74.1)", "20.0 (18.2–22.2)"]
    answer = STUDY.page(shared()).answer
    assert (
        "The extractor, which ordinary end-to-end backprop trains, has of the training FLOPs 83.3 % with 2 modules and "
        "38.5 % with 16; of the step time 66.7 % with 2 modules and 20.0 % with 16; of the "
        "parameters 50.0 % with 2 modules and 11.1 % with 16."
    ) in answer


def test_sid_in_the_shared_form_stands_beside_one_head_and_the_cascade_at_every_depth() -> None:
    found = columns(STUDY.page(shared()), SHARED, "Test accuracy")
    assert found[f"{SID}, %"] == ["97.20", "97.40", "98.60"]
    assert found[f"{CASCADE}, %"] == ["98.00"] * 3
    assert found[f"{ONE}, %"] == ["99.00"] * 3
    assert found[f"SID less {ONE}, points"] == ["−1.80", "−1.60", "−0.40"]
    assert f"SID less {CASCADE}, in points (one seed, no interval): 16 modules +0.60." in STUDY.page(shared()).answer


def test_differences_in_the_trunk_form_are_called_below_only_where_the_interval_excludes_zero() -> None:
    """SID: -0.2 and -1.6 in every seed.  local CE: -1, +1, -1, mean -1/3, sd 2/sqrt(3): half width 4.302653 * 2 / 3."""
    found = columns(STUDY.page(trunk()), TRUNK, "Test accuracy")
    assert found["SID less backprop, points"] == ["−0.20 [−0.20, −0.20], below", "−1.60 [−1.60, −1.60], below"]
    assert found["local CE less backprop, points"] == ["−0.33 [−3.20, +2.54], not distinguishable"] * 2
    assert (
        "Trunk SID less backprop, in points (below): 2 blocks −0.20 [−0.20, −0.20]; 16 blocks −1.60 [−1.60, −1.60]."
    ) in STUDY.page(trunk()).answer


def test_checkpointing_is_shown_where_it_needs_least_memory_though_it_is_not_fastest_there() -> None:
    rows = trunk()
    for row in rows:
        for entry in row.get("rows", []):
            if entry["name"] == "plain checkpointed/1" and "step_ms" in entry:
                entry["ratio"] = 1.2
    memory, time = (columns(STUDY.page(rows), TRUNK, caption) for caption in ("Peak memory of a step", "Step time"))
    assert memory["plain backprop, MiB"] == ["16.0", "16.0"]
    assert memory["SID ÷ that"] == ["0.50", "0.06"]
    assert memory["checkpointing ÷ that"] == ["0.25", "0.25"]
    assert time["checkpointing ÷ that"] == ["1.40 (1.26–1.54)"] * 2
    assert time["blocks a segment"] == ["4", "4"]
    assert (
        "A step in 16 blocks: SID takes 0.06 of the memory and 1.10 (0.99–1.21) of the step time of plain backprop; "
        "checkpointing takes 0.25 of the memory and 1.40 (1.26–1.54) of the step time of plain backprop."
    ) in STUDY.page(rows).answer


def test_where_times_were_taken_is_said() -> None:
    for found in STUDY.page([*shared(), *trunk()]).sections:
        assert "not to be believed" in found.text
        assert "a quiet machine (bf16, threads: 1, torch 2.13, commit abc123)" in found.text


def test_any_part_of_the_rows_makes_a_page(tmp_path: Path) -> None:
    written_of_every_part(STUDY.page, [*shared(), *trunk()], tmp_path)


def test_it_runs_on_a_cpu_and_every_depth_is_trained_timed_and_weighed() -> None:
    assert not STUDY.pieces("gpu")
    found = [(p.words[0], p.words[1], p.labels.get("modules")) for p in STUDY.pieces() if p.labels["arm"] == SID]
    for depth in ("2", "4", "8", "16", "32", "64"):
        assert {(a, b) for a, b, n in found if n == depth} == {("train", "sid"), ("bench", "step"), ("bench", "memory")}
