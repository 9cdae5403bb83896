"""Running a benchmark command as a user does."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="session")
def python() -> Callable[..., str]:
    """Python with the given arguments; what it prints."""

    def run(*arguments: str) -> str:
        # Without the interpreter of the other tests, which would replace the kernels, and without what says that they
        # run in several processes, which would switch pytest-benchmark off.
        environment = {
            name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET" and "XDIST" not in name
        }
        result = subprocess.run([sys.executable, *arguments], cwd=ROOT, env=environment, capture_output=True, text=True)
        assert result.returncode == 0, result.stdout + result.stderr
        return result.stdout

    return run


@pytest.fixture
def bench(python: Callable[..., str]) -> Callable[..., str]:
    """`python -m bench` with the given arguments; what it prints."""
    return lambda *arguments: python("-m", "bench", *arguments)
