"""A finished run looked at again."""

from __future__ import annotations

from pathlib import Path

from sidestep.core.task import Regression, classes
from sidestep.errors import DataError
from sidestep.evaluate import evaluate
from sidestep.measure.evidence import keep_uncertainty
from sidestep.measure.probes import probe_table
from sidestep.measure.probes import probes as measure_probes
from sidestep.measure.regression import deviation_table, deviations
from sidestep.measure.uncertainty import other_data, uncertainty_table
from sidestep.measure.uncertainty import uncertainty as measure_uncertainty
from sidestep.run import load_run
from sidestep.summary import block_table, named


def run(
    path: Path, *, descent: bool = False, probes: bool = False, uncertainty: bool = False, ood: str | None = None
) -> dict[str, object]:
    """Evaluate a finished run on its test set again: what `sidestep evaluate RUN` prints, under its summary's names.

    A run that was not to read the test set is judged on its validation split.  ood: the name of another data set, whose
    test split joins the measures of uncertainty, which replace those in the run's folder, if that can be written.
    """
    finished = load_run(path)
    assembly = finished.assembly
    part, source = ("val", assembly.data.val) if assembly.test is None else ("test", assembly.test)
    if source is None:
        raise DataError(f"{path} was trained with test=never and no validation samples, expected one to be judged on.")
    if ood is not None:
        classes(assembly.task, "--ood")
    other = None if ood is None else other_data(assembly, ood)
    measured = evaluate(assembly, source, noise=assembly.config.label_noise if part == "test" else 0.0)
    result = {"run": str(path), **{k: finished.summary[k] for k in ("method", "model", "data", "selected")}}
    result |= named(part, measured)
    if descent:
        result["descent"] = measured.get("descent")
    tables = [block_table(result, part)]
    if uncertainty and isinstance(assembly.task, Regression):
        result["uncertainty"] = found = deviations(assembly, source)
        tables.append(deviation_table(found, part))
    elif uncertainty or other is not None:
        result["uncertainty"] = found = measure_uncertainty(assembly, source, other)
        # It shows what the plain table does, and more; only the belief curves it has not.
        tables = [*(tables if descent else []), uncertainty_table(found)]
        if keep_uncertainty(path, found):
            tables.append("`sidestep report` of this run draws them.")
    if probes:
        result["probes"] = found = measure_probes(assembly)
        tables.append(probe_table(found))
    return result | {"text": "\n\n".join(tables)}
