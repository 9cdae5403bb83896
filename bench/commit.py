"""Which version of the code was measured."""

from __future__ import annotations

import subprocess
from pathlib import Path

ROOT = Path(__file__).parents[1]


def last_commit(*folders: str) -> str:
    """The last commit that changed these folders, with "-dirty" if their files differ from it."""

    def git(*arguments: str) -> str:
        done = subprocess.run(["git", *arguments, "--", *folders], cwd=ROOT, capture_output=True, text=True)
        return done.stdout.strip()

    commit = git("log", "-1", "--abbrev=10", "--format=%h")
    return f"{commit}-dirty" if commit and git("status", "--porcelain") else commit or "unknown"
