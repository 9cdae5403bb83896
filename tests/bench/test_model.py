"""`python -m bench model`: predicted times of the kernels, and measured ones beside them."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from upge.backends.plan import Gemm, Plan

from bench.roofline import model, rates
from bench.roofline.instructions import Counts
from bench.roofline.measured import BARE, SUM, Measured, read_measured

GPU = rates.Gpu("two multiprocessors", "", 2, 1e12)
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


def test_a_call_of_one_chunk_needs_no_kernel_for_further_ones() -> None:
    programs = dict.fromkeys(("logits", "hidden", "weight, first chunk"), PROGRAM)
    found = {p.kernel: p for p in model.predict(PLAN, programs, 64, 300, 128, GPU, ASSUMED)}
    assert model.chunks_of(PLAN, 64, 300, 128) == (64, 1)
    assert found["weight"].calls == 1


SETTINGS = {"GPU": "NVIDIA H100 80GB HBM3", "shape": "qwen2.5-7b", "tokens": 16384, "dtype": "bfloat16"}
ROWS = [
    {"kernel": "weight_descriptors_kernel", "calls": 7, "ms": 30.0},
    {"kernel": "weight_kernel", "calls": 1, "ms": 4.0},
    {"kernel": "Memset (Device)", "calls": 2, "ms": 1.0},
]
GEMMS = [{"gemm": name, "rows": 2048, "ms": 3.0} for name in ("h W^T", "G W", "G^T h")]
KERNELS = ["weight", "zeros of dh"]


def measured(
    tmp_path: Path,
    settings: dict[str, Any] = SETTINGS,
    gemms: list[dict[str, Any]] = GEMMS,
    kernels: list[str] = KERNELS,
    tokens: int = 16384,
    gpu: str = "h100",
) -> Measured:
    file = tmp_path / "gpu.json"
    file.write_text(json.dumps({"settings": settings, "kernels": ROWS, "gemms": gemms}))
    return read_measured(file, "qwen2.5-7b", tokens, "bfloat16", rates.GPUS[gpu].device, kernels)


def test_measured_times(tmp_path: Path) -> None:
    assert measured(tmp_path) == Measured({"weight": 34.0, SUM: 35.0, BARE: 72.0})


def test_a_sum_without_all_of_its_parts_is_not_shown(tmp_path: Path) -> None:
    assert measured(tmp_path, gemms=GEMMS[:2]).milliseconds == {"weight": 34.0, SUM: 35.0}
    assert measured(tmp_path, kernels=[*KERNELS, "logits"]).milliseconds == {"weight": 34.0, BARE: 72.0}


@pytest.mark.parametrize("device", ["NVIDIA GH200 480GB", "NVIDIA H100 PCIe", "NVIDIA H100 NVL", "NVIDIA H200 NVL"])
@pytest.mark.parametrize("gpu", rates.GPUS)
def test_another_gpu_is_named_and_not_shown(tmp_path: Path, gpu: str, device: str) -> None:
    found = measured(tmp_path, settings=SETTINGS | {"GPU": device}, gpu=gpu)
    assert not found.milliseconds
    assert device in found.note


def test_another_call_is_not_shown(tmp_path: Path) -> None:
    found = measured(tmp_path, tokens=4096)
    assert not found.milliseconds
    assert "16384 tokens" in found.note


def test_results_that_cannot_be_read(tmp_path: Path) -> None:
    file = tmp_path / "gpu.json"
    options = ("qwen2.5-7b", 16384, "bfloat16", "NVIDIA H200", KERNELS)
    assert "there is no" in read_measured(file, *options).note
    file.write_text('{"settings": {"GPU": "NVI')
    assert f"{file} cannot be read" in read_measured(file, *options).note


def test_the_measured_ratio_is_beside_the_predicted_one() -> None:
    pytest.importorskip("triton")
    from bench.commands.model import _table

    predicted = {name: [model.Predicted("weight", 8, 0.036)] for name in rates.ASSUMED}
    bare = dict.fromkeys(rates.ASSUMED, 0.030)
    table = {line.split("  ")[0]: line.split() for line in _table(predicted, bare, {SUM: 36.3, BARE: 33.0})}
    assert table["ratio"] == ["ratio", "1.200", "1.200", "1.200", "1.100"]
    assert table["sum"][-1] == "36.30"
    table = {line.split("  ")[0]: line.split() for line in _table(predicted, bare, {SUM: 36.3})}
    assert table["ratio"][-1] == "-"


def test_one_chunk_from_the_command_line(bench: Callable[..., str]) -> None:
    """All tokens fit one chunk. What the prediction rests on is printed with it."""
    pytest.importorskip("triton")
    printed = bench("model", "--head", "smollm2-135m", "--tokens", "512")
    for meaning in (
        "schedulers of a multiprocessor",
        "rows of a chunk  ",
        "splits of the sum",
        *rates.MEANINGS.values(),
    ):
        assert f"\n{meaning}" in printed
    assert "No measured times:" in printed
