"""vLLM with a base in 4 bits and the policy's adapters, on a CPU: beside the trainer's own 4-bit model, and in runs."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from tiny_world import make_world
from transformers import AutoModelForCausalLM, PreTrainedModel

if importlib.util.find_spec("vllm") is None:
    pytest.skip("vLLM is not installed", allow_module_level=True)
pytest.importorskip("vllm_bnb_plugin")
pytest.importorskip("peft")
os.environ.setdefault("TORCHDYNAMO_DISABLE", "1")  # compiling takes a minute and is not tested here
# The engine's weights are read by a function that is sent to it.
os.environ.setdefault("VLLM_ALLOW_INSECURE_SERIALIZATION", "1")

from hpt.commands.main import main
from hpt.config.recipe import load_config
from hpt.model.loading import load_policy
from hpt.records.files import read_metrics
from hpt.rollout import EngineInputs, Rollout, RolloutEngine, Sampling, make_rollout_engine
from hpt.rollout.vllm.engine import VllmEngine
from hpt.rollout.weights import named_weights

CPU = torch.device("cpu")
PROMPTS = [[5, 6, 7], [8], [9, 10, 11, 12, 13, 14], [3]]
# bfloat16 has 8 bits of precision, and logits of a few units are rounded by a few hundredths.
BOUND = 0.1


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A world in bfloat16, whose policy is a 4-bit model with adapters, and so is its engine's."""
    path = make_world(tmp_path_factory.mktemp("world"), hidden_size=64, num_attention_heads=2, num_key_value_heads=1)
    model = AutoModelForCausalLM.from_pretrained(path.parent / "model", dtype=torch.bfloat16)
    model.save_pretrained(path.parent / "model")
    settings = yaml.safe_load(path.read_text())
    settings["model"] |= {"dtype": "bfloat16", "quantization": "nf4", "lora": {"rank": 4}}
    vllm = {"adapters": "lora", "quantization": "nf4", "sleep_level": 1, "options": {"kv_cache_memory_bytes": 64 << 20}}
    settings["rollout"] |= {"engine": "vllm", "vllm": vllm}
    path.write_text(yaml.safe_dump(settings))
    return path


@pytest.fixture(scope="module")
def policy(recipe: Path) -> PreTrainedModel:
    return load_policy(load_config(recipe), None, CPU)


@pytest.fixture(scope="module")
def engine(recipe: Path, policy: PreTrainedModel) -> Iterator[RolloutEngine]:
    engine = make_rollout_engine(EngineInputs(load_config(recipe), policy, CPU, [1], 16, torch.no_grad))
    yield engine
    engine.close()


def mismatch(model: torch.nn.Module, groups: list[list[Rollout]]) -> float:
    """Largest difference between the engine's log-probabilities and the model's."""
    largest = 0.0
    for prompt, group in zip(PROMPTS, groups, strict=True):
        for rollout in group:
            with torch.no_grad():
                logits = model(torch.tensor([prompt + rollout.tokens]), use_cache=False).logits[0].double()
            logprobs = torch.log_softmax(logits[len(prompt) - 1 : -1], -1)
            known = logprobs.gather(-1, torch.tensor(rollout.tokens)[:, None]).squeeze(-1)
            largest = max(largest, (torch.tensor(rollout.logprobs).double() - known).abs().max().item())
    return largest


def dequantized(model: torch.nn.Module) -> dict[str, list[torch.Tensor]]:
    """vLLM's 4-bit weights (out, in) as its layers use them, of what each layer fuses, by the layer's name in vLLM."""
    from bitsandbytes.functional import dequantize_4bit

    found = {}
    for name, parameter in model.named_parameters():
        if states := getattr(parameter, "bnb_quant_state", None):
            parts = [parameter.data[start:end] for start, end in pairwise(parameter.bnb_shard_offsets)]
            found[name.removesuffix(".weight").removesuffix(".base_layer")] = [
                dequantize_4bit(part, states[index]) for index, part in enumerate(parts)
            ]
    return found


def test_the_engine_has_the_trainers_4_bit_base_bit_for_bit(engine: Any, policy: PreTrainedModel) -> None:
    (theirs,) = engine._llm.apply_model(dequantized)
    ours = dict(named_weights(policy, merged=False))
    fused = {
        "self_attn.qkv_proj": [f"self_attn.{name}_proj" for name in "qkv"],
        "self_attn.o_proj": ["self_attn.o_proj"],
        "mlp.gate_up_proj": ["mlp.gate_proj", "mlp.up_proj"],
        "mlp.down_proj": ["mlp.down_proj"],
    }
    assert set(theirs) == {f"model.layers.{layer}.{name}" for layer in range(2) for name in fused}  # but not the head
    for name, parts in theirs.items():
        *prefix, room, layer = name.split(".")
        for part, ours_name in zip(parts, fused[f"{room}.{layer}"], strict=True):
            assert torch.equal(part, ours[".".join([*prefix, ours_name, "weight"])])


def test_logprobs_are_those_of_the_4_bit_policy_after_updates_too(
    engine: RolloutEngine, policy: PreTrainedModel
) -> None:
    torch.manual_seed(0)
    sampling = Sampling(n=3, max_tokens=12)
    for _ in range(3):
        assert mismatch(policy, engine.generate(PROMPTS, sampling, seed=3)) < BOUND
        with torch.no_grad():
            for name, parameter in policy.named_parameters():
                if "lora_" in name:
                    parameter.add_(0.2 * torch.randn_like(parameter))
        assert mismatch(policy, engine.generate(PROMPTS, sampling, seed=3)) > 3 * BOUND  # the engine was not told
        engine.sleep()
        engine.weights_changed()


SETTINGS = ["optimizer.lr=0.05", "batch.updates=2", "loss.tis=token", "eval.every=0", "checkpoint.every=0"]


def test_the_mismatch_metrics_of_a_run_say_how_far_engine_and_trainer_are(
    recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Near 0 in every step, though each step updates the adapters twice; and not when the engine keeps its old ones."""
    run = tmp_path / "run"
    assert main(["train", str(recipe), f"output={run}", *SETTINGS]) == 0
    lines = read_metrics(run)
    assert [line["step"] for line in lines] == [1, 2, 3, 4]
    for line in lines:
        assert line["rollout/mismatch_tokens"] > 0
        assert 0 < line["rollout/mismatch_kl"] < 1e-3
        assert line["rollout/mismatch_max"] < 0.2
    monkeypatch.setattr(VllmEngine, "weights_changed", lambda self: None)
    stale = tmp_path / "stale"
    assert main(["train", str(recipe), f"output={stale}", *SETTINGS]) == 0
    first, *later = read_metrics(stale)
    assert first["rollout/mismatch_kl"] == lines[0]["rollout/mismatch_kl"]
    assert max(line["rollout/mismatch_kl"] for line in later) > 10 * max(line["rollout/mismatch_kl"] for line in lines)
