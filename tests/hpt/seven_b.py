"""Full training of a model of 7B, of which only the config is read."""

from hpt.config.recipe import load_config
from hpt.config.schema import Config

SEVEN_B = [
    "model.path=Qwen/Qwen2.5-Math-7B",
    "model.dtype=bfloat16",
    "model.gradient_checkpointing=true",
    "data.max_prompt_tokens=1024",
    "rollout.max_tokens=8192",
    "rollout.batch_size=8",
    "batch.questions=128",
    "batch.tokens=16384",
    "prepare=null",
]


def seven_b(*settings: str) -> Config:
    return load_config("demo", [*SEVEN_B, *settings])
