"""Cutting a command line into words and flags, and its help.  Values are validated by `sidestep.config`."""

from __future__ import annotations

import argparse
import inspect
import math
import os
import re
import textwrap
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import MISSING, Field, dataclass, field, fields
from functools import cache
from pathlib import Path
from typing import Any, Literal, NoReturn, get_args, get_origin

from sidestep.config import OPTIONS, TrainConfig, kinds, resolve
from sidestep.errors import UsageError, unknown
from sidestep.methods import METHODS, method_class
from sidestep.recipes import RECIPES, Recipe

Result = dict[str, Any]
"""What a command found; `text` is the table for people."""

WIDTH = 80


class Args(argparse.Namespace):
    """A command line, cut up."""

    line: list[str]  # as it was typed, without the command
    words: list[str]  # those of it that are no flags, in order
    flags: dict[str, object]  # by configuration key
    config: Path | None = None

    def resolve(self, method: str) -> TrainConfig:
        return resolve(method, self.flags, self.config, os.environ)


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
    known: Mapping[str, str] = field(default_factory=dict[str, str])  # what its words may be, and what each is about

    def admits(self, words: int) -> bool:
        parts = self.takes.split()
        least = sum(not part.startswith("[") for part in parts)
        return least <= words <= (math.inf if self.takes.endswith("...") else len(parts))


class Parser(argparse.ArgumentParser):
    """argparse with one-line errors, which remembers its flags."""

    def __init__(self, name: str, command: Command) -> None:
        wide = max(map(len, command.known), default=0) + 2
        indent = " " * (wide + 2)
        names = [f"{command.takes.strip('.')}:"] if command.known else []
        for word, about in command.known.items():
            names += textwrap.wrap(about, WIDTH, initial_indent=f"  {word:<{wide}}", subsequent_indent=indent)
        own = ["--help behind a METHOD shows its own fields too", ""] if command.own_fields else []
        super().__init__(
            usage=" ".join(["sidestep", name, command.takes, "[options]"]).replace("  ", " "),
            description=command.about,
            epilog="\n".join([*names, "", *own, "example:", f"  {command.example}"]).lstrip(),
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


def parse(name: str, command: Command, rest: list[str]) -> Args | None:
    """The rest of a command's line, or None once its help is printed.

    The flags of the method are added when its word has been read, since only then may it be imported.
    """
    parser = Parser(name, command)
    types = kinds("")
    for title in ("data", "model", "training", "run"):
        names = [n for n in command.fields if OPTIONS[n].metadata["group"] == title]
        group = parser.add_argument_group(title) if names else parser
        for key in names:
            parser.option(group, key, types[key], described(OPTIONS[key]))
    group = parser.add_argument_group("further options")
    for flag, how in command.extra.items():
        parser.flag(group, flag, **how)
    if command.fields:
        parser.flag(group, "--config", type=Path, metavar="FILE", help="a TOML file of keys")
        about = "any key: a field, model.OPTION, METHOD.FIELD"
        parser.flag(group, "--set", action=Put, default=argparse.SUPPRESS, metavar="KEY=VALUE", help=about)
    about = "append the result and its command to a file of JSON lines"
    parser.flag(group, "--record", type=new_file, metavar="FILE", help=about)
    parser.flag(group, "--json", action="store_true", help="one JSON object, on the last line of stdout")
    parser.flag(group, "-h", "--help", action="store_true", help="show this and stop")

    args, words = parser.parse_known_args(rest, Args(line=rest, flags={}))
    if command.own_fields:
        method = next((word for word in words if word in METHODS), None)
        first = words[1 if name == "bench" else 0 :][:1]
        if method is None and first and not first[0].startswith("-"):
            raise unknown("method", first[0], METHODS)
        if method is None and name == "bench" and not args.help:
            method = "sid"
        if method is not None:
            add_own_fields(parser, method)
            args, words = parser.parse_known_args(rest, Args(line=rest, flags={}))
    if args.help:
        parser.print_help()
        return None
    for word in words:
        if word.startswith("-"):
            raise unknown_flag(name, command, word.partition("=")[0], words, parser.known)
    if not command.admits(len(words)):
        takes = command.takes or "no words"
        raise UsageError(f"sidestep {name} takes {takes}, got {' '.join(words) or 'none'}; see sidestep {name} --help")
    args.words = words
    return args


@cache
def comments(cls: type) -> dict[str, str]:
    """What stands behind each field in a class's source."""
    found: dict[str, str] = {}
    for base in reversed(cls.__mro__[:-1]):
        found |= dict(re.findall(r"^    (\w+): .*?  # (.*)$", inspect.getsource(base), re.MULTILINE))
    return found


def add_own_fields(parser: Parser, method: str) -> None:
    """The method's hyperparameters as flags; what stands behind a field in its source is its help."""
    cls: Any = method_class(method)
    notes = comments(cls)
    about = f"{inspect.getdoc(cls)}  ({cls.reference})"
    group = parser.add_argument_group(f"{method}'s own fields", "\n".join(textwrap.wrap(about, WIDTH - 4)))
    types = kinds(method)
    by_recipe = {name for recipe in RECIPES.values() for name in recipe.per_method.get(method, {})}
    for own in fields(cls):
        about = described(own, notes.get(own.name, ""), recipes=own.name in by_recipe)
        parser.option(group, f"{method}.{own.name}", types[own.name], about)


def unknown_flag(name: str, command: Command, flag: str, words: Sequence[str], known: Iterable[str]) -> UsageError:
    key = flag[2:].replace("-", "_")
    keys = [key] if key in OPTIONS else [f"{m}.{key}" for m in words if m in METHODS and key in kinds(m)]
    if keys and command.fields:
        return UsageError(f"{flag} is no flag of sidestep {name}; give --set {keys[0]}=VALUE.")
    return unknown("flag", flag, known)


RECIPE = {f.name for f in fields(Recipe)}


def described(own: Field[Any], text: str = "", *, recipes: bool = False) -> str:
    """A field's help, with its default where there is one to show.  recipes: whether some of them have another."""
    default = "recipe" if own.default is MISSING and own.name in RECIPE else own.default
    if isinstance(default, bool):
        default = str(default).lower()
    text = own.metadata.get("help", text)
    if default in (MISSING, None, ()):
        return text
    return f"{text} (default: {'recipe, else ' if recipes else ''}{default})".strip()


def metavar(kind: Any) -> str:
    if get_origin(kind) is Literal:
        return "{" + ",".join(map(str, get_args(kind))) + "}"
    names = {int: "N", float: "X", Path: "PATH"}
    found = next((names[member] for member in (kind, *get_args(kind)) if member in names), "WORD")
    return f"{found},{found},..." if get_origin(kind) is tuple else found


# ---------------------------------------------------------------- types of further flags

UNITS = {"KB": 2**10, "MB": 2**20, "GB": 2**30, "TB": 2**40}


def whole(text: str, least: int = 0) -> int:
    """An integer of at least 0."""
    if not text.isdecimal() or int(text) < least:
        raise argparse.ArgumentTypeError(f"got {text!r}, expected an integer of at least {least}")
    return int(text)


def count(text: str) -> int:
    """An integer of at least 1."""
    return whole(text, least=1)


def counts(text: str) -> tuple[int, ...]:
    """Integers of at least 1, with commas between them."""
    return tuple(count(part) for part in text.split(","))


def size(text: str) -> int:
    """Bytes, from a number and a unit of 1024."""
    number, unit = text[:-2], text[-2:].upper()
    if unit not in UNITS:
        raise argparse.ArgumentTypeError(f"got {text!r}, expected a number and a unit, such as 8GB or 500MB")
    return round(positive(number) * UNITS[unit])


def positive(text: str) -> float:
    """A number above 0."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"got {text!r}, expected a number above 0")
    return value


def new_file(text: str) -> Path:
    """A path that a file can be written to, which a folder's is not."""
    path = Path(text)
    if path.is_dir():
        raise argparse.ArgumentTypeError(f"got {text!r}, a folder, expected a file")
    return path
