"""What holds for a response of vLLM, whether it was sampled in this process or by a server."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, cast

from hpt.config.schema import Config
from hpt.rollout.engine import Sampling
from hpt.rollout.rollout import Rollout
from hpt.support.errors import RolloutError

LOWEST_LOGPROB = -9999.0
"""What vLLM's server reports in place of lower ones."""


def logprobs_mode(config: Config) -> str:
    """vLLM's `logprobs_mode` for a run: it reports either before temperature and top-p (raw) or after both."""
    chosen = "raw_logprobs" if config.rollout.top_p < 1 else "processed_logprobs"
    return str(config.rollout.vllm.options.get("logprobs_mode", chosen))


def logprobs_known(mode: str, sampling: Sampling) -> bool:
    """Whether vLLM, in this `logprobs_mode`, reports those at the sampling temperature before the top-p cut."""
    if mode == "raw_logprobs":  # always at temperature 1
        return sampling.temperature in (0, 1)
    return sampling.top_p == 1


def checked_rollout(
    tokens: Sequence[int], logprobs: Sequence[float], finish_reason: str | None, *, known: bool
) -> Rollout:
    """The rollout; its log-probabilities are NaN where they are not `known`. RolloutError if it is not whole."""
    if finish_reason not in ("stop", "length") or len(logprobs) != len(tokens):
        raise RolloutError(
            f"vLLM ended a response with finish reason {finish_reason!r}, {len(tokens)} tokens and "
            f"{len(logprobs)} log-probabilities"
        )
    return Rollout(list(tokens), list(logprobs) if known else [math.nan] * len(tokens), cast(Any, finish_reason))
