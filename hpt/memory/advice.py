"""Which single change of a recipe that does not fit would make it fit."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from hpt.config import Config
from hpt.errors import HptError
from hpt.memory.plan import Plan, make_plan
from hpt.recipe import build_config, merge

Change = dict[str, Any]  # dotted keys and their values


def single_changes(plan: Plan, *, prompt_tokens: int | None = None) -> list[str]:
    """The changes that suffice on their own, as `key=value` for the command line, those that cost least first."""
    found: list[str] = []
    enough_gpus = False
    for change in _candidates(plan):
        if "hardware.gpus" in change and enough_gpus:
            continue
        if _fits(plan.config, change, prompt_tokens):
            found.append(" ".join(f"{key}={_yaml(value)}" for key, value in change.items()))
            enough_gpus |= "hardware.gpus" in change
    return found


def _candidates(plan: Plan) -> Iterator[Change]:
    """In the order of what they cost: nothing that is learnt, then speed, then what is trained, then hardware."""
    config = plan.config
    local = config.engine == "local"
    if config.rollout.engine == "transformers":
        if config.rollout.batch_size > 1:
            yield {"rollout.batch_size": config.rollout.batch_size // 2}
        if config.rollout.batch_size > 3:
            yield {"rollout.batch_size": config.rollout.batch_size // 4}
    else:
        if config.rollout.vllm.sleep_level != 2:
            yield {"rollout.vllm.sleep_level": 2}
        share = config.rollout.vllm.memory_share
        for by in (-0.05, -0.1, 0.1, 0.2):
            if 0 < share + by < 1:
                yield {"rollout.vllm.memory_share": round(share + by, 2)}
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
        yield from ({"deepspeed.stage": stage} for stage in range(config.deepspeed.stage + 1, 4))
        if not config.deepspeed.offload_optimizer:
            yield {"deepspeed.offload_optimizer": True}
    if config.model.lora is None and config.rl.advantage != "gae":
        yield {"model.lora": {"rank": 32}}
        if local:
            yield {"model.lora": {"rank": 32}, "model.quantization": "nf4"}
    elif local and config.model.quantization is None:
        yield {"model.quantization": "nf4"}
    gpus = plan.hardware.gpus
    if plan.hardware.gpu_bytes is not None:
        more = [count for count in (2, 4, 8, 16, 32, 64) if count > gpus]
        zero: Change = {} if not local else {"engine": "deepspeed", "deepspeed.stage": 3}
        yield from ({**zero, "hardware.gpus": count} for count in more)


def _fits(config: Config, change: Change, prompt_tokens: int | None) -> bool:
    settings = config.model_dump(mode="json")
    for key, value in change.items():
        for part in reversed(key.split(".")):
            value = {part: value}
        merge(settings, value)
    try:
        return make_plan(build_config(settings, source="advice"), prompt_tokens=prompt_tokens).fits
    except HptError:  # a combination that cannot be, or a package that is not here
        return False


def _yaml(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key}: {_yaml(item)}" for key, item in value.items()) + "}"
    return str(value)
