"""vLLM's engine arguments for a recipe."""

from __future__ import annotations

import dataclasses
import os
from typing import Any

import torch

from hpt.config.schema import Config
from hpt.rollout.vllm.responses import logprobs_mode
from hpt.support.errors import ConfigError
from hpt.support.model_config import changed_entries

LORA_RANKS = (8, 16, 32, 64, 128, 256, 320, 512)
"""Values of max_lora_rank that vLLM accepts."""


def import_vllm() -> Any:
    """Imports vLLM, set up to run in this process; ConfigError if it is missing."""
    # The engine core must share this process, since it is given the trainer's tensors.
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
    try:
        import vllm
    except ImportError as error:
        raise ConfigError(f"rollout.engine \"vllm\" needs vLLM ({error}): pip install 'hpt[vllm]'") from error
    return vllm


def engine_arguments(config: Config, device: torch.device, longest_prompt: int | None) -> dict[str, Any]:
    """Arguments of `vllm.LLM` for a recipe; entries of `rollout.vllm.options` replace those chosen here.

    longest_prompt: in tokens; None: vLLM chooses the longest sequence by the memory it has.
    ConfigError if the adapters' rank or the number of processes does not fit.
    """
    settings = config.rollout.vllm
    arguments: dict[str, Any] = {
        "model": config.model.path,
        "dtype": config.model.dtype,
        "trust_remote_code": config.model.trust_remote_code,
        "load_format": "dummy",  # the trainer sends the weights
        "skip_tokenizer_init": True,
        "generation_config": "vllm",  # ignore the sampling defaults in the model's folder
        "logprobs_mode": logprobs_mode(config.rollout.top_p),
        "max_model_len": -1 if longest_prompt is None else longest_prompt + config.longest_response,
        "gpu_memory_utilization": settings.memory_share,
        "tensor_parallel_size": settings.tensor_parallel,
        "enforce_eager": device.type == "cpu",
        "enable_sleep_mode": device.type == "cuda" and settings.sleep_level > 0,
        "disable_log_stats": True,
    }
    if config.model.config:
        arguments["hf_overrides"] = changed_entries(
            config.model.path, config.model.config, trust_remote_code=config.model.trust_remote_code
        )
    if settings.adapters == "lora":
        assert config.model.lora is not None
        arguments |= {"enable_lora": True, "max_loras": 1, "max_lora_rank": _max_lora_rank(config.model.lora.rank)}
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


def _max_lora_rank(rank: int) -> int:
    """The smallest max_lora_rank of vLLM that adapters of `rank` fit into."""
    fitting = [allowed for allowed in LORA_RANKS if allowed >= rank]
    if not fitting:
        raise ConfigError(f"model.lora.rank = {rank}: vLLM takes adapters up to rank {LORA_RANKS[-1]}")
    return fitting[0]
