"""Whole runs through the command line: records, resuming after a kill, stopping, refusing."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file
from transformers import GPT2Config

from hpt.commands.main import main
from hpt.records.checkpoints import checkpoints

Metrics = Callable[[Path], list[dict[str, Any]]]
HPT = [sys.executable, "-m", "hpt"]


def weights(checkpoint: Path) -> dict[str, torch.Tensor]:
    return load_file(checkpoint / "model.safetensors")


def same_weights(one: Path, other: Path) -> bool:
    a, b = weights(one), weights(other)
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


@pytest.fixture(scope="module")
def unbroken(world: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of six steps that nothing stopped."""
    folder = tmp_path_factory.mktemp("unbroken") / "run"
    assert main(["train", str(world), f"output={folder}", "steps=6", "checkpoint.keep=9"]) == 0
    return folder


def test_a_runs_records_are_complete_and_consistent(unbroken: Path, metrics_of: Metrics) -> None:
    lines = metrics_of(unbroken)
    assert [line["step"] for line in lines] == list(range(7))
    assert [line["step"] for line in lines if "eval/accuracy" in line] == [0, 2, 4, 6]
    for line in lines[1:]:
        assert line["reward/mean"] == line["reward/sum"] / line["reward/count"]
        assert line["reward/count"] == line["response/count"] == 6 * 4
        assert line["gate/none"] + line["gate/some"] + line["gate/all"] == line["gate/questions"] == 6
        assert line["gate/sft"] == line["gate/none"]  # gamma = 0: SFT where none is right
        assert line["train/rows"] + line["train/rows_skipped"] == line["gate/sft"] + 4 * (6 - line["gate/sft"])
        assert sum(line[f"verify/{status}"] for status in ("correct", "incorrect", "unparsable", "timeout")) == 24
        assert line["entropy/mean"] == pytest.approx(line["entropy/sum"] / line["entropy/count"])
        assert abs(line["rollout/mismatch_kl"]) < 1e-6  # one model in float32, two ways of running it
        rollouts = [json.loads(row) for row in (unbroken / f"rollouts/step-{line['step']:06d}.jsonl").open()]
        assert sum(sum(row["scores"]) for row in rollouts) == line["reward/sum"]
        assert sum(row["beta"] for row in rollouts) == line["gate/sft"]
        assert [row["P"] == 0 for row in rollouts] == [row["beta"] == 1 for row in rollouts]
    assert sorted(path.name for path in (unbroken / "eval").iterdir()) == [f"step-00000{i}.jsonl" for i in (0, 2, 4, 6)]
    for line in lines[::2]:
        answered = [json.loads(row) for row in (unbroken / f"eval/step-{line['step']:06d}.jsonl").open()]
        assert [row["id"] for row in answered] == [f"eval-{i}" for i in range(50, 56)]
        assert sum(row["correct"] for row in answered) == line["eval/correct"]
        assert sum(row["correct"] for row in answered if row["grade"] == "low") == line["eval/correct/low"]
        assert sum(row["n"] for row in answered) == line["eval/count"]
        assert sum(sum(row["lengths"]) for row in answered) == line["eval/length_sum"]
    assert any(line["gate/some"] for line in lines[1:])
    assert {"eval/accuracy/low", "eval/accuracy/high"} <= lines[0].keys()


def test_the_run_gives_its_figure_and_a_config_to_run_again(
    unbroken: Path, tmp_path: Path, metrics_of: Metrics
) -> None:
    assert (unbroken / "figures" / "summary.png").stat().st_size > 10_000
    again = tmp_path / "again"
    assert main(["train", str(unbroken / "config.yaml"), f"output={again}"]) == 0
    assert metrics_of(again) == metrics_of(unbroken)
    assert same_weights(checkpoints(again)[-1], checkpoints(unbroken)[-1])


@pytest.mark.parametrize("kept", [2, 4])
def test_resuming_is_bit_exact(unbroken: Path, tmp_path: Path, metrics_of: Metrics, kept: int) -> None:
    run = tmp_path / "run"
    shutil.copytree(unbroken, run)
    for checkpoint in checkpoints(run):
        if int(checkpoint.name[-6:]) > kept:
            shutil.rmtree(checkpoint)
    with (run / "metrics.jsonl").open("a") as file:
        file.write('{"step": 7, "rewa')  # what a kill in the middle of a line leaves
    assert main(["train", "--resume", str(run)]) == 0
    assert metrics_of(run) == metrics_of(unbroken)
    assert same_weights(checkpoints(run)[-1], checkpoints(unbroken)[-1])
    for kind in ("rollouts", "eval"):
        assert {path.name for path in (run / kind).iterdir()} == {path.name for path in (unbroken / kind).iterdir()}
        for path in (unbroken / kind).iterdir():
            assert (run / kind / path.name).read_bytes() == path.read_bytes()


def start(world: Path, run: Path, *settings: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen([*HPT, "train", str(world), f"output={run}", *settings], stderr=subprocess.DEVNULL)


def wait_for(condition: Callable[[], bool], process: subprocess.Popen[bytes], seconds: float = 120) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None, "the run ended before it could be stopped"
        assert time.monotonic() < end
        time.sleep(0.002)


def test_a_run_killed_in_the_middle_of_a_save_resumes_bit_exactly(
    world: Path, unbroken: Path, tmp_path: Path, metrics_of: Metrics
) -> None:
    run = tmp_path / "run"
    process = start(world, run, "steps=6", "checkpoint.keep=9", "checkpoint.every=1")
    try:
        saving = run / "checkpoints" / ".partial-step-000003"
        wait_for(saving.exists, process)
    finally:
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
    assert main(["train", "--resume", str(run)]) == 0
    assert metrics_of(run) == metrics_of(unbroken)
    assert same_weights(run / "checkpoints" / "step-000006", unbroken / "checkpoints" / "step-000006")
    assert not list((run / "checkpoints").glob(".*"))


@pytest.mark.usefixtures("hang_up")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_signal_saves_and_stops(world: Path, tmp_path: Path, metrics_of: Metrics, number: int) -> None:
    run = tmp_path / "run"
    process = start(world, run, "steps=5000", "eval.every=0", "checkpoint.every=0")
    try:
        wait_for(lambda: (run / "rollouts" / "step-000002.jsonl").exists(), process)
        process.send_signal(number)
        assert process.wait(timeout=60) == 130
    finally:
        process.kill()
    assert len(checkpoints(run)) == 1
    assert metrics_of(run)[-1]["step"] == int(checkpoints(run)[0].name[-6:])


@pytest.mark.parametrize("output", ["a closed pipe", "a full disk"])
def test_a_run_outlives_what_reads_its_output(world: Path, tmp_path: Path, output: str) -> None:
    run = tmp_path / "run"
    command = [*HPT, "train", str(world), f"output={run}", "steps=2", "eval.every=0", "method=sft"]
    if output == "a full disk":
        with Path("/dev/full").open("w") as full:
            assert subprocess.run(command, stdout=full, stderr=full, timeout=60).returncode == 0
    else:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        assert process.stdout is not None
        process.stdout.readline()
        process.stdout.close()
        assert process.wait(timeout=60) == 0
    assert checkpoints(run)[0].name == "step-000002"


def test_a_folder_with_a_run_is_not_overwritten(
    unbroken: Path, world: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = (unbroken / "metrics.jsonl").read_bytes()
    assert main(["train", str(world), f"output={unbroken}"]) == 2
    assert "--resume" in capsys.readouterr().err
    assert (unbroken / "metrics.jsonl").read_bytes() == before


def test_a_finished_run_resumes_to_its_end_at_once(unbroken: Path, metrics_of: Metrics) -> None:
    before = metrics_of(unbroken)
    assert main(["train", "--resume", str(unbroken)]) == 0
    assert metrics_of(unbroken) == before


def test_two_processes_do_not_share_a_folder(world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = tmp_path / "run"
    process = start(world, run, "steps=5000", "eval.every=0")
    try:
        wait_for(lambda: (run / "metrics.jsonl").exists(), process)
        assert main(["train", "--resume", str(run)]) == 2
        assert "another process" in " ".join(capsys.readouterr().err.split())
    finally:
        process.kill()
        process.wait()


@pytest.mark.parametrize("method", ["grpo", "sft"])
def test_methods_are_the_same_loop(world: Path, tmp_path: Path, metrics_of: Metrics, method: str) -> None:
    run = tmp_path / "run"
    settings = ["steps=2", f"method={method}", "batch.updates=2", "track=[tensorboard]"]
    assert main(["train", str(world), f"output={run}", *settings]) == 0
    lines = metrics_of(run)[1:]
    assert [line["gate/sft_share"] for line in lines] == [{"grpo": 0.0, "sft": 1.0}[method]] * 2
    assert [line["train/updates"] for line in lines] == [2, 2]
    assert [("reward/mean" in line, "entropy/mean" in line) for line in lines] == [(method == "grpo", True)] * 2
    assert list((run / "tensorboard").iterdir())


def test_an_update_without_signal_moves_nothing_but_weight_decay(world: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    settings = ["steps=1", "method=grpo", "verify.function=rewards:always", "optimizer.weight_decay=0", "eval.every=0"]
    assert main(["train", str(world), f"output={run}", *settings]) == 0
    line = json.loads((run / "metrics.jsonl").read_text())
    assert (line["train/rows"], line["train/rows_skipped"], line["train/grad_norm"]) == (0, 24, 0.0)
    assert same_weights(checkpoints(run)[0], world.parent / "model")


BAD_DATA = [
    ('{"id": "a", "prompt": "1+1=", "answer": "2"}\n', "demonstration"),
    ('{"id": "a", "prompt": "", "answer": "2", "demonstration": "2"}\n', "prompt"),
    ('{"id": "a", "prompt": "1+1=", "answer": "2", "demonstration": "2"\n', "line 1"),
    ('{"id": "a", "prompt": "1+1=", "answer": "2", "demonstration": "2"}\n' * 2, "'a'"),
    ('{"id": "a", "prompt": "1+1=", "answer": "2", "demonstration": "' + "1" * 30 + '"}\n', "too long"),
]


@pytest.mark.parametrize(("text", "expected"), BAD_DATA)
def test_bad_data_is_named_before_the_model_is_loaded(
    world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str, expected: str
) -> None:
    data = tmp_path / "bad.jsonl"
    data.write_text(text)
    (tmp_path / "model").mkdir()
    shutil.copytree(world.parent / "model", tmp_path / "model", dirs_exist_ok=True)
    (tmp_path / "model" / "model.safetensors").unlink()  # loading it would fail in its own way
    settings = [
        f"data.train={data}",
        f"model.path={tmp_path / 'model'}",
        "data.too_long=error",
        f"output={tmp_path}/run",
    ]
    assert main(["train", str(world), *settings]) == 2
    error = " ".join(capsys.readouterr().err.split())
    assert expected in error, error
    assert "bad.jsonl" in error.replace(" ", "")
    if expected == "too long":
        assert "line 1 (question a): demonstration of 31 tokens" in error


def test_an_answer_the_verifier_cannot_parse(world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = tmp_path / "bad.jsonl"
    data.write_text('{"id": "q7", "prompt": "1+1=", "answer": "\\\\frac{", "demonstration": "2"}\n')
    settings = [f"data.train={data}", "verify.function=null", f"output={tmp_path / 'run'}"]
    assert main(["train", str(world), *settings]) == 2
    error = " ".join(capsys.readouterr().err.split())
    assert r"line 1 (question q7): field 'answer' is '\\frac{', which the verifier cannot parse within its" in error
    assert "1 of 1" in error


@pytest.mark.parametrize(
    ("setting", "expected"),
    [
        ("prepare=rewards:always", ["prepare = 'rewards:always'", "called with (config)", "takes (response"]),
        ("prepare=rewards:nothing", ["prepare", "module 'rewards' has no 'nothing'"]),
        ("verify.function=rewards:of_one", ["verify.function", "called with (response, answer)", "(response: 'str')"]),
        ("verify.function=rewards:nothing", ["verify.function", "module 'rewards' has no 'nothing'"]),
        ("verify.function=no_such_module:f", ["verify.function", "'no_such_module' cannot be imported"]),
        ("gate={kind: function, function: rewards:always}", ["gate.function", "called with (P)"]),
    ],
)
def test_functions_of_a_recipe_are_checked_first(
    world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], setting: str, expected: list[str]
) -> None:
    settings = [setting, "data.train=/nowhere.jsonl", f"output={tmp_path / 'run'}"]  # the data would fail next
    assert main(["train", str(world), *settings]) == 2
    error = " ".join(capsys.readouterr().err.split())
    assert all(part in error for part in expected), error


def test_functions_may_be_in_the_current_folder(
    world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "gate_here.py").write_text("def soft(P):\n    return P, 1 - P\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [entry for entry in sys.path if entry])  # as the installed command has it
    gate = "gate={kind: function, function: gate_here:soft}"
    assert main(["train", str(world), gate, "data.train=/nowhere.jsonl", f"output={tmp_path / 'run'}"]) == 2
    error = capsys.readouterr().err
    assert "nowhere.jsonl" in error
    assert "gate_here" not in error


def test_sequences_longer_than_the_models_positions(
    world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Rotary positions go on, learned ones (GPT-2) end: a warning and an error, before the weights are loaded."""
    model = tmp_path / "model"
    shutil.copytree(world.parent / "model", model)
    (model / "model.safetensors").unlink()
    settings = [f"model.path={model}", f"output={tmp_path / 'run'}"]
    assert main(["train", str(world), *settings, "rollout.max_tokens=62"]) == 2
    error = " ".join(capsys.readouterr().err.split())
    assert "warning: the longest prompt and rollout.max_tokens = 62 make 66 tokens; the model has 64 positions" in error
    assert "no causal language model could be loaded" in error
    GPT2Config(n_positions=10, vocab_size=22, n_embd=8, n_head=2, n_layer=1).save_pretrained(model)
    assert main(["train", str(world), *settings]) == 2
    error = " ".join(capsys.readouterr().err.split())
    assert "error: the longest prompt and its demonstration make 18 tokens; the model has 10 positions" in error
    assert main(["eval", str(model), "--data", str(world.parent / "eval.jsonl"), "--style", "plain"]) == 2
    assert "the longest prompt of eval and --max-tokens 1,024 make 1,028 tokens" in capsys.readouterr().err


def test_a_model_folder_without_a_tokenizer(world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = tmp_path / "model"
    model.mkdir()
    for name in ("config.json", "model.safetensors"):
        shutil.copy(world.parent / "model" / name, model / name)
    assert main(["train", str(world), f"model.path={model}", f"output={tmp_path / 'run'}"]) == 2
    assert "tokenizer" in capsys.readouterr().err


def test_a_recipe_error_writes_nothing(world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", str(world), "rollout.tempreature=1", f"output={tmp_path / 'run'}"]) == 2
    assert "did you mean 'temperature'" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
    recipe = yaml.safe_load(world.read_text())
    assert recipe["rollout"]["n"] == 4


@pytest.mark.parametrize("setting", ["data.train=/nowhere.jsonl", "track=[wandb]", "steps=2", "loss.backend=triton"])
def test_a_run_that_cannot_go_on_is_left_as_it_was(
    unbroken: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, setting: str
) -> None:
    monkeypatch.setattr("upge.backends.plan.INTERPRETED", False)
    if setting == "track=[wandb]" and importlib.util.find_spec("wandb"):
        pytest.skip("wandb is installed")
    run = tmp_path / "run"
    shutil.copytree(unbroken, run)
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    assert main(["train", "--resume", str(run), "steps=9", setting]) == 2
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file() and path.name != ".lock"} == {
        path: data for path, data in before.items() if path.name != ".lock"
    }


def test_records_without_a_checkpoint_are_not_overwritten(
    world: Path, unbroken: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    shutil.copytree(unbroken, run)
    shutil.rmtree(run / "checkpoints")
    before = (run / "metrics.jsonl").read_bytes()
    assert main(["train", str(world), f"output={run}"]) == 2
    assert "--resume" in capsys.readouterr().err
    assert (run / "metrics.jsonl").read_bytes() == before


def test_broken_weights_are_named(world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = tmp_path / "model"
    shutil.copytree(world.parent / "model", model)
    (model / "model.safetensors").write_bytes(b"half")
    assert main(["train", str(world), f"model.path={model}", f"output={tmp_path / 'run'}"]) == 2
    assert "model.path" in capsys.readouterr().err


def test_a_resume_that_is_refused_leaves_the_runs_folder_as_it_was(
    world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    assert main(["train", str(world), f"output={run}", "steps=2", "eval.every=0", "checkpoint.every=1"]) == 0
    before = {name: (run / name).read_bytes() for name in ("config.yaml", "metrics.jsonl")}
    assert main(["train", "--resume", str(run), "steps=3", "model.dtype=bfloat16"]) == 2
    assert "does not fit this run" in capsys.readouterr().err
    assert {name: (run / name).read_bytes() for name in before} == before
    assert main(["train", "--resume", str(run), "steps=3"]) == 0
