"""The notebook of the demo runs from its first to its last cell, on a tiny model."""

from __future__ import annotations

import os
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient
from nbformat import NotebookNode

NOTEBOOKS = Path(__file__).parents[3] / "examples" / "notebooks"
ROOT = Path(__file__).parents[3]


def outputs(notebook: NotebookNode, having: str) -> str:
    """What the cell that has this text printed and returned."""
    (cell,) = (cell for cell in notebook.cells if cell.cell_type == "code" and having in cell.source)
    texts = []
    for output in cell.outputs:
        texts.append(output["text"] if output["output_type"] == "stream" else output["data"].get("text/plain", ""))
    return "\n".join(texts)


@pytest.mark.slow
def test_the_demo_runs_with_progress_a_reward_of_a_cell_and_a_second_run(
    world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT), str(ROOT / "kernels"), os.environ["PYTHONPATH"]]))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    notebook = nbformat.read(NOTEBOOKS / "demo.ipynb", as_version=4)
    for cell in notebook.cells:
        cell.source = cell.source.replace("steps=20", "steps=3").replace('"demo"', repr(str(world)))
    NotebookClient(notebook, timeout=200, resources={"metadata": {"path": str(tmp_path)}}).execute()
    trained = outputs(notebook, "steps=3")
    assert "█" * 20 + " step 3/3  reward" in trained  # one line that was updated, in its last state
    assert trained.count("step 3/3") == 1
    assert "Run('runs/notebook', step 3 of 3)" in trained
    rewards = outputs(notebook, "def brief")
    assert "'reward/brief/mean': -" in rewards
    assert "'reward/correct/mean': " in rewards
    assert outputs(notebook, "hpt.evaluate").startswith("(") or "(0." in outputs(notebook, "hpt.evaluate")
    assert (tmp_path / "runs/notebook/report.html").is_file()
