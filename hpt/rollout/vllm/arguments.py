"""vLLM's engine arguments, for the rollouts of a run and for an evaluation."""

from __future__ import annotations

import dataclasses
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from transformers import PreTrainedConfig

from hpt.config.schema import Config
from hpt.config.sections.model import ModelConfig
from hpt.rollout.vllm.responses import logprobs_mode
from hpt.support.errors import ConfigError
from hpt.support.model_config import changed_entries

LORA_RANKS = (8, 16, 32, 64, 128, 256, 320, 512)
"""Values of max_lora_rank that vLLM accepts."""

CPU_CACHE_BYTES = 4 << 30
"""The KV cache on a CPU, where vLLM would take its share of the whole machine's memory; VLLM_CPU_KVCACHE_SPACE wins."""


@dataclass(frozen=True)
class EngineSettings:
    """What vLLM is set up with.

    model: read are path, dtype, config and trust_remote_code. longest_sequence: of a prompt with its response, in
    tokens; None: vLLM chooses by the memory it has.
    loads_weights: vLLM reads the weights of model.path; otherwise it starts with dummy weights, and is given the
    policy's. quantization: those that it reads are put into 4 bits.
    lora_rank: of adapters that stay apart from the weights. adapters: their folder, where they never change.
    logprobs_mode: vLLM's (`hpt.rollout.vllm.responses`). options: further arguments of `vllm.LLM`, which replace
    others.
    """

    model: ModelConfig
    device: torch.device
    longest_sequence: int | None
    memory_share: float
    tensor_parallel: int = 1
    data_parallel: int = 1
    sleep_level: Literal[0, 1, 2] = 0
    loads_weights: bool = False
    quantization: Literal["nf4"] | None = None
    lora_rank: int | None = None
    adapters: Path | None = None
    logprobs_mode: str = "processed_logprobs"
    options: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def of_run(cls, config: Config, device: torch.device, longest_prompt: int | None) -> EngineSettings:
        """What a recipe asks for. longest_prompt: in tokens; None: vLLM chooses the longest sequence."""
        vllm, lora = config.rollout.vllm, config.model.lora
        return cls(
            model=config.model,
            device=device,
            longest_sequence=None if longest_prompt is None else longest_prompt + config.longest_response,
            memory_share=vllm.memory_share,
            tensor_parallel=vllm.tensor_parallel,
            sleep_level=vllm.sleep_level if device.type == "cuda" else 0,
            loads_weights=vllm.quantization is not None,
            quantization=vllm.quantization,
            lora_rank=lora.rank if lora and vllm.adapters == "lora" else None,
            logprobs_mode=logprobs_mode(config),
            options=vllm.options,
        )


def import_vllm() -> Any:
    """Imports vLLM, set up to run in this process; ConfigError if it is missing."""
    # The engine core must share this process, since it is given the trainer's tensors.
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
    try:
        import vllm
    except ImportError as error:
        raise ConfigError(f"vLLM cannot be imported ({error}): pip install 'hpt[vllm]'") from error
    return vllm


def engine_arguments(settings: EngineSettings) -> dict[str, Any]:
    """Arguments of `vllm.LLM`. ConfigError if the adapters' rank or the number of processes does not fit."""
    model = settings.model
    arguments: dict[str, Any] = {
        "model": model.path,
        "dtype": model.dtype,
        "trust_remote_code": model.trust_remote_code,
        "load_format": "auto" if settings.loads_weights else "dummy",
        "skip_tokenizer_init": True,
        "generation_config": "vllm",  # ignore the sampling defaults in the model's folder
        "logprobs_mode": settings.logprobs_mode,
        "max_model_len": -1 if settings.longest_sequence is None else settings.longest_sequence,
        "gpu_memory_utilization": settings.memory_share,
        "tensor_parallel_size": settings.tensor_parallel,
        "enable_prefix_caching": True,  # the responses to a question share its prompt
        "enforce_eager": settings.device.type == "cpu",
        "enable_sleep_mode": settings.sleep_level > 0,
        "disable_log_stats": True,
    }
    if settings.device.type == "cpu":
        arguments["kv_cache_memory_bytes"] = CPU_CACHE_BYTES
        # After a part of a prompt vLLM winds a request's generator back, which those of a CPU cannot do: it would end.
        arguments["enable_chunked_prefill"] = False
    if settings.data_parallel > 1:
        arguments["data_parallel_size"] = settings.data_parallel
    if settings.quantization:  # by the package vllm-bnb-plugin: NF4 with double quantization, as the trainer has it
        arguments |= {"quantization": "bitsandbytes", "load_format": "bitsandbytes"}
    if model.config:
        arguments["hf_overrides"] = changed_entries(model.path, model.config, trust_remote_code=model.trust_remote_code)
    if settings.lora_rank is not None:
        arguments |= {"enable_lora": True, "max_loras": 1, "max_lora_rank": max_lora_rank(settings.lora_rank)}
    processes = int(os.environ.get("WORLD_SIZE", "1"))  # set by the launcher
    if processes > 1:
        if processes % settings.tensor_parallel:
            raise ConfigError(
                f"rollout.vllm.tensor_parallel = {settings.tensor_parallel} does not divide the {processes} processes "
                "of this run"
            )
        arguments["distributed_executor_backend"] = "external_launcher"
    return arguments | settings.options


def check_options(config: Config) -> None:
    """ConfigError if `rollout.vllm.options` names an argument that vLLM does not have. Imports vLLM."""
    import_vllm()
    from vllm.engine.arg_utils import EngineArgs

    allowed = {field.name for field in dataclasses.fields(EngineArgs)}
    unknown = sorted(set(config.rollout.vllm.options) - allowed)
    if unknown:
        raise ConfigError(
            f"rollout.vllm.options: vLLM has no {', '.join(map(repr, unknown))}; allowed are the arguments of vllm.LLM"
        )


def check_heads(model: PreTrainedConfig | None, split: int, setting: str) -> None:
    """ConfigError where `split` GPUs cannot share one copy of the model. setting: the one that asks for it."""
    heads = getattr(model, "num_attention_heads", 0)
    if heads % split:
        raise ConfigError(f"{setting} {split} must divide the model's {heads} attention heads")


def check_platform(device: torch.device) -> None:
    """ConfigError where vLLM was built for another kind of device. Imports vLLM."""
    import_vllm()
    from vllm.platforms import current_platform

    if current_platform.device_type != device.type:
        raise ConfigError(f"device {device}: the vLLM that is installed runs on {current_platform.device_type}")


def max_lora_rank(rank: int) -> int:
    """The smallest max_lora_rank of vLLM that adapters of `rank` fit into. ConfigError where there is none."""
    fitting = [allowed for allowed in LORA_RANKS if allowed >= rank]
    if not fitting:
        raise ConfigError(f"adapters of rank {rank}: vLLM takes adapters up to rank {LORA_RANKS[-1]}")
    return fitting[0]
