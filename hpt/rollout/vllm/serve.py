"""The command line and the environment of vLLM's server for a run."""

from __future__ import annotations

import ipaddress
import json
import os
import sys
from collections.abc import Mapping
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

import torch

from hpt.config.schema import Config
from hpt.rollout.vllm.arguments import EngineSettings, check_heads, engine_arguments
from hpt.rollout.vllm.identity import model_name, served_config, transfer_backend
from hpt.support.errors import ConfigError

GUARD = "hpt.rollout.vllm.guard.Guard"


def server_command(config: Config, device: torch.device, host: str, port: int) -> list[str]:
    """vLLM's OpenAI server with the run's model and settings; the trainer sends the weights.

    HptError where the model has no config, or not as many attention heads as `rollout.vllm.tensor_parallel` needs, and
    for `rollout.vllm.weight_transfer: ipc` with a host that other machines reach.
    """
    check_heads(served_config(config), config.rollout.vllm.tensor_parallel, "rollout.vllm.tensor_parallel =")
    backend = transfer_backend(config, device)
    if backend == "ipc" and not is_loopback(host):
        raise ConfigError(
            f'rollout.vllm.weight_transfer = "ipc" with --host {host}: ipc lets who has the key run any code here, and '
            "trainer and server share a GPU anyway; leave the host at 127.0.0.1"
        )
    arguments = engine_arguments(EngineSettings.of_run(config, device, config.data.max_prompt_tokens))
    arguments |= {
        "host": host,
        "port": port,
        "served_model_name": [model_name(config), config.model.path],
        "middleware": [GUARD],
        "weight_transfer_config": {"backend": backend},
        "disable_uvicorn_access_log": True,  # one line for each rollout
    }
    path = arguments.pop("model")
    # On a CPU `vllm serve` fails; its module works.
    program = (
        ["vllm", "serve", path]
        if device.type == "cuda"
        else [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", path]
    )
    return [*program, *(flag for name, value in arguments.items() for flag in _flags(name, value))]


def server_settings(config: Config, device: torch.device) -> dict[str, str]:
    """Environment variables that the server needs besides its key."""
    settings = {"VLLM_SERVER_DEV_MODE": "1"}  # vLLM has the control endpoints in this mode only
    if transfer_backend(config, device) == "ipc":
        settings["VLLM_ALLOW_INSECURE_SERIALIZATION"] = "1"  # the handles of GPU memory are pickles
    return settings


def run_in_place(command: list[str], environment: Mapping[str, str]) -> None:
    """Replaces this process by the command, with the interpreter's folder first on the path."""
    sys.stdout.flush()
    sys.stderr.flush()
    path = f"{Path(sys.executable).parent}{os.pathsep}{environment.get('PATH', os.defpath)}"
    os.execvpe(command[0], command, {**environment, "PATH": path})


def check_plugin(config: Config, device: torch.device) -> None:
    """ConfigError where vLLM would not find the weight transfer "gloo", which hpt's installation names to it."""
    known = {entry.name for entry in entry_points(group="vllm.general_plugins")}
    if transfer_backend(config, device) == "gloo" and "hpt" not in known:
        raise ConfigError(
            'rollout.vllm.weight_transfer "gloo": hpt is not installed, or an older hpt is, so vLLM would not find its '
            "part: pip install hpt again, in this environment"
        )


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches `host`."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _flags(name: str, value: Any) -> list[str]:
    """An argument of vLLM's engine as flags of its command line."""
    flag = f"--{name.replace('_', '-')}"
    if value is None:
        return []
    if isinstance(value, bool):
        return [flag if value else flag.replace("--", "--no-", 1)]
    if isinstance(value, list):
        return [flag, *map(str, value)]
    return [f"{flag}={json.dumps(value) if isinstance(value, dict) else value}"]
