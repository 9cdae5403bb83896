"""vLLM's engine arguments for runs and evaluations, GPU-only ones too: these tests run without vLLM."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from hpt.api import evaluation_engine
from hpt.api.evaluation_engine import choose_engine, model_dtype, vllm_settings
from hpt.config.recipe import load_config
from hpt.config.sections.evaluation import EvaluationSettings
from hpt.rollout.vllm.arguments import EngineSettings, engine_arguments
from hpt.support.errors import ConfigError

CPU, GPU = torch.device("cpu"), torch.device("cuda")
QUANTIZED = [
    "rollout.engine=vllm",
    "rollout.vllm={quantization: nf4, adapters: lora, sleep_level: 1}",
    "model={quantization: nf4, lora: {rank: 24}, dtype: bfloat16}",
]


def of_run(world: Path, device: torch.device, *settings: str) -> dict[str, Any]:
    return engine_arguments(EngineSettings.of_run(load_config(world, settings), device, 16))


def test_a_run_in_4_bits_reads_its_base_and_has_room_for_adapters(world: Path) -> None:
    arguments = of_run(world, GPU, *QUANTIZED)
    assert arguments["quantization"] == arguments["load_format"] == "bitsandbytes"
    assert (arguments["enable_lora"], arguments["max_lora_rank"], arguments["max_loras"]) == (True, 32, 1)
    assert arguments["enable_sleep_mode"]
    assert not arguments["enforce_eager"]
    assert (arguments["dtype"], arguments["max_model_len"]) == ("bfloat16", 16 + 8)
    on_cpu = of_run(world, CPU, *QUANTIZED)
    assert on_cpu["enforce_eager"]
    assert not on_cpu["enable_sleep_mode"]
    assert not on_cpu["enable_chunked_prefill"]
    assert "enable_chunked_prefill" not in arguments
    plain = of_run(world, GPU, "rollout.engine=vllm")
    assert plain["load_format"] == "dummy"
    assert "quantization" not in plain
    assert "enable_lora" not in plain


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("rollout.vllm.adapters=merged", 'needs rollout.vllm.adapters "lora"; it is "merged"'),
        ("rollout.vllm.sleep_level=2", "needs rollout.vllm.sleep_level 1 or 0"),
        ("model.quantization=null", "model.quantization is None; allowed is 'nf4'"),
        ("model.dtype=float32", 'needs model.dtype "bfloat16"; it is "float32"'),
    ],
)
def test_what_4_bits_need_is_named(world: Path, setting: str, message: str) -> None:
    load_config(world, QUANTIZED)
    with pytest.raises(ConfigError, match=message):
        load_config(world, [*QUANTIZED, setting])


def test_an_evaluation_reads_the_model_itself(world: Path) -> None:
    settings = EvaluationSettings(tensor_parallel=2, data_parallel=4, memory_share=0.8)
    path = str(world.parent / "model")
    arguments = engine_arguments(vllm_settings(path, settings, GPU, dtype="bfloat16", longest_sequence=60))
    assert (arguments["model"], arguments["load_format"], arguments["dtype"]) == (path, "auto", "bfloat16")
    assert (arguments["tensor_parallel_size"], arguments["data_parallel_size"]) == (2, 4)
    assert (arguments["gpu_memory_utilization"], arguments["max_model_len"]) == (0.8, 60)
    assert arguments["enable_prefix_caching"]
    assert not arguments["enable_sleep_mode"]
    assert "hf_overrides" not in arguments
    longer = engine_arguments(vllm_settings(path, settings, GPU, dtype="bfloat16", longest_sequence=65))
    assert longer["hf_overrides"] == {"max_position_embeddings": 65}  # the model has 64


def test_an_evaluation_of_adapters_has_the_config_that_they_were_trained_with(world: Path, tmp_path: Path) -> None:
    base = str(world.parent / "model")
    adapters = {"base_model_name_or_path": base, "r": 4, "rank_pattern": {"q_proj": 12}}
    (tmp_path / "adapter_config.json").write_text(json.dumps(adapters))
    settings = vllm_settings(str(tmp_path), EvaluationSettings(), CPU, dtype="float32", longest_sequence=8)
    assert (settings.model.path, settings.adapters, settings.options) == (base, tmp_path, {})
    assert engine_arguments(settings)["max_lora_rank"] == 16
    config = json.loads((world.parent / "model" / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "bitsandbytes", "load_in_4bit": True}
    (tmp_path / "config.json").write_text(json.dumps(config))
    settings = vllm_settings(str(tmp_path), EvaluationSettings(), CPU, dtype="float32", longest_sequence=8)
    assert settings.options == {"hf_config_path": str(tmp_path), "hf_overrides": {"quantization_config": None}}


@pytest.fixture
def with_vllm(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a machine with vLLM and two GPUs."""
    monkeypatch.setattr(evaluation_engine, "installed", lambda package: True)
    monkeypatch.setattr(evaluation_engine, "require", lambda *arguments: None)
    monkeypatch.setattr(evaluation_engine, "check_platform", lambda device: None)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)


@pytest.mark.usefixtures("with_vllm")
def test_auto_is_vllm_on_a_gpu_where_it_is_installed(world: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = str(world.parent / "model")
    assert choose_engine(path, EvaluationSettings(), GPU) == "vllm"
    assert choose_engine(path, EvaluationSettings(), CPU) == "transformers"
    assert choose_engine(path, EvaluationSettings(engine="vllm"), CPU) == "vllm"
    assert choose_engine(path, EvaluationSettings(engine="transformers"), GPU) == "transformers"
    monkeypatch.setattr(evaluation_engine, "installed", lambda package: False)
    assert choose_engine(path, EvaluationSettings(), GPU) == "transformers"


@pytest.mark.usefixtures("with_vllm")
@pytest.mark.parametrize(
    ("settings", "device", "message"),
    [
        ({"tensor_parallel": 2, "data_parallel": 2}, GPU, "need 4 GPUs; torch sees 2"),
        ({"tensor_parallel": 3}, CPU, "--tensor-parallel 3 must divide the model's 4 attention heads"),
        ({}, torch.device("cuda:1"), "CUDA_VISIBLE_DEVICES=1"),
        ({"engine": "transformers", "tensor_parallel": 2}, GPU, "go with --engine vllm; here it is transformers"),
    ],
)
def test_what_vllm_cannot_do_is_named_before_it_starts(
    world: Path, settings: dict[str, Any], device: torch.device, message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        choose_engine(str(world.parent / "model"), EvaluationSettings(**{"engine": "vllm"} | settings), device)


def test_dtype_auto_is_the_models_own_on_a_gpu(tmp_path: Path, world: Path) -> None:
    config = json.loads((world.parent / "model" / "config.json").read_text())
    for dtype, on_gpu in (("bfloat16", "bfloat16"), ("float16", "float16"), ("float32", "float32"), (None, "float32")):
        (tmp_path / "config.json").write_text(json.dumps(config | {"dtype": dtype}))
        assert model_dtype(str(tmp_path), EvaluationSettings(), GPU) == on_gpu
        assert model_dtype(str(tmp_path), EvaluationSettings(), CPU) == "float32"
    assert model_dtype(str(tmp_path), EvaluationSettings(dtype="float16"), CPU) == "float16"
