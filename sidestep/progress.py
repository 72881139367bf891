"""How far a run is: a bar in a terminal, a line every few seconds elsewhere, all on stderr."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bar

LINE_SECONDS = 10.0
BAR_SECONDS = 0.5


class Progress:
    """Shows steps as they pass.  What it shows costs a synchronisation, so it is asked for rarely."""

    def __init__(self, total: int, *, quiet: bool = False) -> None:
        self.total = total
        self.quiet = quiet
        console = Console(stderr=True)
        self.bar = None
        if console.is_terminal and not quiet:
            columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
            self.bar = Bar(*columns, console=console, transient=True)
        self.task = self.bar.add_task("training", total=total) if self.bar else None
        self.shown = time.monotonic()

    def __enter__(self) -> None:
        if self.bar:
            self.bar.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.bar:
            self.bar.stop()

    def step(self, step: int, describe: Callable[[], str], *, epoch: int) -> None:
        now = time.monotonic()
        if self.quiet or now - self.shown < (BAR_SECONDS if self.bar else LINE_SECONDS):
            return
        self.shown = now
        text = f"epoch {epoch}, {describe()}"
        if self.bar and self.task is not None:
            self.bar.update(self.task, completed=step, description=text)
        else:
            print(f"sidestep: step {step}/{self.total}, {text}", file=sys.stderr, flush=True)

    def note(self, text: str) -> None:
        """A line that stays."""
        if self.bar:
            self.bar.console.print(text, highlight=False)
        elif not self.quiet:
            print(f"sidestep: {text}", file=sys.stderr, flush=True)
