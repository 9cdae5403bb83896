"""Loaded before all other tests: without a GPU, Triton kernels run in Triton's interpreter."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Iterator

import pytest
import torch

if not torch.cuda.is_available():
    # Triton reads this once, when it is first imported, which may happen in any test.
    os.environ["TRITON_INTERPRET"] = "1"


@pytest.fixture(scope="session")
def interpreter_as_gpu() -> Iterator[None]:
    """Kernels in Triton's interpreter compute the same bits at any position in a tile, and round as a GPU does."""
    if torch.cuda.is_available() or importlib.util.find_spec("triton") is None:
        yield
        return
    from bench.gpu.interpreter import as_on_a_gpu

    with as_on_a_gpu():
        yield


@pytest.fixture(scope="session", autouse=True)
def cache_of_the_session(tmp_path_factory: pytest.TempPathFactory) -> None:
    """What hpt keeps between runs is shared by the tests of a session, and by nothing else."""
    folder = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        folder = folder.parent
    os.environ["HPT_CACHE"] = str(folder / "hpt-cache")


@pytest.fixture(autouse=True)
def no_launcher(monkeypatch: pytest.MonkeyPatch) -> None:
    """DeepSpeed sets these in its process, and accelerate takes them for a launch with several processes."""
    for name in ("LOCAL_RANK", "RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
