"""What a plan is checked against: the hardware of the recipe, or of this machine."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from seven_b import SEVEN_B, seven_b

from hpt.commands.main import main
from hpt.memory import advice_lines, make_plan
from hpt.memory.hardware import _cgroup_limits, _host_bytes

GIB = 2**30


@pytest.mark.skipif(torch.cuda.is_available(), reason="for a machine without a GPU")
def test_cpu_memory_of_another_machine_is_unknown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hpt.memory.hardware._host_bytes", lambda: GIB)
    plan = make_plan(seven_b("hardware.gpu_memory_gib=78", "hardware.gpus=8", "optimizer.offload=true"))
    assert plan.fits
    assert any("hardware.host_memory_gib" in note for note in plan.notes)
    assert any('hardware.gpus = 8, of which engine "local" uses one' in note for note in plan.notes)
    offload = "optimizer.offload=true"
    assert offload in map(str.strip, advice_lines(make_plan(seven_b("hardware.gpu_memory_gib=78"))))


@pytest.mark.parametrize(
    ("line", "limits", "expected"),
    [
        ("0::/a/b\n", {"a/memory.max": "5000\n", "a/b/memory.max": "max\n"}, [5000]),
        ("0::/of/the/host\n", {"memory.max": "7000\n"}, [7000]),
        ("4:cpu,memory:/a\n1:name=systemd:/a\n", {"memory/a/memory.limit_in_bytes": "6000\n"}, [6000]),
    ],
)
def test_a_containers_limit_counts_as_the_machines_memory(
    tmp_path: Path, line: str, limits: dict[str, str], expected: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    files = {"proc/self/cgroup": line} | {f"sys/fs/cgroup/{path}": limit for path, limit in limits.items()}
    for path, content in files.items():
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text(content)
    assert _cgroup_limits(tmp_path) == expected
    monkeypatch.setattr("hpt.memory.hardware._cgroup_limits", lambda: expected)
    assert _host_bytes() == expected[0]


@pytest.mark.skipif(torch.cuda.is_available(), reason="for a machine without a GPU")
def test_without_a_gpu_everything_must_fit_into_cpu_memory(capsys: pytest.CaptureFixture[str]) -> None:
    assert not make_plan(seven_b("hardware.host_memory_gib=100")).fits
    assert make_plan(seven_b("hardware.host_memory_gib=150")).fits
    assert main(["plan", "demo", *SEVEN_B, "hardware.host_memory_gib=100"]) == 1
    shown = " ".join(capsys.readouterr().out.split())
    assert "does NOT fit into 100.0 GiB of CPU memory" in shown
    assert "to plan for one: hardware.gpu_memory_gib" in shown


@pytest.mark.parametrize("hardware", [[], ["hardware.gpu_memory_gib=78"]])
def test_the_device_must_be_one(capsys: pytest.CaptureFixture[str], world: Path, hardware: list[str]) -> None:
    assert main(["plan", str(world), "device=gpu", *hardware]) == 2
    assert "device = 'gpu': allowed are auto, cpu, cuda and cuda:N" in capsys.readouterr().err


@pytest.mark.skipif(torch.cuda.is_available(), reason="for a machine without a GPU")
def test_a_device_of_another_machine_is_planned_for(world: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", str(world), "device=cuda:3", "hardware.gpu_memory_gib=4"]) == 0
    assert "fits into 4.0 GiB" in capsys.readouterr().out
