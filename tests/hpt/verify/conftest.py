"""What tests of verifiers share."""

from pathlib import Path

import pytest
from asked_functions import FUNCTIONS


@pytest.fixture
def importable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A module `judging` that this process, and so its workers, can import."""
    folder = tmp_path / "importable"
    folder.mkdir()
    (folder / "judging.py").write_text(FUNCTIONS)
    (folder / "broken.py").write_text("raise OSError('no model here')")
    monkeypatch.syspath_prepend(str(folder))
    return folder
