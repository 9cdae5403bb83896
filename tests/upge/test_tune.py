"""`python -m upge tune`: times the kernels, refuses wrong ones, and keeps the fastest."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import asdict

import pytest
import torch

pytest.importorskip("triton")
from upge.backends import plan as plans
from upge.backends import tuned
from upge.backends.triton import launch
from upge.commands import tune
from upge.tuning.measure import time_candidates

GEMMS = plans.choices(torch.bfloat16, torch.bfloat16, (0, 0))
SMALL = {"vocabulary": 150, "width": 48, "device": "cpu", "repeats": 1, "rows": 64}


def test_tuning_writes_what_the_loss_reads(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert tune.main(["150", "48", "--rows", "64", "--repeats", "1"]) == 0
    printed = capsys.readouterr().out
    assert printed.count("the bare product") == 3
    assert printed.count("<- best") == 3
    found = tuned.read(tuned.key_for(torch.device("cpu"), torch.bfloat16, 150, 48))
    assert found.keys() == set(plans.GEMMS)
    assert all(found[name] in GEMMS[name] for name in found)


@pytest.mark.parametrize("name", plans.GEMMS)
@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
def test_every_kernel_is_right_and_timed(name, dtype):
    rows = list(time_candidates(name, dtype=dtype, **SMALL))
    gemms = plans.choices(getattr(torch, dtype), getattr(torch, dtype), (0, 0))[name]
    assert [row["gemm"] for row in rows] == [*map(asdict, gemms), None]
    assert all(0 < row["seconds"] <= row["slowest"] for row in rows)
    json.dumps(rows)


def test_kernels_that_are_wrong_or_fail_are_findings(monkeypatch):
    """The others are still timed."""
    product = launch.hidden_product

    def spoiled(plan, exps, weight):
        if plan.hidden.kernel == "matmul":
            raise RuntimeError("out of resource: shared memory\nmore")
        return product(plan, exps, weight) * (1.02 if plan.hidden.kernel == "descriptors" else 1.0)

    monkeypatch.setattr(launch, "hidden_product", spoiled)
    rows = list(time_candidates("hidden", **SMALL))
    faults = {row["gemm"]["kernel"]: row["fault"] for row in rows if "fault" in row}
    assert faults["descriptors"].startswith("wrong: its relative error is 2.0e-02")
    assert faults["matmul"] == "RuntimeError: out of resource: shared memory"
    timed = [row["gemm"] and row["gemm"]["kernel"] for row in rows if "seconds" in row]
    assert timed == ["pointers", None]
    assert tune.choose(rows) == GEMMS["hidden"][0]


def row(gemm, seconds):
    shipped = gemm == GEMMS["hidden"][0]
    return {"gemm": gemm and asdict(gemm), "shipped": shipped, "seconds": seconds, "slowest": seconds, "tflops": 1.0}


def wrong(gemm):
    return {"gemm": asdict(gemm), "shipped": gemm == GEMMS["hidden"][0], "fault": "wrong"}


def test_the_shipped_kernel_stays_unless_another_is_clearly_faster():
    shipped, other, third = GEMMS["hidden"]
    assert tune.choose([row(shipped, 1.0), row(other, 0.995), row(None, 0.5)]) == shipped
    assert tune.choose([row(shipped, 1.0), row(other, 0.98), row(third, 0.97)]) == third
    assert tune.choose([wrong(other), row(shipped, 1.0), row(third, 0.999)]) == shipped
    assert tune.choose([wrong(shipped), row(other, 2.0)]) == other
    assert tune.choose([wrong(shipped), row(None, 1.0)]) is None


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["3"], "V D: must be two numbers of at least 1; got 3"),
        (["0", "5"], "got 0 5"),
        (["3", "4", "--head", "qwen2.5-7b"], "give either V and D or --head"),
        (["--repeats", "0"], "--repeats: must be at least 1; got 0"),
        (["--head", "gpt-5"], "invalid choice: 'gpt-5'"),
    ],
)
def test_bad_arguments(arguments, message, capsys):
    with pytest.raises(SystemExit) as stopped:
        tune.main(arguments)
    assert stopped.value.code == 2
    assert message in capsys.readouterr().err


def test_a_cache_that_cannot_be_written_is_found_before_the_timing(tmp_path, monkeypatch, capsys):
    (tmp_path / "upge").write_text("a file, not a folder")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(tune, "run_isolated", lambda *_, **__: pytest.fail("timed"))
    assert tune.main([]) == 2
    assert "the file for the results cannot be written" in capsys.readouterr().err


def test_two_tunings_at_once_keep_both_entries(tmp_path):
    """The file is read, changed and replaced by one process at a time."""
    code = (
        "from upge.backends import plan, tuned\nimport sys\n"
        "for i in range(40): tuned.write(f'{sys.argv[1]} {i}', {'weight': plan.Gemm('pointers', 1, 1, 1)})"
    )
    environment = os.environ | {"XDG_CACHE_HOME": str(tmp_path), "PYTHONPATH": os.pathsep.join(sys.path)}
    both = [subprocess.Popen([sys.executable, "-c", code, name], env=environment) for name in "ab"]
    assert [process.wait() for process in both] == [0, 0]
    assert len(json.loads((tmp_path / "upge" / "tuned.json").read_text())) == 80


def test_without_a_gpu_nothing_is_tuned(monkeypatch, capsys):
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    monkeypatch.setattr(plans, "INTERPRETED", False)
    assert tune.main([]) == 2
    assert "sees no GPU" in capsys.readouterr().err
