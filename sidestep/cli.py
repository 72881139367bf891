"""The command line: words in, one call, a table or one JSON object out, an exit code.

argparse only cuts the line into words; `sidestep.config` validates them.  What a command runs is imported inside of it,
so that help and listings answer without torch.
"""

from __future__ import annotations

import argparse
import ast
import inspect
import json
import math
import os
import re
import shlex
import sys
import textwrap
import time
import traceback
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import MISSING, Field, dataclass, field, fields, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal, NoReturn, get_args, get_origin

from sidestep import __version__
from sidestep.bench.recipes import Recipe
from sidestep.config import OPTIONS, TrainConfig, flat, kinds, resolve, to_toml
from sidestep.data import DATASETS
from sidestep.errors import UsageError, unknown
from sidestep.methods import METHODS, method_class
from sidestep.models import MODELS

Result = dict[str, Any]
"""What a command found; `text` is the table for people."""

WIDTH = 80
ABOUT = "Train deep networks without a global backward pass: local objectives, audited isolation, strong baselines."
SHARED = ("data", "model", "blocks", "at", "balance", "recipe", "batch_size", "seed", "device", "precision", "threads")
"""The fields that are flags of commands which measure a network, not train it; `--set` reaches the others."""


class Args(argparse.Namespace):
    """A command line, cut up."""

    words: list[str]  # those that are no flags, in order
    flags: dict[str, object]  # by configuration key
    config: Path | None = None

    def resolve(self, method: str) -> TrainConfig:
        return resolve(method, self.flags, self.config, os.environ)


def train(args: Args) -> Result:
    config = args.resolve(args.words[0])
    if args.print_config:
        return flat(config) | {"text": to_toml(config).rstrip()}
    from sidestep.train import run

    return run(config)


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


def bench(args: Args) -> Result:
    kind, method = [*args.words, "sid"][:2]
    if kind not in ("step", "memory"):
        raise unknown("bench", kind, ["step", "memory"])
    if kind == "memory" and (args.against or args.steps or args.train):
        raise UsageError("--against, --steps and --train are of sidestep bench step; leave them out of bench memory.")
    config = args.resolve(method)
    if kind == "memory":
        from sidestep.bench.memory import run as run_memory

        return run_memory(config)
    from sidestep.bench.step import run as run_step

    return run_step(config, args.against, steps=args.steps or 20, train=args.train)


def study(args: Args) -> Result:
    from sidestep.studies import study_named

    for name in args.words:
        study_named(name)  # an unknown name is found before torch is loaded

    from sidestep.studies.runner import run

    ends = time.monotonic() + 60 * args.minutes if args.minutes else math.inf
    found: list[Result] = []
    for name in args.words:
        left = (ends - time.monotonic()) / 60
        found.append(
            run(
                name,
                execute,
                results=args.results,
                runs=args.runs,
                machine="gpu" if args.gpu else "cpu",
                seeds=args.seeds,
                minutes=left if args.minutes else None,
                smoke=args.smoke,
                page_only=args.page or left <= 0,
            )
        )
    text = "\n".join(result.pop("text") for result in found)
    return {"studies": found, "left": sum(result["left"] for result in found), "text": text}


def evaluate(args: Args) -> Result:
    from sidestep.evaluate import run

    return run(Path(args.words[0]), descent=args.descent, probes=args.probes)


def report(args: Args) -> Result:
    from sidestep.report.build import run

    return run([Path(word) for word in args.words], args.out)


def list_methods(args: Args) -> Result:
    rows = [{"name": n, "reference": method_class(n).reference, "needs": method_class(n).needs} for n in METHODS]
    return {"methods": rows, "text": table(rows)}


def list_models(args: Args) -> Result:
    found: list[dict[str, Any]] = []
    for name, where in MODELS.items():
        # Read, not imported: a listing needs no torch.
        module, function = where.split(":")
        source = find_spec(module)
        assert source and source.origin
        tree = ast.parse(Path(source.origin).read_text(encoding="utf-8"))
        node = next(n for n in tree.body if isinstance(n, ast.FunctionDef) and n.name == function)
        own = [a.arg for a in node.args.args[2:]]
        options = {a: ast.literal_eval(default) for a, default in zip(own, node.args.defaults, strict=True)}
        found.append({"name": name, "about": (ast.get_docstring(node) or "").split("\n")[0], "options": options})
    rows = [
        {"name": row["name"], "about": " ".join([row["about"], *(f"{k}={v}" for k, v in row["options"].items())])}
        for row in found
    ]
    return {"models": found, "text": table(rows)}


def list_datasets(args: Args) -> Result:
    shelf = os.environ.get("SIDESTEP_DATA")
    local = sorted(p.parent.name for p in Path(shelf).glob("*/train.parquet")) if shelf else []
    rows = [{"name": n, "local": "yes" if n in local else "", "about": about} for n, about in DATASETS.items()]
    rows += [{"name": n, "local": "yes", "about": "a folder in $SIDESTEP_DATA"} for n in local if n not in DATASETS]
    return {"datasets": rows, "text": table(rows)}


@dataclass(frozen=True)
class Command:
    """What `sidestep <command>` takes and calls."""

    run: Callable[[Args], Result]
    about: str
    example: str
    takes: str = ""  # its words: X is one, X... one or more, [X] one or none
    fields: tuple[str, ...] = ()  # the configuration's fields that it has as flags
    own_fields: bool = False  # whether the method's own are flags too
    extra: Mapping[str, Mapping[str, Any]] = field(default_factory=dict[str, Mapping[str, Any]])  # further flags

    def admits(self, words: int) -> bool:
        parts = self.takes.split()
        least = sum(not part.startswith("[") for part in parts)
        return least <= words <= (math.inf if self.takes.endswith("...") else len(parts))


ALL = tuple(name for name in OPTIONS if name != "method")


def count(text: str) -> int:
    """An integer of at least 1."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"got {text!r}, expected an integer of at least 1")
    return int(text)


def positive(text: str) -> float:
    """A number above 0."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"got {text!r}, expected a number above 0")
    return value


COMMANDS: dict[str, Command] = {
    "train": Command(
        train,
        "train a network with a method, and leave a folder with the run",
        "sidestep train sid --data mnist --model simplecnn --blocks 5 --epochs 3",
        takes="METHOD",
        fields=ALL,
        own_fields=True,
        extra={"--print-config": {"action": "store_true", "help": "print the resolved configuration and stop"}},
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
    "bench": Command(
        bench,
        "speed or memory of a method beside plain autograd",
        "sidestep bench step sid --model simplecnn --against reference",
        takes="step|memory [METHOD]",
        fields=SHARED,
        own_fields=True,
        extra={
            "--against": {"choices": ["plain", "reference"], "help": "step: what it is timed against (default: plain)"},
            "--steps": {"type": count, "metavar": "N", "help": "step: how many are timed (default: 20)"},
            "--train": {"action": "store_true", "help": "step against reference: train both too, with 3 seeds"},
        },
    ),
    "study": Command(
        study,
        "grids of runs with resume, their rows in results/, and a page each",
        "sidestep study reproduction --seeds 1",
        takes="NAME...",
        extra={
            "--seeds": {"type": count, "metavar": "N", "help": "at most so many (default: the study's own)"},
            "--gpu": {"action": "store_true", "help": "the pieces that are for a GPU, on CUDA"},
            "--minutes": {"type": positive, "metavar": "X", "help": "save and end then, in all; the same line goes on"},
            "--smoke": {"action": "store_true", "help": "every piece on digits for one epoch: does it run?"},
            "--page": {"action": "store_true", "help": "run nothing, make the page anew"},
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
        },
    ),
    "report": Command(
        report,
        "one HTML file from finished runs",
        "sidestep report runs/* --out report.html",
        takes="RUN...",
        extra={"--out": {"type": Path, "metavar": "FILE", "help": "where to write it"}},
    ),
    "methods": Command(list_methods, "list the methods", "sidestep methods --json"),
    "models": Command(list_models, "list the networks and their options", "sidestep models --json"),
    "datasets": Command(list_datasets, "list the data sets", "sidestep datasets --json"),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command line and answer with its exit code.  SystemExit passes: a stopped run brings its own."""
    try:
        return dispatch(list(sys.argv[1:] if argv is None else argv))
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        # Who read the output has gone, as in `sidestep models | head`; python would complain again when it flushes.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except ValueError as error:
        return fail(str(error), getattr(error, "exit_code", 2))
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        return fail(f"{where}{error.strerror or error}; check that folder's room and rights, or choose another.", 1)
    except Exception:
        traceback.print_exc()
        return 1


def fail(message: str, code: int) -> int:
    print("sidestep: error:", " ".join(message.split()), file=sys.stderr)
    return code


def dispatch(argv: list[str]) -> int:
    if not argv or argv[0] in ("-h", "--help"):
        print(overview())
        return 0
    name, *rest = argv
    if name == "--version":
        print(f"sidestep {__version__}")
        return 0
    if name not in COMMANDS:
        raise unknown("command", name, COMMANDS)
    args = parse(name, rest)
    if args is None:
        return 0
    result = COMMANDS[name].run(args)
    text = result.pop("text")
    if args.record:
        record(args.record, argv, result)
    print(json.dumps(jsonable(result)) if args.json else text, flush=True)
    return 1 if name == "audit" and result.get("agrees") is False else 0


def execute(argv: Sequence[str]) -> Result:
    """What a command line finds, without printing it."""
    args = parse(argv[0], list(argv[1:]))
    assert args is not None, "a study asks no help"
    return COMMANDS[argv[0]].run(args)


def record(path: Path, argv: list[str], result: Result) -> None:
    """Append a result with the command that gave it: a row that can be quoted, and checked."""
    from sidestep.files import append_jsonl
    from sidestep.run import commit

    command = shlex.join(["sidestep", *argv]).replace(f" --record {shlex.quote(str(path))}", "")
    path.parent.mkdir(parents=True, exist_ok=True)
    append_jsonl(path, {"command": command, "commit": commit()} | jsonable(result))


class Parser(argparse.ArgumentParser):
    """argparse with one-line errors, which remembers its flags."""

    def __init__(self, name: str) -> None:
        command = COMMANDS[name]
        super().__init__(
            usage=" ".join(["sidestep", name, command.takes, "[options]"]).replace("  ", " "),
            description=command.about,
            epilog=f"example:\n  {command.example}",
            formatter_class=lambda prog: argparse.RawDescriptionHelpFormatter(prog, max_help_position=30, width=WIDTH),
            add_help=False,
            allow_abbrev=False,
        )
        self.name = name
        self.known: list[str] = []

    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{message}; see sidestep {self.name} --help")

    def flag(self, group: Any, *names: str, **how: Any) -> None:
        self.known += names
        group.add_argument(*names, **how)

    def option(self, group: Any, key: str, kind: Any, help: str) -> None:
        """A flag that puts its text under a configuration key; a switch has a `--no-` form."""
        name = key.rpartition(".")[2].replace("_", "-")
        help = help.replace("%", "%%")
        common: dict[str, Any] = {"dest": key, "action": Put, "default": argparse.SUPPRESS}
        if kind is bool:
            self.flag(group, f"--{name}", f"--no-{name}", nargs=0, help=help, **common)
        else:
            self.flag(group, f"--{name}", metavar=metavar(kind), help=help, **common)


class Put(argparse.Action):
    """Keep only what was given: the last word on a key counts."""

    def __call__(self, parser: Any, namespace: Any, values: Any, option_string: str | None = None) -> None:
        key, value = self.dest, option_string == self.option_strings[0] if self.nargs == 0 else values
        if key == "set":
            key, equals, value = str(values).partition("=")
            if not equals:
                raise UsageError(f"got --set {values}, expected --set KEY=VALUE, such as --set model.depth=16.")
        namespace.flags[key] = value


def parse(name: str, rest: list[str]) -> Args | None:
    """The rest of a command's line, or None once its help is printed.

    The flags of the method are added when its word has been read, since only then may it be imported.
    """
    command, parser = COMMANDS[name], Parser(name)
    types = kinds("")
    for title in ("data", "model", "training", "run"):
        names = [n for n in command.fields if OPTIONS[n].metadata["group"] == title]
        group = parser.add_argument_group(title) if names else parser
        for key in names:
            parser.option(group, key, types[key], described(OPTIONS[key]))
    group = parser.add_argument_group("this command")
    for flag, how in command.extra.items():
        parser.flag(group, flag, **how)
    if command.fields:
        parser.flag(group, "--config", type=Path, metavar="FILE", help="a TOML file of keys")
        about = "any key: a field, model.OPTION, METHOD.FIELD"
        parser.flag(group, "--set", action=Put, default=argparse.SUPPRESS, metavar="KEY=VALUE", help=about)
    about = "append the result and its command to a file of JSON lines"
    parser.flag(group, "--record", type=Path, metavar="FILE", help=about)
    parser.flag(group, "--json", action="store_true", help="one JSON object, on the last line of stdout")
    parser.flag(group, "-h", "--help", action="store_true", help="show this and stop")

    args, words = parser.parse_known_args(rest, Args(flags={}))
    if command.own_fields:
        method = next((word for word in words if word in METHODS), None)
        first = words[1 if name == "bench" else 0 :][:1]
        if method is None and first and not first[0].startswith("-"):
            raise unknown("method", first[0], METHODS)
        if method is None and name == "bench" and not args.help:
            method = "sid"
        if method is not None:
            add_own_fields(parser, method)
            args, words = parser.parse_known_args(rest, Args(flags={}))
    if args.help:
        parser.print_help()
        return None
    for word in words:
        if word.startswith("-"):
            raise unknown_flag(name, word.partition("=")[0], words, parser.known)
    if not command.admits(len(words)):
        takes = command.takes or "no words"
        raise UsageError(f"sidestep {name} takes {takes}, got {' '.join(words) or 'none'}; see sidestep {name} --help")
    args.words = words
    return args


def add_own_fields(parser: Parser, method: str) -> None:
    """The method's hyperparameters as flags; what stands behind a field in its source is its help."""
    cls: Any = method_class(method)
    notes: dict[str, str] = {}
    for base in reversed(cls.__mro__[:-1]):
        notes |= dict(re.findall(r"^    (\w+): .*?  # (.*)$", inspect.getsource(base), re.MULTILINE))
    about = f"{inspect.getdoc(cls)}  ({cls.reference})"
    group = parser.add_argument_group(f"{method}'s own fields", "\n".join(textwrap.wrap(about, WIDTH - 4)))
    types = kinds(method)
    for own in fields(cls):
        parser.option(group, f"{method}.{own.name}", types[own.name], described(own, notes.get(own.name, "")))


def unknown_flag(command: str, flag: str, words: Sequence[str], known: Iterable[str]) -> UsageError:
    key = flag[2:].replace("-", "_")
    keys = [key] if key in OPTIONS else [f"{m}.{key}" for m in words if m in METHODS and key in kinds(m)]
    if keys and COMMANDS[command].fields:
        return UsageError(f"{flag} is no flag of sidestep {command}; give --set {keys[0]}=VALUE.")
    return unknown("flag", flag, known)


RECIPE = {f.name for f in fields(Recipe)}


def described(own: Field[Any], text: str = "") -> str:
    """A field's help, with its default where there is one to show."""
    default = "recipe" if own.default is MISSING and own.name in RECIPE else own.default
    if isinstance(default, bool):
        default = str(default).lower()
    text = own.metadata.get("help", text)
    return text if default in (MISSING, None, ()) else f"{text} (default: {default})".strip()


def metavar(kind: Any) -> str:
    if get_origin(kind) is Literal:
        return "{" + ",".join(map(str, get_args(kind))) + "}"
    names = {int: "N", float: "X", Path: "PATH"}
    return next((names[member] for member in (kind, *get_args(kind)) if member in names), "WORD")


def overview() -> str:
    commands = "\n".join(f"  {name:<10}{command.about}" for name, command in COMMANDS.items())
    return (
        f"usage: sidestep COMMAND [options]\n\n{textwrap.fill(ABOUT, WIDTH)}\n\ncommands:\n{commands}\n\n"
        "sidestep COMMAND --help explains one; sidestep --version tells the version.\n\n"
        "example:\n  sidestep train sid --epochs 5"
    )


def table(rows: Iterable[Mapping[str, object]]) -> str:
    """Rows of equal keys as columns of at most 80 characters in all: the last column is wrapped."""
    rows = list(rows)
    cells = [[str(value) for value in row.values()] for row in rows]
    head = list(rows[0])
    widths = [max(map(len, column)) for column in zip(head, *cells, strict=True)][:-1]
    indent = sum(widths) + 2 * len(widths)
    lines: list[str] = []
    for row in [head, *cells]:
        start = "".join(f"{cell:<{width}}  " for cell, width in zip(row, widths, strict=False))
        text = textwrap.fill(row[-1], WIDTH, initial_indent=start, subsequent_indent=" " * indent)
        lines.append((text or start).rstrip())
    return "\n".join(lines)


def jsonable(value: Any) -> Any:
    """What JSON can say: a number that is none is null, a path is its text."""
    if isinstance(value, Mapping):
        return {str(key): jsonable(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [jsonable(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return str(value) if isinstance(value, Path) else value
