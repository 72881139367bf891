"""Step time of a method beside plain autograd, checkpointing and deep supervision, or beside a naive SID loop."""

from __future__ import annotations

import copy
import statistics
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from sidestep.assemble import Assembly, assemble, optimizer_factory, with_method
from sidestep.bench.plain import CheckpointedStep, DeepSupervisionStep, PlainStep, PlainTraining
from sidestep.bench.reference import ReferenceSID
from sidestep.config import TrainConfig
from sidestep.core.cut import CutPlan, Slices
from sidestep.core.task import Classification, classes
from sidestep.engines.captured import WARM_UP, CapturedStep
from sidestep.engines.compiled import compile_calls
from sidestep.errors import UsageError
from sidestep.evaluate import evaluate, last
from sidestep.measure.floor import Demand, Rates
from sidestep.measure.timing import by_key, interleaved, quartiles, ratios
from sidestep.methods.sid import SID
from sidestep.precision import autocast_dtype
from sidestep.provenance import provenance
from sidestep.schedules import schedule

SEGMENTS = (1, 2, 4, 8)
UNTIMED = WARM_UP + 1
"""Rounds before those that are timed: a CUDA graph is recorded in the last of them."""
PLAIN = {"accumulate": 1, "ema": None, "clip": None}
"""What training is that does none of it."""
Step = Callable[[tuple[Tensor, Tensor]], object]


def plain_baselines(assembly: Assembly) -> dict[str, PlainTraining]:
    """The same network trained by plain autograd, with the same optimizer, precision and memory format.

    Checkpointed in segments of 1, 2, 4, 8 of the method's blocks, as far as that makes two segments or more: one is not
    computed again.  Compiled where the method's blocks are.
    """
    config = assembly.config
    options: dict[str, Any] = {"autocast": autocast_dtype(config.precision), "clip": config.clip}
    make = optimizer_factory(config)

    def slices() -> Slices:
        whole = with_method(assembly, "backprop")
        plan = CutPlan(whole.config.blocks, config.balance, whole.config.at)
        return plan(whole.model, assembly.task.sample)

    model = copy.deepcopy(assembly.model)
    found: dict[str, PlainTraining] = {"plain backprop": PlainStep(model, make(model.parameters()), **options)}
    count = len(slices().bodies)
    for length in SEGMENTS:
        if length < count:
            nets = slices().nets
            segments = [nn.Sequential(*nets[i : i + length]) for i in range(0, count, length)]
            parameters = [p for segment in segments for p in segment.parameters()]
            found[f"plain checkpointed/{length}"] = CheckpointedStep(segments, make(parameters), **options)
    chain = with_method(assembly, "deep_supervision").chain
    nets, heads = [b.net for b in chain.blocks], [b.extras["head"] for b in chain.blocks[:-1]]
    parameters = [p for m in (*nets, *heads) for p in m.parameters()]
    found["plain deep supervision"] = DeepSupervisionStep(nets, heads, make(parameters), **options)
    if config.compile:
        for plain in found.values():
            for part in plain.network if isinstance(plain.network, nn.ModuleList) else [plain.network]:
                compile_calls(part)
    return found


def benched(config: TrainConfig, *without: str) -> Assembly:
    """What is to be measured.

    Raises UsageError where what runs beside it has no loss for the task, or does not do what a setting asks for:
    accumulate, ema, and those named in `without`.
    """
    for key in ("accumulate", "ema", *without):
        value, plain = getattr(config, key), PLAIN[key]
        if value != plain:
            given = "none" if plain is None else plain
            raise UsageError(f"got {key}={value}, expected {given}, as what is timed beside it; give --{key} {given}.")
    assembly = assemble(config)
    if assembly.task.per_token or not isinstance(assembly.task, Classification):
        what = "labels of tokens" if assembly.task.per_token else "numbers"
        raise UsageError(f"got {what} to learn, expected one class an input, as rivals are timed on; use other --data.")
    return assembly


def fresh(assembly: Assembly, name: str) -> Assembly:
    """The same network and settings with another method, compiled or a CUDA graph if they say so."""
    made, config = with_method(assembly, name), assembly.config
    if eager(config):
        return made
    config = replace(made.config, compile=config.compile, cuda_graph=config.cuda_graph)
    return assemble(config, data=made.data, model=made.model, method=made.method)


def eager(config: TrainConfig) -> bool:
    return not (config.compile or config.cuda_graph)


def steps_of(assembly: Assembly) -> dict[str, Step]:
    """A step of the method, of backprop by an engine too, and of plain autograd: all as the settings say."""
    made = [fresh(assembly, name) for name in dict.fromkeys([assembly.config.method, "backprop"])]
    found: dict[str, Step] = {labelled(own): own.engine.step for own in made}
    return found | {name: as_set(plain.step, assembly.config) for name, plain in plain_baselines(assembly).items()}


def labelled(assembly: Assembly) -> str:
    """The method, and the engine that runs it."""
    return f"{assembly.config.method} ({assembly.config.engine})"


def as_set(step: Step, config: TrainConfig) -> Step:
    """An eager step, or that as a CUDA graph if the settings say so.  config: resolved."""
    return CapturedStep(step, torch.device(config.device)) if config.cuda_graph else step


def run(config: TrainConfig, against: str | None = None, *, steps: int = 20, train: bool = False) -> dict[str, Any]:
    """What `sidestep bench step` prints: medians, quartiles and paired ratios of interleaved steps."""
    if steps < 1:
        raise UsageError(f"got --steps {steps}, expected at least 1.")
    assembly = benched(config)
    if against == "reference":
        return against_reference(assembly, steps, train)
    if train:
        raise UsageError("--train goes with --against reference; use sidestep compare to train methods side by side.")
    base = "plain backprop"
    candidates = steps_of(assembly)
    found = measured(assembly, candidates, base, steps)
    if not eager(config):  # neither compiled code nor a recording shows what it does
        plain = replace(assembly.config, compile=False, cuda_graph=False)
        candidates = steps_of(assemble(plain, data=assembly.data))
    rates = rates_of(assembly)
    for row in found["rows"]:
        row |= Demand.of(partial(candidates[row["name"]], assembly.batches(0))).floor(rates)
    return found | {"text": time_table(found, f"time over {base}'s")}


def rates_of(assembly: Assembly, precision: str | None = None) -> Rates:
    """The device's, in the settings' precision if in no other."""
    return Rates.of(assembly.device, autocast_dtype(precision or assembly.config.precision) or torch.float32)


def measured(assembly: Assembly, candidates: Mapping[str, Step], base: str, steps: int) -> dict[str, Any]:
    """Time all candidates on one batch, in turn; `ratio` is a candidate's time over the base's in the same round."""
    batch = assembly.batches(0)
    samples = interleaved(
        {name: partial(step, batch) for name, step in candidates.items()}, steps, UNTIMED, assembly.device
    )
    return {"base": base, "rows": rows_of(samples, base, len(batch[0]))} | circumstances(assembly)


def rows_of(samples: Mapping[str, Sequence[float]], base: str, batch_size: int) -> list[dict[str, Any]]:
    """Of every candidate's times in milliseconds: median and quartiles, and those of its ratios to the base's."""
    rows: list[dict[str, Any]] = []
    for name, times in samples.items():
        took = quartiles(times)
        row = {"name": name} | by_key("step_ms", took) | {"samples_per_second": 1000 * batch_size / took[0]}
        rows.append(row | by_key("ratio", ratios(samples, name, base)) | {"n": len(times)})
    return rows


def circumstances(assembly: Assembly) -> dict[str, Any]:
    """What a figure must say of how it came about."""
    config = assembly.config
    return {
        "method": config.method,
        "model": config.model,
        "data": config.data,
        "blocks": config.blocks,
        "batch_size": config.batch_size,
        "precision": config.precision,
        "engine": config.engine,
        "compile": config.compile,
        "cuda_graph": config.cuda_graph,
        **provenance(assembly.device),
    }


def time_table(found: Mapping[str, Any], ratio: str) -> str:
    lines = [
        f"{found['model']} in {found['blocks']} blocks on {found['data']}, batch {found['batch_size']}, "
        f"{found['precision']}, {found['threads']} threads",
        f"{'':<28}{'ms a step (quartiles)':>24}{ratio:>28}",
    ]
    for r in found["rows"]:
        lines.append(f"{r['name']:<28}{ranged(r, 'step_ms'):>24}{ranged(r, 'ratio', 3):>28}")
    return "\n".join([*lines, *floor_lines(found["rows"])])


def ranged(found: Mapping[str, Any], key: str, digits: int = 1) -> str:
    """A median with its quartiles, `<key>_low` and `<key>_high`."""
    middle, low, high = (f"{found[key + which]:.{digits}f}" for which in ("", "_low", "_high"))
    return f"{middle} ({low}..{high})"


def floor_lines(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """The least that the steps could take, where it was asked for."""
    lines = [f"{r['name']:<28}{r['flops_ms']:>24.2f}{r['bytes_ms']:>28.2f}" for r in rows if "floor_ms" in r]
    head = f"{'the least it could take, ms':<28}{'by its FLOPs':>24}{'by the bytes it moves':>28}"
    return ["", head, *lines] if lines else []


# ------------------------------------------------------------------ the naive loop


def against_reference(assembly: Assembly, steps: int, train: bool) -> dict[str, Any]:
    """SID beside the naive loop in its authors' style; the speed-up is of samples per second."""
    if not isinstance(assembly.method, SID) or assembly.method.form != "shared":
        raise UsageError("the reference is SID's published form; use sid with --form shared.")
    reference = reference_for(assembly)
    fp32 = assemble(replace(assembly.config, precision="fp32"), data=assembly.data, model=copy.deepcopy(assembly.model))
    candidates: dict[str, Step] = {
        "reference, fp32": lambda batch: reference.step((batch[0].contiguous(), batch[1])),
        "sidestep, fp32": fp32.engine.step,
    }
    if assembly.config.precision != "fp32":
        candidates[f"sidestep, {assembly.config.precision}"] = with_method(assembly, "sid").engine.step
    found = measured(assembly, candidates, "reference, fp32", steps)
    for row in found["rows"]:
        for name, other in (("speedup", "ratio"), ("speedup_low", "ratio_high"), ("speedup_high", "ratio_low")):
            row[name] = 1 / row[other]
    lines = [time_table(found, "time over the reference's"), "", "samples per second over the reference's"]
    lines += [f"  {r['name']:<26}{ranged(r, 'speedup', 2)}" for r in found["rows"][1:]]
    if train:
        found["accuracy"] = trained = train_both(assembly.config, seeds=3)
        lines += ["", f"test accuracy after {assembly.config.epochs} epochs, 3 seeds"]
        lines += [
            f"  {name:<26}{100 * statistics.fmean(values):.2f} % ± {100 * statistics.stdev(values):.2f}"
            for name, values in trained.items()
        ]
    return found | {"text": "\n".join(lines)}


def reference_for(assembly: Assembly) -> ReferenceSID:
    """The naive loop on a copy of the same extractor, in contiguous memory, with as many modules."""
    hub = assembly.chain.hub
    assert hub is not None and isinstance(assembly.method, SID)
    alpha = assembly.method.alpha
    if not isinstance(alpha, int | float):
        raise UsageError(f"the reference has one alpha for all modules, got {alpha!r}; use --alpha 0.5.")
    # torch's stubs leave out the overload that takes a memory format alone.
    extractor = copy.deepcopy(hub).to(memory_format=torch.contiguous_format)  # pyright: ignore[reportCallIssue]
    with torch.no_grad():
        width = extractor(assembly.task.sample.contiguous()).shape[1]
    return ReferenceSID(
        extractor,
        width,
        classes(assembly.task, "--against reference").num_classes,
        assembly.config.blocks,
        float(alpha),
    )


def train_both(config: TrainConfig, seeds: int) -> dict[str, list[float]]:
    """Test accuracies of the engine and of the naive loop, the same data, order and learning-rate schedule for both."""
    found: dict[str, list[float]] = {"reference, fp32": [], f"sidestep, {config.precision}": []}
    for seed in range(seeds):
        assembly = assemble(replace(config, seed=seed))
        reference = reference_for(assembly)
        total = assembly.total_steps
        rate = schedule(config.schedule, total, config.warmup)
        for step in range(total):
            batch = assembly.batches(step)
            for optimizer in reference.optimizers:
                for group in optimizer.param_groups:
                    group["lr"] = config.lr * rate(step)
            reference.step((batch[0].contiguous(), batch[1]))
            assembly.engine.step(batch)
            if step % 200 == 0:
                print(f"sidestep: seed {seed}, step {step}/{total}", file=sys.stderr, flush=True)
        assert assembly.data.test is not None
        ours = last(evaluate(assembly, assembly.data.test), "accuracy")
        found["reference, fp32"].append(reference_accuracy(reference, assembly))
        found[f"sidestep, {config.precision}"].append(ours)
    return found


def reference_accuracy(reference: ReferenceSID, assembly: Assembly) -> float:
    assert assembly.data.test is not None
    right: Sequence[int] = [
        int((reference.predict(x.contiguous()).argmax(-1) == y).sum())
        for x, y in assembly.eval_batches(assembly.data.test)
    ]
    return sum(right) / len(assembly.data.test)
