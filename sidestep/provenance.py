"""Where a number came from: the code, the library and the machine that gave it."""

from __future__ import annotations

import os
import subprocess
from functools import cache
from pathlib import Path

import torch

from sidestep import __version__


def provenance(device: torch.device) -> dict[str, object]:
    """What a row or a summary says of where it was measured."""
    return {
        "commit": commit(),
        "torch": torch.__version__,
        "device": device_name(device),
        "threads": torch.get_num_threads(),
    }


@cache
def commit() -> str:
    """The commit of the checkout this package runs from, with `+` if it has uncommitted changes.

    Where there is none, what SIDESTEP_COMMIT says, else the version.  As it was when first asked: a process goes on
    with the code that it has read.
    """

    def git(*words: str) -> str:
        here = Path(__file__)
        done = subprocess.run(["git", *words], cwd=here.parent, capture_output=True, text=True, check=True)
        return done.stdout.strip()

    try:
        git("ls-files", "--error-unmatch", Path(__file__).name)  # else it is the repository around an installed package
        return git("rev-parse", "--short=12", "HEAD") + ("+" if git("status", "--porcelain", "--", ".") else "")
    except (OSError, subprocess.CalledProcessError):
        return os.environ.get("SIDESTEP_COMMIT") or f"v{__version__}"


def device_name(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    try:
        models = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
        return f"{models[0].partition(': ')[2]} x{len(models)}"
    except (OSError, IndexError):
        return "cpu"
