"""`python -m bench compile`: it compiles what is launched, and reads its machine code right."""

from __future__ import annotations

import json
import re
from pathlib import Path
from types import SimpleNamespace

import pytest

pytest.importorskip("triton")

from bench.commands import compile
from bench.roofline.instructions import Counts, count

KERNELS = Path(__file__).parents[2] / "kernels/upge/backends/triton/kernels"
RECORD = """
import importlib, json
from bench.compilation.jobs import jobs
def describe(launch):
    kernel = getattr(importlib.import_module(launch.module), launch.kernel)
    names = list(launch.signature)
    return dict(kernel=launch.kernel, signature=launch.signature, warps=launch.num_warps,
                constants={names[i]: value for (i,), value in launch.constants.items()},
                aligned=[names[i] for (i,) in launch.attributes],
                unspecialised=[p.name for p in kernel.params if p.do_not_specialize])
print(json.dumps([dict(describe(job.launch), variant=job.variant, candidate=job.candidate)
                  for job in jobs("sm_90", ["bfloat16"])]))
"""


@pytest.fixture(scope="module")
def recorded(python) -> list[dict]:
    return json.loads(python("-c", RECORD))


def test_every_kernel_is_compiled(recorded: list[dict]) -> None:
    written = {name for path in KERNELS.glob("*.py") for name in re.findall(r"def (\w+_kernel)\(", path.read_text())}
    assert {job["kernel"] for job in recorded} == written
    shipped = {job["kernel"] for job in recorded if not job["candidate"] and not job["variant"]}
    assert {"logits_descriptors_kernel", "hidden_descriptors_kernel", "weight_descriptors_kernel"} <= shipped


def test_kernels_are_specialised_as_at_run_time(recorded: list[dict]) -> None:
    for job in recorded:
        # A chunk's rows, its vocabulary, ... must not make a new kernel.
        assert not set(job["aligned"]) & set(job["unspecialised"]), job["kernel"]
        pointers = {name for name, kind in job["signature"].items() if kind.startswith("*")}
        assert pointers <= set(job["aligned"])
        assert ("D" in job["aligned"]) == (job["variant"] != "D 4095") or "D" not in job["signature"]
    by_kernel = {job["kernel"]: job for job in reversed(recorded)}  # the first of each name
    weight = by_kernel["weight_descriptors_kernel"]
    tile = weight["constants"]
    assert weight["signature"]["exps"] == f"tensordesc<bf16[{tile['BK']}, {tile['BM']}]>"
    assert weight["signature"]["low"] == f"tensordesc<u8[{tile['BM']}, {tile['BN'] // tile['PARTS']}]>"
    assert tile["FIRST"] is True
    logits = by_kernel["logits_descriptors_kernel"]
    assert logits["signature"]["distances"] == "constexpr"
    assert logits["constants"]["distances"] is None


@pytest.mark.slow  # `make kernels`, a part of .ci/run, does it too; here is what the command writes
def test_compile(bench, tmp_path: Path) -> None:
    report = tmp_path / "kernels.json"
    arguments = ("--arch", "sm_90", "--dtype", "bfloat16", "--kernel", "weight_descriptors", "finish")
    text = bench("compile", *arguments, "--json", str(report))
    results = json.loads(report.read_text())
    assert {r["kernel"] for r in results} == {"weight_descriptors", "finish"}
    assert f"{len(results)} kernels, 0 with faults" in text
    for r in results:
        assert r["stack"] == 0
        if r["kernel"] == "weight_descriptors":
            assert r["instruction"] == "HGMMA"
            assert r["counts"]["load"] == "UTMALDG"
            assert r["counts"]["multiplications"] == 4


@pytest.mark.parametrize(
    ("options", "error"),
    [
        (["--kernel", "finish", "nonsense"], "--kernel: no kernel begins with 'nonsense'; there are"),
        (["--processes", "0"], "--processes: must be at least 1, got 0"),
        (["--json", "/nonexistent/kernels.json"], "--json: there is no folder /nonexistent"),
    ],
)
def test_bad_options_are_refused_before_anything_is_compiled(
    options: list[str], error: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(
        compile, "jobs", lambda arch, dtypes: [SimpleNamespace(launch=SimpleNamespace(kernel="finish_kernel"))]
    )
    with pytest.raises(SystemExit, match="2"):
        compile.main(["--arch", "sm_90", *options])
    printed = capsys.readouterr()
    assert error in printed.err
    assert not printed.out


def listing(*lines: str) -> str:
    """Machine code as nvdisasm prints it."""
    return "\n".join(
        line if line.startswith(".") else f"        /*00{i:02x}*/   {line} ;" for i, line in enumerate(lines)
    )


def test_counts_of_a_program_per_tile() -> None:
    code = listing(
        "LDC R1, c[0x0][0x28]", "S2R R2, SR_TID.X",
        ".L_x_0:", "LDGSTS.E [R2], [R4.64]", "HGMMA.64x256x16 R24, gdesc[UR4]", "HGMMA.64x256x16 R24, gdesc[UR8]",
        "@!P0 BRA `(.L_x_0)",
        "BSSY B0, `(.L_x_2)", "@P1 BRA `(.L_x_1)", "FMUL R1, R1, R2", "FMUL R1, R1, R2",  # rare
        ".L_x_1:", ".L_x_2:", "LDG.E R1, [R2.64]", "STG.E [R2.64], R1", "@P3 EXIT", "EXIT",
    )  # fmt: skip
    assert count(code, lambda name: name.startswith("HGMMA")) == Counts(4, 2, 2, 6, 1, "LDGSTS")


def test_counts_of_a_persistent_program() -> None:
    code = listing(
        "LDC R1, c[0x0][0x28]",
        ".L_x_0:", "@P0 BRA `(.L_x_1)", "UMOV UR4, UR5", "UMOV UR4, UR5",  # a tile begins
        ".L_x_1:", "SYNCS.PHASECHK.TRANS64.TRYWAIT P0, [UR7], RZ", "@!P0 BRA `(.L_x_4)",
        ".L_x_2:", "HGMMA.64x256x16 R24, gdesc[UR4]", "UTMALDG.2D [UR4], [UR8]", "@P0 BRA `(.L_x_3)",
        "UTMALDG.2D [UR4], [UR8]", "SYNCS.PHASECHK.TRANS64.TRYWAIT P0, [UR7], RZ", "FMUL R1, R1, R2",
        "UTMASTG.2D [UR4], [UR8]", "UTMACMDFLUSH",  # a tile ends
        ".L_x_3:", "@P0 BRA `(.L_x_0)", "EXIT",
        ".L_x_4:", "SYNCS.PHASECHK.TRANS64.TRYWAIT P0, [UR7], RZ", "@!P0 BRA `(.L_x_4)", "BRA `(.L_x_2)",
    )  # fmt: skip
    assert count(code, lambda name: name.startswith("HGMMA")) == Counts(7, 1, 2, 5, 1, "UTMALDG")


def test_code_without_a_main_loop() -> None:
    assert count(listing("FADD R1, R1, R2", "EXIT"), lambda name: name.startswith("HGMMA")) is None
