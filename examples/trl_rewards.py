"""Reward functions as TRL's GRPOTrainer takes them, in each of its forms: `rewards` of trl_rewards.yaml.

Run it in this folder: hpt train trl_rewards.yaml. The functions are called in worker processes, on all rollouts of one
question at once, and get every column of the data, here `solution` and `task`. The data's prompts are messages, so
completions are, too.
"""

import asyncio
import re

from trl.rewards import get_soft_overlong_punishment

overlong = get_soft_overlong_punishment(max_completion_len=4, soft_punish_cache=2)


def right_sum(completions, solution, **kwargs):
    """Compares with a column of the data."""
    return [float(completion[0]["content"] == gold) for completion, gold in zip(completions, solution, strict=True)]


def is_a_number(completions, **kwargs):
    """A format, by a regular expression."""
    return [float(bool(re.fullmatch(r"\d+", completion[0]["content"]))) for completion in completions]


def unique_characters(completions, **kwargs):
    return [len(set(completion[0]["content"])) for completion in completions]


def short_for_small(completion_ids, task):
    """One of several tasks: None where it does not apply. Without **kwargs it gets what it names."""
    return [-len(ids) if each == "small" else None for ids, each in zip(completion_ids, task, strict=True)]


async def judged(prompts, completions, log_metric, **kwargs):
    """Could ask a judge over the network."""
    await asyncio.sleep(0.001)
    log_metric("empty", sum(not completion[0]["content"] for completion in completions))
    return [0.0 if completion[0]["content"] else -1.0 for completion in completions]
