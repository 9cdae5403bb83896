"""Two reports that tests only read."""

import pytest
from written_run import write_run

from hpt.report import report


@pytest.fixture(scope="session")
def one(tmp_path_factory):
    """One finished run and the page of its report."""
    folder = write_run(tmp_path_factory.mktemp("one") / "demo", steps=30, eval_every=10)
    return folder, report([folder])


@pytest.fixture(scope="session")
def several(tmp_path_factory):
    """Two methods with two seeds each, and the page of their report."""
    root = tmp_path_factory.mktemp("several")
    folders = [write_run(root / f"{m}-{s}", m, s, steps=12, eval_every=6) for m in ("hpt", "sft") for s in (0, 1)]
    return folders, report(folders)
