"""What each command of the command line does: one call, and what it found as numbers and as text.

What a command runs is imported inside of it, so that help and listings answer without torch.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Sequence
from dataclasses import replace
from itertools import product
from pathlib import Path

from sidestep import listings
from sidestep.config import OPTIONS, TrainConfig, flat, to_toml
from sidestep.errors import UsageError, unknown
from sidestep.models import MODELS
from sidestep.parser import Args, Command, Result, count, counts, new_file, parse, positive, size, whole
from sidestep.placement import Placement
from sidestep.studies import STUDIES, study_named

SHARED = ("data", "model", "blocks", "at", "balance", "recipe", "batch_size", "seed", "device", "precision", "threads")
"""The fields that are flags of commands which measure a network, not train it; `--set` reaches the others."""

ALL = tuple(name for name in OPTIONS if name != "method")


def train(args: Args) -> Result:
    config = args.resolve(args.words[0])
    if args.print_config:
        return flat(config) | {"text": to_toml(config).rstrip()}
    placement = Placement(args.ranks or len(args.shares) or 1, args.replicas, args.shares)
    placement.blocks(config.blocks)
    launched = os.environ.get("WORLD_SIZE")  # which torchrun sets: then this is one of them
    if placement.processes > 1 or launched not in (None, "1"):
        if config.accumulate % args.replicas:
            raise UsageError(
                f"got --replicas {args.replicas} and accumulate={config.accumulate}, expected a multiple: replicas "
                f"share out the micro-batches of a step; give --accumulate {args.replicas}."
            )
        if config.engine == "stacked":
            raise UsageError("got --engine stacked and several processes, expected one: a stack is in one process.")
        if config.cuda_graph:
            raise UsageError("got --cuda-graph and several processes, expected one: a recorded step sends nothing.")
    if placement.processes > 1 and launched is None:
        from sidestep.launch import launch
        from sidestep.train import find_start

        folder = find_start(config).out  # what it refuses starts nothing
        line = args.line if config.out else [*args.line, "--out", folder]
        raise SystemExit(launch(["train", *line], placement.processes, args.max_restarts))
    from sidestep.train import run

    return run(config, placement if placement.processes > 1 else None, trusted_network=args.trusted_network)


def compare(args: Args) -> Result:
    methods = list(dict.fromkeys(args.words if "backprop" in args.words else ["backprop", *args.words]))
    first = args.resolve(methods[0])
    if first.resume not in (None, "last"):
        raise UsageError(f"got --resume {first.resume}, expected --resume last: a comparison is many runs.")

    def make(method: str, seed: int) -> TrainConfig:
        return replace(args.resolve(method), seed=first.seed + seed, out=None, resume=None, overwrite=False)

    for method in methods:
        make(method, 0)  # a setting that one of them refuses is found before any work
    from sidestep.comparison import run

    return run(methods, make, args.seeds, first.out, resume=first.resume, overwrite=first.overwrite)


def describe(args: Args) -> Result:
    config = args.resolve(args.words[0])
    from sidestep.measure.describe import run

    return run(config)


def audit(args: Args) -> Result:
    config = args.resolve(args.words[0])
    from sidestep.measure.isolation import run

    return run(config)


def plan(args: Args) -> Result:
    model, *_ = args.words
    if model not in MODELS:
        raise unknown("model", model, MODELS)
    args.flags["model"] = model
    config = args.resolve(args.method)
    placement = Placement(args.ranks or len(args.shares) or 2, shares=args.shares)
    placement.blocks(config.blocks)
    from sidestep.simulate.plan import run

    return run(config, placement, args.memory, measure=args.measure)


BENCH_FLAGS = {
    "step": ("--against", "--steps", "--train"),
    "memory": (),
    "stack": ("--steps",),
    "ranks": ("--steps", "--train", "--ranks"),
    "scale": ("--steps", "--ranks", "--machines"),
}


def bench(args: Args) -> Result:
    load = os.getloadavg()[0]  # before anything of it runs, so that it is what others do
    return run_bench(args) | {"load": load}


def run_bench(args: Args) -> Result:
    kind, method = [*args.words, "sid"][:2]
    if kind not in BENCH_FLAGS:
        raise unknown("bench", kind, BENCH_FLAGS)
    given = {"--against": args.against, "--steps": args.steps, "--train": args.train, "--ranks": args.ranks}
    given["--machines"] = args.machines
    if wrong := [flag for flag, value in given.items() if value and flag not in BENCH_FLAGS[kind]]:
        kinds = ", ".join(k for k, flags in BENCH_FLAGS.items() if wrong[0] in flags)
        raise UsageError(f"{wrong[0]} is a flag of sidestep bench {kinds}; leave it out of bench {kind}.")
    config = args.resolve(method)
    if kind == "stack":
        from sidestep.bench.stack import run as run_stack

        return run_stack(config, rounds=args.steps or 20)
    if kind == "ranks":
        from sidestep.bench.ranks import run as run_ranks

        return run_ranks(config, args.ranks or 2, rounds=args.steps or 14, train=args.train)
    if kind == "scale":
        if args.machines:
            from sidestep.bench.machines import run as run_machines

            return run_machines(config, args.machines)
        from sidestep.bench.scale import run as run_scale

        return run_scale(config, args.ranks or 2, rounds=args.steps or 14)
    if kind == "memory":
        from sidestep.bench.memory import run as run_memory

        return run_memory(config)
    from sidestep.bench.step import run as run_step

    return run_step(config, args.against, steps=args.steps or 20, train=args.train)


def study(args: Args) -> Result:
    for name in args.words:
        study_named(name)  # an unknown name is found before torch is loaded

    from sidestep.studies.runner import run

    ends = time.monotonic() + 60 * args.minutes if args.minutes else math.inf
    found: dict[str, Result] = {}
    # What other workers are at is waited for once there is nothing else to do.
    for wait, name in product((False, True), args.words):
        left = (ends - time.monotonic()) / 60
        if wait and (args.page or left <= 0 or not found[name]["left"]):
            continue
        found[name] = run(
            name,
            execute,
            results=args.results,
            runs=args.runs,
            machine="gpu" if args.gpu else "cpu",
            seeds=args.seeds,
            minutes=left if args.minutes else None,
            smoke=args.smoke,
            page_only=args.page or left <= 0,
            rows_only=args.no_page,
            only=args.only,
            wait=wait,
        )
    text = "\n".join(result.pop("text") for result in found.values())
    return {
        "studies": [*found.values()],
        "left": sum(result["left"] for result in found.values()),
        "failed": sum(len(result["failed"]) for result in found.values()),
        "text": text,
    }


def evaluate(args: Args) -> Result:
    from sidestep.reevaluate import run

    return run(
        Path(args.words[0]), descent=args.descent, probes=args.probes, uncertainty=args.uncertainty, ood=args.ood
    )


def report(args: Args) -> Result:
    from sidestep.report.build import run

    return run([Path(word) for word in args.words], args.out)


COMMANDS: dict[str, Command] = {
    "train": Command(
        train,
        "train a network with a method, and leave a folder with the run",
        "sidestep train sid --data mnist --model simplecnn --blocks 5 --epochs 3",
        takes="METHOD",
        fields=ALL,
        own_fields=True,
        extra={
            "--ranks": {
                "type": count,
                "metavar": "N",
                "help": "processes that share the blocks (default: 1)",
            },
            "--replicas": {
                "type": count,
                "default": 1,
                "metavar": "R",
                "help": "processes for each rank's blocks, which share the micro-batches of --accumulate (default: 1)",
            },
            "--shares": {
                "type": counts,
                "default": (),
                "metavar": "N,N,...",
                "help": "how many blocks each rank has, as sidestep plan finds it (default: even)",
            },
            "--max-restarts": {
                "type": whole,
                "default": 0,
                "metavar": "N",
                "help": "how often ranks that failed are started again, from the last checkpoint (default: 0)",
            },
            "--trusted-network": {
                "action": "store_true",
                "help": "under torchrun: ranks may be on several hosts; whoever reaches their network could join them",
            },
            "--print-config": {"action": "store_true", "help": "print the resolved configuration and stop"},
        },
    ),
    "compare": Command(
        compare,
        "train several methods under one recipe, backprop among them",
        "sidestep compare sid local_ce --seeds 3 --set sid.alpha=0.7",
        takes="METHOD...",
        fields=ALL,
        extra={"--seeds": {"type": count, "default": 3, "metavar": "N", "help": "runs of each method (default: 3)"}},
    ),
    "describe": Command(
        describe,
        "a method's program, and the locks, traffic and memory it implies",
        "sidestep describe sid --model resmlp --blocks 16",
        takes="METHOD",
        fields=SHARED,
        own_fields=True,
    ),
    "audit": Command(
        audit,
        "measure which parameters each block's loss reaches",
        "sidestep audit local_ce --data digits --model mlp",
        takes="METHOD",
        fields=SHARED,
        own_fields=True,
    ),
    "plan": Command(
        plan,
        "which blocks of a network go on which process, by time and memory",
        "sidestep plan resmlp --blocks 16 --ranks 4 --memory 2GB",
        takes="MODEL",
        fields=tuple(name for name in SHARED if name != "model"),
        extra={
            "--ranks": {"type": count, "metavar": "N", "help": "processes (default: 2)"},
            "--memory": {
                "type": size,
                "metavar": "SIZE",
                "help": "the most that a process may need, such as 8GB or 500MB, in units of 1024",
            },
            "--shares": {
                "type": counts,
                "default": (),
                "metavar": "N,N,...",
                "help": "predict this placement, instead of looking for the best: how many blocks each rank has",
            },
            "--method": {"default": "sid", "metavar": "METHOD", "help": "what trains it (default: sid)"},
            "--measure": {"action": "store_true", "help": "run it too, and show what it takes beside"},
        },
    ),
    "bench": Command(
        bench,
        "speed or memory of a method beside plain autograd or pipelines",
        "sidestep bench step sid --model simplecnn --against reference",
        takes="step|memory|stack|ranks|scale [METHOD]",
        fields=SHARED,
        own_fields=True,
        extra={
            "--against": {"choices": ["plain", "reference"], "help": "step: what it is timed against (default: plain)"},
            "--steps": {
                "type": count,
                "metavar": "N",
                "help": "step, stack: steps that are timed (20); ranks, scale: turns of twelve steps (14)",
            },
            "--train": {
                "action": "store_true",
                "help": "train what is compared too: step against reference with 3 seeds, ranks with one",
            },
            "--machines": {
                "type": count,
                "metavar": "N",
                "help": "scale: run no processes, but go on from one block to so many machines, such as 1024",
            },
            "--ranks": {"type": count, "metavar": "N", "help": "ranks, scale: how many processes (default: 2)"},
        },
    ),
    "study": Command(
        study,
        "grids of runs with resume, their rows in results/, and a page each",
        "sidestep study reproduction --seeds 1",
        takes="NAME...",
        known=STUDIES,
        extra={
            "--seeds": {"type": count, "metavar": "N", "help": "at most so many (default: the study's own)"},
            "--gpu": {"action": "store_true", "help": "the pieces that are for a GPU, on CUDA"},
            "--only": {"default": "", "metavar": "WORDS", "help": "those whose command has these words in a row"},
            "--minutes": {
                "type": positive,
                "metavar": "X",
                "help": "save and end after so many, all studies together; the same line goes on",
            },
            "--smoke": {"action": "store_true", "help": "every piece on digits for one epoch: does it run?"},
            "--page": {"action": "store_true", "help": "run nothing, make the page anew"},
            "--no-page": {"action": "store_true", "help": "leave the page as it is"},
            "--results": {"type": Path, "default": Path("results"), "metavar": "FOLDER", "help": "of rows and page"},
            "--runs": {"type": Path, "default": Path("runs/studies"), "metavar": "FOLDER", "help": "of the runs"},
        },
    ),
    "evaluate": Command(
        evaluate,
        "metrics of a finished run, block by block",
        "sidestep evaluate runs/mnist-sid --descent",
        takes="RUN",
        extra={
            "--descent": {"action": "store_true", "help": "the belief curves too"},
            "--probes": {"action": "store_true", "help": "which block loses information: a linear probe on each"},
            "--uncertainty": {
                "action": "store_true",
                "help": "calibration and abstention, or deviations; for `report` too",
            },
            "--ood": {"metavar": "NAME", "help": "--uncertainty, and whether data set NAME is answered less surely"},
        },
    ),
    "report": Command(
        report,
        "one HTML file from finished runs",
        "sidestep report runs/* --out report.html",
        takes="RUN...",
        extra={"--out": {"type": new_file, "metavar": "FILE", "help": "where to write it"}},
    ),
    "methods": Command(listings.methods, "list the methods", "sidestep methods --json"),
    "models": Command(listings.models, "list the networks and their options", "sidestep models --json"),
    "datasets": Command(listings.datasets, "list the data sets", "sidestep datasets --json"),
}


def execute(argv: Sequence[str]) -> Result:
    """What a command line finds, without printing it."""
    args = parse(argv[0], COMMANDS[argv[0]], list(argv[1:]))
    assert args is not None, "a study asks no help"
    return COMMANDS[argv[0]].run(args)
