"""One page from finished runs: what was reached, how, at what cost, and whether the blocks were isolated."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from os.path import commonpath
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, Any

from sidestep.errors import UsageError
from sidestep.files import write_text_atomic
from sidestep.layout import REPORT
from sidestep.report import figures, tables, views
from sidestep.report.read import Group, compared, find, grouped, read
from sidestep.report.sections import by_loss, diagnostic, sections

if TYPE_CHECKING:
    from jinja2 import Template


def run(paths: Sequence[Path], out: Path | None = None) -> dict[str, object]:
    """What `sidestep report RUN...` does.  out: a file; by default report.html in the run's or the runs' common folder.

    A folder of runs, such as a comparison's, stands for those in it.
    """
    folders = find(paths)
    if out is None:
        out = (folders[0] if len(folders) == 1 else Path(commonpath([f.resolve() for f in folders]))) / REPORT
    path = write_report(folders, out)
    return {"report": str(path), "runs": [str(folder) for folder in folders], "text": f"report: {path}"}


def write_report(folders: Sequence[Path], out: Path) -> Path:
    """Write the page of these runs, one HTML file that needs nothing else, and return its path.

    Equal folders give equal bytes.  Raises DataError for a folder without a finished run, UsageError for runs that
    cannot stand on one page.
    """
    if not folders:
        raise UsageError("got no runs, expected the folder of at least one; `sidestep train sid --out RUN` makes one.")
    groups = grouped([read(folder) for folder in folders])
    # A comparison timed all its methods in turn; by themselves, runs were each timed beside the baselines.
    parents = {folder.parent for folder in folders}
    timed = compared(parents.pop()).get("rows") if len(groups) > 1 and len(parents) == 1 else None
    out.parent.mkdir(parents=True, exist_ok=True)
    write_text_atomic(out, render(groups, timed or cost_rows(groups)))
    return out


def render(groups: Sequence[Group], costs: Sequence[dict[str, Any]]) -> str:
    parts = sections(groups)
    data = PurePath(str(groups[0].first.summary["data"])).name
    return template("page.html.jinja").render(
        title=f"{and_(dict.fromkeys(str(group.first.summary['method']) for group in groups))} on {data}",
        result=result(groups, data),
        headline=tables.headline(groups),
        dots=every_run(groups),
        counted=counted(groups),
        judged=chosen(groups),
        noise=max(float(run.config.get("label_noise", 0)) for group in groups for run in group.runs),
        sections=parts,
        diagnostics={name: diagnostic(name) for part in parts for name in part.diagnostics},
        by_loss=by_loss(groups),
        costs=tables.costs(costs),
        in_training=tables.in_training(groups),
        runs=tables.runs(groups) if sum(len(group.runs) for group in groups) > 1 else None,
        provenance=tables.provenance(groups),
    )


def template(name: str) -> Template:
    """A template of this folder, which escapes what it shows and refuses to leave out what it does not know."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    loader = PackageLoader("sidestep.report", ".")
    pages = Environment(loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    return pages.get_template(name)


def every_run(groups: Sequence[Group]) -> str | None:
    """The figure of all test accuracies, where there are methods to compare and seeds to see the spread of."""
    found = [(g.label, values.tolist()) for g in groups if (values := g.final("test_accuracy")) is not None]
    if len(found) < 2 or all(len(values) == 1 for _, values in found):
        return None
    return figures.dots("test accuracy of every run", found)


def cost_rows(groups: Sequence[Group]) -> list[dict[str, Any]]:
    """Each group's own row, measured beside its own backprop, then the baselines that are no group."""
    rows: list[dict[str, Any]] = []
    baselines: dict[str, dict[str, Any]] = {}
    for group in groups:
        found = {row["method"]: row for run in reversed(group.runs) for row in run.costs}
        if own := found.pop(group.first.summary["method"], None):
            rows.append(own | {"method": group.label})
        baselines = found | baselines
    return rows + [row for name, row in baselines.items() if all(g.first.summary["method"] != name for g in groups)]


def result(groups: Sequence[Group], data: str) -> str:
    """The page in one sentence: accuracies with their spread, n, how the parameters were chosen; for one, isolation."""
    models = {f"{run.summary['model']} in {run.summary['blocks']} blocks" for group in groups for run in group.runs}
    where = f"{data} with {models.pop()}" if len(models) == 1 else data
    name, form, unit = ("loss", tables.fixed(4), "nats") if by_loss(groups) else ("accuracy", tables.PERCENT, "%")
    for part, words in (("test", "test"), ("val", "validation")):
        measure, spreads = f"{words} {name}", [group.spread(f"{part}_{name}") for group in groups]
        if all(spreads):
            reached = [f"{tables.shown(spread, form)} {unit}" for spread in spreads]
            others = [f"{group.label} {value}" for group, value in zip(groups[1:], reached[1:], strict=True)]
            sentence = (
                f"{groups[0].label} reaches {and_([reached[0], *others])} {measure} on {where} "
                f"({counted(groups)}; {chosen(groups)})"
            )
            break
    else:
        sentence = f"{and_(group.label for group in groups)} on {where}"
    audit = groups[0].first.audit
    if len(groups) == 1 and audit:
        verdict = views.audit(audit).verdict
        sentence += f"; verdict of the audit: {verdict[0].lower()}{verdict[1:]}"
    return sentence + "."


def counted(groups: Sequence[Group]) -> str:
    """How many seeds stand behind the numbers, and what follows ±."""
    counts = sorted({len(group.runs) for group in groups})
    if counts == [1]:
        return "one seed"
    n = f"{counts[0]}" if len(counts) == 1 else f"{counts[0]} to {counts[-1]}"
    return f"mean ± standard deviation over {n} seeds"


def chosen(groups: Sequence[Group]) -> str:
    selected = [str(run.summary.get("selected")) for group in groups for run in group.runs]
    for start, words in (("best validation", "selected by validation"), ("last epoch", "of the last epoch")):
        if all(one.startswith(start) for one in selected):
            return f"parameters {words}"
    return "parameters chosen as stated for each run"


def and_(words: Iterable[str]) -> str:
    *most, last = words
    return f"{', '.join(most)} and {last}" if most else last
