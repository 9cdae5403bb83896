"""Which kernels were measured."""

from __future__ import annotations

import subprocess
from pathlib import Path

KERNELS = Path(__file__).parents[1] / "kernels"


def kernels_commit() -> str:
    """The last commit that changed upge, with "-dirty" if its files differ from it."""

    def git(*arguments: str) -> str:
        done = subprocess.run(["git", *arguments, "--", KERNELS], cwd=KERNELS, capture_output=True, text=True)
        return done.stdout.strip()

    commit = git("log", "-1", "--abbrev=10", "--format=%h")
    return f"{commit}-dirty" if commit and git("status", "--porcelain") else commit or "unknown"
