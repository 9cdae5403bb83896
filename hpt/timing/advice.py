"""Which single change of a recipe would make it faster: each of a fixed list is planned, in memory and time."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from hpt.config.schema import Config
from hpt.memory.plan import MemoryPlan, largest, plan_stages
from hpt.memory.savings import Change, as_settings, with_change
from hpt.support.errors import HptError
from hpt.timing.lengths import mean_under
from hpt.timing.plan import StepTime, TimePlan, Workload, step_time

Kind = Literal["settings", "hardware", "method"]

# A change that saves less than this share of a run's time is not named.
LEAST_GAIN = 0.03


@dataclass(frozen=True)
class Speedup:
    """A change, as `key=value`, and the share of the run's time that it saves.

    kind: settings leave what is learnt as it is; hardware needs more GPUs; method changes what is learnt.
    """

    kind: Kind
    change: str
    gain: float


def speedups(plans: Sequence[MemoryPlan], time: TimePlan) -> list[Speedup]:
    """The change of each kind that helps most, if one does: on the same GPUs, with more of them, and of the method.

    plans: the memory plans of the run's stages. Changes that do not fit into memory are left out; where the run itself
    does not fit, there are none.
    """
    config = plans[0].config
    if not largest(plans).fits or len(plans) > 1:  # a stage's settings may override a change of the run's
        return []
    best: dict[Kind, Speedup] = {}
    for kind, change in _changes(config, plans[0]):
        seconds = _seconds_with(config, change, time.stages[0])
        if seconds is None:
            continue
        gain = 1 - seconds / time.stages[0].seconds
        if gain >= LEAST_GAIN and (kind not in best or gain > best[kind].gain):
            best[kind] = Speedup(kind, as_settings(change), gain)
    return [best[kind] for kind in ("settings", "hardware", "method") if kind in best]


def _seconds_with(config: Config, change: Change, step: StepTime) -> float | None:
    """Seconds of a step with the change; None if it is not possible or does not fit."""
    try:
        changed = with_change(config, change)
        (plan,) = plan_stages(changed)
        if not plan.fits:
            return None
        limit = changed.rollout.max_tokens
        mean = mean_under(step.workload.response, step.workload.limit, limit)
        return step_time(plan, Workload(step.workload.prompt, mean, limit)).seconds
    except HptError:  # the recipe rules this change out, or a package for it is not installed
        return None


def _changes(config: Config, plan: MemoryPlan) -> Iterator[tuple[Kind, Change]]:
    settings, vllm = config.rollout, config.rollout.vllm
    on_gpus = plan.hardware.gpu_bytes is not None
    if settings.engine == "transformers":
        for factor in (2, 4, 8):
            yield "settings", {"rollout.batch_size": factor * settings.batch_size}
        if on_gpus:
            for share in (0.4, 0.6):
                yield "settings", {"rollout.engine": "vllm", "rollout.vllm.memory_share": share}
    elif vllm.url is None:
        for more in (0.05, 0.1, 0.2, 0.3):
            if vllm.memory_share + more < 0.95:
                yield "settings", {"rollout.vllm.memory_share": round(vllm.memory_share + more, 2)}
        if vllm.sleep_level == 1:
            yield "settings", {"rollout.vllm.sleep_level": 2}
        yield "settings", {"rollout.vllm.sleep_level": 0}
        if config.model.lora and vllm.adapters == "merged":
            yield "settings", {"rollout.vllm.adapters": "lora"}
        if plan.hardware.gpus > 1:
            yield "settings", {"rollout.vllm.tensor_parallel": 2 * vllm.tensor_parallel}
    if config.model.gradient_checkpointing:
        yield "settings", {"model.gradient_checkpointing": False}
    if config.model.gradient_checkpointing == "offload":
        yield "settings", {"model.gradient_checkpointing": True}
    if on_gpus and config.model.attention == "auto":
        yield "settings", {"model.attention": "flash_attention_2"}
    yield "settings", {"batch.tokens": 2 * config.batch.tokens}
    yield "settings", {"batch.tokens": max(1, config.batch.tokens // 2)}
    if config.optimizer.offload:
        yield "settings", {"optimizer.offload": False}
    if on_gpus:
        zero: Change = {} if config.engine == "deepspeed" else {"engine": "deepspeed", "deepspeed.stage": 3}
        yield "hardware", {**zero, "hardware.gpus": 2 * plan.hardware.gpus}
    if settings.max_tokens > 1:
        yield "method", {"rollout.max_tokens": settings.max_tokens // 2}
    if config.model.lora is None and config.rl.advantage != "gae":
        yield "method", {"model.lora": {"rank": 32}}
