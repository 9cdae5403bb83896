"""Seconds per step to bring the policy's weights to vLLM, and to put vLLM to sleep and wake it."""

from __future__ import annotations

from hpt.config.schema import Config
from hpt.timing.machine import Machine
from hpt.timing.shape import ModelShape

# Seconds that vLLM takes to fall asleep and wake up beside the bytes it copies: memory is mapped anew.
SLEEP_AND_WAKE = 2.0
# Passes over a weight that is merged with its adapters: its float32 copy, the adapters' product, their sum, the cast.
MERGING_PASSES = 10


def sync_seconds(config: Config, shape: ModelShape, machine: Machine, asleep: int = 0) -> float:
    """0 for the transformers engine, which generates with the model that is trained.

    asleep: bytes of vLLM's own weights on each GPU, which sleep level 1 moves to CPU memory and back.
    """
    if config.rollout.engine != "vllm":
        return 0.0
    settings = config.rollout.vllm
    size = float((shape.body + 2 * shape.head) * shape.itemsize)
    separate = config.model.lora is not None and settings.adapters == "lora"
    if separate:
        size = float(shape.adapters * shape.itemsize)
    passes = 2 if config.model.lora is None or separate else MERGING_PASSES
    seconds = passes * size / machine.bandwidth
    if config.engine == "deepspeed" and config.deepspeed.stage == 3:
        seconds += size / machine.link
    if settings.url is not None:
        return seconds + size / machine.link
    if settings.sleep_level:
        seconds += SLEEP_AND_WAKE
    if settings.sleep_level == 1:
        seconds += 2 * asleep / machine.host_link
    return seconds
