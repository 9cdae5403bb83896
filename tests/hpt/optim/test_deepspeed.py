"""engine: deepspeed, in two processes under torchrun: the same training as in one process, and how a run ends."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from functools import cache
from pathlib import Path
from typing import Any

import deepspeed_cases
import pytest
import torch
from deepspeed_cases import CASES, RESUMED, Case
from transformers import AutoModelForCausalLM

from hpt.commands.main import main
from hpt.config.recipe import load_config
from hpt.records.checkpoints import checkpoints
from hpt.support.distributed import ALONE
from hpt.support.errors import ConfigError
from hpt.support.optional_packages import installed
from hpt.training.processes import connected

pytestmark = pytest.mark.skipif(not installed("deepspeed"), reason="needs deepspeed")

TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
WHOLE = "deepspeed.options={zero_optimization: {stage3_param_persistence_threshold: 0}}"


@pytest.fixture(scope="module")
def folder(world: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder with results.pt, which two processes wrote: the result of every case."""
    folder = tmp_path_factory.mktemp("zero")
    deepspeed_cases.make_start(folder)
    (folder / "model").symlink_to(world.parent / "model")
    done = subprocess.run(
        [*TORCHRUN, deepspeed_cases.__file__, str(folder)], capture_output=True, text=True, timeout=900
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return folder


@pytest.fixture(scope="module")
def results(folder: Path) -> dict[str, dict[str, Any]]:
    return torch.load(folder / "results.pt", weights_only=False)


@cache
def in_one_process(case: Case, folder: Path) -> dict[str, Any]:
    return deepspeed_cases.train(case, deepspeed_cases.make_trainer(case, ALONE, folder / "start"))


def distance(one: dict[str, Any], other: dict[str, Any]) -> float:
    """Between the weights of two trainings, divided by how far the second moved; inf if only the first moved."""
    start = other["start"]
    assert one["weights"].keys() == other["weights"].keys() == start.keys()
    apart = sum((one["weights"][name].double() - other["weights"][name].double()).square().sum() for name in start)
    moved = sum((other["weights"][name].double() - start[name].double()).square().sum() for name in start)
    return float((apart / moved).sqrt()) if apart else 0.0


def tolerance(case: Case) -> float:
    """float32: sums are in another order. bfloat16: gradients have 8 bits, and AdamW keeps little but their sign."""
    return 0.2 if case.config.model.dtype == "bfloat16" else 1e-4


@pytest.mark.parametrize("name", CASES)
def test_two_processes_train_as_one(name: str, folder: Path, results: dict[str, dict[str, Any]]) -> None:
    case, found = CASES[name], results[name]
    expected = in_one_process(Case("one process", case.data, settings=case.settings), folder)
    assert distance(found, expected) < tolerance(case)
    for (norm, lr, skipped), (norm_one, lr_one, skipped_one) in zip(found["updates"], expected["updates"], strict=True):
        assert norm == pytest.approx(norm_one, rel=10 * tolerance(case) if norm else None)
        assert (lr, skipped) == (lr_one, skipped_one)
    assert found["loss"] == pytest.approx(expected["loss"], rel=1e-2, abs=10 * tolerance(case) * 1e-2)
    assert found["tokens"] == expected["tokens"]


def test_the_cases_are_what_they_are_called(results: dict[str, dict[str, Any]]) -> None:
    for name, found in results.items():
        rows = found["rows"]
        assert len(rows) == 2
        assert len(rows[0]) == len(rows[1])
        for count in deepspeed_cases.BUDGETS:
            if f", {count} micro-batches" in name:
                assert len(rows[0]) == count
        if "one row" in name:
            assert rows == [[1], [0]]
        if "no row" in name:
            assert rows == [[0], [0]]
            assert all(norm == 0 for norm, _, _ in found["updates"])
        if "apart" in name:
            assert rows == [[1, 0], [3, 1]]
        if "skipping" in name:
            assert all(skipped for _, _, skipped in found["updates"])
        elif "no row" not in name:
            assert all(norm > 0.1 and not skipped for norm, _, skipped in found["updates"])  # so it was clipped


def test_a_dropped_micro_batch_would_be_seen(folder: Path) -> None:
    """The bug that DeepSpeed had in ZeRO-1 and 2 with offload: only the last micro-batch of an update counted."""
    case = Case("dropping", tokens=deepspeed_cases.BUDGETS[4])
    trainer = deepspeed_cases.make_trainer(case, ALONE, folder / "start")
    backward = trainer.engine.backward

    def forgetful(loss: torch.Tensor) -> None:
        trainer.policy.model.zero_grad()
        backward(loss)

    trainer.engine.backward = forgetful  # type: ignore[method-assign]
    assert distance(deepspeed_cases.train(case, trainer), in_one_process(Case("one process"), folder)) > 0.1


@pytest.mark.parametrize("name", RESUMED)
def test_a_resumed_run_trains_as_if_never_interrupted(
    name: str, folder: Path, results: dict[str, dict[str, Any]]
) -> None:
    unbroken, resumed = results[name], results[f"{name}, resumed"]
    assert distance(resumed, unbroken) < 1e-6
    assert resumed["updates"] == unbroken["updates"][2:]


def processes(launcher: subprocess.Popen[str]) -> list[int]:
    """Process ids of the ranks, in their order."""
    return [int(pid) for pid in Path(f"/proc/{launcher.pid}/task/{launcher.pid}/children").read_text().split()]


def wait_for(path: Path, launcher: subprocess.Popen[str]) -> None:
    end = time.monotonic() + 300
    while not path.exists():
        assert launcher.poll() is None, launcher.communicate()[1][-4000:]
        assert time.monotonic() < end
        time.sleep(0.1)


@pytest.fixture(scope="module")
def stopped(world: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run under ZeRO-3 that was stopped by a signal to its second rank only."""
    run = tmp_path_factory.mktemp("stopped") / "run"
    settings = ["engine=deepspeed", "deepspeed.stage=3", "deepspeed.offload_parameters=true", WHOLE, "steps=5000"]
    settings += ["eval.every=1", "checkpoint.every=0", f"output={run}"]
    command = [*TORCHRUN, "-m", "hpt", "train", str(world), *settings]
    launcher = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    wait_for(run / "rollouts" / "step-000002.jsonl", launcher)
    os.kill(processes(launcher)[1], signal.SIGTERM)
    output = launcher.communicate(timeout=120)[1]
    assert "Stopped after step" in output
    assert "Traceback" not in output.split("Stopped after step")[0]
    return run


def test_a_signal_to_one_rank_stops_all_after_the_same_step(stopped: Path) -> None:
    (checkpoint,) = checkpoints(stopped)
    lines = [json.loads(line) for line in (stopped / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == list(range(len(lines)))
    assert lines[-1]["step"] == int(checkpoint.name[-6:])
    assert {path.name for path in checkpoint.glob("*.pt")} == {"trainer_state.pt", "trainer_state-1.pt"}


def test_questions_are_shared_out_and_everything_is_recorded(stopped: Path, world: Path) -> None:
    config = load_config(world, [])
    for line in [json.loads(line) for line in (stopped / "metrics.jsonl").read_text().splitlines()][1:]:
        assert line["reward/count"] == config.batch.questions * config.rollout.n
        assert abs(line["rollout/mismatch_kl"]) < 1e-6  # generated from the weights that are trained
        rollouts = [json.loads(row) for row in (stopped / f"rollouts/step-{line['step']:06d}.jsonl").open()]
        assert len({row["id"] for row in rollouts}) == config.batch.questions
        assert sum(sum(row["scores"]) for row in rollouts) == line["reward/sum"]
        # Each rank has its own seed: no two questions share all responses, unless their prompts are equal.
        assert len({tuple(row["responses"]) for row in rollouts}) == len(rollouts)
        assert line["eval/count"] == 6 * config.eval.n


def test_the_exported_weights_are_a_plain_model(stopped: Path, world: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(checkpoints(stopped)[0])
    start = AutoModelForCausalLM.from_pretrained(world.parent / "model")
    pairs = list(zip(model.parameters(), start.parameters(), strict=True))
    assert all(one.shape == other.shape and not torch.equal(one, other) for one, other in pairs)


def test_another_number_of_processes_cannot_resume(stopped: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "--resume", str(stopped)]) == 2
    assert "was written by 2 processes, and this run has 1" in " ".join(capsys.readouterr().err.split())


def test_a_rank_that_dies_ends_the_others(stopped: Path) -> None:
    """Also: before that, the run continues from where it was stopped."""
    done = int(checkpoints(stopped)[0].name[-6:])
    command = [*TORCHRUN, "-m", "hpt", "train", "--resume", str(stopped)]
    launcher = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    wait_for(stopped / "rollouts" / f"step-{done + 2:06d}.jsonl", launcher)
    ranks = processes(launcher)
    os.kill(ranks[1], signal.SIGKILL)
    began = time.monotonic()
    assert launcher.wait(timeout=60) != 0
    assert time.monotonic() - began < 45
    assert not any(Path(f"/proc/{pid}").exists() for pid in ranks)
    assert f"after step {done}." in " ".join(launcher.communicate()[1].split())
    lines = [json.loads(line) for line in (stopped / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == list(range(len(lines)))
    assert len(lines) > done + 1


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        (["deepspeed.offload_parameters=true"], "deepspeed.offload_parameters needs deepspeed.stage 3"),
        (["model.dtype=float16"], "loss scaling"),
        (["method=ppo"], "critic"),
        (["optimizer.offload=true"], "deepspeed.offload_optimizer"),
        (["deepspeed.options={fp16: {enabled: true}}"], "deepspeed.options sets fp16"),
    ],
)
def test_impossible_settings_are_named(world: Path, settings: list[str], expected: str) -> None:
    with pytest.raises(ConfigError, match=expected):
        load_config(world, ["engine=deepspeed", *settings])


def test_one_process_of_several_needs_the_engine(world: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ConfigError, match="2 were launched; use engine=deepspeed"), connected(load_config(world, [])):
        pass
