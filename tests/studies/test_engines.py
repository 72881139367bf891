"""The page of `engines`, on rows by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from sidestep.studies.engines import STUDY
from sidestep.studies.study import Row
from tests.studies.made import PLACE, timed, weighed
from tests.studies.pages import columns, written_of_every_part

RANKS, STACK = "Blocks in several processes", "Equal blocks computed as one"


def ranked(arm: str, ddp: float) -> Row:
    """Half of a process's time, quartiles a tenth away."""
    found: dict[str, Any] = {"ranks": 2, "method": "local_ce", "model": "mlp", "batch_size": 512, "blocks": 8}
    for key, value in {
        "ratio_to_one_process": 0.5,
        "ratio_to_1f1b": 0.8,
        "ratio_to_ddp": ddp,
        "calibration": 1.25,
    }.items():
        found |= {key: value, f"{key}_low": 0.9 * value, f"{key}_high": 1.1 * value}
    found["rows"] = [
        {"name": "local_ce, 2 processes", "step_ms": 100.0},
        {"name": "local_ce, 1 process", "step_ms": 200.0},
    ]
    found["pipeline"] = {"name": "1F1B, 8 micro-batches", "bubble": 1.125, "small_batches": 1.2, "engine": 1.05}
    found["accuracy"] = {"local_ce": 0.9812, "backprop": 0.985}
    return {"labels": {"arm": arm}, "command": "sidestep bench ranks", **PLACE, **found}


def stacked(modules: int) -> Row:
    def of(name: str, ratio: float) -> dict[str, Any]:
        ends = {"cascade_ratio_low": 0.9 * ratio, "cascade_ratio_high": 1.1 * ratio}
        return {"name": name, "step_ms": 1.0, "cascade_ms": 2.0 * modules * ratio, "cascade_ratio": ratio, **ends}

    rows = [of("naive loop, fp32", 1.0), of("streaming, bf16", 0.8), of("stacked, bf16", 4 / modules)]
    rows.append({"name": "extractor, bf16", "step_ms": 1.0})
    return {"labels": {"arm": "SID", "modules": str(modules)}, "command": "sidestep bench stack", "rows": rows, **PLACE}


def test_a_methods_step_stands_beside_every_rival_and_its_accuracy_beside_backprops() -> None:
    found = STUDY.page([ranked("local CE", 0.9), ranked("BLL", 1.2)])
    table = columns(found, RANKS, "Step time of blocks in several processes")
    assert table["method"] == ["local CE", "BLL"] and table["ms a step"] == ["100", "100"]
    assert table["÷ one process"][0] == "0.50 (0.45–0.55)" and table["÷ 1F1B"][0] == "0.80 (0.72–0.88)"
    assert table["validation accuracy, %"] == ["98.12", "98.12"] and table["backprop’s, %"] == ["98.50", "98.50"]
    assert "÷ GPipe" not in table  # not measured
    lost = columns(found, RANKS, "What the fastest pipeline loses to an even share, as factors")
    assert [lost[c][0] for c in ("pipeline", "bubble", "small batches", "the rest")] == [
        "1F1B, 8 micro-batches",
        "1.12",
        "1.20",
        "1.05",
    ]


def test_data_parallel_backprop_is_called_the_winner_only_where_it_is_one() -> None:
    assert "winner" not in STUDY.page([ranked("local CE", 0.9)]).answer
    assert "winner" not in STUDY.page([ranked("local CE", 1.05)]).answer  # its quartiles reach below 1
    assert "There data-parallel backprop is the winner." in STUDY.page([ranked("local CE", 1.2)]).answer


def test_a_process_with_all_threads_is_called_the_winner_where_it_is_one() -> None:
    """It was not timed by each of several, or not compared, in rows from before: they show what they have."""
    row = ranked("local CE", 1.2)
    row |= {f"ratio_to_all_threads{end}": 1.1 * f for end, f in {"": 1.0, "_low": 0.95, "_high": 1.05}.items()}
    row |= {f"ratio_to_backprop_all_threads{end}": 1.5 * f for end, f in {"": 1, "_low": 0.9, "_high": 1.1}.items()}
    found = STUDY.page([row, ranked("BLL", 0.9)])
    table = columns(found, RANKS, "Step time of blocks in several processes")
    assert table["÷ one process, all threads"] == ["1.10 (1.04–1.16)", "not measured"]
    assert table["÷ backprop, one process, all threads"] == ["1.50 (1.35–1.65)", "not measured"]
    assert "One process has 1 of the cores, as each of several has; with all threads it has theirs." in next(
        section.text for section in found.sections
    )
    assert (
        "There backprop, one process, all threads is the winner, before data-parallel backprop; one process, all "
        "threads. BLL in 2 processes"
    ) in found.answer


def test_the_cascades_part_stands_over_the_naive_loops_by_how_many_modules() -> None:
    found = STUDY.page([stacked(100), stacked(10)])
    table = columns(found, STACK, "The cascade’s part of a step")
    assert table["modules"] == ["10", "100"] and table["naive loop, ms"] == ["20.0", "200"]
    assert table["stacked, bf16 ÷ that"] == ["0.40 (0.36–0.44)", "0.04 (0.04–0.04)"]
    assert found.answer.startswith("With 100 modules the cascade takes, of the naive loop’s part of a step, streaming")


def streamed(count: str, n: int, run: str, ms: float, mib: float) -> list[Row]:
    """Local heads beside a backprop of 10 ms and 100 MiB, and checkpointing of 14 and 30."""
    labels = {"arm": "local CE", "run": run, count: str(n)}
    others = (
        {"plain backprop": 10.0, "plain checkpointed/2": 14.0},
        {"plain backprop": 100.0, "plain checkpointed/2": 30.0},
    )
    times, sizes = ({"local_ce (streaming)": own, **other} for own, other in zip((ms, mib), others, strict=True))
    row = timed(labels, times)
    for entry in row["rows"]:
        entry["floor_ms"] = entry["step_ms"] / 4
    return [row, weighed(labels, sizes)]


def test_a_block_at_a_time_stands_beside_backprop_over_depth_and_over_cuts_of_the_deepest() -> None:
    rows = [*streamed("units", 4, "eager", 11.0, 30.0), *streamed("units", 64, "eager", 12.0, 5.0)]
    rows += [*streamed("units", 64, "as CUDA graphs", 9.0, 5.0), *streamed("blocks", 16, "eager", 10.5, 10.0)]
    rows += streamed("blocks", 64, "eager", 12.0, 5.0)
    found = STUDY.page(rows)
    over_depth = columns(found, "One block at a time, over depth", "Step time, eager")
    assert over_depth["units"] == ["4", "64"]
    assert over_depth["local CE ÷ that"] == ["1.10 (0.99–1.21)", "1.20 (1.08–1.32)"]
    assert over_depth["plain backprop, least ms"] == ["2.50", "2.50"] and over_depth["local CE, least ms"] == [
        "2.75",
        "3.00",
    ]
    cuts = columns(found, "One block at a time, over how many blocks", "Peak memory of a step, eager")
    assert cuts["blocks"] == ["16", "64"] and cuts["local CE ÷ that"] == ["0.10", "0.05"]
    assert (
        "With 64 units, as CUDA graphs: local CE takes 0.05 of the memory and 0.90 (0.81–0.99) of the step time of "
        "plain backprop; checkpointing takes 0.30 of the memory and 1.40 (1.26–1.54) of the step time of plain "
        "backprop."
    ) in found.answer
    assert "16 blocks" not in found.answer


def test_any_part_of_the_rows_makes_a_page(tmp_path: Path) -> None:
    rows = [ranked("local CE", 0.9), stacked(10), *streamed("units", 4, "eager", 11.0, 30.0)]
    written_of_every_part(STUDY.page, rows, tmp_path)


def test_before_anything_has_run_the_page_says_so() -> None:
    assert STUDY.page([]).answer == "Too little has run yet."
