"""The command line: words in, one call, a table or one JSON object out, an exit code.

`sidestep.parser` cuts the line into words, `sidestep.config` validates them, `sidestep.commands` does what they say.
"""

from __future__ import annotations

import os
import shlex
import signal
import sys
import textwrap
import traceback
from collections.abc import Sequence
from pathlib import Path

from sidestep import __version__
from sidestep.commands import COMMANDS
from sidestep.errors import unknown
from sidestep.files import append_jsonl, strict_json
from sidestep.parser import WIDTH, Result, parse
from sidestep.stopping import on_signals

ABOUT = "Train deep networks without a global backward pass: local objectives, audited isolation, strong baselines."


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command line and answer with its exit code.  SystemExit passes: a stopped run brings its own."""
    interrupted = False

    def interrupt(*_: object) -> None:
        nonlocal interrupted
        interrupted = True
        raise KeyboardInterrupt

    try:
        with on_signals(interrupt, signal.SIGINT):
            return dispatch(list(sys.argv[1:] if argv is None else argv))
    except KeyboardInterrupt:
        return 130
    except Exception as error:
        # In the middle of an import Ctrl-C may come out as an error of the imported library's own.
        return 130 if interrupted else answer(error)


def answer(error: Exception) -> int:
    """Say what was wrong; the exit code that goes with it."""
    match error:
        case BrokenPipeError():
            # Who read the output has gone, as in `sidestep models | head`; python would complain again when it flushes.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return 1
        case ValueError():
            return fail(str(error), getattr(error, "exit_code", 2))
        case OSError():
            where = f"{error.filename}: " if error.filename else ""
            return fail(f"{where}{error.strerror or error}; check that folder's room and rights, or choose another.", 1)
        case _:
            traceback.print_exception(error)
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
    args = parse(name, COMMANDS[name], rest)
    if args is None:
        return 0
    result = COMMANDS[name].run(args)
    text = result.pop("text")
    print(strict_json(result) if args.json else text, flush=True)
    if args.record:
        record(args.record, without(argv, "--record"), result)
    return 1 if result.get("agrees") is False or result.get("failed") else 0


def record(path: Path, argv: list[str], result: Result) -> None:
    """Append a result with the command that gave it: a row that can be quoted, and checked."""
    from sidestep.provenance import commit

    path.parent.mkdir(parents=True, exist_ok=True)
    append_jsonl(path, {"command": shlex.join(["sidestep", *argv]), "commit": commit()} | result)


def without(argv: list[str], flag: str) -> list[str]:
    """The words but for a flag and its value, whether that is a word of its own or behind an equals sign."""
    values = {i + 1 for i, word in enumerate(argv) if word == flag}
    return [word for i, word in enumerate(argv) if i not in values and word.partition("=")[0] != flag]


def overview() -> str:
    commands = "\n".join(f"  {name:<10}{command.about}" for name, command in COMMANDS.items())
    return (
        f"usage: sidestep COMMAND [options]\n\n{textwrap.fill(ABOUT, WIDTH)}\n\ncommands:\n{commands}\n\n"
        "sidestep COMMAND --help explains one; sidestep --version tells the version.\n\n"
        "example:\n  sidestep train sid --epochs 5"
    )
