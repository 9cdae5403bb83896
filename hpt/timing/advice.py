"""Which single change of a recipe would make it faster: each of a fixed list is planned, in memory and time."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import Literal

from hpt.config.schema import Config
from hpt.memory.hardware import hardware_of
from hpt.memory.plan import MemoryPlan, attention_of, largest, plan_stages
from hpt.memory.savings import Change, with_change
from hpt.support.errors import HptError
from hpt.timing.lengths import mean_under
from hpt.timing.plan import TimePlan, Workload, step_time

Kind = Literal["settings", "variance", "hardware", "method"]
KINDS: tuple[Kind, ...] = ("settings", "variance", "hardware", "method")

# A change that saves less than this share of a run's time is not named.
LEAST_GAIN = 0.03


@dataclass(frozen=True)
class Speedup:
    """A change of settings, and the share of the run's time that it saves.

    kind: settings leave what is learnt as it is; variance keeps the expectation of the gradient only; hardware needs
        more GPUs; method changes what is learnt.
    response_tokens: the mean length that the change leads to, where it leads to another one.
    """

    kind: Kind
    change: Change
    gain: float
    response_tokens: int | None = None


def speedups(plans: Sequence[MemoryPlan], time: TimePlan) -> list[Speedup]:
    """The change of each kind that helps most, where one does.

    plans: the memory plans of the run's stages. Changes that do not fit into memory are left out; where the run itself
    does not fit, there are none.
    """
    if why_no_speedups(largest(plans), time):
        return []
    (plan,), (step,) = plans, time.stages
    faster: list[Speedup] = []
    for kind, change in _changes(plan):
        workload = _workload_with(change, step.workload)
        seconds = _seconds_with(plan, change, workload)
        if seconds is not None and (gain := 1 - seconds / step.seconds) >= LEAST_GAIN:
            mean = None if workload is step.workload else round(workload.response)
            faster.append(Speedup(kind, change, gain, mean))
    faster.sort(key=lambda speedup: -speedup.gain)
    found = []
    for kind in KINDS:
        fitting = (each for each in faster if each.kind == kind and _fits(plan.config, each.change))
        found += list(islice(fitting, 1))
    return found


def why_no_speedups(memory: MemoryPlan, time: TimePlan) -> str | None:
    """Why no change is looked for, as a sentence. memory: the plan of the stage that needs most."""
    if not memory.fits:
        return "What would make it faster is planned for runs that fit only."
    if len(time.stages) > 1:
        return (
            "What would make it faster is not planned for runs in stages, whose settings may override a change of the "
            "run's."
        )
    return None


def _workload_with(change: Change, workload: Workload) -> Workload:
    """The same lengths, cut where the change has the limit; the mean as --response-tokens takes it."""
    limit = change.get("rollout.max_tokens", workload.limit)
    if limit == workload.limit:
        return workload
    mean = max(1, round(mean_under(workload.response, workload.limit, limit)))
    return Workload(workload.prompt, mean, limit)


def _seconds_with(plan: MemoryPlan, change: Change, workload: Workload) -> float | None:
    """Seconds of a step with the change, whether it fits or not; None if it is not possible."""
    try:
        config = with_change(plan.config, change)
        return step_time(_changed(plan, config), workload).seconds
    except HptError:  # the recipe rules this change out, or a package for it is not installed
        return None


def _changed(plan: MemoryPlan, config: Config) -> MemoryPlan:
    """A plan for `config` that is right for the time at least: traced anew only where the model's shape changes."""
    before, after = plan.config.rollout, config.rollout
    same_cache = after.engine == "transformers" or (after.engine == before.engine and after.vllm == before.vllm)
    if not same_cache or config.model.lora != plan.config.model.lora:
        return plan_stages(config)[0]
    hardware = hardware_of(config)
    attention = attention_of(config, hardware, config.packs_rows(hardware.device))
    return replace(plan, config=config, hardware=hardware, attention=attention)


def _fits(config: Config, change: Change) -> bool:
    try:
        return largest(plan_stages(with_change(config, change))).fits
    except HptError:
        return False


def _changes(plan: MemoryPlan) -> Iterator[tuple[Kind, Change]]:
    config = plan.config
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
    if settings.probe is None and settings.n >= 4 and config.gate.needs_rollouts:
        # As planned, with training alone shorter.
        yield "variance", {"rollout.probe": settings.n // 2}
    yield "settings", {"batch.tokens": 2 * config.batch.tokens}
    yield "settings", {"batch.tokens": max(1, config.batch.tokens // 2)}
    if config.optimizer.offload:
        yield "settings", {"optimizer.offload": False}
    if config.deepspeed.offload_optimizer:
        yield "settings", {"deepspeed.offload_optimizer": False}
    if on_gpus:
        zero: Change = {} if config.engine == "deepspeed" else {"engine": "deepspeed", "deepspeed.stage": 3}
        yield "hardware", {**zero, "hardware.gpus": 2 * plan.hardware.gpus}
    if settings.max_tokens > 1:
        yield "method", {"rollout.max_tokens": settings.max_tokens // 2}
