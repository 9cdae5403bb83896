"""Which of vLLM's log-probabilities are those that are trained: at the sampling temperature, before the top-p cut."""

from __future__ import annotations

import pytest

from hpt.rollout import Sampling
from hpt.rollout.vllm.responses import logprobs_known


@pytest.mark.parametrize(
    ("mode", "temperature", "top_p", "known"),
    [
        ("processed_logprobs", 0.7, 1.0, True),
        ("processed_logprobs", 1.0, 0.9, False),
        ("raw_logprobs", 1.0, 0.9, True),
        ("raw_logprobs", 0.0, 1.0, True),
        ("raw_logprobs", 0.7, 1.0, False),
    ],
)
def test_known_log_probabilities(mode: str, temperature: float, top_p: float, known: bool) -> None:
    assert logprobs_known(mode, Sampling(1, 8, temperature=temperature, top_p=top_p)) is known
