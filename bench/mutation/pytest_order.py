"""A plugin of pytest for `make mutation`: which tests a mutant gets, and in which order.

mutmut names the tests that call the changed function, in no order, and stops at the first that fails. Here the file of
the changed module comes first (test_rows.py for rows.py), then quick files, and in each of them quick tests. A mutant
of upge gets upge's own tests, where there are any.
"""

from __future__ import annotations

import json
import os
from collections import defaultdict
from pathlib import Path

import pytest

SECONDS = Path("mutmut-stats.json")
"""Where mutmut keeps how long each test took, in the folder in which it runs pytest."""


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    mutant = os.environ.get("MUTANT_UNDER_TEST", "")  # such as hpt.method.rows.x_token_rows__mutmut_3
    own = f"test_{mutant.partition('.x')[0].rpartition('.')[2]}.py"
    if mutant.startswith("upge."):
        items[:] = [item for item in items if item.nodeid.startswith("tests/upge/")] or items
    if not SECONDS.exists():
        return
    seconds: dict[str, float] = json.loads(SECONDS.read_text())["duration_by_test"]
    of_file: defaultdict[Path, float] = defaultdict(float)
    for item in items:
        of_file[item.path] += seconds.get(item.nodeid, 0.0)
    items.sort(
        key=lambda item: (
            item.path.name != own,
            of_file[item.path],
            str(item.path),
            seconds.get(item.nodeid, 0.0),
        )
    )
