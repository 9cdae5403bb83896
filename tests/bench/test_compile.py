"""`python -m bench compile`: the kernels compile for Hopper without spills."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

pytest.importorskip("triton")


def test_compile_for_sm_90(bench, tmp_path: Path) -> None:
    report = tmp_path / "kernels.json"
    bench("compile", "--arch", "sm_90", "--dtype", "bfloat16", "--json", str(report))
    results = json.loads(report.read_text())
    assert {r["kernel"] for r in results} == {
        "logits", "hidden", "weight", "finish", "anchor", "reanchor", "rows", "coefficient", "row_factor",
        "logit_gradient", "bias",
    }  # fmt: skip
    for r in results:
        assert r["stack"] == r["stores"] == r["loads"] == 0
        assert (r["instruction"] == "HGMMA") == (r["kernel"] in ("logits", "hidden", "weight"))
