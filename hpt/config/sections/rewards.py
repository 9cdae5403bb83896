"""The reward of RL, put together from functions, and how these are called."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field

from hpt.config.sections.section import LARGEST_WAIT, Section, is_function_reference

VERIFIER = "verifier"
"""The word that stands for the verifier's score among the rewards."""

LARGEST_REWARD = 1e30
LARGEST_WEIGHT = 1e6
"""Bounds of one function's rewards and weight, in size: sums of such products, and the advantages that are made of
them, are finite in float32, the dtype of the loss."""


REWARDS_FORM = (
    'rewards are a list of "module:function", {function: "module:function", weight: 0.2} and verifier; in Python also '
    "of functions and pairs (function, weight)"
)


def _is_reward(value: str) -> str:
    return value if value == VERIFIER else is_function_reference(value)


class RewardConfig(Section):
    function: Annotated[str, AfterValidator(_is_reward)] = Field(
        description="module:function in TRL's form, (prompts, completions, **columns) -> a number or None of each "
        "completion; or verifier, the verifier's score"
    )
    weight: float = Field(
        1.0,
        ge=-LARGEST_WEIGHT,
        le=LARGEST_WEIGHT,
        description="the reward of RL is the sum of weight times value; 0: the reward is only recorded",
    )

    @property
    def name(self) -> str:
        """Its name in the metrics."""
        return self.function.rpartition(":")[2]


def _entries(value: Any) -> Any:
    """A single reward as a list, and each name as an entry."""
    values = [value] if isinstance(value, str | dict) else value
    if not isinstance(values, list | tuple):
        return value
    return [{"function": each} if isinstance(each, str) else each for each in values]


Rewards = Annotated[list[RewardConfig], BeforeValidator(_entries)]


class RewardCallsConfig(Section):
    """How the functions of `rewards` are called: once per question, with all of its rollouts."""

    workers: int = Field(2, ge=1, le=1024, description="processes that call reward functions at once")
    timeout: float = Field(
        60.0, gt=0, le=LARGEST_WAIT, description="seconds per call, which has all rollouts of a question"
    )
    memory_mb: int = Field(2048, ge=256, le=2**30, description="MiB per process, beyond what the functions import")
    on_error: Literal["stop", "none"] = Field(
        "stop",
        description="where a function raises, exceeds a limit or returns what is no reward. stop: the run ends, with "
        "a checkpoint; none: it counts as None for the rollouts of this question, and in reward/NAME/failures",
    )
