"""hpt eval by real vLLM on a CPU, beside the same evaluation by transformers."""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from tiny_world import make_world
from transformers import AutoModelForCausalLM

if importlib.util.find_spec("vllm") is None:
    pytest.skip("vLLM is not installed", allow_module_level=True)
os.environ.setdefault("TORCHDYNAMO_DISABLE", "1")  # compiling takes a minute and is not tested here
os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")  # GiB

from hpt.api.evaluation_engine import make_engine
from hpt.commands.main import main
from hpt.config.sections.evaluation import EvaluationSettings
from hpt.rollout import RolloutEngine, Sampling
from hpt.rollout.vllm.engine import VllmEngine

BOUND = 1e-4
PROMPTS = [[5, 6, 7], [8], [9, 10, 11, 12, 13, 14], [3]]
FLAGS = ["--style", "plain", "--max-tokens", "8", "--verifier", "rewards:has_a_digit"]
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a world whose model has a head size that vLLM supports on a CPU."""
    recipe = make_world(tmp_path_factory.mktemp("world"), hidden_size=64, num_attention_heads=2, num_key_value_heads=1)
    return recipe.parent


@contextmanager
def engine(kind: Any, path: Path, longest: int = 32, **settings: Any) -> Iterator[RolloutEngine]:
    made = make_engine(
        kind, str(path), EvaluationSettings(**settings), CPU, dtype="float32", stop_ids=[1], longest_sequence=longest
    )
    with closing(made):
        yield made


def assert_same_greedy_responses(path: Path, max_tokens: int = 16) -> None:
    """Tokens and log-probabilities of both engines."""
    sampling = Sampling(n=1, max_tokens=max_tokens, temperature=0)
    groups = []
    for kind in ("vllm", "transformers"):
        with engine(kind, path, longest=6 + max_tokens) as made:
            groups.append(made.generate(PROMPTS, sampling, 0))
    for (ours,), (theirs,) in zip(*groups, strict=True):
        assert ours.tokens == theirs.tokens
        assert ours.finish_reason == theirs.finish_reason
        assert ours.logprobs == pytest.approx(theirs.logprobs, abs=BOUND)


def test_greedy_responses_are_those_of_transformers(folder: Path) -> None:
    assert_same_greedy_responses(folder / "model")


def test_beyond_the_models_positions_it_goes_on_as_transformers_does(folder: Path) -> None:
    assert_same_greedy_responses(folder / "model", max_tokens=100)  # it has 64


def test_a_checkpoint_with_adapters(folder: Path, tmp_path: Path) -> None:
    """Over a base in 4 bits, whose config has what the adapters were trained with."""
    peft = pytest.importorskip("peft")
    torch.manual_seed(0)
    shape = peft.LoraConfig(r=4, lora_alpha=16, target_modules="all-linear", init_lora_weights=False)
    model = peft.get_peft_model(AutoModelForCausalLM.from_pretrained(folder / "model", dtype=torch.float32), shape)
    model.save_pretrained(tmp_path)
    with engine("vllm", tmp_path) as adapted, engine_of_base(folder) as base:
        sampling = Sampling(n=1, max_tokens=8, temperature=0)
        assert adapted.generate(PROMPTS, sampling, 0) != base.generate(PROMPTS, sampling, 0)
    assert_same_greedy_responses(tmp_path)
    config = json.loads((folder / "model" / "config.json").read_text())
    config["rope_parameters"] = {"rope_type": "default", "rope_theta": 50.0}
    config["quantization_config"] = {"quant_method": "bitsandbytes", "load_in_4bit": True}
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert_same_greedy_responses(tmp_path)


@contextmanager
def engine_of_base(folder: Path) -> Iterator[RolloutEngine]:
    with engine("transformers", folder / "model") as made:
        yield made


def evaluate(folder: Path, output: Path, *flags: str) -> list[dict[str, Any]]:
    """What `hpt eval` writes about each question."""
    data = ["--data", str(folder / "eval.jsonl"), "--output", str(output)]
    assert main(["eval", str(folder / "model"), *data, *FLAGS, *flags]) == 0
    return [json.loads(line) for line in (output / "results.jsonl").read_text().splitlines()]


def test_the_command_equals_transformers_at_temperature_0(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    greedy = evaluate(folder, tmp_path / "vllm", "--engine", "vllm", "--temperature", "0")
    assert "eval: question 6/6" in capsys.readouterr().err
    assert greedy == evaluate(folder, tmp_path / "transformers", "--temperature", "0")
    settings = json.loads((tmp_path / "vllm" / "summary.json").read_text())["settings"]
    assert (settings["engine"], settings["dtype"]) == ("vllm", "float32")


def test_a_response_depends_on_no_other_and_not_on_how_many_engines_there_are(folder: Path, tmp_path: Path) -> None:
    flags = ["--engine", "vllm", "--n", "4"]
    sampled = evaluate(folder, tmp_path / "all", *flags)
    assert len({text for record in sampled for text in record["responses"]}) > 6
    assert evaluate(folder, tmp_path / "fewer", *flags, "--limit", "3") == sampled[:3]
    assert evaluate(folder, tmp_path / "seed", *flags, "--seed", "1") != sampled
    assert evaluate(folder, tmp_path / "parallel", *flags, "--data-parallel", "2") == sampled


def test_sigterm_ends_every_process_of_an_evaluation(folder: Path, tmp_path: Path) -> None:
    question = json.loads((folder / "eval.jsonl").read_text().splitlines()[0])
    questions = tmp_path / "many.jsonl"
    questions.write_text("".join(json.dumps(question | {"id": str(i)}) + "\n" for i in range(400)))
    flags = [*FLAGS, "--engine", "vllm", "--data-parallel", "2", "--n", "4", "--output", str(tmp_path)]
    command = [sys.executable, "-m", "hpt", "eval", str(folder / "model"), "--data", str(questions), *flags]
    tests = str(Path(__file__).parents[2])  # where rewards.py is
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([tests, os.environ.get("PYTHONPATH", "")])}
    pipe = subprocess.PIPE
    with subprocess.Popen(command, env=environment, start_new_session=True, stderr=pipe, text=True) as running:
        try:
            assert running.stderr
            seen = [next(line for line in running.stderr if "question 40/400" in line)]
            started = psutil.Process(running.pid).children(recursive=True)
            assert len(started) > 2
            running.terminate()
            seen += running.stderr
            assert running.wait() == 130, "".join(seen)
            assert "Interrupted.\n" in seen
            assert "Exception ignored" not in "".join(seen)
            _, left = psutil.wait_procs(started, timeout=10)
            assert not [process for process in left if process.status() != psutil.STATUS_ZOMBIE]
        finally:
            with suppress(ProcessLookupError):
                os.killpg(running.pid, signal.SIGKILL)


def test_an_interruption_keeps_what_is_complete(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    generate = VllmEngine.generate
    finished: list[int] = []

    def interrupted(self: VllmEngine, prompts: Any, sampling: Any, seed: int, on_rollout: Any) -> Any:
        def until_the_tenth(index: int, place: int, rollout: Any) -> None:
            on_rollout(index, place, rollout)
            finished.append(index)
            if len(finished) == 10:
                raise KeyboardInterrupt

        return generate(self, prompts, sampling, seed, until_the_tenth)

    monkeypatch.setattr(VllmEngine, "generate", interrupted)
    flags = ["--engine", "vllm", "--n", "2", "--output", str(tmp_path)]
    assert main(["eval", str(folder / "model"), "--data", str(folder / "eval.jsonl"), *FLAGS, *flags]) == 130
    complete = {f"eval-{50 + index}" for index in finished if finished.count(index) == 2}
    assert complete
    kept = (tmp_path / "results.partial.jsonl").read_text().splitlines()
    assert {json.loads(line)["id"] for line in kept} == complete
