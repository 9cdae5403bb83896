"""`python -m bench model`: predicted times of the kernels, and measured ones beside them."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from upge.backends.plan import Gemm, Plan

from bench.roofline import model, rates
from bench.roofline.instructions import Counts
from bench.roofline.measured import BARE, read_measured

GPU = rates.Gpu("two multiprocessors", 2, 1e12)
# A clock of 1 / 1,000 of FLOP/s per cycle and multiprocessor, so that cycles are easy to read.
ASSUMED = rates.Assumptions(
    bare=4096 * 132 * 1e3, bare_busy=1.0, descriptors_busy=1.0, pointers_busy=0.5, stall=2.0, latency=100.0,
    bandwidth=1.0, launch=0.0,
)  # fmt: skip
GEMM = Gemm("descriptors", 64, 128, 32, num_warps=4)  # a step multiplies for 64 x 128 x 32 x 2 / 4096 = 128 cycles
PROGRAM = model.Program(Counts(step=20, multiplications=1, start=10, epilogue=90, round_trips=2, load=""), 200, 200_000)
WORK = model.Work(GEMM, steps=10, tiles=3, traffic=0.0, flops_per_cycle=4096)


def cycles(work: model.Work, program: model.Program) -> float:
    return model.gemm_seconds(work, program, GPU, ASSUMED) * 1e3


def test_cycles_of_a_persistent_gemm() -> None:
    # Two rounds: 3 tiles on 2 multiprocessors. A tile: 10 steps, 100 instructions at 2 cycles, 2 round trips.
    assert cycles(WORK, PROGRAM) == pytest.approx(2 * (10 * 128 + 100 * 2 + 2 * 100))


def test_a_step_that_issues_more_than_it_multiplies() -> None:
    busy = replace(PROGRAM, counts=replace(PROGRAM.counts, step=500))
    assert cycles(WORK, busy) == pytest.approx(2 * (10 * 500 + 400))


def test_a_program_per_tile_waits_for_its_first_operands() -> None:
    work = replace(WORK, gemm=replace(GEMM, kernel="pointers"))
    assert cycles(work, PROGRAM) == pytest.approx(2 * (10 * 128 / 0.5 + 200 + 3 * 100))


def test_programs_that_share_a_multiprocessor_overlap_epilogues() -> None:
    small = replace(PROGRAM, shared=100_000, registers=128)  # two fit
    assert cycles(replace(WORK, tiles=4), small) == pytest.approx(2 * (10 * 128 + 400 / 2))


def test_a_gemm_that_waits_for_memory() -> None:
    assert model.gemm_seconds(replace(WORK, traffic=5e12), PROGRAM, GPU, ASSUMED) == pytest.approx(5.0)


PLAN = Plan(torch.bfloat16, torch.bfloat16, GEMM, GEMM, replace(GEMM, SPLITS=2), GEMM)


def test_work_of_a_chunk() -> None:
    work = model.chunk_work(PLAN, rows=64, vocabulary=300, width=128, first=True)
    assert [work[name].steps for name in ("logits", "hidden", "weight")] == [4, 5, 2]
    assert [work[name].tiles for name in ("logits", "hidden", "weight")] == [3, 2, 5]
    later = model.chunk_work(PLAN, rows=64, vocabulary=300, width=128, first=False)
    assert later["weight"].traffic - work["weight"].traffic == 3 * 300 * 128  # the old sum is read


def test_all_kernels_of_a_call_are_predicted() -> None:
    programs = dict.fromkeys(("logits", "hidden", "weight", "weight, first chunk"), PROGRAM)
    found = {p.kernel: p for p in model.predict(PLAN, programs, 100, 300, 128, GPU, replace(ASSUMED, launch=1.0))}
    assert {"logits", "hidden", "weight", "gather", "redo", "scatter", "finish"} <= found.keys()
    assert found["redo"].seconds == 1.0
    assert model.bare_seconds(100, 300, 128, ASSUMED) == 6 * 100 * 300 * 128 / ASSUMED.bare


def test_measured_times_of_the_same_call_alone(tmp_path: Path) -> None:
    file = tmp_path / "gpu.json"
    assert read_measured(file, "qwen2.5-7b", 16384, "bfloat16", "H100 SXM") == {}
    settings = {"GPU": "NVIDIA H100 80GB HBM3", "shape": "qwen2.5-7b", "tokens": 16384, "dtype": "bfloat16"}
    rows = [
        {"kernel": "weight_descriptors_kernel", "calls": 7, "ms": 30.0},
        {"kernel": "weight_kernel", "calls": 1, "ms": 4.0},
        {"kernel": "Memset (Device)", "calls": 2, "ms": 1.0},
    ]
    gemms = [{"gemm": name, "rows": 2048, "ms": 3.0} for name in ("logits", "hidden", "weight")]
    file.write_text(json.dumps({"settings": settings, "kernels": rows, "gemms": gemms}))
    assert read_measured(file, "qwen2.5-7b", 16384, "bfloat16", "H100 SXM") == {"weight": 34.0, BARE: 72.0}
    assert read_measured(file, "qwen2.5-7b", 4096, "bfloat16", "H100 SXM") == {}
    assert read_measured(file, "qwen2.5-7b", 16384, "bfloat16", "H200 SXM") == {}
