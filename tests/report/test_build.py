"""The page as a whole: what it says of known runs, and what it never says."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest

from sidestep.errors import DataError, UsageError
from sidestep.report.build import run, write_report
from tests.report.make import uncertainty, write_run

HOSTILE = "<script>alert('$1$')</script> & \"q\""


class Page(HTMLParser):
    """The tables of a page as lists of rows of text, its headings, and all its text."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tables: list[list[list[str]]] = []
        self.headings: list[str] = []
        self.text = ""
        self.inside: list[str] = []
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.inside.append(tag)
        if tag == "table":
            self.tables.append([])
        elif tag == "tr":
            self.tables[-1].append([])
        elif tag in ("td", "th"):
            self.tables[-1][-1].append("")
        elif tag in ("h1", "h2", "h3"):
            self.headings.append("")

    def handle_endtag(self, tag: str) -> None:
        while self.inside and self.inside.pop() != tag:
            pass

    def handle_data(self, data: str) -> None:
        if "style" in self.inside:
            return
        self.text += data
        if self.tables and {"td", "th"} & set(self.inside):
            self.tables[-1][-1][-1] += data
        if {"h1", "h2", "h3"} & set(self.inside):
            self.headings[-1] += data


def page_of(folders: list[Path], tmp_path: Path) -> tuple[str, Page]:
    html = write_report(folders, tmp_path / "report.html").read_text(encoding="utf-8")
    return html, Page(html)


def comparison(root: Path) -> list[Path]:
    """Three seeds of two methods: 0.90, 0.92, 0.97 (mean 0.93, sd sqrt(0.0013)) and 0.80 three times."""
    folders: list[Path] = []
    for seed, accuracy in enumerate((0.90, 0.92, 0.97)):
        folders.append(write_run(root / f"sid-seed{seed}", "sid", seed=seed, accuracy=accuracy, descent=True))
        folders.append(write_run(root / f"bp-seed{seed}", "backprop", seed=seed, accuracy=0.8, reads={2}))
    return folders


def test_one_run_is_told_with_one_seed_and_no_spread(tmp_path: Path) -> None:
    html, page = page_of([write_run(tmp_path / "a", accuracy=0.9125)], tmp_path)
    assert (
        "sid reaches 91.25 % test accuracy on toys with net in 3 blocks (one seed; parameters selected by validation); "
        "verdict of the audit: isolated."
    ) in html
    assert dict(zip(*page.tables[0], strict=True)) == {
        "method": "sid",
        "test accuracy, %": "91.25",
        "test NLL, nats": "0.2500",
        "test Brier": "0.1250",
        "test ECE": "0.0625",
        "val. accuracy, %": "92.25",
        "parameters": "12,345",
        "auxiliary": "345",
        "FLOPs, training": "2.50 M",
        "FLOPs, inference": "999",
    }
    assert "±" not in page.text


def test_a_comparison_has_the_mean_and_the_sample_deviation_of_every_method(tmp_path: Path) -> None:
    html, page = page_of(comparison(tmp_path), tmp_path)
    assert (
        "sid reaches 93.00 ± 3.61 % and backprop 80.00 ± 0.00 % test accuracy on toys with net in 3 blocks "
        "(mean ± standard deviation over 3 seeds; parameters selected by validation)."
    ) in html
    assert [row[:2] for row in page.tables[0]] == [
        ["method", "test accuracy, %"],
        ["sid", "93.00 ± 3.61"],
        ["backprop", "80.00 ± 0.00"],
    ]
    runs = next(table for table in page.tables if table[0][:2] == ["method", "seed"])
    assert [row[:2] + row[4:5] for row in runs[1:]] == [
        ["sid", "0", "90.00"],
        ["sid", "1", "92.00"],
        ["sid", "2", "97.00"],
        *(["backprop", seed, "80.00"] for seed in "012"),
    ]


def test_costs_stand_beside_both_baselines_with_the_range_of_the_ratio(tmp_path: Path) -> None:
    _, page = page_of([write_run(tmp_path / "a")], tmp_path)
    costs = next(table for table in page.tables if table[0][1] == "step ÷ backprop’s")
    assert [row[:3] for row in costs[1:]] == [
        ["sid", "1.50 (1.40–1.60)", "6.00 (5.85–6.30)"],
        ["backprop", "1.00", "4.00 (3.90–4.20)"],
        ["backprop_checkpointed", "1.33 (1.23–1.43)", "5.33 (5.20–5.60)"],
    ]


def test_a_comparisons_costs_are_those_timed_together(tmp_path: Path) -> None:
    folders = comparison(tmp_path)
    row = {"method": "sid", "step_ms": 9.0, "ratio_to_backprop": 2.0}
    (tmp_path / "compare.json").write_text(json.dumps({"rows": [row], "runs": [f.name for f in folders]}))
    _, page = page_of(folders, tmp_path)
    costs = next(table for table in page.tables if table[0][1] == "step ÷ backprop’s")
    assert costs[1:] == [["sid", "2.00", "9.00"]]


def test_names_cannot_put_markup_on_the_page(tmp_path: Path) -> None:
    facts = {"model": HOSTILE, "data": HOSTILE, "selected": HOSTILE, "device": HOSTILE, "commit": HOSTILE}
    folders = [
        write_run(
            tmp_path / f"{i}{seed}",
            HOSTILE,
            seed=seed,
            descent=True,
            classes=[HOSTILE, HOSTILE],
            summary=facts,
            config={"note": f"{HOSTILE}{i}"},
            uncertainty=uncertainty(ood=HOSTILE),
        )
        for i in range(2)
        for seed in range(2)
    ]
    html, page = page_of(folders, tmp_path)
    assert "<script" not in html
    assert HOSTILE in page.headings[0] and HOSTILE in page.text
    assert page.inside == []  # every element that was opened is closed: no name has broken out of one


def test_the_page_is_one_small_file_that_asks_for_nothing(tmp_path: Path) -> None:
    html, _ = page_of(comparison(tmp_path), tmp_path)
    assert len(html.encode()) < 500_000
    without_names = re.sub(r' xmlns(:\w+)?="[^"]*"', "", html)
    assert not re.search(r"https?://|@import|<script|<link|<iframe|<object", without_names)
    assert set(re.findall(r'(?:src|href)="([^"]{5})', without_names)) <= {"data:"} | set(
        re.findall(r'xlink:href="(#[^"]{4})', without_names)
    )
    assert all(target.startswith("#") for target in re.findall(r"url\(([^)]*)\)", without_names))


def test_no_two_elements_share_an_id(tmp_path: Path) -> None:
    html, _ = page_of(comparison(tmp_path), tmp_path)
    ids = re.findall(r' id="([^"]*)"', html)
    assert len(ids) == len(set(ids)) > 10


def test_equal_folders_give_equal_bytes_in_every_process(tmp_path: Path) -> None:
    folders = comparison(tmp_path)
    here = write_report(folders, tmp_path / "here.html").read_bytes()
    assert write_report(folders, tmp_path / "again.html").read_bytes() == here
    there = tmp_path / "there.html"
    code = (
        "import sys; from pathlib import Path; from sidestep.report.build import write_report; "
        "write_report([Path(a) for a in sys.argv[2:]], Path(sys.argv[1]))"
    )
    subprocess.run([sys.executable, "-c", code, there, *folders], check=True)
    assert there.read_bytes() == here


def test_what_was_not_measured_is_left_out(tmp_path: Path) -> None:
    nothing = dict.fromkeys(("test_accuracy", "test_nll", "test_brier", "test_ece", "val_accuracy", "step_ms"))
    folder = write_run(tmp_path / "a", "backprop", reads={2}, summary=nothing | {"samples_per_second": None})
    for name in ("audit.json", "costs.json", "examples.json"):
        (folder / name).unlink()
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    (folder / "metrics.jsonl").write_text(
        "".join(json.dumps({k: r[k] for k in ("epoch", "train_loss")}) for r in rows[:1])
    )
    html, page = page_of([folder], tmp_path)
    assert page.headings == ["backprop on toys", "Block by block", "Cost", "Configuration and provenance"]
    assert "backprop on toys with net in 3 blocks." in html
    assert page.tables[0][0] == ["method", "parameters", "auxiliary", "FLOPs, training", "FLOPs, inference"]
    assert not re.search(r"\b([Nn]a[Nn]|None|null|[Ii]nf)\b", html)


def test_a_method_that_reads_out_at_its_end_only_has_one_line_and_no_table_by_block(tmp_path: Path) -> None:
    html, page = page_of([write_run(tmp_path / "a", "backprop", reads={2})], tmp_path)
    assert html.count(">block 3</text>") == 2 and ">block 1</text>" not in html
    assert all(table[0][0] != "block" for table in page.tables)
    assert "Beliefs on single samples" not in page.headings
    assert "Descent of belief" not in page.headings
    assert not re.search(r"\bnan\b", re.sub(r"data:[^\"]*", "", html), re.IGNORECASE)


def test_the_table_by_block_has_what_was_measured_on_the_test_set_and_no_more(tmp_path: Path) -> None:
    _, page = page_of([write_run(tmp_path / "a", summary={"block_val_accuracy": [0.5, 0.6, 0.7]})], tmp_path)
    (table,) = (table for table in page.tables if table[0][0] == "block")
    assert table[0] == ["block", "test accuracy, %", "test NLL, nats", "test Brier", "test ECE"]


def diagnosed(folder: Path, **told: list[float | None]) -> Path:
    """The run's folder, with these diagnostics after every epoch."""
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row | {"diagnostics": told}) + "\n" for row in lines))
    return folder


def test_a_run_judged_by_its_loss_is_told_in_nats(tmp_path: Path) -> None:
    losses = {"test_loss": -0.5, "val_loss": -0.25, "test_nll": -0.5, "test_rmse": 0.125}
    folder = write_run(tmp_path / "a", "bll", summary=losses | {"test_accuracy": None, "val_accuracy": None})
    html, page = page_of([folder], tmp_path)
    assert "bll reaches −0.5000 nats test loss on toys" in html
    assert "Validation loss." in html and "Validation accuracy." not in html
    assert page.tables[0][0][1:3] == ["test NLL, nats", "test Brier"] and "test RMSE" in page.tables[0][0]


def test_what_a_methods_theory_speaks_of_is_drawn_where_it_was_measured(tmp_path: Path) -> None:
    folder = diagnosed(
        write_run(tmp_path / "a", "bll"),
        angle=[80.0, 70.0, None],
        gap=[0.5, 0.25, 0.125],
        weight_angle=[None] * 3,
        my_own=[1.0, 2.0, 3.0],
    )
    html, page = page_of([folder], tmp_path)
    assert "What its theory speaks of" in page.headings
    assert all(f"<b>{title}.</b>" in html for title in ("Feedback", "How tight the bound is", "my_own"))
    assert html.count(">degrees</text>") == 1 and html.count(">gap, nats</text>") == 1
    _, page = page_of([folder, write_run(tmp_path / "b", "sid")], tmp_path)
    assert {"Feedback", "How tight the bound is", "my_own"} < set(page.headings)
    assert "Weight transport" not in page.headings and "What its theory speaks of" not in page.headings


def test_the_descent_table_is_what_the_summary_says(tmp_path: Path) -> None:
    _, page = page_of([write_run(tmp_path / "a", descent=True)], tmp_path)
    table = next(table for table in page.tables if table[0][0] == "after block")
    assert table == [
        ["after block", "D", "D predicted", "C", "mean slack e", "e > 0, %"],
        ["0 (uniform)", "2.3026", "2.3026", "", "", ""],
        ["1", "1.1513", "0.9210", "1.0000", "−1.0000", "0.0"],
        ["2", "0.5756", "0.3684", "0.5000", "−0.5000", "1.0"],
        ["3", "0.2878", "0.1474", "0.2500", "−0.2500", "2.0"],
    ]


def uncertainty_of(page: Page) -> list[dict[str, str]]:
    """The tables of uncertainty, as columns by name of the words of their rows."""
    tables = [table for table in page.tables if table[0][0] == "answer"]
    return [{head: " | ".join(cells) for head, *cells in zip(*table, strict=True)} for table in tables]


def test_the_page_shows_the_numbers_that_uncertainty_json_holds(tmp_path: Path) -> None:
    html, page = page_of([write_run(tmp_path / "a", uncertainty=uncertainty(0.02, ood="pets"))], tmp_path)
    assert "Uncertainty" in page.headings
    assert uncertainty_of(page) == [
        {
            "answer": "last block | last block at T | mean of blocks | mean of blocks at T",
            "T": " | 1.250 |  | 1.250",
            "accuracy, %": "90.00 | 45.00 | 90.00 | 45.00",
            "NLL, nats": "0.2500 | 0.1250 | 0.2500 | 0.1250",
            "Brier": "0.1250 | 0.0625 | 0.1250 | 0.0625",
            "ECE": "0.0625 | 0.0312 | 0.0625 | 0.0312",
            "adaptive ECE": "0.0312 | 0.0156 | 0.0312 | 0.0156",
            "AURC": "0.0200 | 0.0100 | 0.0100 | 0.0100",
            "OOD AUROC": "0.7500 | 0.3750 | 0.7500 | 0.3750",
        }
    ]
    assert "Last block, 1,000 test samples in 2 bins of equal mass, raw and at temperature T." in page.text
    assert "Outside: 500 test samples of pets." in page.text and "with probability 0.7500 (AUROC)." in page.text
    assert all(f">{name}</text>" in html for name in ("raw", "T = 1.25", "mean", "inside", "outside"))
    assert "Seed" not in page.text and "±" not in page.text


def test_where_every_token_has_a_label_tokens_are_counted_and_called_so(tmp_path: Path) -> None:
    _, page = page_of([write_run(tmp_path / "a", uncertainty=uncertainty(0.02) | {"unit": "tokens"})], tmp_path)
    assert "Last block, 1,000 test tokens in 2 bins of equal mass" in page.text


def test_uncertainty_is_averaged_over_seeds_and_drawn_for_the_first(tmp_path: Path) -> None:
    made = (uncertainty(0.02, ood="pets"), uncertainty(0.03, ood="toys2"), uncertainty(0.07, t=None))
    folders = [write_run(tmp_path / f"{seed}", seed=seed, uncertainty=one) for seed, one in enumerate(made)]
    _, page = page_of(folders, tmp_path)
    (table,) = uncertainty_of(page)
    # 0.02, 0.03, 0.07: mean 0.04, squared deviations 4, 1, 9 e-4 over 2.  Not all have a T, nor the same other data.
    assert table["AURC"] == "0.0400 ± 0.0265 | 0.0200 ± 0.0132" and table["answer"] == "last block | mean of blocks"
    assert "T" not in table and "OOD AUROC" not in table
    assert "Mean ± standard deviation over 3 seeds." in page.text and page.text.count("Seed 0.") == 3
    _, two = page_of(folders[1:], tmp_path)
    assert uncertainty_of(two)[0]["AURC"] == "0.0500 ± 0.0283 | 0.0250 ± 0.0141"  # sqrt(2) 0.02, and half
    (folders[2] / "uncertainty.json").unlink()
    _, some = page_of(folders, tmp_path)
    assert uncertainty_of(some) == [] and "Uncertainty" in some.headings  # no mean over two of three


def test_one_read_out_has_no_mean_of_blocks_and_no_temperature_no_line(tmp_path: Path) -> None:
    known = uncertainty(t=None, reads=(False, False, True))
    html, page = page_of([write_run(tmp_path / "a", uncertainty=known | {"temperature": None})], tmp_path)
    assert uncertainty_of(page)[0]["answer"] == "last block"
    assert ">mean</text>" not in html and ">T = " not in html and "at temperature" not in page.text
    assert not re.search(r"\b([Nn]a[Nn]|None|null)\b", re.sub(r"data:[^\"]*", "", html))


def test_a_run_without_uncertainty_or_that_diverged_has_the_page_that_it_had(tmp_path: Path) -> None:
    """But for its section, a page with uncertainty is the page without."""
    broken = uncertainty()
    broken["curves"]["reliability"][-1] |= {"confidence": [None, None]}
    known = {"run": None, "with": uncertainty(ood="pets"), "broken": broken}
    old, new, nothing = (
        page_of([write_run(tmp_path / name / "run", uncertainty=one)], tmp_path)[0] for name, one in known.items()
    )
    without = re.sub(r"<section>\n<h2>Uncertainty</h2>.*?</section>\n", "", new, flags=re.DOTALL)
    assert len(without) < len(new) and without == old == nothing


def test_one_block_and_one_epoch_make_a_page(tmp_path: Path) -> None:
    html, _ = page_of([write_run(tmp_path / "a", blocks=1, epochs=1, descent=True)], tmp_path)
    assert html.count(">block 1</text>") == 3  # accuracy, loss, descent


def test_the_page_does_not_tell_where_the_run_was_kept(tmp_path: Path) -> None:
    html, _ = page_of([write_run(tmp_path / "a")], tmp_path)
    assert str(tmp_path) not in html


def test_label_noise_is_told_where_there_is_some(tmp_path: Path) -> None:
    noisy, _ = page_of([write_run(tmp_path / "a", config={"label_noise": 0.2})], tmp_path)
    clean, _ = page_of([write_run(tmp_path / "b", config={"label_noise": 0.0})], tmp_path)
    assert "Of the training and validation labels, 20 % were drawn anew" in noisy and "drawn anew" not in clean


def test_a_comparisons_folder_stands_for_its_runs_in_their_order(tmp_path: Path) -> None:
    names = [folder.name for folder in comparison(tmp_path / "c")]
    assert run([tmp_path / "c"])["runs"] == [str(tmp_path / "c" / name) for name in sorted(names)]
    (tmp_path / "c" / "compare.json").write_text(json.dumps({"rows": [], "runs": names}))
    result = run([tmp_path / "c"])
    assert result["runs"] == [str(tmp_path / "c" / name) for name in names]
    assert result["report"] == str((tmp_path / "c" / "report.html").resolve())
    single = run([tmp_path / "c" / names[0]])
    assert single["report"] == str(tmp_path / "c" / names[0] / "report.html")


@pytest.mark.parametrize("damage", ["summary.json", "config.toml", "metrics.jsonl", "audit.json", "uncertainty.json"])
def test_a_damaged_file_is_named_with_its_folder(tmp_path: Path, damage: str) -> None:
    folder = write_run(tmp_path / "a")
    (folder / damage).write_text("{ = \n{}\n")
    with pytest.raises(DataError, match=re.escape(str(folder))):
        write_report([folder], tmp_path / "report.html")
    assert not (tmp_path / "report.html").exists()


def test_what_is_no_run_or_cannot_share_a_page_is_refused(tmp_path: Path) -> None:
    a, out = write_run(tmp_path / "a"), tmp_path / "report.html"
    again = write_run(tmp_path / "again")
    other = write_run(tmp_path / "other", summary={"data": "others"})
    with pytest.raises(DataError, match=f"no folder {tmp_path / 'none'}, expected that of a run"):
        write_report([a, tmp_path / "none"], out)
    with pytest.raises(UsageError, match="a and again have the same configuration and seed"):
        write_report([a, again], out)
    with pytest.raises(UsageError, match="others and toys"):
        write_report([a, other], out)
    with pytest.raises(UsageError, match="got no runs"):
        write_report([], out)
    (a / "metrics.jsonl").unlink()
    with pytest.raises(DataError, match=r"metrics\.jsonl is missing"):
        write_report([a], out)


def test_the_folders_above_a_page_are_made(tmp_path: Path) -> None:
    out = tmp_path / "no" / "where" / "x.html"
    assert run([write_run(tmp_path / "a")], out)["report"] == str(out)
    assert out.is_file()
