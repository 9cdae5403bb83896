"""What a vLLM server and the trainer that uses it must agree on."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedConfig

from hpt.config.schema import Config
from hpt.rollout.vllm.connection import ServerConnection
from hpt.rollout.vllm.responses import logprobs_mode
from hpt.support.errors import ConfigError, HptError
from hpt.support.hub import missing_local_path
from hpt.support.model_config import changed_entries, read_model_config

NOT_OF_THE_MODEL = ("_name_or_path", "transformers_version", "dtype", "torch_dtype", "architectures")
"""Entries of a model's config that differ between copies of one model."""


def model_name(config: Config) -> str:
    """The name under which `hpt serve` serves a model: a digest of its config, so that another model has another."""
    entries = {key: value for key, value in served_config(config).to_dict().items() if key not in NOT_OF_THE_MODEL}
    return f"hpt-{hashlib.sha256(json.dumps(entries, sort_keys=True, default=str).encode()).hexdigest()[:16]}"


def served_config(config: Config) -> PreTrainedConfig:
    """The run's model's, with `model.config`. HptError where there is none."""
    model = config.model
    try:
        return read_model_config(model.path, model.config, trust_remote_code=model.trust_remote_code)
    except (OSError, ValueError) as error:
        problem = None if Path(model.path).expanduser().exists() else missing_local_path(model.path)
        problem = problem or f"its config cannot be read: {error}"
        raise HptError(f"model.path = {model.path!r}: {problem}") from error


def transfer_backend(config: Config, device: torch.device) -> str:
    """`rollout.vllm.weight_transfer`, with `auto` decided. ConfigError for one that the device cannot have."""
    backend = config.rollout.vllm.weight_transfer
    if backend == "auto":
        return "gloo" if device.type == "cpu" else "nccl"
    if backend != "gloo" and device.type == "cpu":
        raise ConfigError(f'rollout.vllm.weight_transfer = "{backend}" is between GPUs; on a CPU use auto or gloo')
    return backend


def check_server(server: ServerConnection, config: Config, device: torch.device, longest: int = 0) -> None:
    """HptError if the server cannot be reached, or does not serve this run's model with this run's settings.

    device: the trainer's. longest: tokens of the longest prompt and its response together.
    """
    server.probe()
    served = {entry["id"]: entry for entry in _list_of_models(server)}
    name = model_name(config)
    if name not in served:
        roots = ", ".join(sorted({str(entry.get("root")) for entry in served.values()}))
        raise HptError(
            f"{server} serves {roots}, another model than model.path = {config.model.path!r} (which would be served as "
            f"{name}, not as {', '.join(map(str, served))}). Start it with this run's recipe: hpt serve RECIPE"
        )
    theirs = _settings_of(server)
    for setting, ours in _settings_for(config, device).items():
        if theirs[setting] != ours:
            raise HptError(
                f"{server} was started with other settings: {setting} is {theirs[setting]!r} there and {ours!r} here. "
                "Start it with this run's recipe: hpt serve RECIPE"
            )
    limit = served[name].get("max_model_len")
    if not isinstance(limit, int) or limit < longest:
        raise HptError(
            f"{server} takes {limit} tokens of prompt and response, and this run's longest have {longest}. Start it "
            "with this run's recipe, whose data.max_prompt_tokens and lengths of responses it reads: hpt serve RECIPE"
        )


def _settings_for(config: Config, device: torch.device) -> dict[str, Any]:
    options, model = config.rollout.vllm.options, config.model
    overrides = options.get("hf_overrides", {})
    if model.config:
        overrides = changed_entries(model.path, model.config, trust_remote_code=model.trust_remote_code)
    return {
        "dtype": options.get("dtype", model.dtype),
        "logprobs_mode": logprobs_mode(config),
        "hf_overrides": json.loads(json.dumps(overrides)),
        "rollout.vllm.weight_transfer": transfer_backend(config, device),
    }


def _settings_of(server: ServerConnection) -> dict[str, Any]:
    answer = server.get("/server_info?config_format=json")
    try:
        info = answer["vllm_config"]
        model = info["model_config"]
        return {
            "dtype": str(model["dtype"]).removeprefix("torch."),
            "logprobs_mode": model["logprobs_mode"],
            "hf_overrides": model["hf_overrides"],
            "rollout.vllm.weight_transfer": (info["weight_transfer_config"] or {}).get("backend"),
        }
    except (KeyError, TypeError, AttributeError) as error:
        raise HptError(f"{server} does not say how it was started: /server_info has no {error}") from error


def _list_of_models(server: ServerConnection) -> list[dict[str, Any]]:
    answer = server.get("/v1/models")
    if isinstance(answer, dict) and isinstance(answer.get("data"), list):
        return [entry for entry in answer["data"] if isinstance(entry, dict) and isinstance(entry.get("id"), str)]
    raise HptError(f"{server} answers /v1/models with {str(answer)[:80]!r}: it is not a vLLM server")
