"""Changes of a recipe that save memory: the one list for `hpt plan` and for a run that is out of memory."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from hpt.config.recipe import build_config, merge, nested
from hpt.config.schema import Config

Change = dict[str, Any]
"""New values of settings, by dotted key."""


def saving_changes(config: Config) -> Iterator[Change]:
    """Single changes that save memory, in the order of what they cost.

    First those that leave what is learnt as it is, then those that cost speed, then those that train less.
    """
    local = config.engine == "local"
    if config.rollout.engine == "transformers":
        if config.rollout.batch_size > 1:
            yield {"rollout.batch_size": config.rollout.batch_size // 2}
        if config.rollout.batch_size > 3:
            yield {"rollout.batch_size": config.rollout.batch_size // 4}
    if config.rollout.engine == "vllm":
        quantized = config.rollout.vllm.quantization is not None
        if config.rollout.vllm.sleep_level == 0 and quantized:
            yield {"rollout.vllm.sleep_level": 1}
        if config.rollout.vllm.sleep_level != 2 and not quantized:
            yield {"rollout.vllm.sleep_level": 2}
        share = config.rollout.vllm.memory_share
        for by in (-0.05, -0.1, 0.1, 0.2):
            if 0 < share + by < 1:
                yield {"rollout.vllm.memory_share": round(share + by, 2)}
        if config.model.quantization and not quantized:
            yield {
                "rollout.vllm.quantization": "nf4",
                "rollout.vllm.adapters": "lora",
                "rollout.vllm.sleep_level": 1,
            }
    if config.model.dtype == "float32":
        yield {"model.dtype": "bfloat16"}
    if not config.model.gradient_checkpointing:
        yield {"model.gradient_checkpointing": True}
    if config.batch.tokens > 1:
        yield {"batch.tokens": config.batch.tokens // 2}
    if local and config.optimizer.states == "float32":
        yield {"optimizer.states": "8bit"}
    if config.model.gradient_checkpointing != "offload":
        yield {"model.gradient_checkpointing": "offload"}
    if local and not config.optimizer.offload:
        yield {"optimizer.offload": True}
    if not local:
        for stage in range(config.deepspeed.stage + 1, 4):
            yield {"deepspeed.stage": stage}
        if not config.deepspeed.offload_optimizer:
            yield {"deepspeed.offload_optimizer": True}
    if config.model.lora is None and config.rl.advantage != "gae":
        yield {"model.lora": {"rank": 32}}
        if local:
            yield {"model.lora": {"rank": 32}, "model.quantization": "nf4"}
    elif config.model.lora and local and config.model.quantization is None:
        yield {"model.quantization": "nf4"}


def with_change(config: Config, change: Change) -> Config:
    """The recipe with a change. HptError if it is not allowed."""
    settings = config.model_dump(mode="json")
    for key, value in change.items():
        merge(settings, nested(key, value))
    return build_config(settings, source="advice")


def as_settings(change: Change) -> str:
    """The change as `key=value` settings for the command line."""
    return " ".join(f"{key}={_yaml(value)}" for key, value in change.items())


def _yaml(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key}: {_yaml(item)}" for key, item in value.items()) + "}"
    return str(value)
